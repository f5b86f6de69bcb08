"""Grades, scores and follow-up of synthetic slides, for tasks other than their class."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Integer
from PIL import Image

NAMES = ("burden", "grade", "time", "event")
HAZARD_RATIO = 6.0  # of an event, for a patient with tumour


def of_slides(
    positive: Bool[np.ndarray, " S"],
    burden: Float[np.ndarray, " S"],
    patients: Integer[np.ndarray, " S"],
    *,
    seed: int,
) -> dict[str, list[str]]:
    """What other tasks than classification can ask of the same slides.

    Args:
      positive: slides with tumour.
      burden: share of each slide that is tumour.
      patients: number of each slide's patient.
      seed: of the times.

    Returns:
      `burden` in per mille of the slide; `grade`: "none", "small" or "large", by the median of the
      positive slides; `time` and `event`: exponential, the hazard of a patient with tumour
      `HAZARD_RATIO` times that of one without, a third or so censored. Patients' slides have the
      outcomes of their first.
    """
    first = np.unique(patients, return_index=True)[1][np.unique(patients, return_inverse=True)[1]]
    positive, burden = positive[first], burden[first]
    median = np.median(burden[positive]) if positive.any() else 0.0
    grade = np.where(positive, np.where(burden > median, "large", "small"), "none")
    time, event = [], []
    for patient, tumour in zip(patients, positive, strict=True):
        rng = np.random.default_rng([seed, int(patient), 1])
        event_time = rng.exponential(60.0 / (HAZARD_RATIO if tumour else 1.0))
        follow_up = rng.uniform(12.0, 120.0)
        time.append(f"{max(min(event_time, follow_up), 0.1):.1f}")
        event.append(str(int(event_time <= follow_up)))
    per_mille = [f"{1000 * share:.2f}" for share in burden]
    return {"burden": per_mille, "grade": grade.tolist(), "time": time, "event": event}


def burden(masks: Iterable[Path]) -> Float[np.ndarray, " S"]:
    """Share of each slide that is white in its mask."""
    shares = []
    for path in masks:
        with Image.open(path) as image:
            shares.append(np.asarray(image).astype(bool).mean())
    return np.array(shares)
