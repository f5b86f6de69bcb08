"""The folds: given, saved or made, by patient, and checked before anything runs."""

import dataclasses
import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lrmil_jax.data import folds, split_files, tables
from lrmil_jax.data.layouts import Rows
from lrmil_jax.errors import DataError

log = logging.getLogger(__name__)

SPLITS = folds.SPLITS
_VAL_SHARE = 0.2
# In place of a fold's number: all patients but the validation ones of fold 1 are trained on, and
# nobody is tested.
FINAL = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How patients are parted; keys of the config.

    Attributes:
      folds: how many.
      seed: of folds that are made and validation patients that are drawn; saved folds of another
        seed are not taken.
      columns: of splits in the table, a fold each; (): `fold_1`, `fold_2`, ... or `split`.
      file: of splits, beside the table.
      site: keeps whole sites in one split of the folds that are made (`folds.sites`).
      val_share: of the training patients that become validation patients, where a fold has none;
        None: 0.2 of layouts whose splits know none, else such a fold is refused.
      leaks: "refuse" a patient in two splits, or "warn".
      saved: a CSV of folds made earlier for this cohort; it wins over making them again.
    """

    folds: int = 5
    seed: int = 0
    columns: tuple[str, ...] = ()
    file: Path | None = None
    site: str | None = None
    val_share: float | None = None
    leaks: str = "refuse"
    saved: Path | None = None


def with_folds(
    table: pd.DataFrame,
    rows: Rows,
    groups: np.ndarray,
    protocol: Protocol,
    path: Path,
    *,
    classes: Sequence[str] = (),
) -> pd.DataFrame:
    """The table with columns fold_1 ...: the CSV's own, those saved earlier, or new ones.

    Args:
      table: slides with ids, patients and targets.
      rows: the same rows as they were read.
      groups: [S] which slides are alike (`tasks.Task.groups`).
      protocol: how patients are parted.
      path: of the CSV, for messages.
      classes: names of the groups, where these are classes.

    Raises:
      DataError: the CSV has fewer folds than asked for, or folds cannot be made.
    """
    if protocol.file is not None:
        others = rows.frame.filter(regex=r"^(fold_\d+|split)$").columns
        frame = split_files.with_splits(rows.frame.drop(columns=others), protocol.file, path)
        rows = dataclasses.replace(rows, frame=frame, draws_val=True)
    given = _split_columns(rows.frame, protocol, path)
    if given:
        return _given_folds(table, rows, given, groups, protocol, path)
    if protocol.site is not None:
        table = table.assign(site=folds.sites(rows.frame, protocol.site, str(path)))
    kept = _saved_folds(table, protocol)
    if kept is not None:
        return kept
    made = folds.make(table, groups, folds=protocol.folds, seed=protocol.seed, source=str(path),
                      classes=classes)  # fmt: skip
    return table.assign(**made)


def given_columns(frame: pd.DataFrame) -> list[str]:
    """Columns of splits by their names: fold_1, fold_2, ... in this order, or `split`."""
    given = sorted(
        (name for name in frame if re.fullmatch(r"fold_\d+", name)),
        key=lambda name: int(name.removeprefix("fold_")),
    )
    return given or [name for name in ("split",) if name in frame]


def _split_columns(frame: pd.DataFrame, protocol: Protocol, path: Path) -> list[str]:
    """The table's columns of splits, as many as there are folds; [] if it has none."""
    if protocol.columns:
        tables.require_columns(frame, protocol.columns, path)
        given = list(protocol.columns)
    else:
        given = given_columns(frame)
    if given and len(given) < protocol.folds:
        raise DataError(
            f"{path} has {len(given)} fold columns, but folds={protocol.folds} was asked for; give "
            f"--config.folds={len(given)}, or take the columns out to have folds made"
        )
    if given and protocol.site is not None:
        raise DataError(
            f"{path} has the splits {given[0]} ..., and data.site={protocol.site} asks for others; "
            "leave one of them away"
        )
    return given[: protocol.folds]


def _given_folds(
    table: pd.DataFrame,
    rows: Rows,
    given: list[str],
    groups: np.ndarray,
    protocol: Protocol,
    path: Path,
) -> pd.DataFrame:
    share = protocol.val_share
    if share is None and rows.draws_val:
        share = _VAL_SHARE
    columns = {}
    for number, name in enumerate(given, 1):
        split = tables.with_blanks(rows.frame[name])
        odd = sorted(set(split.dropna()) - set(SPLITS))
        if odd:
            raise DataError(f"{path}: {name} has {odd[0]!r}; a split is train, val or test")
        train = (split == "train").to_numpy()
        if train.any() and not (split == "val").any():
            if share is None:
                raise DataError(
                    f"{path}: {name} has no slide in its val split, and a checkpoint is chosen by "
                    "validation patients; set data.val_share=0.2 to take a fifth of the training "
                    "patients, or mark some rows val"
                )
            drawn = folds.draw_val(train, table.patient_id, groups, share=share, seed=protocol.seed)
            log.info("%s: %s has no val split; %d of its training patients choose the checkpoint",
                     path, name, table.patient_id[drawn].nunique())  # fmt: skip
            split = split.mask(drawn, "val")
        columns[f"fold_{number}"] = split
    return table.assign(**columns)


