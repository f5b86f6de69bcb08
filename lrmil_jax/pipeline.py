"""Running the stages in order: what is skipped, redone or gone on with.

Two kinds of stages. `prepare` and the encoding stages work slide by slide: a finished file stays,
and `cohort.json` refuses to mix two configs. Training stages carry a fingerprint of the config
keys and of the stages before them: the same fingerprint and a finished stage is skipped, the same
and unfinished goes on where it was, another one is made anew.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax import cluster, encoders, files, graph, marks, methods, programs
from lrmil_jax import config as configuration
from lrmil_jax.data import failures, source, splits
from lrmil_jax.errors import ConfigError, WorkdirError
from lrmil_jax.models import loading, trained
from lrmil_jax.train import tracking
from lrmil_jax.workspace import (
    cohorts,
    foreign,
    layout,
    lesion_masks,
    pretrain_tiles,
    provenance,
    shards,
    statuses,
)

log = logging.getLogger(__name__)

_IMPORT = "import_features"
_EXPORT = "export"  # belongs to no method: whoever wants files for another tool asks for it


def choose_stages(config: ConfigDict, names: list[str]) -> list[graph.Stage]:
    """The stages to run, in the method's order; an empty list means all of them.

    Raises:
      ConfigError: a name that is no stage of this method.
    """
    order = graph.stage_names(config)
    unknown = [name for name in names if name not in (*order, _EXPORT)]
    if unknown == [_IMPORT]:
        raise ConfigError(
            f"{_IMPORT} takes over features of another tool, but data.features is not set; name "
            "their folder by --config.data.features=FOLDER"
        )
    if unknown:
        raise ConfigError(
            f"--stages has {unknown[0]!r}; the stages of method {config.method} are "
            f"{', '.join(order)}; export may be asked for too, predict and check run on their own"
        )
    wanted = set(names or order)
    whole = not cluster.is_shard()  # whose inputs are of all slides together
    if whole and foreign.given(config) and not foreign.reads_slides(config):  # none takes long
        wanted = graph.with_inputs(config, wanted)
        wanted |= {"prepare", "import_features"}
    per_fold = config.distill.per_fold
    named = [name for name in (*order, _EXPORT) if name in wanted]
    return [graph.stage_of(name, per_fold=per_fold) for name in named]


def run(
    config: ConfigDict,
    workdir: Path,
    names: list[str],
    others: Sequence[Path] = (),
    *,
    after_stage: Callable[[], None] = lambda: None,
) -> int:
    """Runs the chosen stages; the caller holds the lock of `workdir`.

    Args:
      config: of the run.
      workdir: where its output goes.
      names: stages; an empty list means all.
      others: other working directories; a stage that is done there with the same fingerprint is
        linked, not run again.
      after_stage: called after each stage, of each fold.

    Returns:
      How many slides or tiles could not be read: they are listed, and the rest went on.
    """
    stages = choose_stages(config, names)
    _refuse_as_shard(stages, names)
    _refuse_before_joined(config, workdir, stages)
    _refuse_uneven_batches(config, workdir, stages)
    cohorts.forget()
    pretrain_tiles.forget()
    encodes = any(stage.name not in ("prepare", _EXPORT) for stage in stages)
    trained.preflight(config, encodes=encodes)
    methods.of(config).preflight(config, encoders.create(config.encoder.name))
    lesion_masks.masks_folder(config, workdir)
    cluster.first_says("may it begin", lambda: _refuse_other_cohort(config, workdir))
    cluster.first_says("may it", lambda: _require_inputs(config, workdir, stages[0], None))
    if config.data.labels is not None:
        # Told before hours of pretraining.
        cohort = cohorts.read_together(config, workdir)
        if encodes and "pretrain" in graph.stage_names(config):
            pretrain_tiles.preflight(config, cohort)
        for stage in stages:
            graph.check(config, workdir, stage, cohort.classes)
    programs.keep()
    shards.record(config, workdir)
    cluster.first_only("the run begins", _begin, config, workdir)
    with tracking.tracked(_tracking(config, workdir)):
        for number, stage in enumerate(stages, 1):
            for fold in graph.folds(config, stage):
                log.info("[%d/%d] %s%s", number, len(stages), stage.name, _of_fold(config, fold))
                _run_stage(config, workdir, stage, fold, others)
                after_stage()
    if stages == [graph.STAGES["pretrain"]]:
        return 0  # which needs no slides, and so no label CSV
    return _report_failures(config, workdir)


def _tracking(config: ConfigDict, workdir: Path) -> tracking.Tracking | None:
    """Where trainings are told of beside their folders, if anywhere."""
    if config.tracking.mlflow is None:
        return None
    return tracking.Tracking(
        uri=config.tracking.mlflow,
        experiment=config.tracking.experiment or workdir.resolve().name,
        params=configuration.flatten(config),
        root=workdir,
    )


def _refuse_as_shard(stages: Sequence[graph.Stage], names: Sequence[str]) -> None:
    """Raises ConfigError where a shard is asked for what is not done slide by slide."""
    whole = [stage.name for stage in stages if not stage.parted]
    if cluster.is_shard() and (whole or not names):
        parted = ", ".join(name for name, stage in graph.STAGES.items() if stage.parted)
        what = f"{whole[0]} is not" if names else "not every stage is"
        raise ConfigError(
            f"--shard does a part of the slides, and {what} done slide by slide: give --stages "
            f"with some of {parted}; the same stages without --shard then join what all shards did"
        )


def _refuse_before_joined(config: ConfigDict, workdir: Path, stages: Sequence[graph.Stage]) -> None:
    """Raises WorkdirError where a shard is to take over features of which only all together tell
    what they are."""
    imports = cluster.is_shard() and graph.STAGES[_IMPORT] in stages
    if not imports or foreign.reads_slides(config) or "encoder" in provenance.read(workdir):
        return
    raise WorkdirError(
        f"{_IMPORT} with --shard needs what prepare finds of the files of all slides together in "
        f"{workdir}; run --stages prepare with every shard and once without --shard first"
    )


def _refuse_uneven_batches(
    config: ConfigDict, workdir: Path, stages: Sequence[graph.Stage]
) -> None:
    """Raises ConfigError where the processes cannot part the batches of examples of a training that
    is still to be done."""
    processes = len(cluster.exchange("how many there are", None))
    trains = {
        "pretrain": config.encoder.weights is None,
        "distill": True,
        "align": config.align.how not in ("distilled", "none"),
    }
    for stage in stages:
        marked = [marks.read(workdir, stage, fold) for fold in graph.folds(config, stage)]
        done = all(mark is not None and mark["complete"] for mark in marked)
        if not trains.get(stage.name) or done:
            continue
        try:
            source.share(config[stage.name].batch, processes)
        except ConfigError as error:
            raise ConfigError(f"config.{stage.name}: {error}") from error


def _begin(config: ConfigDict, workdir: Path) -> None:
    _remove_leftovers(workdir)
    files.write_json(workdir / "config.json", configuration.flatten(config))


def _of_fold(config: ConfigDict, fold: int | None) -> str:
    if fold is None:
        return ""
    if fold == splits.FINAL:
        return ", final model of all patients"
    return f", fold {fold} of {config.folds}"


def _remove_leftovers(workdir: Path) -> None:
    """Clears what a killed run left half written, only where a run writes."""
    for name in (*graph.STAGES, "regions", "features", "folds", "model", "synthetic", "text"):
        files.remove_leftovers(workdir / name)
    files.remove_leftovers(workdir, below=False)


def _run_stage(
    config: ConfigDict, workdir: Path, stage: graph.Stage, fold: int | None, others: Sequence[Path]
) -> None:
    name = stage.name + _of_fold(config, fold)
    if stage.name == "prepare":  # a synthetic cohort is drawn by one process
        cohorts.read_together(config, workdir)
    cluster.first_says("may it", lambda: _require_inputs(config, workdir, stage, fold))
    if stage.by_slide:
        _work(config, workdir, stage, fold)
        return
    done = cluster.first_says(name, lambda: marks.begin(config, workdir, stage, fold, others))
    if done and not stage.looks_again:
        return
    start = time.perf_counter()
    _work(config, workdir, stage, fold)
    seconds = round(time.perf_counter() - start, 2)
    if not done and not cluster.is_shard():
        cluster.first_only(name, marks.complete, workdir, stage, fold, seconds)


def _work(config: ConfigDict, workdir: Path, stage: graph.Stage, fold: int | None) -> None:
    """Runs the stage's module: in all processes of the run, or in the first one alone."""
    function = graph.module(stage).run
    arguments = (config, workdir) if fold is None else (config, workdir, fold)
    if not stage.alone:
        function(*arguments)
    elif cluster.is_first():
        with cluster.apart():
            function(*arguments)
    statuses.meet(stage.name)


