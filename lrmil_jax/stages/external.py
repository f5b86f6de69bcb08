"""evaluate --cohort: what a trained model is worth on slides that it has never seen.

Predictions are made as `predict` makes them, figures and tables as `evaluate` and `report` do, at
the model's own thresholds.
"""

import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import config as configuration
from lrmil_jax import files, methods, processes, tasks
from lrmil_jax.data import labels as label_csv
from lrmil_jax.data import leaks, regions, slide_files, subgroups
from lrmil_jax.data.slide_jobs import SlideJob
from lrmil_jax.errors import DataError
from lrmil_jax.models import model_folder, slide_list
from lrmil_jax.models.slide_model import SlideModel
from lrmil_jax.patches import beside
from lrmil_jax.report import (
    agreement,
    discrimination,
    follow_up,
    html,
    patient_figures,
    results,
    table,
)
from lrmil_jax.tasks import Task, columns, evaluation, prediction_files, predictions
from lrmil_jax.workspace import cohorts, layout, twins

log = logging.getLogger(__name__)

_HEATMAPS = 4  # slides drawn on the page


def run(model: Path, workdir: Path, cohort: Path, config: ConfigDict | None = None) -> int:
    """Writes `predictions/`, `evaluate/` (predictions.csv, patient_predictions.csv,
    metrics.json) and `report/`.

    Args:
      model: a model folder.
      workdir: where the output goes.
      cohort: a label table with an outcome for every slide, of any layout of `data.layouts`.
      config: its keys of `data` say how the table is read; None: the defaults.

    Returns:
      How many slides failed; they are listed in `predictions/predictions.csv` with their reason.

    Raises:
      DataError: a mistake in the table, an outcome that the model does not know, or a slide that
        it was trained on.
      WeightsError: the model folder is not whole.
    """
    loaded = model_folder.load(model)
    config = configuration.default() if config is None else config
    sources = cohorts.label_sources(config, cohort)
    if sources.slides is None:
        sources = dataclasses.replace(sources, slides=cohort.parent)
    rows, task, slides = label_csv.read_slides(sources, _read_task(loaded.task, config))
    slides["case_id"] = label_csv.cases(slides, rows, task, cohort)
    names = tuple(config.evaluate.subgroups)
    slides = slides.join(subgroups.columns(rows.frame, names, slides.patient_id, str(cohort)))
    seen = _seen(loaded, slides, str(cohort), config)
    folder = workdir / "predictions"
    files.remove_leftovers(folder)
    with beside.configured_readers(config) as readers:
        done, failed = slide_list.predict(
            loaded,
            slides,
            folder,
            trust_mpp=config.data.trust_mpp,
            readers=readers,
            drawn=cohorts.annotations(config, slides),
        )
    listed = pd.DataFrame([slide_list.csv_row(loaded, record) for record in done] + failed)
    files.write_table(folder / "predictions.csv", listed)
    if not done:
        raise DataError(f"none of the {len(slides)} slides of {cohort} could be read; see above")
    notes = [f"External cohort {cohort.name}, {seen}."]
    _report(loaded, slides, done, notes, workdir)
    return len(failed)


def _read_task(task: Task, config: ConfigDict) -> label_csv.ReadTask:
    """How the outcomes of the model's own task are read."""
    data = task.reading(dict(config.data))
    default = configuration.default().data.label_column

    def read(frame: pd.DataFrame, source: str, settled: Mapping[str, Any]):
        if data["label_column"] == default and "label_column" in settled:
            data["label_column"] = settled["label_column"]
        if not task.has_classes:
            return task, type(task).read(frame, data, source)[1]
        (column,) = task.asked(data)
        text = columns.text(frame, column, source, classes=task.classes)
        rows = pd.DataFrame({"slide_id": frame["slide_id"], "label": text})
        return task, pd.DataFrame({"label": task.targets_of(rows).astype(np.int32)[:, 0]})

    return label_csv.ReadTask(type(task).asked(data), read)


