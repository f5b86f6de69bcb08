"""The label CSV and the slides it names, checked before anything runs.

Two CSV shapes are read as they are: one row a slide
(`slide_id,patient_id,<targets>[,path][,mpp][,fold_1..fold_k]`), and one row a patient as the LRMIL
authors keep it (`P_ID`, a task column, `fold_k` of train/val/test), whose slides are found in the
slide folder by name.
"""

import dataclasses
import re
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from lrmil_jax.data import clam_splits, splits
from lrmil_jax.errors import DataError

SLIDE_SUFFIXES = {
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide"),
    *(".czi", ".isyntax", ".dcm", ".qptiff"),
}


@typing.runtime_checkable
class Question(typing.Protocol):
    """What the reading of a CSV asks of a `tasks.Task`."""

    columns: tuple[str, ...]
    classes: tuple[str, ...]

    def targets(self, table: pd.DataFrame) -> np.ndarray: ...

    def groups(self, targets: np.ndarray) -> np.ndarray: ...


# read(rows of the CSV, its name) -> the task and the targets of the rows
ReadTask = Callable[[pd.DataFrame, str], tuple[typing.Any, pd.DataFrame]]


@dataclasses.dataclass(frozen=True)
class Cohort:
    """Slides with their targets and folds.

    Attributes:
      table: columns slide_id, patient_id, case_id (what is predicted and measured as one), the
        task's targets, path, mpp (NaN: the file's own), fold_1..., and pool where the CSV has that
        column: the pool of images that a composed slide is made of (NaN: none).
      task: what is asked of a slide, a `tasks.Task`.
    """

    table: pd.DataFrame
    task: typing.Any

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels; () of a task without classes."""
        return self.task.classes

    @property
    def folds(self) -> int:
        """How many folds the table has."""
        return sum(column.startswith("fold_") for column in self.table.columns)

    def slides(self, fold: int, *names: str) -> pd.DataFrame:
        """The rows of `fold` in the given splits, in the order of the CSV, with their `split`.

        Args:
          fold: counted from 1, or `splits.FINAL`.
          names: splits.
        """
        if fold == splits.FINAL:
            split = np.where(self.table["fold_1"] == "val", "val", "train")
        else:
            split = self.table[f"fold_{fold}"]
        table = self.table.assign(split=split)
        return table[table.split.isin(names)].reset_index(drop=True)

    def without(self, slide_ids: set[str]) -> "Cohort":
        """The same cohort less some slides (those that failed), checked again."""
        if not slide_ids:
            return self
        kept = self.table[~self.table.slide_id.isin(slide_ids)].reset_index(drop=True)
        _check_folds(kept, self.task, "the label CSV, less the slides that failed")
        return Cohort(table=kept, task=self.task)


def find_slides(folder: Path, wanted: Collection[str] | None = None) -> dict[str, Path]:
    """Slide files below `folder` by name without suffix.

    Args:
      folder: searched with all that is below it.
      wanted: the names that matter; None: all.

    Raises:
      DataError: no folder, or two files of one wanted name.
    """
    if not folder.is_dir():
        raise DataError(f"data.slides is {folder}, which is no folder; give the slides' folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SLIDE_SUFFIXES and path.is_file():
            if path.stem in found and (wanted is None or path.stem in wanted):
                raise DataError(
                    f"two slide files are called {path.stem} ({found[path.stem]} and {path}); "
                    "name the right one in the CSV's path column or remove one"
                )
            found[path.stem] = path
    return found


def read_cohort(
    labels: Path,
    slides: Path | None,
    read_task: ReadTask,
    *,
    folds: int = 5,
    seed: int = 0,
    saved_folds: Path | None = None,
    stand_ins: Mapping[str, Path] | None = None,
    split_folder: Path | None = None,
) -> Cohort:
    """Reads and checks the label CSV; makes folds by patient where the CSV has none.

    Args:
      labels: the CSV.
      slides: the folder in which slides without a path are looked for.
      read_task: makes the task and its targets of the rows (`tasks.Task.read`).
      folds: how many folds to use; made ones are stratified and grouped by patient.
      seed: of made folds.
      saved_folds: a CSV of folds made earlier for this cohort; it wins over making them again.
      stand_ins: files that stand for the slides, by name; a slide without one fails on its own.
      split_folder: CLAM's splits, in place of the CSV's own (`clam_splits`).

    Raises:
      DataError: a missing column, duplicate or unknown slide, a target that is none, a patient
        with two or in two splits, an empty fold.
    """
    frame = _read_csv(labels)
    if "slide_id" not in frame and "P_ID" in frame:
        frame = _expand_patients(frame, slides, labels, stand_ins)
    if "patient_id" not in frame:
        frame = frame.rename(columns={"P_ID": "patient_id"})
    if "patient_id" not in frame:  # CLAM's word
        frame = frame.rename(columns={"case_id": "patient_id"})
    _require_columns(frame, ("slide_id", "patient_id"), labels)
    if split_folder is not None:
        frame = clam_splits.with_splits(frame, split_folder, labels)
    table = pd.DataFrame(
        {
            "slide_id": frame["slide_id"].str.strip(),
            "patient_id": frame["patient_id"].str.strip(),
        }
    )
    _check_ids(table, labels)
    task, targets = read_task(frame, str(labels))
    table = pd.concat([table, targets.set_axis(table.index)], axis=1)
    table["case_id"] = _cases(table, task, labels)
    if stand_ins is None:
        table["path"] = _resolve_paths(table, frame.get("path"), slides, labels)
    else:
        table["path"] = [str(named(stand_ins, name) or name) for name in table.slide_id]
    table["mpp"] = _read_mpp(frame, table, labels)
    if "pool" in frame:
        table["pool"] = frame["pool"].str.strip()
    groups = task.groups(task.targets(table))
    table = splits.with_folds(table, frame, groups, folds, seed, saved_folds, labels)
    _check_folds(table, task, str(labels))
    return Cohort(table=table, task=task)


def _cases(table: pd.DataFrame, task: Question, path: Path) -> pd.Series:
    """What is predicted and measured as one: the patient; or, of classes, the patient's slides of
    one class."""
    if task.columns == ("label",):
        return splits.cases(table.patient_id, table.label)
    outcomes = table.groupby("patient_id")[list(task.columns)].nunique().max(axis=1)
    if (outcomes > 1).any():
        raise DataError(
            f"{path}: patient {outcomes.index[outcomes > 1][0]} has slides with different outcomes "
            f"({', '.join(task.columns)}); a patient has one"
        )
    return table.patient_id


def _check_folds(table: pd.DataFrame, task: Question, source: str) -> None:
    labels = table.label if task.columns == ("label",) else None
    splits.check_folds(table, task.classes, labels, source)


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, dtype=str, skipinitialspace=True)
    except FileNotFoundError as error:
        raise DataError(f"the label CSV {path} does not exist") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"the label CSV {path} cannot be read: {reason}") from error
    if frame.empty:
        raise DataError(f"the label CSV {path} has no rows")
    return frame


def _require_columns(frame: pd.DataFrame, names: tuple[str, ...], path: Path) -> None:
    missing = [name for name in names if name not in frame]
    if missing:
        raise DataError(
            f"the label CSV {path} has no column {', '.join(missing)}; "
            f"its columns are {', '.join(frame.columns)}"
        )


def _check_ids(table: pd.DataFrame, path: Path) -> None:
    for column in ("slide_id", "patient_id"):
        empty = table.index[table[column].isna() | (table[column] == "")]
        if len(empty):
            raise DataError(f"{path} has no {column} in line {empty[0] + 2}")
    twice = table.slide_id[table.slide_id.duplicated()].unique()
    if len(twice):
        raise DataError(f"{path} lists slide {', '.join(twice[:5])} more than once; keep one row")
    odd = [name for name in table.slide_id if not re.fullmatch(r"[\w.\- ()+]+", name)]
    if odd:
        raise DataError(
            f"{path}: slide_id {odd[0]!r} cannot be a file name; use letters and digits"
        )


def _resolve_paths(
    table: pd.DataFrame,
    given: pd.Series | None,
    slides: Path | None,
    labels: Path,
    *,
    must_exist: bool = True,
) -> list[str]:
    named = ["" if pd.isna(path) else path.strip() for path in given] if given is not None else []
    named = named or [""] * len(table)
    sought = [name for name, own in zip(table.slide_id, named, strict=True) if not own]
    names = {*sought, *map(_without_suffix, sought)}
    found = find_slides(slides, names) if slides is not None and names else {}
    paths, unknown = [], []
    for slide_id, own in zip(table.slide_id, named, strict=True):
        if own:
            path = (slides or labels.parent) / own
        else:
            path = found.get(slide_id, found.get(_without_suffix(slide_id)))
        if path is None or not path.exists():
            unknown.append(slide_id if path is None else str(path))
        paths.append(slide_id if path is None else str(path))
    if unknown and must_exist:
        raise DataError(
            f"{labels} lists {len(unknown)} slides that are not there: {', '.join(unknown[:5])}"
            f"{' ...' if len(unknown) > 5 else ''}; "
            f"looked in {slides if slides is not None else labels.parent} (data.slides)"
        )
    twice = pd.Series(paths)[pd.Series(paths).duplicated()].tolist()
    if twice:
        raise DataError(f"{labels} names the slide file {twice[0]} more than once; keep one row")
    return paths


def named(paths: Mapping[str, Path], slide_id: str) -> Path | None:
    """The file of a slide, whose id may have the suffix of a slide file; None if there is none."""
    return paths.get(slide_id, paths.get(_without_suffix(slide_id)))


def _without_suffix(slide_id: str) -> str:
    """A slide's name; ids hold dots, so only the suffix of a slide file is cut off."""
    name = Path(slide_id)
    return name.stem if name.suffix.lower() in SLIDE_SUFFIXES else slide_id