def _require_inputs(
    config: ConfigDict, workdir: Path, stage: graph.Stage, fold: int | None
) -> None:
    """Refuses to work on what another config left: `--stages` may name a stage alone."""
    for name in stage.after:
        before = graph.stage_of(name, per_fold=config.distill.per_fold)
        if before.by_slide or name not in graph.stage_names(config):
            continue
        every = graph.folds(config, before)
        for one in (fold,) if before.per_fold and fold is not None else every:
            if not marks.is_done(config, workdir, before, one):
                where = "" if one is None else f" of {layout.fold_title(one)}"
                raise WorkdirError(
                    f"{stage.name} needs {name}{where}, which is not done with "
                    f"these settings in {workdir}; run --stages {name} first, or leave --stages "
                    "away"
                )


def _refuse_other_cohort(config: ConfigDict, workdir: Path) -> None:
    """Finds before anything is changed what a stage would only find after some work was redone.

    Raises:
      WorkdirError: regions or features in `workdir` are of other settings.
    """
    cohorts.check_regions(config, workdir)
    recorded, stage = provenance.read(workdir).get("encoder"), graph.STAGES["pretrain"]
    known = marks.read(workdir, stage, None)
    if recorded is None or known is None or marks.is_done(config, workdir, stage, None):
        return
    wanted = graph.fingerprint(config, workdir, stage, None)
    if not known["complete"] and known["fingerprint"] == wanted:
        return
    given = config.encoder.weights
    if given is not None and loading.encoder_hash(given) == recorded["weights"]:
        return
    record = workdir / "config.json"
    made = json.loads(record.read_text()) if record.is_file() else {}
    flat = json.loads(json.dumps(configuration.flatten(config)))
    needed = graph.needed_keys(flat, stage, graph.possible_stages(config))
    keys = [key for key in needed if flat[key] != made.get(key)]
    what = ": the files of data.tiles or data.captions have changed"
    if keys:
        what = f": {keys[0]} was {made.get(keys[0])!r}, now it is {flat[keys[0]]!r}"
    raise WorkdirError(
        f"{workdir} holds features of another encoder than this config asks for{what}; use "
        "another --workdir, or delete this one"
    )


def _report_failures(config: ConfigDict, workdir: Path) -> int:
    if "prepare" not in graph.stage_names(config):
        record = layout.stage_folder(workdir, "zero_shot") / "metrics.json"
        unreadable = json.loads(record.read_text())["unreadable"]
        for reason in unreadable.values():
            log.error("left out: %s", reason)
        return len(unreadable)
    slide_ids = cohorts.read(config, workdir).table.slide_id.tolist()
    if cluster.is_shard():
        slide_ids = cluster.mine(slide_ids)
    known = [statuses.read(workdir, slide_id) for slide_id in slide_ids]
    failed = [status for status in known if status is not None and status["status"] != "ok"]
    for sentence in failures.sentences(failed):
        log.error("left out: %s", sentence)
    return len(failed)