def _seen(model: SlideModel, slides: pd.DataFrame, source: str, config: ConfigDict) -> str:
    """Refuses slides that the model was trained on, whatever they are called now.

    Patients are not compared by name: two hospitals may both have a patient 17.

    Returns:
      What the report says of it.
    """
    seen = twins.read_seen(model.folder)
    if not seen:
        log.warning("%s does not say which slides it was trained on, so nobody can tell whether "
                    "they are in %s; a model trained anew does", model.folder, source)  # fmt: skip
        return "not compared with the slides that the model was trained on"
    identified = processes.map_jobs(
        regions.identify_slide,
        _jobs(model, slides, trust_mpp=config.data.trust_mpp),
        workers=config.prepare.workers,
        label="compare with training",
        lost=lambda job, _: {"source": job.source()},  # told where it is predicted
        seconds=config.prepare.seconds_per_slide,
        apart=config.prepare.seconds_per_slide > 0,
    )
    pairs = twins.trained_on(seen, dict(zip(slides.slide_id, identified, strict=True)))
    leaks.tell(leaks.across_cohorts(pairs, source), config.data.leaks)
    if len(pairs):
        return f"{pairs.slide_id.nunique()} slides of which the model was trained on"
    return "none of whose slides the model was trained on"


def _jobs(model: SlideModel, slides: pd.DataFrame, *, trust_mpp: bool) -> list[SlideJob]:
    return [
        SlideJob(row.slide_id, Path(os.path.abspath(row.path)), slide_files.given_mpp(row),
                 Path(), model.settings, trust_mpp, of_model=True)
        for row in slides.itertuples()
    ]  # fmt: skip


def _report(
    model: SlideModel, slides: pd.DataFrame, done: list[dict], notes: list[str], workdir: Path
) -> None:
    task = model.task
    compared = methods.METHODS[model_folder.read_facts(model.folder)["method"]].main
    by_name = {record["slide_id"]: record for record in done}
    slides = slides[slides.slide_id.isin(by_name)].reset_index(drop=True)
    records = [by_name[name] for name in slides.slide_id]
    values = np.array([[one["prediction"][name] for name in task.values] for one in records])
    frame = predictions.rows(task, compared.name, slides, values).assign(
        title=compared.title, patches=[record["patches_encoded"] for record in records]
    )
    tested = prediction_files.described(frame, task=task.name, fold=1, split="test")
    measured = evaluation.evaluate(task, tested, None, sensitivity=1.0) | {
        "slides": len(frame),
        "thresholds": predictions.at_thresholds(task, frame, model.thresholds),
    }
    folder = layout.stage_folder(workdir, "evaluate")
    prediction_files.write_test(folder, tested)
    files.write_json(folder / "metrics.json", {compared.name: measured})
    seconds = pd.DataFrame([record["seconds"] for record in records]).median().to_dict()
    row = results.model_row(compared.name, tested, [measured], seconds)
    notes += results.result_notes([row], tested, chosen_on="the model's own validation patients")
    _page(layout.stage_folder(workdir, "report"), row, tested, records, notes, model.temperature)


def _page(
    folder: Path,
    row: dict,
    tested: pd.DataFrame,
    records: list[dict],
    notes: list[str],
    temperature: float | None,
) -> None:
    table.save(folder, [row], notes)
    titles, temperatures = {row["model"]: row["title"]}, {(1, row["model"]): temperature}
    pictures, sections = patient_figures.save(folder, tested, temperatures, titles)
    roc = discrimination.save(folder / "roc.png", tested, titles, row["model"])
    drawn = (
        ("roc.png", roc),
        ("agreement.png", agreement.save(folder / "agreement.png", tested, titles)),
    )
    pictures = [(name, caption) for name, caption in drawn if caption] + pictures
    if tasks.of_columns(tested).has_follow_up:
        follow_up.save(folder / "follow_up.png", tested, titles)
        pictures.append(("follow_up.png", "Patients above and below the median risk"))
    pictures += [
        (f"../predictions/{one['slide_id']}/heatmap.png", f"{one['slide_id']}: {one['sentence']}")
        for one in records[:_HEATMAPS]
    ]
    page = html.page("lrmil_jax: external cohort", table.cells([row]), pictures, notes,
                     sections=sections, folder=folder)  # fmt: skip
    html.save(folder / "index.html", page)
    for line in table.lines([row]):
        log.info("%s", line)
    log.info("report: %s", folder / "index.html")
