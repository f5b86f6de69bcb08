"""The folds: given, saved or made, by patient, and checked before anything runs."""

import logging
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from lrmil_jax.errors import DataError

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
# In place of a fold's number: all patients but the validation ones of fold 1 are trained on, and
# nobody is tested.
FINAL = 0


def with_folds(
    table: pd.DataFrame,
    frame: pd.DataFrame,
    groups: np.ndarray,
    folds: int,
    seed: int,
    saved: Path | None,
    path: Path,
) -> pd.DataFrame:
    """The table with columns fold_1 ...: the CSV's own, those saved earlier, or new ones.

    Args:
      table: slides with ids, patients and labels.
      frame: the CSV as read, of the same rows.
      groups: [S] which slides are alike (`tasks.Task.groups`).
      folds: how many.
      seed: of made folds; saved ones of another seed are not taken.
      saved: where earlier folds of this cohort are kept.
      path: of the CSV, for messages.

    Raises:
      DataError: the CSV has fewer folds than asked for, or folds cannot be made.
    """
    given = sorted(
        (name for name in frame if re.fullmatch(r"fold_\d+", name)),
        key=lambda name: int(name.removeprefix("fold_")),
    )
    if given:
        if len(given) < folds:
            raise DataError(
                f"{path} has {len(given)} fold columns, but folds={folds} was asked for"
            )
        columns = {f"fold_{i + 1}": frame[name].str.strip() for i, name in enumerate(given[:folds])}
        return table.assign(**columns)
    if saved is not None and saved.is_file():
        kept = pd.read_csv(saved, dtype=str)
        wanted = [f"fold_{fold}" for fold in range(1, folds + 1)]
        same = set(zip(kept.slide_id, kept.patient_id, strict=True)) == set(
            zip(table.slide_id, table.patient_id, strict=True)
        )
        same &= "seed" not in kept or set(kept.seed) == {str(seed)}
        if same and [c for c in kept if c.startswith("fold_")] == wanted:
            return table.merge(kept[["slide_id", *wanted]], on="slide_id", how="left")
    return table.assign(**make_folds(table, groups, folds=folds, seed=seed, source=str(path)))


def make_folds(
    table: pd.DataFrame, groups: np.ndarray, *, folds: int, seed: int, source: str
) -> dict[str, np.ndarray]:
    """Stratified folds in which a patient is in one split only: 1/k test, and as much val.

    With folds=1 one split of 3/5 train, 1/5 val, 1/5 test is made.

    Args:
      table: slides with `patient_id`.
      groups: [S] of which every fold gets as many as can be.
      folds: how many.
      seed: of the order in which patients are placed.
      source: of the table, for messages.

    Raises:
      DataError: a group has fewer patients than there are parts.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # late: it takes over a second

    parts = folds if folds > 2 else 5
    patients = table.patient_id.groupby(groups).nunique()
    if patients.min() < parts:
        raise DataError(
            f"{source}: class {patients.idxmin()} (counted from 0) has {patients.min()} patients, "
            f"too few for {parts} parts; give fold columns, add patients, or ask for fewer folds"
        )
    splitter = StratifiedGroupKFold(n_splits=parts, shuffle=True, random_state=seed)
    part = np.zeros(len(table), np.int64)
    placed = splitter.split(np.zeros(len(table)), groups, table.patient_id)
    for number, (_, members) in enumerate(placed):
        part[members] = number
    made = {}
    for fold in range(folds):
        names = np.full(len(table), "train", dtype=object)
        names[part == fold] = "test"
        names[part == (fold + 1) % parts] = "val"
        made[f"fold_{fold + 1}"] = names
    return made


def check_folds(
    table: pd.DataFrame, classes: tuple[str, ...], labels: pd.Series | None, source: str
) -> None:
    """Refuses unknown split names, a patient in two splits, and a split without a class.

    Args:
      table: slides with `patient_id` and fold_1 ...
      classes: their names.
      labels: numbers of the slides' classes; None where there are none.
      source: of the table, for messages.

    Raises:
      DataError: with the fold, the patient or the class in question.
    """
    for column in (name for name in table if name.startswith("fold_")):
        names = table[column]
        odd = sorted(set(names.dropna()) - set(SPLITS))
        if odd:
            raise DataError(f"{source}: {column} has {odd[0]!r}; a split is train, val or test")
        splits = table[names.notna()].groupby("patient_id")[column].nunique()
        leaking = splits[splits > 1].index.tolist()
        if leaking:
            raise DataError(
                f"{source}: patient {', '.join(leaking[:5])} is in two splits of {column}; "
                "all slides of a patient belong in one split"
            )
        for split in SPLITS:
            if not (names == split).any():
                raise DataError(f"{source}: {column} has no slide in its {split} split")
            if labels is None:
                continue
            present = set(labels[names == split])
            absent = [name for i, name in enumerate(classes) if i not in present]
            if absent and split != "train":
                log.warning(
                    "%s: the %s split of %s has no slide of class %s, so its AUC is undefined",
                    source, split, column, absent[0],
                )  # fmt: skip
            if absent and split == "train":
                raise DataError(
                    f"{source}: the train split of {column} has no slide of class {absent[0]}"
                )


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
    shared = table[table.patient_id.isin(patients) | table.slide_id.isin(patients)]
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
