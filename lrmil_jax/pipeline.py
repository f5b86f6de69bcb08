"""The stages in order, what each depends on, and what is skipped, redone or gone on with.

Two kinds of stages. `prepare` and the encoding stages work slide by slide: a finished file stays,
and `cohort.json` refuses to mix two configs. Training stages carry a fingerprint of the config
keys and of the stages before them: the same fingerprint and a finished stage is skipped, the same
and unfinished goes on where it was, another one is made anew.
"""

import dataclasses
import hashlib
import importlib
import json
import logging
import shutil
import time
from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax import config as configuration
from lrmil_jax import files
from lrmil_jax.encoders import pretrained
from lrmil_jax.errors import ConfigError, WorkdirError
from lrmil_jax.stages import layout, models

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: its module is `lrmil_jax.stages.<name>`, its work is that module's `run`.

    Attributes:
      name: also the folder of its output.
      keys: config keys, or beginnings of keys, that its result depends on.
      except_keys: those of `keys` that it does not depend on.
      after: stages whose results it reads.
      per_fold: runs once a fold.
      by_slide: keeps its own account slide by slide, so it has no fingerprint to skip it.
      looks_again: runs even when complete: it makes what has been deleted since, and only that.
    """

    name: str
    keys: tuple[str, ...] = ()
    except_keys: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    per_fold: bool = False
    by_slide: bool = False
    looks_again: bool = False


_IDENTITY = ("seed", "geometry.", "data.classes", "data.label_column")
# What the student learns from its teacher: the baseline, which has none, does not depend on it.
_TEACHING = (
    *("student.no_distillation", "student.lambda_", "student.temperature_"),
    *("student.topk", "student.guide", "student.hard"),
)
STAGES = {
    stage.name: stage
    for stage in (
        Stage("pretrain", keys=("pretrain.", "encoder.name", "encoder.weights", "data.tiles",
                                "synthetic.", *_IDENTITY)),
        Stage("prepare", keys=("prepare.min_tissue", "prepare.tissue_mpp", "prepare.reader",
                               "prepare.hr", "prepare.jpeg_quality", "synthetic.", *_IDENTITY),
              by_slide=True),
        Stage("encode_hr", keys=("encoder.name", "encoder.weights", "encoder.dtype",
                                 "features.dtype"),
              after=("pretrain", "prepare"), by_slide=True),
        Stage("teacher", keys=("teacher.",), after=("encode_hr",), per_fold=True,
              looks_again=True),
        Stage("distill", keys=("distill.",), after=("teacher",), per_fold=True),
        Stage("encode_lr", after=("distill",), per_fold=True, looks_again=True),
        Stage("student", keys=("student.",), except_keys=("student.no_distillation",),
              after=("encode_lr",), per_fold=True),
        Stage("baseline", keys=("student.", "encoder.name", "encoder.weights", "encoder.dtype",
                                "features.dtype"),
              except_keys=_TEACHING, after=("pretrain", "prepare"), per_fold=True,
              looks_again=True),
        Stage("evaluate", keys=("evaluate.", "method", "student.no_distillation", "data.masks"),
              after=("teacher", "student", "baseline"), per_fold=True),
        Stage("report", keys=("report.",), after=("evaluate",)),
    )
}  # fmt: skip
METHODS = {
    "lrmil": ("pretrain", "prepare", "encode_hr", "teacher", "distill", "encode_lr", "student",
              "baseline", "evaluate", "report"),
    "mil": ("pretrain", "prepare", "encode_hr", "teacher", "evaluate", "report"),
    "mil_lr": ("pretrain", "prepare", "baseline", "evaluate", "report"),
}  # fmt: skip


def stage_names(config: ConfigDict) -> tuple[str, ...]:
    """The stages of the config's method, in order."""
    names = METHODS[config.method]
    if config.method == "lrmil" and not config.student.no_distillation:
        return tuple(name for name in names if name != "baseline")
    return names


