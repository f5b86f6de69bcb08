"""The slide files that a table names: by path, or by name in the slide folder."""

import contextlib
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lrmil_jax import storage
from lrmil_jax.data import slide_folder, tables
from lrmil_jax.errors import DataError, SlideError
from lrmil_jax.slides import annotations, dicom
from lrmil_jax.slides.annotations import Annotations

log = logging.getLogger(__name__)

SLIDE_SUFFIXES = {
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide"),
    *(".czi", ".isyntax", ".dcm", ".qptiff"),
}


def find(folder: Path, wanted: Collection[str] | None = None) -> dict[str, Path]:
    """Slide files below `folder` by name without suffix; DICOM slides, of several files each, by
    their folder or container (`dicom.named`).

    Args:
      folder: searched with all that is below it, links followed (`slide_folder`); what is left
        out is told.
      wanted: the names that matter; None: all.

    Raises:
      DataError: no folder, or two files of one wanted name.
    """
    if not folder.is_dir():
        raise DataError(f"data.slides is {folder}, which is no folder; give the slides' folder")
    listing = list_folder(folder)
    slide_folder.tell(folder, listing.left_out)
    found: dict[str, Path] = {}
    for name, path in dicom.named(listing.slides, wanted):
        name = tables.one_form(name)
        other = found.setdefault(name, path)
        if other is path or not (wanted is None or name in wanted):
            continue
        if not _are_one(path, other):
            raise DataError(
                f"two slide files are called {name} ({other} and {path}); "
                "name the right one in the CSV's path column or remove one"
            )
    return found


def _are_one(path: Path, other: Path) -> bool:
    """Whether two paths lead to one file; objects of a bucket are each their own."""
    return storage.record(path) is None and path.samefile(other)


def list_folder(folder: Path) -> slide_folder.Listing:
    """Slide files below a folder, and all that is none with its reason."""
    return slide_folder.read(folder, SLIDE_SUFFIXES)


def check_ids(table: pd.DataFrame, path: Path) -> None:
    """Refuses empty, double and odd slide_ids, and empty patient_ids.

    Raises:
      DataError: with the line or the id.
    """
    for column in ("slide_id", "patient_id"):
        empty = np.flatnonzero(table[column].isna() | (table[column] == ""))
        if len(empty):
            raise DataError(f"{path} has no {column} in line {tables.line(table, empty[0])}")
    twice = table.slide_id[table.slide_id.duplicated()].unique()
    if len(twice):
        raise DataError(f"{path} lists slide {', '.join(twice[:5])} more than once; keep one row")
    odd = [name for name in table.slide_id if not re.fullmatch(r"[\w.\- ()+#&',]+", name)]
    if odd:
        sign = next(letter for letter in odd[0] if not re.fullmatch(r"[\w.\- ()+#&',]", letter))
        raise DataError(
            f"{path}: slide_id {odd[0]!r} has {sign!r} in it, which files of a run cannot be named "
            "after; use letters, digits and any of . - _ ( ) + # & ' , and blanks"
        )


def resolve(
    table: pd.DataFrame,
    given: pd.Series | None,
    slides: Path | None,
    labels: Path,
    *,
    must_exist: bool = True,
) -> list[str]:
    """Where each slide's file is.

    Args:
      table: with `slide_id`.
      given: the table's paths, NaN or empty where it has none; below `slides`, or beside the table.
      slides: the folder in which slides without a path are looked for.
      labels: the table's own path.
      must_exist: refuse a slide that is not there; False leaves it to fail on its own.

    Raises:
      DataError: slides that are not there, or one file, or one DICOM slide, named twice.
    """
    written = ["" if pd.isna(path) else path for path in given] if given is not None else []
    written = written or [""] * len(table)
    sought = [name for name, own in zip(table.slide_id, written, strict=True) if not own]
    names = {*sought, *map(without_suffix, sought)}
    found = find(slides, names) if slides is not None and names else {}
    paths, unknown = [], []
    for slide_id, own in zip(table.slide_id, written, strict=True):
        path = tables.existing((slides or labels.parent) / own) if own else named(found, slide_id)
        if path is None or not storage.exists(path):
            unknown.append(slide_id if path is None else str(path))
        paths.append(slide_id if path is None else str(path))
    if unknown and must_exist:
        count = "1 slide that is" if len(unknown) == 1 else f"{len(unknown)} slides that are"
        raise DataError(
            f"{labels} lists {count} not there: {', '.join(unknown[:5])}"
            f"{' ...' if len(unknown) > 5 else ''}; "
            f"looked in {slides if slides is not None else labels.parent} (data.slides)"
        )
    twice = pd.Series(paths)[pd.Series(paths).duplicated()].tolist()
    if twice:
        raise DataError(f"{labels} names the slide file {twice[0]} more than once; keep one row")
    _refuse_one_series(table.slide_id.tolist(), paths, labels)
    return paths


def _refuse_one_series(slide_ids: Sequence[str], paths: Sequence[str], labels: Path) -> None:
    """Raises DataError where two rows name files of one DICOM slide."""
    rows = {}
    for slide_id, path in zip(slide_ids, map(Path, paths), strict=True):
        series = dicom.series(path) if path.suffix.lower() == ".dcm" and path.is_file() else None
        other, first = rows.setdefault(series, (slide_id, path))
        if series is not None and other != slide_id:
            raise DataError(
                f"{labels}: slides {other} and {slide_id} are one slide, since {first} and {path} "
                "are files of one DICOM series; keep one row"
            )


