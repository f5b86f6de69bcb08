"""Two models on the same patients: by how much one is better, and how sure that is."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import ndtr

from lrmil_jax import tasks
from lrmil_jax.errors import DataError
from lrmil_jax.evals import bootstrap, intervals
from lrmil_jax.evals.intervals import Figure
from lrmil_jax.tasks import predictions
from lrmil_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class _Test:
    """One fold's test patients under both models: names, targets, values, who is drawn together."""

    targets: np.ndarray
    values: tuple[np.ndarray, np.ndarray]
    drawn: np.ndarray


def paired(
    one: pd.DataFrame, other: pd.DataFrame, *, names: tuple[str, str], draws: int = 1000
) -> dict:
    """Every metric of the first model less that of the second, on the same patients.

    Args:
      one, other: test rows of one model each, of all folds, with their `fold`.
      names: what messages call the two.
      draws: of the bootstrap; 0 leaves it out.

    Returns:
      `patients`, `folds`, and `metrics`: of each metric `one` and `other` (means over folds), the
      `difference` with its `interval` and `p` by influences (`intervals.summarise`: over patients
      and, of several folds, models), and `bootstrap` with `interval`, `p` and `draws` over
      patients alone. Of two classes and one fold also `delong`: `difference`, `se`, `z`, `p` of
      the AUC.

    Raises:
      DataError: the two are of other tasks, folds, patients or targets.
    """
    task, tests = _tests(one, other, names)
    figures = [
        tuple(task.figures(test.targets, values, test.drawn) for values in test.values)
        for test in tests
    ]
    measured = [name for name in task.metrics if name in figures[0][0]]
    differences = {
        name: [intervals.difference(first[name], second[name]) for first, second in figures]
        for name in measured
    }
    resampled = _bootstrap(task, tests, measured, draws) if draws else {}
    compared = {
        "patients": len(np.unique(np.concatenate([test.drawn for test in tests]))),
        "folds": len(tests),
        "metrics": {
            name: {
                "one": intervals.mean([first[name] for first, _ in figures]).value,
                "other": intervals.mean([second[name] for _, second in figures]).value,
                **_difference(differences[name]),
                "bootstrap": resampled.get(name),
            }
            for name in measured
        },
    }
    if len(task.classes) == 2 and len(tests) == 1 and "auc" in differences:
        compared["delong"] = delong(differences["auc"][0])
    return compared


def delong(difference: Figure) -> dict[str, float] | None:
    """DeLong's test of a difference of two AUCs: the sum of squared influences is his variance.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988).
    """
    variance = float((difference.influence**2).sum())
    if difference.value is None or not variance > 0:
        return None
    z = difference.value / np.sqrt(variance)
    return {
        "difference": difference.value,
        "se": float(np.sqrt(variance)),
        "z": float(z),
        "p": float(2 * ndtr(-abs(z))),
    }


def _difference(of: Sequence[Figure]) -> dict:
    over = intervals.summarise(of)
    return {"difference": over.mean, "interval": over.interval, "p": intervals.p_value(of)}


def _bootstrap(task: Task, tests: Sequence[_Test], names: Sequence[str], draws: int) -> dict:
    def measure_of(test: _Test) -> bootstrap.Measure:
        def measure(rows: np.ndarray) -> dict[str, float | None]:
            first, second = (
                task.measure(test.targets[rows], values[rows]) for values in test.values
            )
            return {
                name: None if None in (first[name], second[name]) else first[name] - second[name]
                for name in names
            }

        return measure

    resampled = bootstrap.paired([(test.drawn, measure_of(test)) for test in tests], draws=draws)
    return {
        name: None if one is None else {"interval": (one.low, one.high), "p": one.p,
                                        "draws": one.draws}
        for name, one in resampled.items()
    }  # fmt: skip


def _tests(
    one: pd.DataFrame, other: pd.DataFrame, names: tuple[str, str]
) -> tuple[Task, list[_Test]]:
    """Both models' test patients fold by fold, refused if they are not the same."""
    kinds = [tasks.of_columns(rows) for rows in (one, other)]
    described = [(kind.name, kind.values) for kind in kinds]
    if described[0] != described[1]:
        sides = [f"{kind.name} ({', '.join(kind.values)})" for kind in kinds]
        raise DataError(
            f"{names[0]} predicts {sides[0]} and {names[1]} {sides[1]}; only models of one task "
            "can be compared"
        )
    folds = [sorted(rows.fold.unique().tolist()) for rows in (one, other)]
    if folds[0] != folds[1]:
        raise DataError(
            f"{names[0]} has the folds {folds[0]} and {names[1]} the folds {folds[1]}; give the "
            "same folds of both"
        )
    pairs = [(one[one.fold == fold], other[other.fold == fold], fold) for fold in folds[0]]
    return kinds[0], [_test(kinds[0], *pair, names) for pair in pairs]


def _test(
    task: Task, one: pd.DataFrame, other: pd.DataFrame, fold: int, names: tuple[str, str]
) -> _Test:
    (patients, targets, values), (others, other_targets, other_values) = (
        predictions.patients(task, rows) for rows in (one, other)
    )
    if not np.array_equal(patients, others):
        alone = np.setxor1d(patients, others)
        side = names[0] if alone[0] in patients else names[1]
        raise DataError(
            f"the test patients of fold {fold} are not the same: {len(alone)} are in one of the "
            f"two alone, such as {alone[0]} in {side}; compare models that were tested on the "
            "same patients"
        )
    differing = (targets != other_targets).any(1)
    if differing.any():
        raise DataError(
            f"patient {patients[np.argmax(differing)]} of fold {fold} has one outcome in "
            f"{names[0]} and another in {names[1]}; compare runs of the same label CSV"
        )
    return _Test(targets, (values, other_values), predictions.drawn(one, patients))
