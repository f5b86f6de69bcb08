"""evaluate: what the fold's models say of its test patients, and how sure that is."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import files
from lrmil_jax.evals import localisation
from lrmil_jax.models import compared
from lrmil_jax.report.table import ARM_NAMES
from lrmil_jax.selection import score
from lrmil_jax.tasks import predictions
from lrmil_jax.workspace import cohorts, colours, layout, lesions, stage_files

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
    found = compared.arms(config, workdir, fold, table.slide_id.tolist())
    lesions_of = lesions.find(
        config, workdir, table, cohort.classes, compared.low_resolution_store(found)
    )
    frames, attentions, measured = {}, {}, {}
    for arm, (classifier, store) in found.items():
        name = ARM_NAMES.get(arm, arm)
        values, attention = compared.predict(
            classifier, store, lesions_of, label=f"evaluate {name}"
        )
        frames[arm] = predictions.rows(cohort.task, arm, table, values)
        if classifier.has_attention:
            attentions[arm] = attention
        measured[arm] = {"patches": float(np.median(store.sizes[test]))}
    if config.evaluate.colour_baseline:
        values, measured["colour"] = colours.predictions(config, workdir, fold, cohort)
        frames["colour"] = predictions.rows(cohort.task, "colour", table, values)
    for arm, frame in frames.items():
        measured[arm] |= predictions.measure(cohort.task, frame[test])
        measured[arm]["validation"] = predictions.measure(cohort.task, frame[~test])
        measured[arm]["thresholds"] = predictions.operating_points(
            cohort.task, frame[~test], frame[test], sensitivity=config.evaluate.sensitivity
        )
    _localise(config, folder, table, lesions_of, attentions, ~test, measured)
    if config.method == "wise_fuse":
        measured["wise_fuse"]["selection"] = _selection(workdir, fold, table, test, lesions_of)
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
    """Writes `localisation.csv` and adds each arm's figures to `measured`, where masks are."""
    if not lesions_of:
        return
    scored, lowest = lesions.attention_table(config, table, lesions_of, attentions, val)
    tested = scored[scored.split == "test"]
    files.write_table(folder / "localisation.csv", tested[list(lesions.COLUMNS)])
    for arm, threshold in lowest.items():
        for split, target in (("test", measured[arm]), ("val", measured[arm]["validation"])):
            rows = scored[(scored.arm == arm) & (scored.split == split)]
            target["localisation"] = localisation.summary([rows]) | {"threshold": threshold}


def _selection(
    workdir: Path,
    fold: int,
    table: pd.DataFrame,
    test: np.ndarray,
    lesions_of: dict[int, lesions.Lesion],
) -> dict[str, float | None]:
    """LR patches looked at and chosen, and the share of lesion area that the choice holds."""
    chosen = {
        place: stage_files.read_chosen(workdir, fold, row.slide_id)
        for place, row in enumerate(table.itertuples())
        if test[place]
    }
    recalls = [
        score.lesion_recall(lesions_of[place].share, picked)
        for place, (_, picked) in chosen.items()
        if place in lesions_of
    ]
    return {
        "lr_patches": float(np.median([len(scores) for scores, _ in chosen.values()])),
        "chosen": float(np.median([len(picked) for _, picked in chosen.values()])),
        "lesion_slides": len(recalls),
        "lesion_recall": float(np.mean(recalls)) if recalls else None,
    }
