"""What all folds of a run say together, as rows of tables."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import tasks
from lrmil_jax.evals import localisation, thresholds
from lrmil_jax.report import table
from lrmil_jax.tasks import evaluation, prediction_files, predictions
from lrmil_jax.workspace import layout, lesions


def result_rows(config: ConfigDict, workdir: Path, tested: pd.DataFrame) -> list[dict]:
    """One row a model: test figures of all folds, patches and seconds per slide.

    Metrics are those of `evaluation.over_folds`.
    """
    folders = _folders(config, workdir)
    seconds = _read_json(layout.stage_folder(workdir, "report") / "timing.json")
    measured = [_read_json(f / "metrics.json") for f in folders]
    scored = localisation_columns(pooled_localisation(config, workdir))
    rows = []
    for model, own in tested.groupby("model", sort=False):
        row = model_row(model, own, [fold[model] for fold in measured], seconds.get(model, {}))
        rows.append(row | scored.get(model, {}))
    return rows


def model_row(
    model: str, tested: pd.DataFrame, measured: Sequence[Mapping], timed: Mapping[str, float]
) -> dict:
    """One model's row of the table.

    Args:
      model: its name.
      tested: its rows of `predictions.csv` with their `fold`.
      measured: what `metrics.json` has of it, a fold each.
      timed: seconds a slide, by phase.
    """
    row = {
        "model": model,
        "title": measured[0]["title"],
        "folds": len(measured),
        "patients": tested.case_id.nunique(),
        **evaluation.over_folds(tasks.of_columns(tested), tested),
        **_operating_points([fold["thresholds"] for fold in measured]),
        "patches": float(np.median([fold["patches"] for fold in measured])),
    }
    row |= _selection([fold["selection"] for fold in measured if "selection" in fold])
    row["patches"] += row.get("patches_lr", 0.0)  # those that it looked at to choose
    for phase in (*table.PHASES, "select"):
        if phase in timed:
            # WISE-FUSE reads and encodes twice: LR, then what it chose at HR.
            row[f"seconds_{phase}"] = timed[phase] + timed.get(f"{phase}_hr", 0.0)
    return row


def _operating_points(folds: list[dict[str, dict]]) -> dict[str, float | None]:
    """Means over the folds that define them, `<threshold>_<figure>`; {} of other than two classes.

    Thresholds are those of each fold's validation patients, figures those of its test patients.
    """
    row = {}
    for name in thresholds.NAMES:
        points = [fold[name] for fold in folds if name in fold]
        for figure in points[0] if points else ():
            if figure != "validation":
                values = [point[figure] for point in points if point[figure] is not None]
                stem = "wanted_sensitivity" if name == "sensitivity" else name
                row[f"{stem}_{figure}"] = float(np.mean(values)) if values else None
    return row


def result_notes(
    rows: list[dict],
    tested: pd.DataFrame,
    *,
    chosen_on: str = "each fold's validation patients",
) -> list[str]:
    """What a reader of the table has to know of its intervals, and of whom thresholds are."""
    folds, name, title = (rows[0][key] for key in ("folds", "headline", "headline_title"))
    if folds == 1:
        notes = [f"{title} with a 95 % interval over patients."]
    else:
        notes = [
            f"{title}: mean of {folds} folds, each model on its own test patients, with the 95 % "
            "interval of the mean over patients and models; a patient tested in several folds is "
            "one. Pooled: the predictions of all folds taken together."
        ]
        if any(row[f"{name}_folds"] < folds for row in rows):
            notes.append(
                f"Folds whose test patients leave the {title} undefined (without a class, or an "
                "event) are left out."
            )
    if any("youden_accuracy" in row for row in rows):
        notes.append(
            "Accuracy is that of the most probable class, and at the threshold that has the "
            f"highest Youden's index on {chosen_on}."
        )
    away = [row["title"] for row in rows if _looks_away(row)]
    if away:
        notes.append(
            f"The attention of {', '.join(away)} lies away from the masks' lesions: it weighs "
            "what speaks against a lesion, so its heatmaps do not show where one is."
        )
    pools = predictions.pool_note(tested)
    return notes + ([pools] if pools else [])


def _looks_away(row: Mapping[str, Any]) -> bool:
    """Whether a model attends to lesions less than to the rest, beyond chance: attention has no
    sign, and may gather the evidence of the other class."""
    interval = row.get("attention_auc_interval")
    return interval is not None and interval[1] is not None and interval[1] < 0.5


def _selection(folds: list[dict]) -> dict[str, float]:
    """What WISE-FUSE's choice was among, and the share of lesion area it held; {} of others."""
    if not folds:
        return {}
    found = {"patches_lr": float(np.median([one["lr_patches"] for one in folds]))}
    recalls = [one["lesion_recall"] for one in folds if one["lesion_recall"] is not None]
    return found | ({"lesion_recall": float(np.mean(recalls))} if recalls else {})


