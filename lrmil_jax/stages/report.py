"""report: all folds together as a table, curves, heatmaps and one page; and the model of all
folds, ready for `predict`."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from scipy.special import softmax

from lrmil_jax import files
from lrmil_jax.data import labels as label_csv
from lrmil_jax.report import heatmap, html, table
from lrmil_jax.slides import lattice, open_slide
from lrmil_jax.stages import evaluate, layout
from lrmil_jax.stages.inference import picture

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes `report/` and, for LRMIL, `model/`."""
    folder = layout.stage_folder(workdir, "report")
    rows = result_rows(config, workdir)
    table.save(folder, rows)
    _save_curves(config, workdir, folder / "training.png")
    pictures = [("training.png", "Validation loss of every training")]
    if config.method == "lrmil":
        pictures += _save_heatmaps(config, workdir, folder)
        log.info("model of all folds: %s", merge_models(config, workdir))
    note = (
        "AUC and accuracy are per patient, over the test patients of all folds together, with a "
        "95 % bootstrap interval over patients. Seconds per slide are medians, from the slide "
        "file, after a warm-up; LR without distillation costs what LRMIL costs."
    )
    html.save(
        folder / "index.html", html.page("lrmil_jax: results", table.cells(rows), pictures, [note])
    )
    log.info("report: %s", folder / "index.html")


def result_rows(config: ConfigDict, workdir: Path) -> list[dict]:
    """One row a model: pooled test predictions of all folds, patches and seconds per slide."""
    cohort = layout.prepared_cohort(config, workdir)
    folders = _evaluate_folders(config, workdir)
    pooled = pooled_predictions(config, workdir)
    timing = [_read_json(f / "timing.json") for f in folders]
    measured = [_read_json(f / "metrics.json") for f in folders]
    rows = []
    for arm in pooled.arm.unique():
        result = evaluate.measure(pooled[pooled.arm == arm], cohort.classes, config)
        per_fold = [fold[arm]["metrics"]["auc"] for fold in measured]
        defined = [value for value in per_fold if value is not None]
        row = {
            "arm": arm,
            "patients": result["patients"],
            **result["metrics"],
            "auc_interval": result["intervals"]["auc"],
            "auc_fold_mean": float(np.mean(defined)) if defined else None,
            "auc_fold_sd": float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
            "patches": float(np.median([fold[arm]["patches"] for fold in measured])),
        }
        # The undistilled encoder has the distilled one's shape: it is timed once.
        shape = "lrmil" if arm == "no_distillation" and config.method == "lrmil" else arm
        timed = [fold.get(shape) for fold in timing]
        if all(timed):
            for phase in table.PHASES:
                row[f"seconds_{phase}"] = float(np.median([fold[phase] for fold in timed]))
        rows.append(row)
    return rows


def pooled_predictions(config: ConfigDict, workdir: Path) -> pd.DataFrame:
    """Rows of every fold's `predictions.csv`; a patient tested in two folds counts as two, because
    two models were asked."""
    frames = []
    for fold, folder in enumerate(_evaluate_folders(config, workdir), 1):
        frame = pd.read_csv(folder / "predictions.csv", dtype={"case_id": str})
        frames.append(
            frame.assign(case_id=frame.case_id + f"/{fold}", label=frame.label.astype(str))
        )
    return pd.concat(frames, ignore_index=True)


def _evaluate_folders(config: ConfigDict, workdir: Path) -> list[Path]:
    return [layout.stage_folder(workdir, "evaluate", fold) for fold in range(1, config.folds + 1)]


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _save_curves(config: ConfigDict, workdir: Path, path: Path) -> None:
    logs = sorted((workdir / "folds").glob("*/*/training/**/metrics.jsonl"))
    logs += sorted(workdir.glob("pretrain/training/metrics.jsonl"))
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for file in logs:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        points = [(line["step"], line["validation/loss"]) for line in lines
                  if line.get("validation/loss") is not None]  # fmt: skip
        if points:
            axis.plot(*zip(*points, strict=True), label=str(file.parent.relative_to(workdir)))
    axis.set(xlabel="step", ylabel="validation loss", yscale="log")
    if len(logs) <= 12:
        axis.legend(fontsize=7)
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _save_heatmaps(config: ConfigDict, workdir: Path, folder: Path) -> list[tuple[str, str]]:
    """Attention of the student on the first test slides of each fold, over their thumbnails."""
    cohort = layout.prepared_cohort(config, workdir)
    pictures = []
    for fold in range(1, config.folds + 1):
        rows = cohort.slides(fold, "test").head(config.report.heatmaps)
        arms = evaluate.arms(config, workdir, fold, rows.slide_id.tolist())
        classifier, store = arms["lrmil"]
        for place, row in enumerate(rows.itertuples()):
            logits, scores = classifier.predict(store.embedding(place))
            said, best = softmax(logits), int(np.argmax(logits))
            name = f"heatmaps/fold_{fold}-{row.slide_id}.png"
            title = (
                f"{row.slide_id}: {cohort.classes[best]} {said[best]:.2f} "
                f"(label {cohort.classes[row.label]})"
            )
            xy = store.places(place)["xy"]
            _save_heatmap(config, row, folder / name, xy, softmax(scores), title)
            pictures.append((name, title))
    return pictures


def _save_heatmap(
    config: ConfigDict, row, path: Path, xy: np.ndarray, attention: np.ndarray, title: str
) -> None:
    geometry = layout.geometry(config)
    mpp = label_csv.given_mpp(row)
    with open_slide(row.path, mpp, reader=config.prepare.reader) as slide:
        drawn_on, downsample = picture(slide, geometry)
        child = lattice.side_of_child(slide.mpp, hr_mpp=geometry.hr_mpp, patch_px=geometry.patch_px)
    side = child * geometry.ratio
    heatmap.save(path, drawn_on, downsample, xy, side, attention, title=title)


def merge_models(config: ConfigDict, workdir: Path) -> Path:
    """Makes `workdir/model` of the folds' models; `predict` averages their probabilities."""
    target = workdir / "model"
    fresh = workdir / ".model.new"
    shutil.rmtree(fresh, ignore_errors=True)
    with files.disk_errors(workdir):
        hashes: dict[str, str] = {}
        for fold in range(1, config.folds + 1):
            origin = layout.stage_folder(workdir, "student", fold) / "model"
            shutil.copytree(origin / f"fold_{fold}", fresh / f"fold_{fold}")
            facts = _read_json(origin / "model.json")
            hashes |= facts["sha256"]
        files.write_json(fresh / "model.json", facts | {"sha256": hashes})
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
    return target
