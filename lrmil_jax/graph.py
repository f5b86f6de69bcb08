"""The stages, what each depends on, and the fingerprint of all that its result comes from."""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from lrmil_jax import config as configuration
from lrmil_jax import methods, tasks
from lrmil_jax.data import subgroups
from lrmil_jax.errors import WorkdirError
from lrmil_jax.methods import delivery
from lrmil_jax.models import trained
from lrmil_jax.workspace import cohorts, foreign, provenance, statuses, teachers


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: its module is `lrmil_jax.stages.<name>`, its work is that module's `run`.

    Attributes:
      name: also the folder of its output.
      keys: config keys, or beginnings of keys, that its result depends on.
      except_keys: those of `keys` that it does not depend on.
      after: stages whose results it reads.
      per_fold: runs once a fold.
      parted: its slides may be done by runs that know nothing of each other (`--shard`).
      alone: one process does it, the first of several, as it does not take long.
      by_slide: keeps its own account slide by slide, so it has no fingerprint to skip it.
      looks_again: runs even when complete: it makes what has been deleted since, and only that.
      own_inputs: its module's `inputs(config)` says what the files hold that it reads.
      own_checks: its module's `check(config, workdir, classes)` finds before anything runs what it
        would find after hours; `classes` are the cohort's.
    """

    name: str
    keys: tuple[str, ...] = ()
    except_keys: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    per_fold: bool = False
    parted: bool = False
    alone: bool = False
    by_slide: bool = False
    looks_again: bool = False
    own_inputs: bool = False
    own_checks: bool = False


_IDENTITY = (
    *("seed", "geometry.", "task", "data.classes", "data.label_column"),
    *("data.time_column", "data.event_column", "data.bins"),
)
# What the student learns from its teacher: the baseline, which has none, does not depend on it.
_TEACHING = (
    *("student.no_distillation", "student.lambda_", "student.temperature_"),
    *("student.topk", "student.guide", "student.hard"),
)
# What makes an encoder's features its own, beside the type in which they are stored.
_ENCODER = ("encoder.name", "encoder.weights", "encoder.px")
# Config blocks of trainings; how often these save changes no result.
_LEARNING = ("pretrain", "teacher", "distill", "student", "align", "mil")
STAGES = {
    stage.name: stage
    for stage in (
        Stage("pretrain", keys=("pretrain.", *_ENCODER, "data.tiles", "data.captions",
                                "synthetic.", "seed", "geometry."),
              own_inputs=True),
        Stage("prepare", keys=("prepare.min_tissue", "prepare.tissue_", "prepare.ink",
                               "prepare.reader", "prepare.hr", "prepare.jpeg_quality",
                               "synthetic.", *_IDENTITY),
              parted=True, by_slide=True),
        Stage("encode_hr", keys=(*_ENCODER, "encoder.dtype", "features.dtype"),
              after=("pretrain", "prepare"), parted=True, by_slide=True),
        Stage("import_features", keys=("features.dtype",), after=("prepare",), parted=True,
              by_slide=True),
        Stage("teacher", keys=("teacher.",), after=("encode_hr", "import_features"),
              per_fold=True, looks_again=True),
        Stage("distill", keys=("distill.", "encoder.lr_px"),
              # What the other runs hold is an input, wherever they lie.
              except_keys=("distill.teachers",), after=("teacher",), per_fold=True,
              own_checks=True),
        Stage("encode_lr", after=("distill",), per_fold=True, parted=True, looks_again=True),
        Stage("student", keys=("student.",), except_keys=("student.no_distillation",),
              after=("teacher", "encode_lr"), per_fold=True, own_checks=True),
        Stage("sweep", keys=("student.", "sweep.points"), except_keys=("student.no_distillation",),
              after=("teacher", "encode_lr", "student"), per_fold=True),
        Stage("baseline", keys=("student.", *_ENCODER, "encoder.lr_px", "encoder.dtype",
                                "features.dtype"),
              except_keys=_TEACHING, after=("pretrain", "prepare", "import_features"),
              per_fold=True, looks_again=True),
        Stage("text", keys=("text.",), after=("pretrain", "prepare"), alone=True,
              own_inputs=True, own_checks=True),
        Stage("align", keys=("align.", "encoder.lr_px", "encoder.dtype", "features.dtype"),
              after=("text",),
              per_fold=True),
        Stage("select", keys=("select.",), after=("align",), per_fold=True),
        Stage("encode_selected", after=("select",), per_fold=True, parted=True),
        Stage("fuse", keys=("fuse.",), after=("encode_selected",), per_fold=True, parted=True),
        Stage("mil", keys=("mil.",), after=("fuse",), per_fold=True),
        Stage("two_scale", keys=("method", "mil.", "select.rho", "select.count", *_ENCODER,
                                 "encoder.lr_px", "encoder.dtype", "features.dtype"),
              after=("encode_hr",), per_fold=True, looks_again=True),
        Stage("evaluate", keys=("evaluate.", "method", "student.no_distillation", "data.mask"),
              after=("teacher", "student", "baseline", "mil", "two_scale"), per_fold=True,
              alone=True),
        Stage("report", keys=("report.", "deliver"),
              after=("evaluate", "teacher", "student", "baseline", "mil", "two_scale"), alone=True),
        Stage("export", keys=("export.",), alone=True, by_slide=True),
        Stage("zero_shot", keys=("text.", *_ENCODER, "encoder.dtype", "data.tiles", "data.classes",
                                 "report.tiles", "synthetic.", "geometry.patch_px", "seed"),
              alone=True, own_inputs=True, own_checks=True),
    )
}  # fmt: skip

# Stage 1 without labels and without a teacher's attention: once for all folds.
_ONCE = {
    "distill": dataclasses.replace(
        STAGES["distill"], after=("encode_hr", "import_features"), per_fold=False
    ),
    "encode_lr": dataclasses.replace(STAGES["encode_lr"], per_fold=False),
}
# Keys that came after runs had been made, with the value that is what those runs did: their stages
# are not made anew for a key that they did not know.
_LATER = {
    **dict.fromkeys(("encoder.px", "encoder.lr_px", "pretrain.init"), None),
    **dict.fromkeys(("distill.student", "distill.weights"), None),
    "pretrain.image": "whole",
    "pretrain.rank": 8,
    "distill.rank": 0,
    "distill.per_fold": True,
    **dict.fromkeys(("pretrain.layer_decay", "distill.layer_decay"), 1.0),
    **dict.fromkeys((f"{block}.instances" for block in ("teacher", "student", "mil")), 1.0),
    **dict.fromkeys((f"{block}.mixup" for block in ("teacher", "student", "mil")), 0.0),
    **dict.fromkeys(("distill.stain_jitter", "align.stain_jitter"), 0.0),
}


# What makes HR features, and what reads LR tiles to distil an encoder.
_MAKE_HR, _READ_LR = ("pretrain", "encode_hr"), ("distill", "encode_lr")
# What learns from the teachers of other runs.
_TAUGHT = ("distill", "student")


def stage_of(name: str, *, per_fold: bool) -> Stage:
    """A stage by its name; `per_fold` is `distill.per_fold`."""
    return STAGES[name] if per_fold else _ONCE.get(name, STAGES[name])


def module(stage: Stage) -> ModuleType:
    """Where the stage's work is."""
    return importlib.import_module(f"lrmil_jax.stages.{stage.name}")


