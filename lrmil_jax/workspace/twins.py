"""Slides of a run's cohort that are one, found once and kept."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lrmil_jax import cluster, files
from lrmil_jax.data import leaks
from lrmil_jax.data.labels import Cohort
from lrmil_jax.workspace import layout, statuses

log = logging.getLogger(__name__)

SEEN = "seen_slides.json"  # in a model folder, of each member
COLUMNS = ("slide_id", "other", "kind", "likeness")


def check(workdir: Path, cohort: Cohort, *, source: str, how: str) -> None:
    """Refuses slides that are one and stand in two splits, or warns of them.

    Args:
      workdir: of the run; its slides are prepared.
      cohort: less the slides that failed.
      source: of the label table, for messages.
      how: `data.leaks`.

    Raises:
      DataError: see `leaks.tell`.
    """
    leaks.tell(leaks.across_splits(_pairs(workdir, cohort), cohort.table, source), how)


def write_seen(workdir: Path, cohort: Cohort, fold: int) -> Path:
    """Writes by what the slides that a fold's training saw are known again, without their names.

    Args:
      workdir: of the run.
      cohort: its slides.
      fold: from 1, or `splits.FINAL`.

    Returns:
      The file, for the model folder.
    """
    read = [statuses.read(workdir, name) for name in cohort.slides(fold, "train", "val").slide_id]
    slides = [leaks.identity(one) for one in read if leaks.has_identity(one)]
    path = layout.fold_folder(workdir, fold) / SEEN
    files.write_json(path, {"slides": [dataclasses.asdict(one) for one in slides]})
    return path


def read_seen(model: Path) -> list[leaks.Identity]:
    """The slides that the members of a model folder were trained on; [] of an older one."""
    slides_seen: dict[leaks.Identity, None] = {}
    for path in sorted(model.glob(f"*/{SEEN}")):
        slides = json.loads(path.read_text(encoding="utf-8"))["slides"]
        slides_seen |= dict.fromkeys(leaks.Identity(**one) for one in slides)
    return list(slides_seen)


def trained_on(
    seen: Sequence[leaks.Identity], slides: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """Pairs of some slides and slides that a model was trained on: `slide_id`, `kind`, `likeness`.

    Args:
      seen: as `read_seen` gives them.
      slides: by name, each with `source` and, where its picture is to be compared, `picture`.
    """
    names = [name for name, one in slides.items() if leaks.has_identity(one)]
    pairs = leaks.twins([leaks.identity(slides[name]) for name in names], seen) if names else []
    rows = [(names[one.first], one.kind, one.likeness) for one in pairs]
    return pd.DataFrame(rows, columns=["slide_id", "kind", "likeness"])


def _pairs(workdir: Path, cohort: Cohort) -> pd.DataFrame:
    """Pairs of slides that are one; those of an earlier run, if they are of the same slides."""
    names = cohort.table.slide_id.tolist()
    read = {name: statuses.read(workdir, name) for name in names}
    slides = {name: leaks.identity(one) for name, one in read.items() if leaks.has_identity(one)}
    digest = hashlib.sha256(repr(list(slides.items())).encode()).hexdigest()
    path = workdir / "twins.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if record.get("digest") != digest:
        old = sum(one.picture is None for one in slides.values())
        if old:
            log.warning("%d slides were prepared by an earlier version, so they are compared by "
                        "their bytes alone; delete their files in regions/ to compare what they "
                        "show", old)  # fmt: skip
        paths = dict(zip(names, cohort.table.path, strict=True))
        record = {"digest": digest, "pairs": find(slides, paths).to_dict("records")}
        if cluster.is_first():  # all find the same
            files.write_json(path, record)
    return pd.DataFrame(record["pairs"], columns=list(COLUMNS))


def find(slides: Mapping[str, leaks.Identity], paths: Mapping[str, str]) -> pd.DataFrame:
    """All pairs of slides that are one, with COLUMNS.

    Args:
      slides: by name.
      paths: of their files; those that look the same at three places are read whole.
    """
    names = list(slides)
    pairs = [
        (names[one.first], names[one.second], one.kind, one.likeness)
        for one in leaks.twins(list(slides.values()))
        if one.kind != leaks.SAME_FILE
        or leaks.same_bytes(Path(paths[names[one.first]]), Path(paths[names[one.second]]))
    ]
    return pd.DataFrame(pairs, columns=list(COLUMNS))
