"""What a stage's folder says of its stage: what it was made of, and whether it is complete."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lrmil_jax import files, graph
from lrmil_jax.workspace import layout

log = logging.getLogger(__name__)

_MARK = "stage.json"
_UNRECORDED = "for a reason that was not recorded"


def read(workdir: Path, stage: graph.Stage, fold: int | None) -> dict[str, Any] | None:
    """The mark of a stage that was begun; None of one that was not."""
    mark = layout.stage_folder(workdir, stage.name, fold) / _MARK
    return json.loads(mark.read_text()) if mark.is_file() else None


def is_done(config: ConfigDict, workdir: Path, stage: graph.Stage, fold: int | None) -> bool:
    """Whether a stage is complete with these settings and inputs."""
    if read(workdir, stage, fold) is None:
        return False
    return _is_complete(workdir, stage, fold, graph.fingerprint(config, workdir, stage, fold))


def begin(
    config: ConfigDict,
    workdir: Path,
    stage: graph.Stage,
    fold: int | None,
    others: Sequence[Path],
) -> bool:
    """Makes a stage's folder ready, or finds that nothing is left to do.

    Args:
      config, workdir: of the run.
      stage: to begin or to go on with.
      fold: of a stage that runs once a fold.
      others: other working directories; where one has done the same, it is linked.

    Returns:
      Whether the stage is done.
    """
    folder = layout.stage_folder(workdir, stage.name, fold)
    wanted = graph.fingerprint(config, workdir, stage, fold)
    if not _is_complete(workdir, stage, fold, wanted):
        _link_finished(folder, stage, fold, wanted, others)
    known = read(workdir, stage, fold)
    if _is_complete(workdir, stage, fold, wanted):
        log.info("already done in %s", folder.resolve() if folder.is_symlink() else folder)
        return True
    parts = graph.made_of(config, workdir, stage, fold)
    if known is None or known["fingerprint"] != wanted:
        _remove(folder, _why(known, parts))
        with files.disk_errors(folder):
            folder.mkdir(parents=True)
        mark = {"fingerprint": wanted, "complete": False, "made_of": parts}
        files.write_json(folder / _MARK, mark)
    else:
        log.info("going on in %s", folder)
    return False


def complete(workdir: Path, stage: graph.Stage, fold: int | None, seconds: float) -> None:
    """Notes that a stage that was begun is done, and how long that took."""
    mark = read(workdir, stage, fold) | {"complete": True, "seconds": seconds}
    files.write_json(layout.stage_folder(workdir, stage.name, fold) / _MARK, mark)


def _is_complete(workdir: Path, stage: graph.Stage, fold: int | None, wanted: str) -> bool:
    known = read(workdir, stage, fold)
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


# Of an input of a stage that is another one now.
_INPUT_WORDS = {
    "table": "other slides, labels or folds",
    "sources": "other slide files",
    "encoder": "another encoder",
    "pooling": "another data.patient",
    "teachers": "other distill.teachers, or other outputs of theirs",
}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What a finished stage was made of that is not so now, as part of a sentence.

    Args:
      before: what it was made of, as `made_of` gave it then.
      now: what it would be made of.
    """
    was, is_now = before["keys"], now["keys"]
    named = [*is_now, *(key for key in was if key not in is_now)]
    keys = [key for key in named if was.get(key) != is_now.get(key)]
    parts = [f"{key} was {was.get(key)!r} and is {is_now.get(key)!r}" for key in keys]
    inputs = sorted(before["inputs"].keys() | now["inputs"].keys())
    changed = [name for name in inputs if before["inputs"].get(name) != now["inputs"].get(name)]
    if "table" in changed:  # with other slides their files are others anyway
        changed = [name for name in changed if name != "sources"]
    parts += [_INPUT_WORDS.get(name, f"other inputs of {name}") for name in changed]
    more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
    return ", ".join(parts[:3]) + more


def _why(mark: dict | None, parts: dict) -> str:
    """What a stage was made with that is another thing now; marks of an earlier version say
    nothing of it."""
    if mark is None or "made_of" not in mark:
        return _UNRECORDED
    return differences(mark["made_of"], parts) or _UNRECORDED


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
