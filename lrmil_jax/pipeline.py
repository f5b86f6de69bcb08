"""Running the stages in order: what is skipped, redone or gone on with.

Two kinds of stages. `prepare` and the encoding stages work slide by slide: a finished file stays,
and `cohort.json` refuses to mix two configs. Training stages carry a fingerprint of the config
keys and of the stages before them: the same fingerprint and a finished stage is skipped, the same
and unfinished goes on where it was, another one is made anew.
"""

import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax import config as configuration
from lrmil_jax import encoders, files, graph, methods, programs
from lrmil_jax.data import failures, splits
from lrmil_jax.errors import ConfigError, WorkdirError
from lrmil_jax.models import loading, trained
from lrmil_jax.workspace import (
    cohorts,
    foreign,
    layout,
    lesion_masks,
    pretrain_tiles,
    provenance,
    statuses,
)

log = logging.getLogger(__name__)

_IMPORT = "import_features"
_UNRECORDED = "for a reason that was not recorded"
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
    if foreign.given(config) and not foreign.reads_slides(config):  # none of them takes long
        wanted = graph.with_inputs(config, wanted)
        wanted |= {"prepare", "import_features"}
    return [graph.STAGES[name] for name in (*order, _EXPORT) if name in wanted]


def run(config: ConfigDict, workdir: Path, names: list[str], others: Sequence[Path] = ()) -> int:
    """Runs the chosen stages; the caller holds the lock of `workdir`.

    Args:
      config: of the run.
      workdir: where its output goes.
      names: stages; an empty list means all.
      others: other working directories; a stage that is done there with the same fingerprint is
        linked, not run again.

    Returns:
      How many slides or tiles could not be read: they are listed, and the rest went on.
    """
    stages = choose_stages(config, names)
    cohorts.forget()
    pretrain_tiles.forget()
    encodes = any(stage.name not in ("prepare", _EXPORT) for stage in stages)
    trained.preflight(config, encodes=encodes)
    methods.of(config).preflight(config, encoders.create(config.encoder.name))
    lesion_masks.masks_folder(config, workdir)
    _refuse_other_cohort(config, workdir)
    _require_inputs(config, workdir, stages[0], None)
    if config.data.labels is not None:
        cohort = cohorts.read(config, workdir)  # told before hours of pretraining
        if encodes and "pretrain" in graph.stage_names(config):
            pretrain_tiles.preflight(config, cohort)
        for stage in stages:
            graph.check(config, workdir, stage, cohort.classes)
    _remove_leftovers(workdir)
    programs.keep()
    files.write_json(workdir / "config.json", configuration.flatten(config))
    for number, stage in enumerate(stages, 1):
        for fold in graph.folds(config, stage):
            log.info("[%d/%d] %s%s", number, len(stages), stage.name, _of_fold(config, fold))
            _run_stage(config, workdir, stage, fold, others)
    if stages == [graph.STAGES["pretrain"]]:
        return 0  # which needs no slides, and so no label CSV
    return _report_failures(config, workdir)


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
    function = graph.module(stage).run
    arguments = (config, workdir) if fold is None else (config, workdir, fold)
    _require_inputs(config, workdir, stage, fold)
    if stage.by_slide:
        function(*arguments)
        return
    folder = layout.stage_folder(workdir, stage.name, fold)
    mark = folder / "stage.json"
    wanted = graph.fingerprint(config, workdir, stage, fold)
    if not _is_complete(workdir, stage, fold, wanted):
        _link_finished(folder, stage, fold, wanted, others)
    known = _read_mark(workdir, stage, fold)
    if _is_complete(workdir, stage, fold, wanted):
        log.info("already done in %s", folder.resolve() if folder.is_symlink() else folder)
        if stage.looks_again:
            function(*arguments)
        return
    parts = graph.made_of(config, workdir, stage, fold)
    if known is None or known["fingerprint"] != wanted:
        _start_over(folder, _why(known, parts))
        files.write_json(mark, {"fingerprint": wanted, "complete": False, "made_of": parts})
    else:
        log.info("going on in %s", folder)
    start = time.perf_counter()
    function(*arguments)
    seconds = round(time.perf_counter() - start, 2)
    files.write_json(
        mark, {"fingerprint": wanted, "complete": True, "seconds": seconds, "made_of": parts}
    )


def _read_mark(workdir: Path, stage: graph.Stage, fold: int | None) -> dict | None:
    mark = layout.stage_folder(workdir, stage.name, fold) / "stage.json"
    return json.loads(mark.read_text()) if mark.is_file() else None


def _is_complete(workdir: Path, stage: graph.Stage, fold: int | None, wanted: str) -> bool:
    known = _read_mark(workdir, stage, fold)
    return known is not None and known["complete"] and known["fingerprint"] == wanted


def _link_finished(
    folder: Path, stage: graph.Stage, fold: int | None, wanted: str, others: Sequence[Path]
) -> None:
    """Links the stage of another working directory that has done the same."""
    for other in others:
        if _is_complete(other, stage, fold, wanted):
            _remove(folder, f"the same is done in {other}, and linked")
            files.link(folder, layout.stage_folder(other, stage.name, fold))
            return


def _is_done(config: ConfigDict, workdir: Path, stage: graph.Stage, fold: int | None) -> bool:
    if _read_mark(workdir, stage, fold) is None:
        return False
    return _is_complete(workdir, stage, fold, graph.fingerprint(config, workdir, stage, fold))


def _require_inputs(
    config: ConfigDict, workdir: Path, stage: graph.Stage, fold: int | None
) -> None:
    """Refuses to work on what another config left: `--stages` may name a stage alone."""
    for name in stage.after:
        before = graph.STAGES[name]
        if before.by_slide or name not in graph.stage_names(config):
            continue
        every = graph.folds(config, before)
        for one in (fold,) if before.per_fold and fold is not None else every:
            if not _is_done(config, workdir, before, one):
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
    known = _read_mark(workdir, stage, None)
    if recorded is None or known is None or _is_done(config, workdir, stage, None):
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


def _why(mark: dict | None, parts: dict) -> str:
    """What a stage was made with that is another thing now; marks of an earlier version say
    nothing of it."""
    if mark is None or "made_of" not in mark:
        return _UNRECORDED
    return graph.differences(mark["made_of"], parts) or _UNRECORDED


def _start_over(folder: Path, why: str) -> None:
    _remove(folder, why)
    with files.disk_errors(folder):
        folder.mkdir(parents=True)


def _remove(folder: Path, why: str) -> None:
    with files.disk_errors(folder):
        # Renamed first, so that a kill in the middle never leaves half of an old stage.
        stale = folder.with_name(f".{folder.name}.stale")
        shutil.rmtree(stale, ignore_errors=True)
        if folder.is_symlink():
            folder.unlink()  # what it names belongs to another run
        elif folder.exists():
            log.info("%s is made anew: %s", folder, why)
            folder.rename(stale)
            shutil.rmtree(stale)


def _report_failures(config: ConfigDict, workdir: Path) -> int:
    if "prepare" not in graph.stage_names(config):
        record = layout.stage_folder(workdir, "zero_shot") / "metrics.json"
        unreadable = json.loads(record.read_text())["unreadable"]
        for reason in unreadable.values():
            log.error("left out: %s", reason)
        return len(unreadable)
    slide_ids = cohorts.read(config, workdir).table.slide_id
    known = [statuses.read(workdir, slide_id) for slide_id in slide_ids]
    failed = [status for status in known if status is not None and status["status"] != "ok"]
    for sentence in failures.sentences(failed):
        log.error("left out: %s", sentence)
    return len(failed)
