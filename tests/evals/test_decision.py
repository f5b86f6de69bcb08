"""Net benefit by hand and by its definition."""

import numpy as np
import pytest

from lrmil_jax.evals import decision, intervals

POSITIVE = np.array([1, 1, 0, 0, 0], bool)
PROBABILITY = np.array([0.9, 0.3, 0.6, 0.2, 0.1])
PATIENTS = np.array(list("abcde"))


@pytest.mark.parametrize(
    ("threshold", "model", "everyone"),
    [
        (0.5, 1 / 5 - 1 / 5, 2 / 5 - 3 / 5),  # one found, one needless
        (0.25, 2 / 5 - 1 / 5 / 3, 2 / 5 - 3 / 5 / 3),
        (0.95, 0.0, 2 / 5 - 3 / 5 * 19),
    ],
)
def test_by_hand(threshold, model, everyone):
    found = decision.figures(POSITIVE, PROBABILITY, PATIENTS, threshold=threshold)
    assert found["benefit"].value == pytest.approx(model)
    assert found["all"].value == pytest.approx(everyone)
    assert found["beyond"].value == pytest.approx(model - max(everyone, 0))


def test_a_probability_at_the_threshold_is_treated():
    found = decision.figures(POSITIVE, PROBABILITY, PATIENTS, threshold=0.3)
    assert found["benefit"].value == pytest.approx(2 / 5 - 1 / 5 * 3 / 7)


def test_interval_is_that_of_a_mean():
    rng = np.random.default_rng(0)
    positive = rng.random(300) < 0.3
    probability = np.clip(0.3 + 0.3 * (positive - 0.3) + rng.normal(scale=0.15, size=300), 0, 1)
    names = np.arange(300).astype(str)
    figure = decision.figures(positive, probability, names, threshold=0.2)["benefit"]
    worth = decision.benefits(positive, probability, 0.2)
    assert (figure.influence**2).sum() == pytest.approx(worth.var(ddof=1) / 300)
    low, high = intervals.summarise([figure]).interval
    assert low < figure.value < high
