"""Splits kept beside the label table: STAMP's `splits.json`, CLAM's folder of `splits_<k>.csv`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from lrmil_jax import files
from lrmil_jax.data import clam_splits, tables
from lrmil_jax.errors import DataError

_PARTS = (("train", "train_patients"), ("val", "val_patients"), ("test", "test_patients"))


def with_splits(frame: pd.DataFrame, path: Path, labels: Path) -> pd.DataFrame:
    """The rows with columns fold_1, ... of the file's splits.

    Args:
      frame: with `patient_id`; a patient that no part of a split names is not in that fold.
      path: the file, {"splits": [{"train_patients": [..], "test_patients": [..]}, ..]}; a part
        `val_patients` is read too. Or the folder, see `clam_splits.read`.
      labels: the label table, for messages.

    Raises:
      DataError: it cannot be read, splits and table name other patients, or a patient is in two
        parts.
    """
    if path.is_dir():
        return clam_splits.with_splits(frame, path, labels)
    made = {}
    for number, parts in enumerate(_read(path), 1):
        column = np.full(len(frame), "", dtype=object)
        seen: set[str] = set()
        for split, members in parts.items():
            _refuse_strangers(members - set(frame["patient_id"]), number, path, labels)
            both = sorted(seen & members)
            if both:
                raise DataError(f"{path}: split {number} has the patient {both[0]} in two parts")
            seen |= members
            column[frame["patient_id"].isin(members)] = split
        made[f"fold_{number}"] = column
    return frame.assign(**made)


def _read(path: Path) -> Iterator[dict[str, set[str]]]:
    try:
        content = files.parse_json(path.read_bytes())
        splits = content["splits"]
        yield from (
            {
                split: {tables.one_form(str(name)) for name in one[key]}
                for split, key in _PARTS
                if key in one or split != "val"
            }
            for one in splits
        )
    except FileNotFoundError as error:
        raise DataError(f"data.splits names {path}, which does not exist") from error
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise DataError(
            f"data.splits names {path}, which is not STAMP's splits.json "
            '({"splits": [{"train_patients": [..], "test_patients": [..]}]})'
        ) from error


def _refuse_strangers(strangers: set[str], number: int, path: Path, labels: Path) -> None:
    if strangers:
        some = ", ".join(sorted(strangers)[:5])
        raise DataError(
            f"{path}: split {number} names {len(strangers)} patients that are not in {labels}: "
            f"{some}{' ...' if len(strangers) > 5 else ''}; use the splits of this cohort"
        )
