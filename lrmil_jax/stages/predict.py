"""predict: any slide file to probabilities, attention and a heatmap, from LR pixels alone.

No label, no teacher and no HR pixel is needed. A cohort compiles once, and a slide whose
prediction is there is not done again.
"""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd

from lrmil_jax import files, processes
from lrmil_jax.data import labels as label_csv
from lrmil_jax.data import splits
from lrmil_jax.data.slide_jobs import file_identity
from lrmil_jax.errors import DataError, UserError
from lrmil_jax.evals import intervals, metrics
from lrmil_jax.models import model_folder
from lrmil_jax.models.result import SlideResult
from lrmil_jax.models.slide_model import SlideModel
from lrmil_jax.progress import progress
from lrmil_jax.report import prediction
from lrmil_jax.report.prediction import SlidePrediction

log = logging.getLogger(__name__)


def run(
    model: Path,
    workdir: Path,
    *,
    slide: Path | None,
    slides: Path | None,
    mpp: float | None = None,
) -> int:
    """Writes `predictions/<slide>/` and `predictions/predictions.csv`.

    Args:
      model: a model folder.
      workdir: where the output goes.
      slide: one slide file, or
      slides: a folder of slides or a CSV (`slide_id[,path][,mpp][,patient_id][,label]`).
      mpp: um/px of `slide`, if the file's own is not right.

    Returns:
      How many slides failed; they are listed in the CSV with their reason.

    Raises:
      DataError: no slide is named, or a label is none of the model's classes.
      WeightsError: the model folder is not whole.
    """
    loaded = model_folder.load(model)
    if slide is not None:
        table = label_csv.one_slide(slide, mpp)
    else:
        table = label_csv.read_slide_list(slides)
    truth = _true_classes(loaded, table)
    folder = workdir / "predictions"
    files.remove_leftovers(folder)
    done, failed = _predict(loaded, table, folder)
    predictions = pd.DataFrame([_csv_row(record) for record in done] + failed)
    files.write_table(folder / "predictions.csv", predictions)
    if truth and done:
        _write_metrics(loaded, table, truth, done, folder)
    for record in done[:20]:
        log.info("%s", _line(record))
    log.info("predictions of %d slides in %s", len(done), folder)
    return len(failed)


