"""The models that a fold compares, each with the features that it reads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from lrmil_jax import methods
from lrmil_jax.data.features import FeatureStore
from lrmil_jax.methods.method import ComparedModel
from lrmil_jax.progress import progress
from lrmil_jax.tasks import evaluation, predictions
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.workspace import cohorts, lesions

# By the model's name: what it is, its trained head, and the features of some slides that it reads.
Trained = dict[str, tuple[ComparedModel, BagModel, FeatureStore]]


def models(config: ConfigDict, workdir: Path, fold: int, slide_ids: Sequence[str]) -> Trained:
    """Every model of the fold, with the features of these slides."""
    return {
        model.name: (
            model,
            model.head(workdir, fold),
            model.features(config, workdir, fold, slide_ids),
        )
        for model in methods.of(config).models(config)
    }


def low_resolution_store(compared: Trained) -> FeatureStore | None:
    """LR features among those of the models, which know where LR patches lie; None without any."""
    return next((store for model, _, store in compared.values() if not model.high), None)


def chosen_on_validation(
    config: ConfigDict, workdir: Path, fold: int
) -> tuple[dict[str, float], float | None]:
    """The thresholds (`thresholds.choose`) and the temperature (`evaluation.temperature`) that the
    validation patients choose of a model that is delivered, of a fold or the final one."""
    cohort = cohorts.prepared(config, workdir)
    if not cohort.task.has_temperature:
        return {}, None
    table, model = cohort.slides(fold, "val"), methods.of(config).main
    store = model.features(config, workdir, fold, table.slide_id.tolist())
    head, cases = model.head(workdir, fold), table.case_id.tolist()
    values, _ = predict(head, store, cases, {}, label="thresholds")
    rows = predictions.rows(cohort.task, "", table, values)
    wanted = config.evaluate.sensitivity
    thresholds = predictions.chosen_thresholds(cohort.task, rows, sensitivity=wanted)
    return thresholds, evaluation.temperature(cohort.task, rows)


def predict(
    classifier: BagModel,
    store: FeatureStore,
    cases: Sequence[str],
    lesions_of: dict[int, lesions.Lesion],
    *,
    label: str,
) -> tuple[Float[np.ndarray, "S V"], dict[int, np.ndarray]]:
    """Predicted values of every slide, and attention over LR patches of those with lesion;
    `cases` are those of the slides, `label` is for the progress display."""
    values, attention, predictions_of = [], {}, classifier.on(store, cases)
    with progress(label, len(store.slide_ids)) as bar:
        for place in range(len(store.slide_ids)):
            logits, scores = predictions_of.slide(place)
            values.append(classifier.task.link(logits))
            if place in lesions_of:
                patches = len(lesions_of[place].share)
                attention[place] = lesions.lr_attention(scores, store, place, patches)
            bar.advance()
    return np.stack(values), attention