def test_predictions(config: ConfigDict, workdir: Path) -> pd.DataFrame:
    """Rows of every fold's `predictions.csv` with their `fold`; a patient may be in several."""
    return all_folds(config, workdir, prediction_files.TEST)


def validation_predictions(config: ConfigDict, workdir: Path) -> pd.DataFrame:
    """The same of every fold's validation patients."""
    return all_folds(config, workdir, prediction_files.VALIDATION)


def all_folds(
    config: ConfigDict, workdir: Path, name: str, *, stage: str = "evaluate"
) -> pd.DataFrame:
    """Rows of a file of predictions that a stage leaves in every fold, with their `fold`."""
    folders = enumerate(_folders(config, workdir, stage), 1)
    frames = [prediction_files.read(folder / name).assign(fold=fold) for fold, folder in folders]
    return pd.concat(frames, ignore_index=True)


def temperatures(config: ConfigDict, workdir: Path) -> dict[tuple[int, str], float | None]:
    """By fold and model, as each fold's validation patients chose; None where they tell none."""
    return {
        (fold, model): measured["calibration"].get("temperature")
        for fold, folder in enumerate(_folders(config, workdir), 1)
        for model, measured in _read_json(folder / "metrics.json").items()
    }


def thresholds_of(config: ConfigDict, workdir: Path) -> dict[tuple[int, str], float]:
    """Youden's threshold by fold and model, as each fold's validation patients chose it; those that
    chose none are not there."""
    return {
        (fold, model): measured["thresholds"]["youden"]["threshold"]
        for fold, folder in enumerate(_folders(config, workdir), 1)
        for model, measured in _read_json(folder / "metrics.json").items()
        if "youden" in measured.get("thresholds", {})
    }


def pooled_localisation(config: ConfigDict, workdir: Path) -> pd.DataFrame:
    """Rows of every fold's `localisation.csv` with their `fold`; empty without masks."""
    frames = []
    for fold, folder in enumerate(_folders(config, workdir), 1):
        if (folder / "localisation.csv").is_file():
            names = {"slide_id": str, "case_id": str}
            frame = pd.read_csv(folder / "localisation.csv", dtype=names).assign(fold=fold)
            frames += [frame] if len(frame) else []  # a fold's test may have no lesion
    columns = [*lesions.COLUMNS, "fold"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def localisation_columns(scored: pd.DataFrame) -> dict[str, dict]:
    """What the tables say of each model's attention on the test slides, the mean over folds."""
    columns = {}
    for model, rows in scored.groupby("model"):
        found = localisation.summary([fold for _, fold in rows.groupby("fold")])
        columns[model] = {
            "lesion_slides": found["slides"],
            "lesion_patients": found["patients"],
            "attention_auc": found["auc"],
            "attention_auc_sd": found["auc_sd"],
            "attention_auc_interval": found["auc_interval"],
            "attention_dice": found["dice"],
            "attention_dice_interval": found["dice_interval"],
            "attention_highest_dice": found["highest_dice"],
        }
    return columns


def _folders(config: ConfigDict, workdir: Path, stage: str = "evaluate") -> list[Path]:
    return [layout.stage_folder(workdir, stage, fold) for fold in range(1, config.folds + 1)]


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
