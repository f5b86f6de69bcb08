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

from lrmil_jax import files
from lrmil_jax.data import labels as label_csv
from lrmil_jax.data import splits, writer
from lrmil_jax.data.regions import file_identity
from lrmil_jax.errors import DataError, SlideError, WorkdirError
from lrmil_jax.evals import intervals, metrics
from lrmil_jax.models import model_folder
from lrmil_jax.models.inference import SlideResult
from lrmil_jax.models.model_folder import Model
from lrmil_jax.report import geojson, heatmap
from lrmil_jax.train.logging import progress

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
    done, failed = [], []
    identity = _identity(loaded.folder)
    with progress("predict", len(table)) as bar:
        for row in table.itertuples():
            try:
                done.append(_predict_slide(loaded, identity, row, folder / row.slide_id))
            except WorkdirError:
                raise
            except Exception as error:  # one slide's surprise must not stop the others
                known = isinstance(error, SlideError)
                reason = str(error) if known else f"{type(error).__name__}: {error}"
                log.error("slide %s failed: %s", row.slide_id, reason)
                failed.append({"slide_id": row.slide_id, "status": "failed", "reason": reason})
            bar.advance()
    predictions = pd.DataFrame([_csv_row(record) for record in done] + failed)
    writer.write_table(folder / "predictions.csv", predictions)
    if truth and done:
        _write_metrics(loaded, table, truth, done, folder)
    for record in done[:20]:
        log.info("%s", _line(record))
    log.info("predictions of %d slides in %s", len(done), folder)
    return len(failed)


def _true_classes(model: Model, table: pd.DataFrame) -> dict[str, int]:
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


def _predict_slide(model: Model, identity: str, row, folder: Path) -> dict:
    path, mark = Path(row.path), folder / "prediction.json"
    mpp = label_csv.given_mpp(row)
    identified = file_identity(path) if path.is_file() else {}
    source = {"model": identity, "mpp": mpp, **identified}
    if mark.is_file():
        known = json.loads(mark.read_text(encoding="utf-8"))
        if known["source"] == source:
            return known
    result = model.classifier(path, mpp)
    title = _title(model, row.slide_id, result)
    write_attention(folder, row.slide_id, result, title)
    if result.guidance is not None:
        _write_regions(folder, model, result, title)
    probabilities = dict(zip(model.classes, result.probabilities.tolist(), strict=True))
    record = {
        "slide_id": row.slide_id,
        "path": str(path),
        "source": source,
        "probabilities": probabilities,
        "predicted": model.classes[int(np.argmax(result.probabilities))],
        "predicted_at": {
            name: model.classes[int(result.probabilities[1] >= threshold)]
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
    files.write_json(mark, record)
    return record


def _title(model: Model, slide_id: str, result: SlideResult) -> str:
    best = int(np.argmax(result.probabilities))
    return f"{slide_id}: {model.classes[best]} {result.probabilities[best]:.3f}"


def write_attention(folder: Path, slide_id: str, result: SlideResult, title: str) -> None:
    """Attention of every patch as CSV, GeoJSON and heatmap."""
    table = pd.DataFrame(
        {
            "x": result.xy[:, 0],
            "y": result.xy[:, 1],
            "side": result.side,
            "attention": result.attention,
        }
    )
    writer.write_table(folder / "attention.csv", table)
    geojson.save(folder / "attention.geojson", slide_id, result.xy, result.side, result.attention)
    heatmap.save(
        folder / "heatmap.png",
        result.picture,
        result.picture_downsample,
        result.xy,
        result.side,
        result.attention,
        title=title,
    )


def _write_regions(folder: Path, model: Model, result: SlideResult, title: str) -> None:
    """What led the choice of regions: every LR patch's scores, and which description fits."""
    guide = result.guidance
    table = pd.DataFrame({"x": guide.xy[:, 0], "y": guide.xy[:, 1], "side": guide.side})
    for index, name in enumerate(model.classes):
        table[f"score_{name}"] = guide.scores[:, index]
    table["chosen"] = np.isin(np.arange(len(table)), guide.chosen)
    table["sentence"] = ""
    table.loc[guide.chosen, "sentence"] = guide.sentences
    writer.write_table(folder / "regions.csv", table)
    heatmap.save(
        folder / "regions.png",
        result.picture,
        result.picture_downsample,
        guide.xy,
        guide.side,
        guide.likeness,
        title=f"{title}, {len(guide.chosen)} of {len(guide.xy)} regions read at high power",
        label=heatmap.LIKENESS,
        outlined=guide.chosen,
    )


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
    model: Model, table: pd.DataFrame, truth: dict[str, int], done: list[dict], folder: Path
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
