"""One slide twice: the same bytes, or the same tissue, where two should be strangers."""

import dataclasses
import filecmp
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lrmil_jax.errors import DataError
from lrmil_jax.slides import likeness

log = logging.getLogger(__name__)

HOW = ("refuse", "warn")  # `data.leaks`
SAME_FILE, SAME_TISSUE = "same file", "same tissue"


@dataclasses.dataclass(frozen=True)
class Identity:
    """By what a slide is known again, whatever it is called.

    Attributes:
      size, sample: of its file (`slide_jobs.file_identity`).
      picture: its thumbnail (`likeness.fingerprint`); None of slides prepared by an earlier
        version.
    """

    size: int
    sample: str
    picture: str | None = None


@dataclasses.dataclass(frozen=True)
class Twins:
    """Two slides that are one.

    Attributes:
      first, second: their places.
      kind: SAME_FILE, or SAME_TISSUE.
      likeness: of the thumbnails, 1 of the same file.
    """

    first: int
    second: int
    kind: str
    likeness: float = 1.0


def has_identity(status: dict[str, Any]) -> bool:
    """Whether a slide's file was read; who brings features alone has none to compare."""
    return "size" in (status.get("source") or {})


def identity(status: dict[str, Any]) -> Identity:
    """Of a slide that `prepare` has read, from its status."""
    source = status["source"]
    return Identity(source["size"], source["sample"], status.get("picture"))


def twins(slides: Sequence[Identity], others: Sequence[Identity] | None = None) -> list[Twins]:
    """All pairs of slides that are one, by their places; files first.

    Args:
      slides: some slides.
      others: those that they are compared with; None: among themselves, each pair once.
    """
    pairs = _same_files(slides, others)
    there = {(one.first, one.second) for one in pairs}
    sides = [slides] if others is None else [slides, others]
    shown = [[i for i, one in enumerate(side) if one.picture is not None] for side in sides]
    pictures = [
        [side[i].picture for i in places] for side, places in zip(sides, shown, strict=True)
    ]
    places, values = likeness.pairs(*pictures)
    for (first, second), value in zip(places.tolist(), values.tolist(), strict=True):
        pair = shown[0][first], shown[-1][second]
        if pair not in there:
            pairs.append(Twins(*pair, SAME_TISSUE, round(value, 3)))
    return pairs


def _same_files(slides: Sequence[Identity], others: Sequence[Identity] | None) -> list[Twins]:
    first, second = (
        pd.DataFrame({"place": range(len(side)), "size": [one.size for one in side],
                      "sample": [one.sample for one in side]})
        for side in (slides, slides if others is None else others)
    )  # fmt: skip
    both = first.merge(second, on=["size", "sample"])
    if others is None:
        both = both[both.place_x < both.place_y]
    pairs = zip(both.place_x.tolist(), both.place_y.tolist(), strict=True)
    return [Twins(one, other, SAME_FILE) for one, other in pairs]


def across_splits(pairs: pd.DataFrame, table: pd.DataFrame, source: str) -> str | None:
    """A sentence on slides that are one and stand in two splits of a fold; None without any.

    Args:
      pairs: `slide_id`, `other`, `kind`, `likeness` of slides that are one.
      table: the cohort's slides, with fold_1 ...
      source: of the table, for the message.
    """
    rows = table.set_index("slide_id")
    pairs = pairs[pairs.slide_id.isin(rows.index) & pairs.other.isin(rows.index)]
    apart: dict[int, tuple[str, str, str]] = {}  # the first fold that parts each pair
    for column in (name for name in table if name.startswith("fold_")):
        one, other = (
            rows[column].reindex(pairs[name]).to_numpy() for name in ("slide_id", "other")
        )
        parted = pd.notna(one) & pd.notna(other) & (one != other)
        for place in parted.nonzero()[0].tolist():
            apart.setdefault(place, (column, one[place], other[place]))
    if not apart:
        return None
    place = min(apart)
    pair, (column, *splits) = pairs.iloc[place], apart[place]
    where = f"the {splits[0]} and the {splits[1]} split of {column}"
    more = f" (and {len(apart) - 1} more such pairs)" if len(apart) > 1 else ""
    return (
        f"{source}: {_named(pair)}, in {where}{more}; keep one of them, or give both the "
        "same patient_id if they are of one patient"
    )


def across_cohorts(pairs: pd.DataFrame, source: str) -> str | None:
    """A sentence on slides of an external cohort that the model was trained on; None without any.

    Args:
      pairs: `slide_id`, `kind`, `likeness` of such slides.
      source: of the cohort, for the message.
    """
    if pairs.empty:
        return None
    first = pairs.iloc[0]
    same = first.kind == SAME_FILE
    how = "is a file" if same else f"shows the tissue (likeness {first.likeness:.2f}) of a slide"
    count = pairs.slide_id.nunique()
    more = f" (and {count - 1} more such slides)" if count > 1 else ""
    return (
        f"{source}: slide {first.slide_id} {how} that the model was trained on{more}, so its "
        "figures would be no external ones; take these slides out"
    )


def _named(pair) -> str:
    if pair.kind == SAME_FILE:
        return f"slides {pair.slide_id} and {pair.other} are the same file"
    return (
        f"slides {pair.slide_id} and {pair.other} show the same tissue (likeness "
        f"{pair.likeness:.2f})"
    )


def tell(sentence: str | None, how: str) -> None:
    """Refuses what a sentence tells of, or warns of it (`data.leaks`).

    Raises:
      DataError: `how` is "refuse".
    """
    if sentence is None:
        return
    if how == "refuse":
        raise DataError(f"{sentence}; data.leaks=warn goes on all the same")
    log.warning("%s", sentence)


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two files hold the same, read whole; True where one of them is not there to read."""
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return True