def choose_stages(config: ConfigDict, names: list[str]) -> list[Stage]:
    """The stages to run, in the method's order; an empty list means all of them.

    Raises:
      ConfigError: a name that is no stage of this method.
    """
    order = stage_names(config)
    unknown = [name for name in names if name not in order]
    if unknown:
        raise ConfigError(
            f"--stages has {unknown[0]!r}; the stages of method {config.method} are "
            f"{', '.join(order)}, and predict and check run on their own"
        )
    return [STAGES[name] for name in order if not names or name in names]


def run(config: ConfigDict, workdir: Path, names: list[str]) -> int:
    """Runs the chosen stages; the caller holds the lock of `workdir`.

    Returns:
      How many slides could not be prepared: they are listed, and the rest went on.
    """
    stages = choose_stages(config, names)
    layout.forget_cohorts()
    models.preflight(config, encodes=any(stage.name != "prepare" for stage in stages))
    _refuse_other_cohort(config, workdir)
    _require_inputs(config, workdir, stages[0], None)
    if config.data.labels is not None:
        layout.read_cohort(config, workdir)  # its mistakes are told before hours of pretraining
    _remove_leftovers(workdir)
    files.write_json(workdir / "config.json", configuration.flatten(config))
    for number, stage in enumerate(stages, 1):
        folds = range(1, config.folds + 1) if stage.per_fold else (None,)
        for fold in folds:
            where = "" if fold is None else f", fold {fold} of {config.folds}"
            log.info("[%d/%d] %s%s", number, len(stages), stage.name, where)
            _run_stage(config, workdir, stage, fold)
    return _report_failures(config, workdir)


def _remove_leftovers(workdir: Path) -> None:
    """Clears what a killed run left half written, only where a run writes."""
    for name in (*STAGES, "regions", "features", "folds", "model", "synthetic"):
        files.remove_leftovers(workdir / name)
    files.remove_leftovers(workdir, below=False)


def _run_stage(config: ConfigDict, workdir: Path, stage: Stage, fold: int | None) -> None:
    function = importlib.import_module(f"lrmil_jax.stages.{stage.name}").run
    arguments = (config, workdir) if fold is None else (config, workdir, fold)
    _require_inputs(config, workdir, stage, fold)
    if stage.by_slide:
        function(*arguments)
        return
    folder = layout.stage_folder(workdir, stage.name, fold)
    mark = folder / "stage.json"
    wanted = fingerprint(config, workdir, stage, fold)
    known = _read_mark(workdir, stage, fold)
    if known is not None and known["fingerprint"] == wanted and known["complete"]:
        log.info("already done in %s", folder)
        if stage.looks_again:
            function(*arguments)
        return
    if known is None or known["fingerprint"] != wanted:
        _start_over(folder)
        files.write_json(mark, {"fingerprint": wanted, "complete": False})
    else:
        log.info("going on in %s", folder)
    start = time.perf_counter()
    function(*arguments)
    seconds = round(time.perf_counter() - start, 2)
    files.write_json(mark, {"fingerprint": wanted, "complete": True, "seconds": seconds})


def _read_mark(workdir: Path, stage: Stage, fold: int | None) -> dict | None:
    mark = layout.stage_folder(workdir, stage.name, fold) / "stage.json"
    return json.loads(mark.read_text()) if mark.is_file() else None


def _is_done(config: ConfigDict, workdir: Path, stage: Stage, fold: int | None) -> bool:
    known = _read_mark(workdir, stage, fold)
    if known is None or not known["complete"]:
        return False
    return known["fingerprint"] == fingerprint(config, workdir, stage, fold)


def _require_inputs(config: ConfigDict, workdir: Path, stage: Stage, fold: int | None) -> None:
    """Refuses to work on what another config left: `--stages` may name a stage alone."""
    for name in stage.after:
        before = STAGES[name]
        if before.by_slide or name not in stage_names(config):
            continue
        every = range(1, config.folds + 1) if before.per_fold else (None,)
        for one in (fold,) if before.per_fold and fold is not None else every:
            if not _is_done(config, workdir, before, one):
                where = "" if one is None else f" of fold {one}"
                raise WorkdirError(
                    f"{stage.name} needs {name}{where}, which is not done with these settings in "
                    f"{workdir}; run --stages {name} first, or leave --stages away"
                )