def _predict(model: SlideModel, table: pd.DataFrame, folder: Path) -> tuple[list[dict], list[dict]]:
    """Records of the slides that have a prediction, in the order of the table, and of the others.

    Slides are classified one after the other without a pause; what is kept of them is drawn in
    processes beside, and is whole once `prediction.json` is there.
    """
    identity = _identity(model.folder)
    rows = [(row, _source(identity, row)) for row in table.itertuples()]
    known = [_known(folder / row.slide_id, source) for row, source in rows]
    pending = [pair for pair, record in zip(rows, known, strict=True) if record is None]
    results = model.predict_many(
        [row.path for row, _ in pending], [label_csv.given_mpp(row) for row, _ in pending]
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
                record = _record(model, row, source, found)
                drawing.submit(SlidePrediction(folder / row.slide_id, row.slide_id, found, record))
            bar.advance()
        saved = drawing.results()
    undrawn = (record for record in saved if "reason" in record)
    failed += [_failure(record["slide_id"], record["reason"]) for record in undrawn]
    there = [record for record in known if record is not None]
    there += [record for record in saved if "probabilities" in record]
    order = {row.slide_id: place for place, (row, _) in enumerate(rows)}
    return sorted(there, key=lambda record: order[record["slide_id"]]), failed


def _true_classes(model: SlideModel, table: pd.DataFrame) -> dict[str, int]:
    """Class of every labelled slide: the label is a class name, or its number."""
    truth = {}
    for row in table.itertuples() if "label" in table else ():
        if not isinstance(row.label, str) or not row.label:
            continue
        names = {name: index for index, name in enumerate(model.classes)}
        names |= {str(index): index for index in names.values() if str(index) not in names}
        if row.label not in names:
            raise DataError(
                f"slide {row.slide_id} has label {row.label!r}, which is none of the model's "
                f"classes ({', '.join(model.classes)}); mend the CSV or leave its label out"
            )
        truth[row.slide_id] = names[row.label]
    return truth


def _identity(model: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(model.rglob("*")):
        if path.suffix in (".json", ".safetensors"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _failure(slide_id: str, reason: str) -> dict:
    """Tells that a slide has no prediction, and gives its row."""
    log.error("slide %s failed: %s", slide_id, reason)
    return {"slide_id": slide_id, "status": "failed", "reason": reason}


def _source(identity: str, row) -> dict:
    """What a prediction follows from: the model and the slide."""
    path = Path(row.path)
    identified = file_identity(path) if path.is_file() else {}
    return {"model": identity, "mpp": label_csv.given_mpp(row), **identified}


def _known(folder: Path, source: dict) -> dict | None:
    """The prediction that is there already, if it is of this model and slide."""
    mark = folder / "prediction.json"
    record = json.loads(mark.read_text(encoding="utf-8")) if mark.is_file() else None
    return record if record is not None and record["source"] == source else None


def _record(model: SlideModel, row, source: dict, result: SlideResult) -> dict:
    return {
        "slide_id": row.slide_id,
        "path": str(Path(row.path)),
        "source": source,
        "probabilities": result.probabilities,
        "predicted": result.predicted,
        "predicted_at": {
            name: model.classes[int(result.probabilities[model.classes[1]] >= threshold)]
            for name, threshold in model.thresholds.items()
        },
        "mpp": result.mpp,
        "lr_patches": len(result.attention),
        "patches_encoded": result.encoded,
        "unreadable": result.unreadable,
        "levels_read": result.read_log,
        "finest_level_allowed": result.finest_allowed,
        "seconds": {name: round(value, 4) for name, value in result.seconds.items()},
    }


def _csv_row(record: dict) -> dict:
    row = {
        "slide_id": record["slide_id"],
        "status": "ok",
        "reason": "",
        "predicted": record["predicted"],
    }
    row |= {f"predicted_{name}": value for name, value in record["predicted_at"].items()}
    row |= {f"prob_{name}": value for name, value in record["probabilities"].items()}
    row |= {name: record[name] for name in ("mpp", "lr_patches", "patches_encoded")}
    row |= {
        "unreadable": len(record["unreadable"]),
        "finest_level_read": min(int(level) for level in record["levels_read"]),
        "finest_level_allowed": record["finest_level_allowed"],
    }
    return row | {f"seconds_{name}": value for name, value in record["seconds"].items()}


def _line(record: dict) -> str:
    said = ", ".join(f"{name} {value:.3f}" for name, value in record["probabilities"].items())
    phases = ", ".join(f"{name} {value:.2f} s" for name, value in record["seconds"].items())
    return f"{record['slide_id']}: {said}; {record['lr_patches']} patches; {phases}"


def _write_metrics(
    model: SlideModel, table: pd.DataFrame, truth: dict[str, int], done: list[dict], folder: Path
) -> None:
    known = [record for record in done if record["slide_id"] in truth]
    if not known:
        return
    labelled = table[table.slide_id.isin(truth)]
    cases = splits.cases(labelled.patient_id, labelled.slide_id.map(truth))
    case_of = dict(zip(labelled.slide_id, cases, strict=True))
    patients = metrics.by_patient(
        metrics.slide_frame(
            [case_of[record["slide_id"]] for record in known],
            np.array([truth[record["slide_id"]] for record in known]),
            np.array(
                [[record["probabilities"][name] for name in model.classes] for record in known]
            ),
        )
    )
    labels, probabilities = metrics.arrays(patients)
    measured = metrics.compute(labels, probabilities)
    bounds = intervals.of_one(
        intervals.figures(labels, probabilities, patients.patient_id.to_numpy(str))
    )
    files.write_json(folder / "metrics.json", {"metrics": measured, "intervals": bounds})
    log.info("AUC %s over %d patients", measured["auc"], len(labels))
