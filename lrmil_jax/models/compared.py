"""The classifiers that a fold compares, each with the features that it reads."""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from lrmil_jax.data.features import FeatureStore
from lrmil_jax.models import trained
from lrmil_jax.progress import progress
from lrmil_jax.tasks import predictions
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.workspace import cohorts, feature_sets, layout, lesions, stage_files


def arms(
    config: ConfigDict, workdir: Path, fold: int, slide_ids: list[str]
) -> dict[str, tuple[BagModel, FeatureStore]]:
    """The fold's classifiers, each with the features of these slides that it reads."""
    found = {}
    if config.method == "wise_fuse":
        return {"wise_fuse": delivered(config, workdir, fold, slide_ids)}
    if config.method != "mil_lr":
        found["teacher"] = (
            trained.teacher(workdir, fold),
            feature_sets.hr_store(config, workdir, slide_ids),
        )
    if config.method == "mil_lr" or (config.method == "lrmil" and config.student.no_distillation):
        found["no_distillation"] = (
            BagModel.load(stage_files.baseline_head(workdir, fold)),
            feature_sets.open_store(
                config, workdir, stage_files.undistilled_folder(workdir), slide_ids
            ),
        )
    if config.method == "lrmil":
        found["lrmil"] = delivered(config, workdir, fold, slide_ids)
    return found


def delivered(
    config: ConfigDict, workdir: Path, fold: int, slide_ids: list[str]
) -> tuple[BagModel, FeatureStore]:
    """The classifier that the method is about, with the features of these slides that it reads;
    of a fold or of the final model."""
    if config.method == "wise_fuse":
        classifier = BagModel.load(stage_files.fused_head(workdir, fold))
        return classifier, feature_sets.fused_store(config, workdir, fold, slide_ids)
    student = layout.stage_folder(workdir, "student", fold)
    store = feature_sets.open_store(
        config, workdir, stage_files.distilled_folder(workdir, fold), slide_ids
    )
    return BagModel.load(student / "lrmil.safetensors"), store


def validation_thresholds(config: ConfigDict, workdir: Path, fold: int) -> dict[str, float]:
    """What `thresholds.choose` says of the validation patients of a model that is delivered."""
    cohort = cohorts.prepared(config, workdir)
    table = cohort.slides(fold, "val")
    classifier, store = delivered(config, workdir, fold, table.slide_id.tolist())
    if len(cohort.classes) != 2:
        return {}
    values, _ = predict(classifier, store, {}, label="thresholds")
    rows = predictions.rows(cohort.task, "", table, values)
    return predictions.chosen_thresholds(cohort.task, rows, sensitivity=config.evaluate.sensitivity)


def low_resolution_store(
    found: dict[str, tuple[BagModel, FeatureStore]],
) -> FeatureStore | None:
    """LR features among those of the arms, which know where LR patches lie; None without any."""
    high = ("teacher", "wise_fuse")
    return next((store for arm, (_, store) in found.items() if arm not in high), None)


def predict(
    classifier: BagModel,
    store: FeatureStore,
    lesions_of: dict[int, lesions.Lesion],
    *,
    label: str,
) -> tuple[Float[np.ndarray, "S V"], dict[int, np.ndarray]]:
    """Predicted values of every slide, and attention over LR patches of those with lesion;
    `label` is for the progress display."""
    values, attention = [], {}
    with progress(label, len(store.slide_ids)) as bar:
        for place in range(len(store.slide_ids)):
            logits, scores = classifier.predict_slide(store, place)
            values.append(classifier.task.link(logits))
            if place in lesions_of:
                patches = len(lesions_of[place].share)
                attention[place] = lesions.lr_attention(scores, store, place, patches)
            bar.advance()
    return np.stack(values), attention
