"""evaluate: what the fold's models say of its test patients, and how sure that is."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import files, methods
from lrmil_jax.evals import localisation
from lrmil_jax.methods import comparison
from lrmil_jax.tasks import predictions
from lrmil_jax.workspace import cohorts, colours, layout, lesions

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `predictions.csv`, `metrics.json` and, with masks, `localisation.csv`.

    All are of the fold's test slides; `metrics.json` has the validation patients' figures beside
    them, so that settings can be compared without looking at the test, and what the thresholds give
    that were chosen on them.
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
        values, attention = comparison.predict(head, store, lesions_of, label=label)
        frames[name] = predictions.rows(cohort.task, name, table, values)
        if head.has_attention:
            attentions[name] = attention
        measured[name] = {"title": model.title, "patches": float(np.median(store.sizes[test]))}
    if config.evaluate.colour_baseline:
        values, facts = colours.predictions(config, workdir, fold, cohort)
        measured["colour"] = {"title": "colour only", **facts}
        frames["colour"] = predictions.rows(cohort.task, "colour", table, values)
    for name, frame in frames.items():
        measured[name] |= predictions.measure(cohort.task, frame[test])
        measured[name]["validation"] = predictions.measure(cohort.task, frame[~test])
        measured[name]["thresholds"] = predictions.operating_points(
            cohort.task, frame[~test], frame[test], sensitivity=config.evaluate.sensitivity
        )
    _localise(config, folder, table, lesions_of, attentions, ~test, measured)
    method = methods.of(config)
    measured[method.main.name] |= method.measure(config, workdir, fold, table[test], lesions_of)
    tested = pd.concat([frame[test] for frame in frames.values()], ignore_index=True)
    files.write_table(folder / "predictions.csv", tested)
    files.write_json(folder / "metrics.json", measured)


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
            rows = scored[(scored.arm == name) & (scored.split == split)]
            target["localisation"] = localisation.summary([rows]) | {"threshold": threshold}