def _read_mpp(frame: pd.DataFrame, table: pd.DataFrame, path: Path) -> np.ndarray:
    if "mpp" not in frame:
        return np.full(len(table), np.nan)
    values = pd.to_numeric(frame["mpp"], errors="coerce")
    wrong = frame["mpp"].notna() & values.isna()
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(f"{path}: mpp {frame['mpp'].iloc[row]!r} in line {row + 2} is no number")
    return values.to_numpy(np.float64)


def _expand_patients(
    frame: pd.DataFrame, slides: Path | None, path: Path, stand_ins: Mapping[str, Path] | None
) -> pd.DataFrame:
    if slides is None and stand_ins is None:
        raise DataError(f"{path} lists patients (P_ID), so data.slides must name the slide folder")
    rows, empty = [], []
    names = sorted(find_slides(slides) if stand_ins is None else stand_ins)
    for _, row in frame.iterrows():
        patient = str(row["P_ID"]).strip()
        mine = [name for name in names if re.fullmatch(re.escape(patient) + r"([-_.].*)?", name)]
        if not mine:
            empty.append(patient)
        rows += [{**row.to_dict(), "slide_id": name} for name in mine]
    if empty:
        raise DataError(
            f"{path} lists {len(empty)} patients without a slide in {slides}: "
            f"{', '.join(empty[:5])}; a slide's name begins with its P_ID"
        )
    return pd.DataFrame(rows).reset_index(drop=True)