def check(config: ConfigDict, workdir: Path, stage: Stage, classes: tuple[str, ...]) -> None:
    """The stage's own checks, if it has some, before anything runs.

    Raises:
      UserError: what it would refuse later.
    """
    if stage.own_checks:
        module(stage).check(config, workdir, classes)


def stage_names(config: ConfigDict) -> tuple[str, ...]:
    """The stages of the config's method, in order; with features of another tool, one that takes
    them over instead of those that would make them."""
    names = methods.of(config).stage_names(config)
    if not foreign.given(config):
        return names
    left_out = _MAKE_HR if foreign.reads_slides(config) else (*_MAKE_HR, *_READ_LR)
    names = tuple(name for name in names if name not in left_out)
    after = names.index("prepare") + 1
    return (*names[:after], "import_features", *names[after:])


def with_inputs(config: ConfigDict, names: Collection[str]) -> set[str]:
    """These stages, and all that come before them in the config's method."""
    order = stage_names(config)
    wanted = set(names)
    for name in names:
        stage = stage_of(name, per_fold=config.distill.per_fold)
        before = (one for one in stage.after if one in order)
        wanted |= with_inputs(config, tuple(before))
    return wanted


def folds(config: ConfigDict, stage: Stage) -> tuple[int | None, ...]:
    """The folds that a stage runs for, the final model last; (None,) if it runs once.

    The final model is trained where the method delivers one, several folds are there to say how
    good it is, and it is asked for.
    """
    if not stage.per_fold:
        return (None,)
    main = methods.of(config).main
    if main is not None and stage in _up_to(STAGES[main.stage]):
        return delivery.trainings(config)
    return tuple(range(1, config.folds + 1))


