"""Predictions of a list of slides by a model, each kept in a folder of its own: a slide whose
prediction is there is not done again."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lrmil_jax import processes
from lrmil_jax.data import slide_files
from lrmil_jax.data.slide_jobs import drawn_identity, file_identity
from lrmil_jax.errors import UserError
from lrmil_jax.models import model_folder
from lrmil_jax.models.result import SlideResult
from lrmil_jax.models.slide_model import SlideModel
from lrmil_jax.models.visit import OnProgress
from lrmil_jax.processes import Workers
from lrmil_jax.progress import progress
from lrmil_jax.report import prediction
from lrmil_jax.report.overlays import registry
from lrmil_jax.report.prediction import SlidePrediction
from lrmil_jax.slides.annotations import Annotations
from lrmil_jax.tasks import predictions

log = logging.getLogger(__name__)


def predict(
    model: SlideModel,
    table: pd.DataFrame,
    folder: Path,
    *,
    trust_mpp: bool = False,
    readers: Workers | None = None,
    formats: Sequence[str] = registry.DEFAULT,
    drawn: Mapping[str, Annotations] | None = None,
    identity: str | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[list[dict], list[dict]]:
    """Records of the slides that have a prediction, in the order of the table, and of the others.

    Slides are classified one after the other without a pause; what is kept of them is drawn in
    processes beside, and is whole once `prediction.json` is there. With `trust_mpp` the table's
    um/px win against a file and an objective that agree with each other. `readers`
    and `on_progress` are as `SlideModel.predict_many` has them, `formats` of
    `report.overlays.registry` are written of each, `drawn` is what was drawn on the slides, by
    `slide_id` (`slide_files.drawn`), and `identity` is the model folder's, where it is known.
    """
    formats, drawn = registry.checked(formats), drawn or {}
    rows = _with_sources(model, table, drawn, identity or model_folder.identity(model.folder))
    known = [_known(folder / row.slide_id, source, formats) for row, source in rows]
    if model.task.one_bag:  # one that is not there takes the others of its bag with it
        missing = {row.case for (row, _), record in zip(rows, known, strict=True) if not record}
        known = [None if row.case in missing else record
                 for (row, _), record in zip(rows, known, strict=True)]  # fmt: skip
    pending = [pair for pair, record in zip(rows, known, strict=True) if record is None]
    results = model.predict_many(
        [row.path for row, _ in pending],
        [slide_files.given_mpp(row) for row, _ in pending],
        [row.case for row, _ in pending],
        trust_mpp=trust_mpp,
        readers=readers,
        annotations=[drawn.get(row.slide_id) for row, _ in pending],
        on_progress=on_progress,
    )
    failed: list[dict] = []
    with (
        progress("predict", len(rows), done=len(rows) - len(pending)) as bar,
        processes.Background(prediction.save, len(pending), label="predict") as drawing,
    ):
        for (row, source), found in zip(pending, results, strict=True):
            if isinstance(found, UserError):
                failed.append(_failure(row.slide_id, str(found)))
            else:
                record = _record(model, row, source, found) | _told(drawn.get(row.slide_id))
                kept = SlidePrediction(folder / row.slide_id, row.slide_id, found, record, formats)
                drawing.submit(kept)
            bar.advance()
        saved = drawing.results()
    undrawn = (record for record in saved if "reason" in record)
    failed += [_failure(record["slide_id"], record["reason"]) for record in undrawn]
    there = [record for record in known if record is not None]
    there += [record for record in saved if "prediction" in record]
    order = {slide_id: place for place, slide_id in enumerate(table.slide_id)}
    return sorted(there, key=lambda record: order[record["slide_id"]]), failed


def _with_sources(
    model: SlideModel, table: pd.DataFrame, drawn: Mapping[str, Annotations], identity: str
) -> list[tuple[Any, dict]]:
    """Each slide with what its prediction follows from: the model, the slide and, where a patient
    is one bag, the patient's other slides, which it follows in the list."""
    table = table.assign(case=table.get("case_id", table.patient_id))
    if model.task.one_bag:
        table = table.sort_values("case", kind="stable")
    rows = [(row, _source(identity, row, drawn.get(row.slide_id))) for row in table.itertuples()]
    if not model.task.one_bag:
        return rows
    slides: dict[str, list] = {}
    for row, source in rows:
        slides.setdefault(row.case, []).append(source)
    return [(row, source | {"bag": list(slides[row.case])}) for row, source in rows]


def _failure(slide_id: str, reason: str) -> dict:
    """Tells that a slide has no prediction, and gives its row."""
    log.error("slide %s failed: %s", slide_id, reason)
    return {"slide_id": slide_id, "status": "failed", "reason": reason}


def _source(identity: str, row, drawn: Annotations | None) -> dict:
    """What a prediction follows from: the model, the slide, and what was drawn on it."""
    path = Path(row.path)
    identified = file_identity(path) if path.is_file() else {}
    found = {"model": identity, "mpp": slide_files.given_mpp(row), **identified}
    return found | drawn_identity(drawn)