def given_mpp(row) -> float | None:
    """The um/px that a row of a slide table gives; None is the file's own."""
    return None if pd.isna(row.mpp) else float(row.mpp)


def one_slide(path: Path, mpp: float | None = None) -> pd.DataFrame:
    """A table of one slide, as `read_slide_list` gives it."""
    return pd.DataFrame(
        {
            "slide_id": [path.stem],
            "patient_id": [path.stem],
            "path": [str(path)],
            "mpp": [np.nan if mpp is None else mpp],
        }
    )


def problems(labels: Path, slides: Path | None, read_task: ReadTask) -> list[str]:
    """Every mistake in the CSV's rows that can be found on its own, for `check`."""
    try:
        frame = _read_csv(labels).rename(columns={"P_ID": "patient_id"})
        _require_columns(frame, ("slide_id", "patient_id"), labels)
    except DataError as error:
        return [str(error)]
    table = frame[["slide_id", "patient_id"]].map(str.strip, na_action="ignore")
    checks = (
        lambda: _check_ids(table, labels),
        lambda: read_task(frame, str(labels)),
        lambda: _resolve_paths(table.fillna(""), frame.get("path"), slides, labels),
        lambda: _read_mpp(frame, table, labels),
    )
    found = []
    for check in checks:
        try:
            check()
        except DataError as error:
            found.append(str(error))
    return found


def read_slide_list(
    source: Path, slides: Path | None = None, *, strict: bool = True
) -> pd.DataFrame:
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
        found = find_slides(source)
        if not found:
            raise DataError(f"--slides {source} holds no slide file")
        return pd.concat([one_slide(path) for path in found.values()], ignore_index=True)
    if not source.is_file():
        raise DataError(f"--slides {source} is neither a folder nor a CSV; check its path")
    frame = _read_csv(source)
    _require_columns(frame, ("slide_id",), source)
    if not strict:
        frame = frame.dropna(subset=["slide_id"]).drop_duplicates("slide_id").reset_index(drop=True)
    table = pd.DataFrame({"slide_id": frame["slide_id"].str.strip()})
    table["patient_id"] = frame.get("patient_id", table.slide_id)
    if strict:
        _check_ids(table, source)
    folder = source.parent if slides is None else slides
    table["path"] = _resolve_paths(table, frame.get("path"), folder, source, must_exist=False)
    table["mpp"] = _read_mpp(frame, table, source)
    if not strict:
        table = table[[Path(path).exists() for path in table.path]].reset_index(drop=True)
    others = frame.drop(columns=[name for name in frame if name in table])
    return table.join(others.map(str.strip, na_action="ignore"))