def _refuse_other_cohort(config: ConfigDict, workdir: Path) -> None:
    """Finds before anything is changed what a stage would only find after some work was redone.

    Raises:
      WorkdirError: regions or features in `workdir` are of other settings.
    """
    layout.check_regions(config, workdir)
    claimed, stage = layout.read_claims(workdir).get("encoder"), STAGES["pretrain"]
    known = _read_mark(workdir, stage, None)
    if claimed is None or known is None or _is_done(config, workdir, stage, None):
        return
    if not known["complete"] and known["fingerprint"] == fingerprint(config, workdir, stage, None):
        return
    path = config.encoder.weights
    if path is not None and pretrained.weights_hash(path) == claimed["weights"]:
        return
    record = workdir / "config.json"
    made = json.loads(record.read_text()) if record.is_file() else {}
    flat = json.loads(json.dumps(configuration.flatten(config)))
    keys = [key for key in _needed_keys(flat, stage) if flat[key] != made.get(key)]
    what = f": {keys[0]} was {made.get(keys[0])!r}, now it is {flat[keys[0]]!r}" if keys else ""
    raise WorkdirError(
        f"{workdir} holds features of another encoder than this config asks for{what}; use "
        "another --workdir, or delete this one"
    )


def _start_over(folder: Path) -> None:
    with files.disk_errors(folder):
        # Renamed first, so that a kill in the middle never leaves half of an old stage.
        stale = folder.with_name(f".{folder.name}.stale")
        shutil.rmtree(stale, ignore_errors=True)
        if folder.exists():
            log.info("%s was made with other settings; it is made anew", folder)
            folder.rename(stale)
            shutil.rmtree(stale)
        folder.mkdir(parents=True)


def fingerprint(config: ConfigDict, workdir: Path, stage: Stage, fold: int | None) -> str:
    """A hash of everything that the stage's result depends on, stages before it included."""
    flat = configuration.flatten(config)
    content = {
        "stage": stage.name,
        "fold": fold,
        "keys": {key: flat[key] for key in _needed_keys(flat, stage)},
        "inputs": _inputs(config, workdir, stage, fold),
    }
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _needed_keys(flat: dict, stage: Stage) -> list[str]:
    """The keys that a stage's result depends on, through the stages before it too."""
    own = (key for key in flat if key.startswith(stage.keys))
    keys = {key for key in own if not key.startswith(stage.except_keys)}
    return sorted(keys.union(*(_needed_keys(flat, STAGES[name]) for name in stage.after)))


def _inputs(config: ConfigDict, workdir: Path, stage: Stage, fold: int | None) -> dict:
    """Labels, splits, slide files and encoder weights, as far as the stage comes after them."""
    if not stage.after:
        return {}
    cohort = layout.prepared_cohort(config, workdir)
    columns = ["slide_id", "patient_id", "label"]
    columns += [f"fold_{fold}"] if fold else [c for c in cohort.table if c.startswith("fold_")]
    sources = [layout.read_status(workdir, name)["source"] for name in cohort.table.slide_id]
    claimed = layout.read_claims(workdir).get("encoder")
    if claimed is None and "encode_hr" in stage_names(config):
        raise WorkdirError(f"{workdir} has no HR features yet; run --stages encode_hr first")
    return {
        "table": cohort.table[columns].to_csv(index=False),
        "sources": sources,
        "encoder": claimed or models.encoder_facts(config, workdir),
    }


def _report_failures(config: ConfigDict, workdir: Path) -> int:
    statuses = [
        layout.read_status(workdir, slide_id)
        for slide_id in layout.read_cohort(config, workdir).table.slide_id
    ]
    failed = [status for status in statuses if status is not None and status["status"] != "ok"]
    for status in failed:
        log.error("slide %s was left out: %s", status["slide_id"], status["reason"])
    return len(failed)