def named(paths: Mapping[str, Path], slide_id: str) -> Path | None:
    """The file of a slide, whose id may have the suffix of a slide file; None if there is none."""
    return paths.get(slide_id, paths.get(without_suffix(slide_id)))


def without_suffix(slide_id: str) -> str:
    """A slide's name; ids hold dots, so only the suffix of a slide file is cut off."""
    name = Path(slide_id)
    return name.stem if name.suffix.lower() in SLIDE_SUFFIXES else slide_id


def read_mpp(frame: pd.DataFrame, path: Path) -> np.ndarray:
    """[S] um/px that a table's `mpp` gives, NaN where it gives none.

    Raises:
      DataError: one that is no number, with its line.
    """
    if "mpp" not in frame:
        return np.full(len(frame), np.nan)
    text = tables.with_blanks(frame["mpp"])
    values = pd.to_numeric(text, errors="coerce")
    wrong = text.notna() & values.isna()
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{path}: mpp {frame['mpp'].iloc[row]!r} in line {tables.line(frame, row)} is no number"
        )
    return values.to_numpy(np.float64)


def given_mpp(row) -> float | None:
    """The um/px that a row of a slide table gives; None is the file's own."""
    return None if pd.isna(row.mpp) else float(row.mpp)


def one_slide(path: Path, mpp: float | None = None) -> pd.DataFrame:
    """A table of one slide, as `read_list` gives it."""
    return pd.DataFrame(
        {
            "slide_id": [tables.one_form(path.stem)],
            "patient_id": [tables.one_form(path.stem)],
            "path": [str(path)],
            "mpp": [np.nan if mpp is None else mpp],
        }
    )


def read_list(source: Path, slides: Path | None = None, *, strict: bool = True) -> pd.DataFrame:
    """Slides to predict: all of a folder, or those of a CSV; labels are kept if there are any.

    A file that a CSV names and that is not there is left in: it fails on its own.

    Args:
      source: a folder of slides, or a CSV.
      slides: where slides without a path are looked for; by default beside the CSV.
      strict: refuse double and odd ids; False keeps what can be opened, once each.

    Returns:
      Columns slide_id, patient_id, path, mpp and whatever else a CSV has, as text.

    Raises:
      DataError: neither folder nor CSV, or no slide in it.
    """
    if source.is_dir():
        found = find(source)
        if not found:
            raise DataError(f"--slides {source} holds no slide file")
        return pd.concat([one_slide(path) for path in found.values()], ignore_index=True)
    if not source.is_file():
        raise DataError(f"--slides {source} is neither a folder nor a CSV; check its path")
    frame = tables.read(source)
    tables.require_columns(frame, ("slide_id",), source)
    for name in ("slide_id", "patient_id"):
        if name in frame:
            frame[name] = frame[name].map(tables.one_form, na_action="ignore")
    frame = frame.apply(tables.with_blanks)
    if not strict:
        frame = frame.dropna(subset=["slide_id"]).drop_duplicates("slide_id").reset_index(drop=True)
    table = pd.DataFrame({"slide_id": frame["slide_id"]})
    table["patient_id"] = frame.get("patient_id", table.slide_id)
    if strict:
        check_ids(table, source)
    folder = source.parent if slides is None else slides
    table["path"] = resolve(table, frame.get("path"), folder, source, must_exist=False)
    table["mpp"] = read_mpp(frame, source)
    if not strict:
        table = table[[storage.exists(Path(path)) for path in table.path]].reset_index(drop=True)
    others = frame.drop(columns=[name for name in frame if name in table])
    return table.join(others)


def drawn(
    place: Path | None, classes: Sequence[str], slide_ids: Sequence[str], *, key: str
) -> dict[str, Annotations]:
    """What was drawn on each slide, by `slide_id`; {} without `place`. A slide whose file is not
    there fails on its own.

    Args:
      place: a folder of `<slide_id>.geojson` or, of one slide, a file.
      classes: that count, () being all.
      slide_ids: of the slides.
      key: what `place` was given by, for messages.

    Raises:
      DataError: it is neither, a file of several slides, or a folder with none of them.
    """
    if place is None:
        return {}
    if place.is_file() and len(slide_ids) > 1:
        raise DataError(
            f"{key} names the file {place} for {len(slide_ids)} slides; give the folder of their "
            f"<slide_id>{annotations.SUFFIX}"
        )
    if not place.exists():
        raise DataError(f"{key} is {place}, which does not exist; give a folder or a file")
    paths = {
        name: place if place.is_file() else tables.existing(place / f"{name}{annotations.SUFFIX}")
        for name in slide_ids
    }
    if not any(path.is_file() for path in paths.values()):
        raise DataError(
            f"{key} is {place}, which has no <slide_id>{annotations.SUFFIX} of any slide, such as "
            f"{slide_ids[0]}{annotations.SUFFIX}"
        )
    return {name: Annotations(path, tuple(classes), name) for name, path in paths.items()}


def warn_of_classes(drawn: Collection[Annotations], *, key: str) -> None:
    """Tells of classifications that no slide's file has, where others are there; files that cannot
    be read fail with their slides.

    Args:
      drawn: of a cohort.
      key: what the classes were given by.
    """
    asked = {name for one in drawn for name in one.classes}
    found: set[str] = set()
    for one in drawn:
        if asked <= found:
            return
        with contextlib.suppress(SlideError):
            found.update(one.named())
    unknown = sorted(asked - found)
    if unknown and asked & found:
        log.warning("%s names %s, as which no region is classified; there are %s", key,
                    " and ".join(unknown), ", ".join(sorted(found - {""})))  # fmt: skip
