"""report: all folds together as tables, figures and pages; and the model of all folds with its
card, ready for `predict`."""

import logging
from pathlib import Path

import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import methods, tasks
from lrmil_jax.methods import comparison, delivery, drawn_slides, run_facts, timing
from lrmil_jax.models import drawings
from lrmil_jax.report import (
    agreement,
    attention,
    confusion,
    costs,
    discrimination,
    fold_points,
    follow_up,
    html,
    learning,
    patient_figures,
    results,
    run_page,
    table,
)
from lrmil_jax.tasks import prediction_files
from lrmil_jax.workspace import cohorts, layout, lesion_masks, lesions

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
    notes.append(
        "Figures are per patient. Seconds per slide are medians, from the slide "
        "file, after a warm-up; models of the same shape are timed once."
    )
    prediction_files.write(folder, tested, results.validation_predictions(config, workdir))
    ordered = drawn_slides.order(config, tested)
    cautions = run_facts.cautions(config, workdir)
    parts = run_page.Parts(
        title=f"{methods.of(config).main.title}: results",
        main=methods.of(config).main.name,
        rows=rows,
        notes=notes,
        cautions=cautions,
        about=run_facts.about(config, workdir),
        attention=table.attention_cells(rows),
        attention_note=_ATTENTION_NOTE,
        by_doubt=bool(ordered.loss.notna().any()),
        cards=drawn_slides.save_pages(config, workdir, folder, ordered),
        training=learning.save(folder, workdir),
        **_figures(config, workdir, folder, tested, rows),
    )
    parts.slides += _save_attention(config, workdir, folder)
    parts.slides += drawn_slides.save_pictures(config, workdir, folder, ordered)
    html.save(folder / "index.html", run_page.render(parts, folder))
    if folds:
        run_facts.save_card(config, workdir, rows, cautions)
    log.info("report: %s", folder / "index.html")


def _figures(
    config: ConfigDict, workdir: Path, folder: Path, tested: pd.DataFrame, rows: list[dict]
) -> dict[str, list]:
    """Figures of the test patients, those that the task has, and what slides cost."""
    titles = {row["model"]: row["title"] for row in rows}
    main = methods.of(config).main.name
    drawn = {
        "fold_points.png": fold_points.save(folder / "fold_points.png", rows, tested),
        "roc.png": discrimination.save(folder / "roc.png", tested, titles, main),
        "confusion.png": confusion.save(
            folder / "confusion.png", tested, results.thresholds_of(config, workdir), titles
        ),
        "agreement.png": agreement.save(folder / "agreement.png", tested, titles),
    }
    pictures = [(name, caption) for name, caption in drawn.items() if caption]
    if tasks.of_columns(tested).has_follow_up:
        follow_up.save(folder / "follow_up.png", tested, titles)
        pictures.append(("follow_up.png", "Test patients above and below the median risk"))
    temperatures = results.temperatures(config, workdir)
    calibration, sections = patient_figures.save(folder, tested, temperatures, titles)
    caption = costs.save(
        folder / "costs.png", rows, run_facts.encoding_flops(config, workdir, rows)
    )
    return {
        "pictures": pictures,
        "calibration": calibration,
        "sections": sections,
        "costs": [("costs.png", caption)] if caption else [],
    }


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
        "Attention per LR patch on test slides with lesion (outlined); attention on HR "
        "patches is summed within each LR patch. AUC: lesion patches against those without lesion."
    )
    return [("attention.png", caption)]


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
        mask=lesion_masks.slide_mask(config, workdir, row, cohort.classes),
        xy=lesion.xy,
        side=side,
        attention=maps,
        auc={compared[name][0].title: value for name, value in auc.items()},
    )
