"""The label table and the slides it names, checked before anything runs.

`data.layouts` reads tables of several shapes; here their rows become a cohort.
"""

import dataclasses
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from lrmil_jax.data import layouts, leaks, slide_files, splits, subgroups, tables
from lrmil_jax.data.layouts import Rows, Sources
from lrmil_jax.errors import DataError


@typing.runtime_checkable
class Question(typing.Protocol):
    """What the reading of a table asks of a `tasks.Task`."""

    columns: tuple[str, ...]
    classes: tuple[str, ...]
    one_bag: bool

    def targets(self, table: pd.DataFrame) -> np.ndarray: ...

    def groups(self, targets: np.ndarray) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class ReadTask:
    """How a task and its targets are read from rows (`tasks.Task`).

    Attributes:
      asked: columns of the table that hold the targets.
      read: read(rows, name of the table, what the table itself settles) -> the task, and the
        targets of the rows.
    """

    asked: tuple[str, ...]
    read: Callable[[pd.DataFrame, str, Mapping[str, typing.Any]], tuple[typing.Any, pd.DataFrame]]


@dataclasses.dataclass(frozen=True)
class Cohort:
    """Slides with their targets and folds.

    Attributes:
      table: columns slide_id, patient_id, case_id (what is predicted and measured as one), the
        task's targets, path, mpp (NaN: the file's own), fold_1..., pool where the CSV has that
        column: the pool of images that a composed slide is made of (NaN: none); `site` where folds
        keep sites whole; and `measured_as` where the table's layout says what case_id follows.
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

    def in_one_bag(self, slide_ids: Collection[str]) -> pd.DataFrame:
        """The rows of some slides and, where a patient is one bag, of those in a bag with them."""
        rows = self.table.slide_id.isin(slide_ids)
        if self.task.one_bag:
            rows = self.table.case_id.isin(self.table.case_id[rows])
        return self.table[rows].reset_index(drop=True)

    def without(self, slide_ids: set[str]) -> "Cohort":
        """The same cohort less some slides (those that failed), checked again."""
        if not slide_ids:
            return self
        kept = self.table[~self.table.slide_id.isin(slide_ids)].reset_index(drop=True)
        _check_folds(kept, self.task, "the label CSV, less the slides that failed")
        return Cohort(table=kept, task=self.task)


def read_cohort(
    sources: Sources,
    read_task: ReadTask,
    protocol: splits.Protocol | None = None,
    subgroup_columns: tuple[str, ...] = (),
) -> Cohort:
    """Reads and checks the label table; makes folds by patient where it has none.

    Args:
      sources: the table and what belongs to it.
      read_task: makes the task and its targets of the rows.
      protocol: how patients are parted.
      subgroup_columns: of the table, kept as `subgroups.columns` has them.

    Raises:
      DataError: a missing column, duplicate or unknown slide, a target that is none, a patient
        with two or in two splits, an empty fold.
    """
    protocol, labels = protocol or splits.Protocol(), sources.labels
    rows, task, table = read_slides(sources, read_task)
    table["case_id"] = cases(table, rows, task, labels)
    if "measured_as" in rows.frame:
        table["measured_as"] = rows.frame["measured_as"]
    groups_of = subgroups.columns(rows.frame, subgroup_columns, table.patient_id, str(labels))
    table = table.join(groups_of)
    groups = task.groups(task.targets(table))
    named = task.classes if task.columns == ("label",) else ()
    table = splits.with_folds(table, rows, groups, protocol, labels, classes=named)
    leaks.tell(splits.patients_in_two(table, str(labels)), protocol.leaks)
    _check_folds(table, task, str(labels))
    if task.one_bag:  # the slides of a bag follow each other, wherever some of them are taken
        table = table.sort_values("case_id", kind="stable", ignore_index=True)
    return Cohort(table=table, task=task)


def read_slides(sources: Sources, read_task: ReadTask) -> tuple[Rows, typing.Any, pd.DataFrame]:
    """The rows of a label table, the task, and a table of ids, targets, paths, um/px and pools.

    Raises:
      DataError: see `read_cohort`.
    """
    labels = sources.labels
    rows = layouts.read(sources, read_task.asked)
    frame = rows.frame
    table = frame[["slide_id", "patient_id"]].copy()
    slide_files.check_ids(table, labels)
    task, targets = read_task.read(frame, str(labels), rows.data)
    table = pd.concat([table, targets.set_axis(table.index)], axis=1)
    paths = tables.with_blanks(frame["path"]) if "path" in frame else None
    if sources.stand_ins is None:
        table["path"] = slide_files.resolve(table, paths, sources.slides, labels)
    else:
        files = (slide_files.named(sources.stand_ins, name) or name for name in table.slide_id)
        table["path"] = list(map(str, files))
    table["mpp"] = slide_files.read_mpp(frame, labels)
    if "pool" in frame:
        table["pool"] = tables.with_blanks(frame["pool"])
    return rows, task, table


def cases(table: pd.DataFrame, rows: Rows, task: Question, path: Path) -> pd.Series:
    """What is predicted and measured as one: the patient; or, of classes, the patient's slides of
    one class; or what the table's layout says.

    Raises:
      DataError: a patient has two outcomes, of a task without classes.
    """
    unit = rows.frame.get("measured_as", table.patient_id)
    if task.columns == ("label",):
        return splits.cases(unit, table.label)
    outcomes = table.groupby(unit)[list(task.columns)].nunique().max(axis=1)
    if (outcomes > 1).any():
        raise DataError(
            f"{path}: patient {outcomes.index[outcomes > 1][0]} has slides with different outcomes "
            f"({', '.join(task.columns)}); a patient has one"
        )
    return unit


def _check_folds(table: pd.DataFrame, task: Question, source: str) -> None:
    labels = table.label if task.columns == ("label",) else None
    splits.check_folds(table, task.classes, labels, source)


def problems(sources: Sources, read_task: ReadTask) -> list[str]:
    """Every mistake in the table's rows that can be found on its own, for `check`."""
    labels = sources.labels
    try:
        rows = layouts.read(sources, read_task.asked)
    except DataError as error:
        return [str(error)]
    frame = rows.frame
    table = frame[["slide_id", "patient_id"]]
    paths = tables.with_blanks(frame["path"]) if "path" in frame else None
    checks = (
        lambda: slide_files.check_ids(table, labels),
        lambda: read_task.read(frame, str(labels), rows.data),
        lambda: slide_files.resolve(table.fillna(""), paths, sources.slides, labels),
        lambda: slide_files.read_mpp(frame, labels),
    )
    found = []
    for check in checks:
        try:
            check()
        except DataError as error:
            found.append(str(error))
    return found
