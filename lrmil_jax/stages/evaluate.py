"""evaluate: what the fold's models say of its test patients, how sure that is, what it costs."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict
from scipy.special import softmax

from lrmil_jax import files
from lrmil_jax.data import labels as label_csv
from lrmil_jax.data import writer
from lrmil_jax.data.features import FeatureStore
from lrmil_jax.evals import bootstrap, metrics
from lrmil_jax.stages import baseline, layout, models
from lrmil_jax.stages.encode_lr import distilled_folder, undistilled_folder
from lrmil_jax.stages.inference import SlideClassifier
from lrmil_jax.stages.teacher import hr_store, open_store
from lrmil_jax.train.encode import BatchEncoder
from lrmil_jax.train.logging import progress
from lrmil_jax.train.mil import BagClassifier

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `predictions.csv`, `metrics.json` and `timing.json` of the fold's test slides."""
    cohort = layout.prepared_cohort(config, workdir)
    table = cohort.slides(fold, "test")
    folder = layout.stage_folder(workdir, "evaluate", fold)
    frames, measured = [], {}
    for arm, (classifier, store) in arms(config, workdir, fold, table.slide_id.tolist()).items():
        frame = _predict(arm, classifier, store, table, cohort.classes)
        frames.append(frame)
        measured[arm] = measure(frame, cohort.classes, config)
        measured[arm]["patches"] = float(np.median(store.sizes))
    writer.write_table(folder / "predictions.csv", pd.concat(frames, ignore_index=True))
    files.write_json(folder / "metrics.json", measured)
    if config.evaluate.timed_slides:
        timing = time_slides(config, workdir, fold, table)
        files.write_json(folder / "timing.json", timing)


def arms(
    config: ConfigDict, workdir: Path, fold: int, slide_ids: list[str]
) -> dict[str, tuple[BagClassifier, FeatureStore]]:
    """The fold's classifiers, each with the features of these slides that it reads."""
    found = {}
    if config.method != "mil_lr":
        found["teacher"] = (models.teacher(workdir, fold), hr_store(config, workdir, slide_ids))
    if config.method == "mil_lr" or (config.method == "lrmil" and config.student.no_distillation):
        found["no_distillation"] = (
            BagClassifier.load(baseline.model_path(workdir, fold)),
            open_store(config, workdir, undistilled_folder(workdir), slide_ids),
        )
    if config.method == "lrmil":
        student = layout.stage_folder(workdir, "student", fold)
        found["lrmil"] = (
            BagClassifier.load(student / "lrmil.safetensors"),
            open_store(config, workdir, distilled_folder(workdir, fold), slide_ids),
        )
    return found


def _predict(
    arm: str,
    classifier: BagClassifier,
    store: FeatureStore,
    table: pd.DataFrame,
    classes: tuple[str, ...],
) -> pd.DataFrame:
    probabilities = np.stack(
        [
            softmax(classifier.predict(store.embedding(slide))[0])
            for slide in range(len(store.slide_ids))
        ]
    )
    frame = table[["slide_id", "patient_id", "case_id"]].assign(arm=arm)
    frame["label"] = [classes[label] for label in table.label]
    for index, name in enumerate(classes):
        frame[f"prob_{name}"] = probabilities[:, index]
    frame["predicted"] = [classes[index] for index in probabilities.argmax(1)]
    return frame


def measure(frame: pd.DataFrame, classes: tuple[str, ...], config: ConfigDict) -> dict:
    """Metrics per patient with their intervals, from rows of `predictions.csv`."""
    indices = frame.label.map({name: index for index, name in enumerate(classes)})
    named = frame.assign(label=indices, patient_id=frame.case_id)
    labels, probabilities = metrics.arrays(metrics.by_patient(named))
    bounds = bootstrap.intervals(
        labels, probabilities, seed=config.seed, samples=config.evaluate.bootstrap_samples
    )
    return {
        "patients": len(labels),
        "metrics": metrics.compute(labels, probabilities),
        "intervals": bounds,
    }


def time_slides(config: ConfigDict, workdir: Path, fold: int, table: pd.DataFrame) -> dict:
    """Seconds per phase from the slide file, HR against LR, median over slides, after a warm-up.

    HR is read in parent-sized blocks, and both use the same encoder batch on the same devices.
    """
    runs = _timed_classifiers(config, workdir, fold)
    rows = table.head(config.evaluate.timed_slides)
    timing = {}
    with progress("time per slide", len(runs) * (len(rows) + 1)) as bar:
        for arm, classify in runs.items():
            measured = []
            for number, row in enumerate([next(rows.itertuples()), *rows.itertuples()]):
                result = classify(Path(row.path), label_csv.given_mpp(row))
                if number:  # the first run compiles
                    measured.append(result.seconds | {"patches": len(result.attention)})
                bar.advance()
            medians = pd.DataFrame(measured).median()
            timing[arm] = {name: round(float(value), 4) for name, value in medians.items()}
    return timing


def _timed_classifiers(config: ConfigDict, workdir: Path, fold: int) -> dict[str, SlideClassifier]:
    settings = layout.tiling_settings(config)
    batch, dtype = config.encoder.batch, config.features.dtype
    hr = models.hr_encoder(config, workdir)
    runs = {}
    if config.method != "mil_lr":
        runs["teacher"] = SlideClassifier(
            [(BatchEncoder(hr, batch=batch), models.teacher(workdir, fold))],
            settings, dtype, batch, high_resolution=True,
        )  # fmt: skip
    else:
        head = BagClassifier.load(baseline.model_path(workdir, fold))
        runs["no_distillation"] = SlideClassifier(
            [(BatchEncoder(hr, batch=batch), head)], settings, dtype, batch
        )
    if config.method == "lrmil":
        lr = models.distilled_encoder(config, workdir, fold)
        head = layout.stage_folder(workdir, "student", fold) / "lrmil.safetensors"
        runs["lrmil"] = SlideClassifier(
            [(BatchEncoder(lr, batch=batch), BagClassifier.load(head))], settings, dtype, batch
        )
    return runs
