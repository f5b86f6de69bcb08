"""Tasks: what is to be said of a slide. One file a task and one line in `TASKS`."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import pandas as pd

from lrmil_jax.errors import ConfigError, DataError, WeightsError
from lrmil_jax.tasks.classification import Classification
from lrmil_jax.tasks.cox import Cox
from lrmil_jax.tasks.multi_label import MultiLabel
from lrmil_jax.tasks.ordinal import Ordinal
from lrmil_jax.tasks.regression import Regression
from lrmil_jax.tasks.survival import Survival
from lrmil_jax.tasks.task import POOLINGS, Task

__all__ = ["POOLINGS", "TASKS", "Task", "kind", "of_columns", "of_facts"]

# Of two that would read the same `predictions.csv`, the one that asks for more comes first.
TASKS: Mapping[str, type[Task]] = {
    one.name: one for one in (Ordinal, Classification, MultiLabel, Regression, Cox, Survival)
}


def kind(name: str) -> type[Task]:
    """A task by its registered name.

    Raises:
      ConfigError: there is no such task.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.0)[0]
        raise ConfigError(f"Unknown task {name!r}: did you mean {near!r}? {', '.join(TASKS)}.")
    return TASKS[name]


def of_facts(facts: Mapping[str, Any]) -> Task:
    """The task that `Task.facts` described.

    Raises:
      WeightsError: they are no task's, or another version's.
    """
    fields = {name: tuple(one) if isinstance(one, list) else one for name, one in facts.items()}
    try:
        return TASKS[fields.pop("name")](**fields)
    except (KeyError, TypeError) as error:
        raise WeightsError(f"a model's task cannot be read ({error!r}): {dict(facts)}") from error


def of_columns(rows: pd.DataFrame) -> Task:
    """The task whose predictions these are: the one that a column `task` names, or that the other
    columns are of.

    Raises:
      DataError: the columns are of no known task, or of several.
    """
    names = rows["task"].unique().tolist() if "task" in rows else []
    if len(names) > 1 or not set(names) <= set(TASKS):
        raise DataError(
            f"the column task of these predictions has {', '.join(map(str, names))}, but they are "
            f"of one task, one of {', '.join(TASKS)}"
        )
    for one in [TASKS[name] for name in names] or TASKS.values():
        found = one.of_columns(rows)
        if found is not None:
            return dataclasses.replace(found, **_pooling(rows))
    raise DataError(
        f"these columns hold predictions of no known task: {', '.join(map(str, rows.columns))}"
    )


def _pooling(rows: pd.DataFrame) -> dict[str, str]:
    if "pooling" not in rows:
        return {}
    named = rows["pooling"].fillna(POOLINGS[0]).unique().tolist()
    if len(named) > 1 or not set(named) <= set(POOLINGS):
        raise DataError(
            f"predictions are pooled by {' and '.join(map(str, named))}; a table has one way, of "
            f"{', '.join(POOLINGS)}"
        )
    return {"pooling": named[0]} if named else {}  # a table without rows names none
