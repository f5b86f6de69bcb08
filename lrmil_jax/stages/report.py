"""report: all folds together as tables, figures and pages; and the model of all folds with its
card, ready for `predict`."""

import datetime
import logging
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

import lrmil_jax
from lrmil_jax import files, methods, tasks
from lrmil_jax.encoders import registry
from lrmil_jax.errors import ConfigError
from lrmil_jax.methods import comparison, delivery, drawn_slides, timing
from lrmil_jax.models import cost, drawings, model_folder
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
    model_card,
    overview,
    patient_figures,
    results,
    run_page,
    table,
)
from lrmil_jax.tasks import prediction_files
from lrmil_jax.workspace import cohorts, foreign, layout, lesions, provenance, statuses

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
    cautions = _cautions(config, workdir)
    parts = run_page.Parts(
        title=f"{_title(config)}: results",
        main=methods.of(config).main.name,
        rows=rows,
        notes=notes,
        cautions=cautions,
        about=_about(config, workdir),
        attention=table.attention_cells(rows),
        attention_note=_ATTENTION_NOTE,
        cards=drawn_slides.save_pages(config, workdir, folder, ordered),
        training=learning.save(folder, workdir),
        **_figures(config, workdir, folder, tested, rows),
    )
    parts.slides += _save_attention(config, workdir, folder)
    parts.slides += drawn_slides.save_pictures(config, workdir, folder, ordered)
    html.save(folder / "index.html", run_page.render(parts, folder))
    if folds:
        _save_card(config, workdir, rows, cautions)
    log.info("report: %s", folder / "index.html")


def _title(config: ConfigDict) -> str:
    return methods.of(config).main.title


def _cautions(config: ConfigDict, workdir: Path) -> list[str]:
    cohort = cohorts.prepared(config, workdir)
    lost = len(cohorts.read(config, workdir).table) - len(cohort.table)
    return overview.cautions(cohort, config.folds, slides_left_out=lost)


def _about(config: ConfigDict, workdir: Path) -> str:
    """What the run is, and what was left out."""
    cohort = cohorts.prepared(config, workdir)
    read = [statuses.read(workdir, name) for name in cohort.table.slide_id]
    model = workdir / "model"
    rows = overview.facts(
        config,
        cohort,
        method=_title(config),
        version=lrmil_jax.__version__,
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        model_hash=model_folder.identity(model) if model.is_dir() else None,
        encoder=provenance.read(workdir).get("encoder", {}),
    )
    return overview.section(
        rows=rows,
        changed=overview.changed_keys(config),
        splits=overview.split_cells(cohort, config.folds),
        slides=overview.slides_left_out(
            workdir, cohorts.read(config, workdir).table.slide_id.tolist()
        ),
        others=overview.files_left_out(workdir / "left_out.csv"),
        damaged=sum(bool(status.get("unreadable")) for status in read),
    )


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
    caption = costs.save(folder / "costs.png", rows, _flops(config, workdir, rows))
    return {
        "pictures": pictures,
        "calibration": calibration,
        "sections": sections,
        "costs": [("costs.png", caption)] if caption else [],
    }


def _flops(config: ConfigDict, workdir: Path, rows: list[dict]) -> dict[str, float]:
    """`costs.encoding_flops`; {} where another tool encoded, or the encoder cannot be counted."""
    facts = provenance.read(workdir).get("encoder", {})
    if not foreign.reads_slides(config) or foreign.given(config) or "name" not in facts:
        return {}
    try:
        of_patch = cost.flops_per_patch(facts["name"], facts["options"], cohorts.geometry(config))
    except ConfigError:  # such as a file of the user's that has moved since
        return {}
    read = [
        statuses.read(workdir, name) for name in cohorts.prepared(config, workdir).table.slide_id
    ]
    if of_patch is None:
        return {}
    high = {model.name: model.high for model in methods.of(config).models(config)}
    patches = float(np.median([status["hr_patches"] for status in read]))
    return costs.encoding_flops(rows, high, of_patch, hr_patches=patches)


def _save_card(config: ConfigDict, workdir: Path, rows: list[dict], cautions: list[str]) -> None:
    """Writes `model/README.md`."""
    model, cohort = workdir / "model", cohorts.prepared(config, workdir)
    main, facts = methods.of(config).main, model_folder.read_facts(model)
    row = next(row for row in rows if row["model"] == main.name)
    name = facts["encoder"]["name"]
    card = model_card.ModelCard(
        title=main.title,
        method=config.method,
        task=cohort.task.name,
        classes=cohort.task.classes,
        encoder=Path(name).name,
        licence="" if name.endswith(".py") else registry.spec(name).licence,
        dataset=Path(cohorts.source(config)).name,
        slides=len(cohort.table),
        patients=cohort.table.patient_id.nunique(),
        row=row | {"reads_hr": main.high},
        metric_titles={one: cohort.task.titles.get(one, one.replace("_", " "))
                       for one in cohort.task.metrics},
        geometry=facts["geometry"],
        thresholds=facts.get("thresholds") or {},
        cautions=cautions,
        folds=config.folds,
        hashes=facts["sha256"],
        identity=model_folder.identity(model),
        version=lrmil_jax.__version__,
    )  # fmt: skip
    files.write_text(model / "README.md", model_card.text(card))


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
        mask=lesions.slide_mask(config, workdir, row, cohort.classes),
        xy=lesion.xy,
        side=side,
        attention=maps,
        auc={compared[name][0].title: value for name, value in auc.items()},
    )