def _up_to(stage: Stage) -> list[Stage]:
    """The stage and all those before it that may run once a fold."""
    return [stage, *(other for name in stage.after for other in _up_to(STAGES[name]))]


def fingerprint(config: ConfigDict, workdir: Path, stage: Stage, fold: int | None) -> str:
    """A hash of everything that the stage's result depends on, stages before it included."""
    return _digest(_content(config, workdir, stage, fold))


def _content(config: ConfigDict, workdir: Path, stage: Stage, fold: int | None) -> dict[str, Any]:
    flat = configuration.flatten(config)
    keys = needed_keys(flat, stage, possible_stages(config))
    return {
        "stage": stage.name,
        "fold": fold,
        "keys": {key: flat[key] for key in keys if key not in _LATER or flat[key] != _LATER[key]},
        "inputs": _inputs(config, workdir, stage, fold, by_subgroup="evaluate.subgroups" in keys),
    }


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def made_of(config: ConfigDict, workdir: Path, stage: Stage, fold: int | None) -> dict[str, Any]:
    """What the stage's fingerprint is made of, for `differences`: the values of keys, and a hash of
    each input."""
    content = _content(config, workdir, stage, fold)
    inputs = {name: _digest(value) for name, value in content["inputs"].items()}
    return json.loads(json.dumps({"keys": content["keys"], "inputs": inputs}, default=str))


def possible_stages(config: ConfigDict) -> Collection[str]:
    """The stages whose keys a result may depend on: also those that a key of the config leaves
    out, so that leaving one out does nothing again but what follows from it."""
    return stage_names(config) if foreign.given(config) else methods.of(config).stages


def needed_keys(flat: dict, stage: Stage, names: Collection[str]) -> list[str]:
    """The keys that a stage's result depends on, through the stages before it too.

    Args:
      flat: the config.
      stage: of which.
      names: the stages that there may be before it.
    """
    own = (key for key in flat if key.startswith(stage.keys))
    left_out = (*stage.except_keys, *(f"{block}.checkpoint_seconds" for block in _LEARNING))
    keys = {key for key in own if not key.startswith(left_out)}
    per_fold = flat["distill.per_fold"]
    before = (stage_of(name, per_fold=per_fold) for name in stage.after if name in names)
    return sorted(keys.union(*(needed_keys(flat, one, names) for one in before)))


def _inputs(
    config: ConfigDict, workdir: Path, stage: Stage, fold: int | None, *, by_subgroup: bool
) -> dict:
    """Labels, splits, slide files and encoder weights, as far as the stage comes after them."""
    own = _own_inputs(config, stage)
    if not stage.after:
        return own
    cohort = cohorts.prepared(config, workdir)
    columns = ["slide_id", "patient_id", *cohort.task.columns]
    if by_subgroup:
        columns += [c for c in cohort.table if c.startswith(subgroups.PREFIX)]
    columns += [f"fold_{fold}"] if fold else [c for c in cohort.table if c.startswith("fold_")]
    columns += [name for name in ("measured_as",) if name in cohort.table]
    sources = [statuses.read(workdir, name)["source"] for name in cohort.table.slide_id]
    recorded = provenance.read(workdir).get("encoder")
    maker = next((s for s in ("encode_hr", "import_features") if s in stage_names(config)), None)
    if recorded is None and maker is not None:
        raise WorkdirError(f"{workdir} has no HR features yet; run --stages {maker} first")
    if cohort.task.pooling != tasks.POOLINGS[0]:
        own = own | {"pooling": cohort.task.pooling}
    if config.distill.teachers and any(one.name in _TAUGHT for one in _up_to(stage)):
        own = own | {"teachers": teachers.inputs(config, _teaching_folds(config, stage, fold))}
    return own | {
        "table": cohort.table[columns].to_csv(index=False),
        "sources": sources,
        "encoder": recorded or trained.encoder_facts(config, workdir),
    }


def _teaching_folds(config: ConfigDict, stage: Stage, fold: int | None) -> tuple[int, ...]:
    """The folds whose teachers a result depends on; none of one encoder for all folds."""
    if stage in _ONCE.values():
        return ()
    return delivery.trainings(config) if fold is None else (fold,)


def _own_inputs(config: ConfigDict, stage: Stage) -> dict:
    """What the stage, and those before it, read from files that no other input names."""
    found = {}
    for name in stage.after:
        if name in possible_stages(config):
            before = stage_of(name, per_fold=config.distill.per_fold)
            found |= _own_inputs(config, before)
    if stage.own_inputs:
        found |= {stage.name: module(stage).inputs(config)}
    return found
