"""What one run of a study measured: a tidy row a model, and what paired differences need."""

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lrmil_jax import methods, points, tasks
from lrmil_jax.evals import intervals
from lrmil_jax.evals.intervals import Figure, Summary
from lrmil_jax.report import results, table
from lrmil_jax.studies.plan import BASE, Run
from lrmil_jax.tasks import evaluation, prediction_files, predictions
from lrmil_jax.workspace import layout


@dataclasses.dataclass(frozen=True)
class Measured:
    """One model of one seed.

    Attributes:
      model: its name in the table.
      record: the tidy row.
      folds: the task's headline (such as the AUC) on each fold's test patients, whose names say of
        which cohort they are.
      note: what shared pools of fields mean for the intervals, or None.
    """

    model: str
    record: dict
    folds: tuple[Figure, ...]
    note: str | None = None

    @property
    def figure(self) -> float | None:
        """Mean over the folds that define it, or None."""
        return intervals.mean(self.folds).value


def measure(run: Run) -> list[Measured]:
    """The models of one run: all models of the config itself, of a variant its own one, and the
    points of its sweep."""
    tested = results.test_predictions(run.config, run.folder)
    note = predictions.pool_note(tested)
    measured = []
    for row in results.result_rows(run.config, run.folder, tested):
        if run.variant == BASE:
            model = row["title"]
        elif row["model"] == methods.of(run.config).main.name:
            model = run.variant
        else:
            continue
        folds = _fold_figures(run, tested[tested.model == row["model"]])
        record = _record(run, model, row, run.changes, _validation_figure(run, row))
        measured.append(Measured(model, record, folds, note))
        if run.points and row["model"] == methods.of(run.config).main.name:
            measured += _points(run, row["patches"], note)
    return measured


def _points(run: Run, patches: float, note: str | None) -> list[Measured]:
    """What the stage `sweep` of a run has trained; its models read as many patches as the run's."""
    tested, validated = (
        results.all_folds(run.config, run.folder, name, stage="sweep")
        for name in (prediction_files.TEST, prediction_files.VALIDATION)
    )
    task, main = tasks.of_columns(tested), methods.of(run.config).main
    measured = []
    for point in run.points:
        rows, chosen_by = (side[side.model == point.key] for side in (tested, validated))
        row = {
            "model": main.name,
            "folds": rows.fold.nunique(),
            "patients": rows.case_id.nunique(),
            **evaluation.over_folds(task, rows),
            "patches": patches,
        }
        figures = [
            task.measure(*predictions.patients(task, fold)[1:])[task.headline]
            for _, fold in chosen_by.groupby("fold")
        ]
        record = _record(run, point.name, row, {**run.changes, **point.changes}, _mean(figures))
        measured.append(Measured(point.name, record, _fold_figures(run, rows), note))
    return measured


def _fold_figures(run: Run, tested: pd.DataFrame) -> tuple[Figure, ...]:
    """The patients of one label CSV are the same in every seed, which {seed} in its name prevents;
    synthetic ones of one name are others in every seed."""
    cohort = run.config.data.labels or f"synthetic, seed {run.seed}"
    task = tasks.of_columns(tested)
    folds = [predictions.figures(task, rows)[task.headline] for _, rows in tested.groupby("fold")]
    return tuple(
        dataclasses.replace(one, patients=np.char.add(f"{cohort}: ", one.patients)) for one in folds
    )


def _record(
    run: Run, model: str, row: dict, changes: Mapping[str, str], val_figure: float | None
) -> dict:
    return {
        "seed": run.seed,
        "variant": run.variant,
        "model": model,
        "changes": points.title(changes),
        "budget": methods.of(run.config).budget(run.config),
        "name": row["model"],
        **{key: value for key, value in table.flat(row).items() if key not in ("model", "title")},
        "figure": row[row["headline"]],
        "val_figure": val_figure,
    }


def _validation_figure(run: Run, row: dict) -> float | None:
    """Mean over folds of the headline on validation patients, by which settings are chosen."""
    values = []
    for fold in range(1, run.config.folds + 1):
        path = layout.stage_folder(run.folder, "evaluate", fold) / "metrics.json"
        known = json.loads(path.read_text(encoding="utf-8"))[row["model"]].get("validation")
        values.append(None if known is None else known["metrics"][row["headline"]])
    return _mean(values)


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else float(np.mean(values))


def over_seeds(measured: Sequence[Measured]) -> Summary:
    """The headline of one model over its seeds; of a single seed over its folds."""
    if len(measured) == 1:
        return intervals.summarise(measured[0].folds)
    return intervals.summarise([intervals.mean(one.folds) for one in measured])


def paired(reference: Sequence[Measured], other: Sequence[Measured]) -> Summary | None:
    """The reference's headline less the other model's, of the same seeds, folds and patients.

    Returns:
      None where a seed of the other has no reference, or other patients.
    """
    by_seed = {one.record["seed"]: one for one in reference}
    differences = []
    for one in other:
        base = by_seed.get(one.record["seed"])
        if base is None or len(base.folds) != len(one.folds):
            return None
        folds = tuple(map(intervals.difference, base.folds, one.folds))
        if None in folds:
            return None
        differences.append(dataclasses.replace(one, folds=folds))
    return over_seeds(differences)
