"""evaluate: what the fold's models say of its test patients, and how sure that is."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import files, methods, tasks
from lrmil_jax.evals import localisation
from lrmil_jax.methods import comparison
from lrmil_jax.progress import progress
from lrmil_jax.tasks import evaluation, prediction_files, predictions
from lrmil_jax.workspace import cohorts, colours, layout, lesions

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `predictions.csv`, `patient_predictions.csv`, `validation.csv`, `metrics.json` and,
    with masks, `localisation.csv`.

    `metrics.json` has, beside the figures of the test patients, those of the validation patients,
    so that settings can be compared without looking at the test, and what the thresholds and the
    temperature give that were chosen on them: all that `tasks.evaluation` says of both files.
    """
    cohort = cohorts.prepared(config, workdir)
    table = cohort.slides(fold, "val", "test")
    test = (table.split == "test").to_numpy()
    folder = layout.stage_folder(workdir, "evaluate", fold)
    compared = comparison.models(config, workdir, fold, table.slide_id.tolist())
    low = comparison.low_resolution_store(compared)
    lesions_of = lesions.find(config, workdir, table, cohort.classes, low)
    frames, attentions, measured = {}, {}, {}
    for name, (model, head, store) in compared.items():
        label = f"evaluate {model.title}"
        cases = table.case_id.tolist()
        values, attention = comparison.predict(head, store, cases, lesions_of, label=label)
        rows = predictions.rows(head.task, name, table, values)
        frames[name] = rows.assign(title=model.title, patches=store.sizes)
        if head.has_attention:
            attentions[name] = attention
        measured[name] = {}
    if config.evaluate.colour_baseline:
        values, measured["colour"] = colours.predictions(config, workdir, fold, cohort)
        rows = predictions.rows(cohort.task, "colour", table, values)
        frames["colour"] = rows.assign(title="colour only")
    sides = prediction_files.sides(tuple(frames.values()), test, task=cohort.task.name, fold=fold)
    _measure(*sides, measured, sensitivity=config.evaluate.sensitivity)
    _localise(config, folder, table, lesions_of, attentions, ~test, measured)
    method = methods.of(config)
    measured[method.main.name] |= method.measure(config, workdir, fold, table[test], lesions_of)
    prediction_files.write(folder, *sides)
    files.write_json(folder / "metrics.json", measured)


def _measure(
    test: pd.DataFrame, validation: pd.DataFrame, measured: dict[str, dict], *, sensitivity: float
) -> None:
    """Adds to `measured` what each model's rows say."""
    with progress("figures", len(measured)) as bar:
        for name, facts in measured.items():
            tested, validated = (side[side.model == name] for side in (test, validation))
            task = tasks.of_columns(tested)
            facts |= evaluation.evaluate(task, tested, validated, sensitivity=sensitivity)
            bar.advance()


def _localise(
    config: ConfigDict,
    folder: Path,
    table: pd.DataFrame,
    lesions_of: dict[int, lesions.Lesion],
    attentions: dict[str, dict[int, np.ndarray]],
    val: np.ndarray,
    measured: dict[str, dict],
) -> None:
    """Writes `localisation.csv` and adds each model's figures to `measured`, where masks are."""
    if not lesions_of:
        return
    scored, lowest = lesions.attention_table(config, table, lesions_of, attentions, val)
    tested = scored[scored.split == "test"]
    files.write_table(folder / "localisation.csv", tested[list(lesions.COLUMNS)])
    for name, threshold in lowest.items():
        for split, target in (("test", measured[name]), ("val", measured[name]["validation"])):
            rows = scored[(scored.model == name) & (scored.split == split)]
            target["localisation"] = localisation.summary([rows]) | {"threshold": threshold}
