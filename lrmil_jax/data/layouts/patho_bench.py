"""Patho-Bench's `k=all.tsv` with the `config.yaml` beside it.

The table has `case_id`, `slide_id`, the task's column and fold_0, fold_1, ... of train and test
(val where somebody put it in); the config names the task's column (`task_col`), its classes
(`label_dict`) and what is predicted as one (`sample_col`).
Source: Zhang et al., arXiv 2502.06750, and its splits on the Hugging Face Hub.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lrmil_jax.data import tables
from lrmil_jax.data.layouts.rows import Rows, Sources
from lrmil_jax.errors import DataError, one_line


def fits(frame: pd.DataFrame, sources: Sources) -> bool:
    """By its columns and the config beside it."""
    return {"case_id", "slide_id"} <= set(frame) and _config(sources.labels).is_file()


def rows(frame: pd.DataFrame, sources: Sources, targets: tuple[str, ...]) -> Rows:
    """See `layouts.read`.

    Raises:
      DataError: the config cannot be read, or the table has another class than it names.
    """
    path, config = sources.labels, _read(_config(sources.labels))
    task, unit = (_word(config, key, sources.labels) for key in ("task_col", "sample_col"))
    frame = frame.assign(patient_id=frame["case_id"])
    if unit != "case_id":
        tables.require_columns(frame, (unit,), path)
        frame["measured_as"] = frame[unit]
    data: dict[str, Any] = {}
    if not set(targets) & set(frame):
        data["label_column"] = task
    classes = config.get("label_dict") or {}
    if classes and task in frame and task in (data.get("label_column"), *targets):
        names = _names(classes, _config(path))
        frame[task] = _named(frame[task], names, path, task)
        data["classes"] = tuple(dict.fromkeys(names.values()))
    return Rows(frame.drop(columns="case_id"), data, draws_val=True)


def _config(table: Path) -> Path:
    return table.parent / "config.yaml"


def _read(path: Path) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        reason = one_line(error)
        raise DataError(f"{path} beside the split table cannot be read: {reason}") from error
    if not isinstance(config, Mapping):
        raise DataError(f"{path} beside the split table names no task; copy it again")
    return config


def _word(config: Mapping[str, Any], key: str, table: Path) -> str:
    if not isinstance(config.get(key), str):
        raise DataError(f"{_config(table)} has no {key}, which a task of Patho-Bench names")
    return config[key]


def _names(classes: Any, path: Path) -> dict[str, str]:
    """Number, as text -> name of the class, in the order of the numbers."""
    try:
        pairs = [
            (int(key), value) if isinstance(value, str) else (int(value), str(key))
            for key, value in classes.items()
        ]
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{path}: label_dict must pair numbers and names of classes") from error
    return {str(number): name for number, name in sorted(pairs)}


def _named(values: pd.Series, names: Mapping[str, str], path: Path, column: str) -> pd.Series:
    text = values.str.removesuffix(".0")
    wrong = ~(text.isin(names) | values.isin(names.values()))
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise DataError(
            f"{path}: {column} {values.iloc[row]!r} in line {tables.line(values, row)} is no class "
            f"of config.yaml's label_dict ({', '.join(f'{k}: {v}' for k, v in names.items())})"
        )
    return values.where(values.isin(names.values()), text.map(names))
