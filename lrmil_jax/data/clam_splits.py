"""Folds as CLAM keeps them: a folder of `splits_<k>.csv`, k from 0, lists of slides or booleans."""

import re
from pathlib import Path

import pandas as pd

from lrmil_jax.data import tables
from lrmil_jax.data.folds import SPLITS
from lrmil_jax.errors import DataError


def with_splits(frame: pd.DataFrame, folder: Path, labels: Path) -> pd.DataFrame:
    """The rows of a label table with columns fold_1, ... of the folder's splits.

    Args:
      frame: with `slide_id`; a slide that no part of a split names is not in that fold.
      folder: see `read`.
      labels: the label table, for messages.

    Raises:
      DataError: see `read`, or the splits name a slide that is not in the table.
    """
    splits = read(folder).set_index("slide_id")
    names = frame.slide_id.str.strip().map(tables.one_form)
    strangers = splits.index.difference(names)
    if len(strangers):
        raise DataError(
            f"the splits in {folder} name {len(strangers)} slides that are not in {labels}: "
            f"{', '.join(strangers[:5])}; use the splits of this cohort"
        )
    return frame.assign(**{column: names.map(splits[column]) for column in splits})


def read(folder: Path) -> pd.DataFrame:
    """The folds of a folder of `splits_<k>.csv`, or of `splits_<k>_bool.csv` where the former are
    not there.

    Returns:
      Columns slide_id and fold_1, fold_2, ... (train, val, test, or missing where a fold leaves a
      slide out): what a label CSV may have.

    Raises:
      DataError: no such file, a number that is missing, or a slide in two splits of one fold.
    """
    found = numbered(folder, r"splits_(\d+)\.csv") or numbered(folder, r"splits_(\d+)_bool\.csv")
    if not found:
        raise DataError(f"{folder} has no splits_<k>.csv of CLAM; give the folder that has them")
    if sorted(found) != list(range(len(found))):
        raise DataError(
            f"{folder} has splits_<k>.csv of k = {', '.join(map(str, sorted(found)))}; they count "
            "from 0 without a gap"
        )
    folds = {}
    for number, path in sorted(found.items()):
        frame = tables.read(path, what="the splits")
        tables.require_columns(frame, SPLITS, path, what="the splits")
        lists = _of_bools(frame) if path.stem.endswith("_bool") else _of_lists(frame)
        lists = lists.assign(slide_id=lists.slide_id.map(tables.one_form))
        twice = lists.slide_id[lists.slide_id.duplicated()]
        if len(twice):
            raise DataError(f"{path} has slide {twice.iloc[0]} in more than one place; keep one")
        folds[f"fold_{number + 1}"] = lists.set_index("slide_id").split
    return pd.DataFrame(folds).rename_axis("slide_id").reset_index()


def numbered(folder: Path, pattern: str) -> dict[int, Path]:
    """Files of a folder by the number in their names, the pattern's first group."""
    named = ((re.fullmatch(pattern, path.name), path) for path in sorted(folder.glob("*.csv")))
    return {int(match[1]): path for match, path in named if match}


def _of_lists(frame: pd.DataFrame) -> pd.DataFrame:
    parts = [pd.DataFrame({"slide_id": frame[name].str.strip(), "split": name}) for name in SPLITS]
    joined = pd.concat(parts, ignore_index=True)
    return joined[joined.slide_id != ""]


def _of_bools(frame: pd.DataFrame) -> pd.DataFrame:
    names = frame[frame.columns[0]].str.strip()
    parts = [
        pd.DataFrame({"slide_id": names[frame[name].str.lower() == "true"], "split": name})
        for name in SPLITS
    ]
    return pd.concat(parts, ignore_index=True)
