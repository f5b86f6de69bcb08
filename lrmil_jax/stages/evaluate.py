"""evaluate: what the fold's models say of its test patients, and how sure that is."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from ml_collections import ConfigDict
from scipy.special import softmax

from lrmil_jax import files
from lrmil_jax.data import writer
from lrmil_jax.data.features import FeatureStore
from lrmil_jax.evals import localisation, metrics, predictions, thresholds
from lrmil_jax.selection import score
from lrmil_jax.stages import (
    baseline,
    colours,
    fuse,
    layout,
    lesions,
    mil,
    models,
    select,
)  # fmt: skip
from lrmil_jax.stages.encode_lr import distilled_folder, undistilled_folder
from lrmil_jax.stages.teacher import hr_store, open_store
from lrmil_jax.train.mil import BagClassifier

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `predictions.csv`, `metrics.json` and, with masks, `localisation.csv`.

    All are of the fold's test slides; `metrics.json` has the validation patients' figures beside
    them, so that settings can be compared without looking at the test, and what the thresholds give
    that were chosen on them.
    """
    cohort = layout.prepared_cohort(config, workdir)
    table = cohort.slides(fold, "val", "test")
    test = (table.split == "test").to_numpy()
    folder = layout.stage_folder(workdir, "evaluate", fold)
    found = arms(config, workdir, fold, table.slide_id.tolist())
    lesions_of = lesions.find(config, workdir, table, cohort.classes, low_resolution(found))
    frames, attentions, measured = {}, {}, {}
    for arm, (classifier, store) in found.items():
        probabilities, attention = _predict(classifier, store, lesions_of)
        frames[arm] = _frame(arm, table, probabilities, cohort.classes)
        if has_attention(classifier):
            attentions[arm] = attention
        measured[arm] = {"patches": float(np.median(store.sizes[test]))}
    if config.evaluate.colour_baseline:
        probabilities, measured["colour"] = colours.predictions(config, workdir, fold, cohort)
        frames["colour"] = _frame("colour", table, probabilities, cohort.classes)
    for arm, frame in frames.items():
        measured[arm] |= predictions.measure(frame[test])
        measured[arm]["validation"] = predictions.measure(frame[~test])
        measured[arm]["thresholds"] = predictions.operating_points(
            frame[~test], frame[test], sensitivity=config.evaluate.sensitivity
        )
    _localise(config, folder, table, lesions_of, attentions, ~test, measured)
    if config.method == "wise_fuse":
        measured["wise_fuse"]["selection"] = _selection(workdir, fold, table, test, lesions_of)
    tested = pd.concat([frame[test] for frame in frames.values()], ignore_index=True)
    writer.write_table(folder / "predictions.csv", tested)
    files.write_json(folder / "metrics.json", measured)


def arms(
    config: ConfigDict, workdir: Path, fold: int, slide_ids: list[str]
) -> dict[str, tuple[BagClassifier, FeatureStore]]:
    """The fold's classifiers, each with the features of these slides that it reads."""
    found = {}
    if config.method == "wise_fuse":
        return {"wise_fuse": delivered(config, workdir, fold, slide_ids)}
    if config.method != "mil_lr":
        found["teacher"] = (models.teacher(workdir, fold), hr_store(config, workdir, slide_ids))
    if config.method == "mil_lr" or (config.method == "lrmil" and config.student.no_distillation):
        found["no_distillation"] = (
            BagClassifier.load(baseline.model_path(workdir, fold)),
            open_store(config, workdir, undistilled_folder(workdir), slide_ids),
        )
    if config.method == "lrmil":
        found["lrmil"] = delivered(config, workdir, fold, slide_ids)
    return found


def delivered(
    config: ConfigDict, workdir: Path, fold: int, slide_ids: list[str]
) -> tuple[BagClassifier, FeatureStore]:
    """The classifier that the method is about, with the features of these slides that it reads;
    of a fold or of the final model."""
    if config.method == "wise_fuse":
        classifier = BagClassifier.load(mil.model_path(workdir, fold))
        return classifier, fuse.fused_store(config, workdir, fold, slide_ids)
    student = layout.stage_folder(workdir, "student", fold)
    store = open_store(config, workdir, distilled_folder(workdir, fold), slide_ids)
    return BagClassifier.load(student / "lrmil.safetensors"), store