def _known(folder: Path, source: dict, formats: Sequence[str]) -> dict | None:
    """The prediction that is there already, if it is of this model and slide and in all formats."""
    mark = folder / "prediction.json"
    if not all(path.exists() for path in registry.paths(folder, formats).values()):
        return None
    record = json.loads(mark.read_text(encoding="utf-8")) if mark.is_file() else None
    return record if record is not None and record["source"] == source else None


def _record(model: SlideModel, row, source: dict, result: SlideResult) -> dict:
    return {
        "slide_id": row.slide_id,
        "path": str(Path(row.path)),
        "source": source,
        "probabilities": result.probabilities,
        "prediction": result.prediction,
        "sentence": result.sentence,
        "predicted_at": predicted_at(model, result.probabilities),
        "calibrated": calibrated(model, result.probabilities),
        "mpp": result.mpp,
        "lr_patches": len(result.attention),
        "patches_encoded": result.encoded,
        "unreadable": result.unreadable,
        "levels_read": result.read_log,
        "finest_level_allowed": result.finest_allowed,
        "seconds": {name: round(value, 4) for name, value in result.seconds.items()},
    }


def _told(drawn: Annotations | None) -> dict:
    """By what the same patches are found again."""
    if drawn is None:
        return {}
    path, classes = str(drawn.path), list(drawn.classes)
    return {"annotations": {"path": path, "classes": classes, "slide_id": drawn.slide_id}}


def annotations_of(record: Mapping[str, Any]) -> Annotations | None:
    """What a prediction's record says that its patches lie in."""
    told = record.get("annotations")
    if told is None:
        return None
    return Annotations(Path(told["path"]), tuple(told["classes"]), told["slide_id"])


def predicted_at(model: SlideModel, probabilities: Mapping[str, float]) -> dict[str, str]:
    """The class at each threshold of the model."""
    return {
        name: model.classes[int(probabilities[model.classes[1]] >= threshold)]
        for name, threshold in model.thresholds.items()
    }


def calibrated(model: SlideModel, probabilities: Mapping[str, float]) -> dict[str, float]:
    """The probabilities at the model's temperature; {} without one."""
    if model.temperature is None:
        return {}
    values = np.array([[probabilities[part] for part in model.task.parts]])
    (tempered,) = model.task.tempered(values, model.temperature)
    return dict(zip(model.task.parts, tempered.tolist(), strict=True))


def csv_row(model: SlideModel, record: dict) -> dict:
    row = {"slide_id": record["slide_id"], "status": "ok", "reason": ""}
    row |= {"model_sha256": record["source"]["model"]}
    # A record that was read again has its keys in another order.
    others = sorted(record["prediction"].keys() - set(model.task.values))
    row |= {name: record["prediction"][name] for name in (*others, *model.task.values)}
    # A record that an earlier version made has nothing calibrated.
    row |= _decided(model, record["predicted_at"], record.get("calibrated", {}))
    row |= {name: record[name] for name in ("mpp", "lr_patches", "patches_encoded")}
    row |= {
        "unreadable": len(record["unreadable"]),
        "finest_level_read": min(int(level) for level in record["levels_read"]),
        "finest_level_allowed": record["finest_level_allowed"],
    }
    return row | {f"seconds_{name}": value for name, value in record["seconds"].items()}


def _decided(
    model: SlideModel, predicted: Mapping[str, str], tempered: Mapping[str, float]
) -> dict[str, str | float]:
    """Columns of what `predicted_at` and `calibrated` give."""
    columns: dict = {f"predicted_{name}": value for name, value in predicted.items()}
    return columns | {f"calibrated_{name}": tempered[name] for name in model.task.parts if tempered}


def by_patient(model: SlideModel, table: pd.DataFrame, done: Sequence[dict]) -> pd.DataFrame:
    """A row a patient with a prediction: that of its slides pooled as the model's task does, which
    is what thresholds and temperature were chosen for.

    Args:
      model: that predicted.
      table: the slides, with `slide_id` and `patient_id`.
      done: records of those that have a prediction.

    Returns:
      `patient_id`, what is predicted, `slides` and `slide_ids` of which, and `failed`, how many
      of the patient's slides have no prediction.
    """
    task, said = model.task, {record["slide_id"]: record["prediction"] for record in done}
    known = table[table.slide_id.isin(said.keys())].reset_index(drop=True)
    frame = pd.DataFrame({"slide_id": known.slide_id, "case_id": known.patient_id})
    for value in task.values:
        frame[value] = [said[name][value] for name in known.slide_id]
    rows = predictions.by_patient(task, frame)
    decided = []
    for row in rows[list(task.values)].to_numpy():
        probabilities = dict(zip(task.parts, row.tolist(), strict=True))
        tempered = calibrated(model, probabilities)
        decided.append(_decided(model, predicted_at(model, probabilities), tempered))
    lost = table.patient_id[~table.slide_id.isin(said.keys())].value_counts()
    failed = rows.case_id.map(lost).fillna(0).astype(int)
    rows = rows.rename(columns={"case_id": "patient_id"}).join(pd.DataFrame(decided))
    return rows.assign(failed=failed, model_sha256=model_folder.identity(model.folder))
