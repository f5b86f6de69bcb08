"""report: all folds together as a table, curves, heatmaps and one page; and the model of all
folds, ready for `predict`."""

import json
import logging
from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from lrmil_jax import files, methods, tasks
from lrmil_jax.methods import comparison, delivery, timing
from lrmil_jax.models import drawings
from lrmil_jax.report import attention, follow_up, html, patient_figures, results, table
from lrmil_jax.tasks import prediction_files
from lrmil_jax.workspace import cohorts, foreign, layout, lesions

log = logging.getLogger(__name__)

_LESION_SLIDES = 3  # drawn with every model's attention
_ATTENTION_NOTE = (
    "Attention AUC: how often an LR patch with lesion gets more attention than one without, mean "
    "over slides and folds. Dice: overlap of the lesion's area and the patches above a threshold "
    "that each fold's validation slides chose; whole patches cannot exceed the highest possible."
)


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes `report/` and `model/`."""
    folder = layout.stage_folder(workdir, "report")
    folds = delivery.members(config)
    chosen = [comparison.chosen_on_validation(config, workdir, fold) for fold in folds]
    delivery.deliver(config, workdir, chosen)
    timing.run(config, workdir)
    tested = results.test_predictions(config, workdir)
    rows = results.result_rows(config, workdir, tested)
    notes = results.result_notes(rows, tested)
    table.save(folder, rows, notes)
    _save_curves(config, workdir, folder / "training.png")
    pictures = [("training.png", "Validation loss of every training")]
    titles = {row["model"]: row["title"] for row in rows}
    if tasks.of_columns(tested).has_follow_up:
        follow_up.save(folder / "follow_up.png", tested, titles)
        pictures.append(("follow_up.png", "Test patients above and below the median risk"))
    temperatures = results.temperatures(config, workdir)
    more, sections = patient_figures.save(folder, tested, temperatures, titles)
    prediction_files.write(folder, tested, results.validation_predictions(config, workdir))
    pictures += more + _save_attention(config, workdir, folder)
    pictures += methods.of(config).pictures(config, workdir, folder)
    pictures += _save_heatmaps(config, workdir, folder)
    notes += [
        "Figures are per patient. Seconds per slide are medians, from the slide "
        "file, after a warm-up; models of the same shape are timed once."
    ]
    shown = table.attention_cells(rows)
    if len(shown) > 1:
        notes.append(_ATTENTION_NOTE)
        sections.append(("Attention on test slides with lesion", shown))
    page = html.page("lrmil_jax: results", table.cells(rows), pictures, notes, sections=sections)
    html.save(folder / "index.html", page)
    log.info("report: %s", folder / "index.html")


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


def _save_attention(config: ConfigDict, workdir: Path, folder: Path) -> list[tuple[str, str]]:
    """Every model's attention on the first test slides with lesion, those of all folds in turn."""
    scored = results.pooled_localisation(config, workdir)
    if scored.empty:
        return []
    drawn = []
    for fold, slide_id in in_turn(scored, _LESION_SLIDES):
        mine = scored[(scored.fold == fold) & (scored.slide_id == slide_id)]
        auc = {line.model: None if pd.isna(line.auc) else line.auc for line in mine.itertuples()}
        drawn.append(_lesion_slide(config, workdir, fold, slide_id, auc))
    attention.save(folder / "attention.png", drawn)
    caption = (
        "Attention per LR patch on test slides with lesion (outlined); the teacher's HR attention "
        "is summed within each LR patch. AUC: lesion patches against patches without lesion."
    )
    return [("attention.png", caption)]


def _save_heatmaps(config: ConfigDict, workdir: Path, folder: Path) -> list[tuple[str, str]]:
    """Attention of the method's model on the first test slides of every fold."""
    if not foreign.reads_slides(config):
        return []
    cohort, pictures = cohorts.prepared(config, workdir), []
    model = methods.of(config).main
    for fold in range(1, config.folds + 1):
        rows = cohort.slides(fold, "test").head(config.report.heatmaps)
        read = cohort.in_one_bag(rows.slide_id)
        store = model.features(config, workdir, fold, read.slide_id.tolist())
        pictures += drawings.save_attention(
            config, workdir, folder, rows, model.head(workdir, fold), store,
            read.case_id.tolist(), fold=fold, high=model.high,
        )  # fmt: skip
    return pictures


def in_turn(scored: pd.DataFrame, count: int) -> list[tuple[int, str]]:
    """Fold and name of the first slide of each fold, then of the second ones, up to `count`."""
    slides = scored[["fold", "slide_id"]].drop_duplicates()
    slides = slides.assign(turn=slides.groupby("fold").cumcount()).sort_values(["turn", "fold"])
    return [(int(row.fold), row.slide_id) for row in slides.head(count).itertuples()]


def _lesion_slide(
    config: ConfigDict, workdir: Path, fold: int, slide_id: str, auc: dict[str, float | None]
) -> attention.LesionSlide:
    cohort = cohorts.prepared(config, workdir)
    rows = cohort.in_one_bag([slide_id])
    place = rows.slide_id.tolist().index(slide_id)
    compared = comparison.models(config, workdir, fold, rows.slide_id.tolist())
    low = comparison.low_resolution_store(compared)
    lesion = lesions.find(config, workdir, rows, cohort.classes, low)[place]
    maps = {}
    for name in auc:
        model, head, store = compared[name]
        scores = head.on(store, rows.case_id.tolist()).slide(place)[1]
        maps[model.title] = lesions.lr_attention(scores, store, place, len(lesion.share))
    row = list(rows.itertuples())[place]
    drawn_on, downsample, side = drawings.thumbnail(config, workdir, row)
    return attention.LesionSlide(
        name=slide_id,
        thumbnail=drawn_on,
        downsample=downsample,
        mask=lesions.slide_mask(config, workdir, row, cohort.classes),
        xy=lesion.xy,
        side=side,
        attention=maps,
        auc={compared[name][0].title: value for name, value in auc.items()},
    )