def validation_thresholds(config: ConfigDict, workdir: Path, fold: int) -> dict[str, float]:
    """What `thresholds.choose` says of the validation patients of a model that is delivered."""
    cohort = layout.prepared_cohort(config, workdir)
    table = cohort.slides(fold, "val")
    classifier, store = delivered(config, workdir, fold, table.slide_id.tolist())
    probabilities, _ = _predict(classifier, store, {})
    patients = predictions.patients(_frame("", table, probabilities, cohort.classes))
    return thresholds.choose(*metrics.arrays(patients), sensitivity=config.evaluate.sensitivity)


def low_resolution(found: dict[str, tuple[BagClassifier, FeatureStore]]) -> FeatureStore | None:
    """LR features among those of the arms, which know where LR patches lie; None without any."""
    high = ("teacher", "wise_fuse")
    return next((store for arm, (_, store) in found.items() if arm not in high), None)


def has_attention(classifier: BagClassifier) -> bool:
    """Whether a head weighs patches at all."""
    return classifier.name != "mean"


def _predict(
    classifier: BagClassifier,
    store: FeatureStore,
    lesions_of: dict[int, lesions.Lesion],
) -> tuple[Float[np.ndarray, "S C"], dict[int, np.ndarray]]:
    """Class probabilities of every slide, and attention over LR patches of those with lesion."""
    probabilities, attention = [], {}
    for place in range(len(store.slide_ids)):
        logits, scores = classifier.predict(store.embedding(place))
        probabilities.append(softmax(logits))
        if place in lesions_of:
            patches = len(lesions_of[place].share)
            attention[place] = lesions.lr_attention(scores, store, place, patches)
    return np.stack(probabilities), attention


def _localise(
    config: ConfigDict,
    folder: Path,
    table: pd.DataFrame,
    lesions_of: dict[int, lesions.Lesion],
    attentions: dict[str, dict[int, np.ndarray]],
    val: np.ndarray,
    measured: dict[str, dict],
) -> None:
    """Writes `localisation.csv` and adds each arm's figures to `measured`, where masks are."""
    if not lesions_of:
        return
    scored, lowest = lesions.attention_table(config, table, lesions_of, attentions, val)
    tested = scored[scored.split == "test"]
    writer.write_table(folder / "localisation.csv", tested[list(lesions.COLUMNS)])
    for arm, threshold in lowest.items():
        for split, target in (("test", measured[arm]), ("val", measured[arm]["validation"])):
            rows = scored[(scored.arm == arm) & (scored.split == split)]
            target["localisation"] = localisation.summary([rows]) | {"threshold": threshold}


def _selection(
    workdir: Path,
    fold: int,
    table: pd.DataFrame,
    test: np.ndarray,
    lesions_of: dict[int, lesions.Lesion],
) -> dict[str, float | None]:
    """LR patches looked at and chosen, and the share of lesion area that the choice holds."""
    chosen = {
        place: select.read_chosen(workdir, fold, row.slide_id)
        for place, row in enumerate(table.itertuples())
        if test[place]
    }
    recalls = [
        score.lesion_recall(lesions_of[place].share, picked)
        for place, (_, picked) in chosen.items()
        if place in lesions_of
    ]
    return {
        "lr_patches": float(np.median([len(scores) for scores, _ in chosen.values()])),
        "chosen": float(np.median([len(picked) for _, picked in chosen.values()])),
        "lesion_slides": len(recalls),
        "lesion_recall": float(np.mean(recalls)) if recalls else None,
    }


def _frame(
    arm: str,
    table: pd.DataFrame,
    probabilities: Float[np.ndarray, "S C"],
    classes: tuple[str, ...],
) -> pd.DataFrame:
    columns = [name for name in ("slide_id", "patient_id", "case_id", "pool") if name in table]
    frame = table[columns].assign(arm=arm)
    frame["label"] = [classes[label] for label in table.label]
    for index, name in enumerate(classes):
        frame[f"prob_{name}"] = probabilities[:, index]
    frame["predicted"] = [classes[index] for index in probabilities.argmax(1)]
    return frame