def _saved_folds(table: pd.DataFrame, protocol: Protocol) -> pd.DataFrame | None:
    """The folds that were made before for the same slides, patients, sites and seed."""
    if protocol.saved is None or not protocol.saved.is_file():
        return None
    kept = tables.read(protocol.saved, what="the saved folds")
    wanted = [f"fold_{fold}" for fold in range(1, protocol.folds + 1)]
    names = ["slide_id", "patient_id", *(["site"] if "site" in table else [])]
    same = ("site" in kept) == ("site" in table) and _rows(kept, names) == _rows(table, names)
    same &= "seed" not in kept or set(kept.seed) == {str(protocol.seed)}
    if same and [c for c in kept if c.startswith("fold_")] == wanted:
        return table.merge(kept[["slide_id", *wanted]], on="slide_id", how="left")
    return None


def _rows(table: pd.DataFrame, names: list[str]) -> set[tuple[str, ...]]:
    return set(table[names].itertuples(index=False, name=None))


def check_folds(
    table: pd.DataFrame, classes: tuple[str, ...], labels: pd.Series | None, source: str
) -> None:
    """Refuses an empty split, and a train split without a class.

    Args:
      table: slides with fold_1 ...
      classes: their names.
      labels: numbers of the slides' classes; None where there are none.
      source: of the table, for messages.

    Raises:
      DataError: with the fold and the class in question.
    """
    for column in (name for name in table if name.startswith("fold_")):
        names = table[column]
        for split in SPLITS:
            if not (names == split).any():
                raise DataError(f"{source}: {column} has no slide in its {split} split")
            if labels is not None:
                _check_classes(set(labels[names == split]), classes, split, column, source)


def _check_classes(
    present: set[int], classes: tuple[str, ...], split: str, column: str, source: str
) -> None:
    absent = [name for i, name in enumerate(classes) if i not in present]
    if absent and split == "train":
        raise DataError(f"{source}: the train split of {column} has no slide of class {absent[0]}")
    if absent:
        log.warning(
            "%s: the %s split of %s has no slide of class %s, so its AUC is undefined",
            source, split, column, absent[0],
        )  # fmt: skip


def patients_in_two(table: pd.DataFrame, source: str) -> str | None:
    """A sentence on the patients of whom one fold has slides in two splits; None without any."""
    for column in (name for name in table if name.startswith("fold_")):
        there = table[table[column].notna()]
        several = there.groupby("patient_id")[column].nunique()
        leaking = several[several > 1].index.tolist()
        if leaking:
            return (
                f"{source}: patient {', '.join(leaking[:5])} is in two splits of {column}; "
                "all slides of a patient belong in one split"
            )
    return None


def refuse_test_patients(
    patients: Collection[str], table: pd.DataFrame, *, tiles: str, labels: str
) -> None:
    """Refuses to pretrain on tiles of a patient who is tested in any fold.

    Args:
      patients: of the tiles, by name; a name that is a slide's stands for its patient.
      table: the cohort's slides, with patient_id, slide_id and fold_1 ...
      tiles: what names the tiles' patients, for the message.
      labels: the label CSV, for the message.

    Raises:
      DataError: naming a patient and the fold that tests him or her.
    """
    names = set(map(tables.one_form, patients))
    of_tiles = (table[name].map(tables.one_form).isin(names) for name in ("patient_id", "slide_id"))
    shared = table[np.logical_or(*of_tiles)]
    folds = [name for name in table if name.startswith("fold_")]
    tested = shared[(shared[folds] == "test").any(axis=1)]
    if tested.empty:
        return
    first = tested.iloc[0]
    fold = next(name for name in folds if first[name] == "test").removeprefix("fold_")
    count = tested.patient_id.nunique()
    everyone = (
        f" (in cross validation every patient is tested in one of the {len(folds)} folds, so no "
        "patient of the cohort may be among the tiles)"
        if len(folds) > 1
        else ""
    )
    raise DataError(
        f"the tiles to pretrain on hold some of the patient {first.patient_id}, who is tested in "
        f"fold {fold} of {labels}{everyone}; {count} such patient{'s are' if count > 1 else ' is'} "
        f"named by {tiles}: remove the tiles, or the test would be of images that the encoder has "
        "seen"
    )


def cases(patients: pd.Series, labels: pd.Series) -> pd.Series:
    """The patient, or patient and label where slides of one patient differ in label.

    Splits are by patient all the same: slides of a patient never stand on two sides.
    """
    mixed = labels.groupby(patients).transform("nunique") > 1
    return patients.where(~mixed, patients + "/" + labels.astype(str))
