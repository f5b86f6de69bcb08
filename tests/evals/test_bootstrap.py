"""The vectorised bootstrap against one computed resample by resample."""

import numpy as np
import pytest

from lrmil_jax.errors import ConfigError
from lrmil_jax.evals import bootstrap, metrics


def _data(patients=40, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, patients)
    logits = rng.normal(size=(patients, classes)) + 1.2 * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    # Rounded so that scores tie, as they do with few slides.
    probabilities[:, 0] = np.round(probabilities[:, 0], 1)
    probabilities[:, 1:] *= (1 - probabilities[:, :1]) / probabilities[:, 1:].sum(1, keepdims=True)
    return labels, probabilities


@pytest.mark.parametrize(("patients", "classes"), [(40, 2), (30, 3), (6, 3), (3, 2)])
def test_every_resample_is_what_compute_says(patients, classes):
    labels, probabilities = _data(patients, classes)
    values = bootstrap.resampled(labels, probabilities, seed=5, samples=60)
    draws = np.random.default_rng(5).multinomial(patients, np.full(patients, 1 / patients), 60)
    for s, counts in enumerate(draws):
        rows = np.repeat(np.arange(patients), counts)
        expected = metrics.compute(labels[rows], probabilities[rows])
        for name in metrics.NAMES:
            wanted = np.nan if expected[name] is None else expected[name]
            np.testing.assert_allclose(values[name][s], wanted, rtol=1e-9, err_msg=name)
    assert bootstrap.undefined(values)["accuracy"] == 0


def test_groups_are_drawn_with_all_their_rows():
    labels, probabilities = _data(30, 3)
    groups = np.arange(30) % 7
    values = bootstrap.resampled(labels, probabilities, seed=5, groups=groups, samples=60)
    draws = np.random.default_rng(5).multinomial(7, np.full(7, 1 / 7), 60)
    for s, counts in enumerate(draws):
        rows = np.repeat(np.arange(30), counts[groups])
        expected = metrics.compute(labels[rows], probabilities[rows])
        for name in metrics.NAMES:
            wanted = np.nan if expected[name] is None else expected[name]
            np.testing.assert_allclose(values[name][s], wanted, rtol=1e-9, err_msg=name)
    alone = bootstrap.resampled(labels, probabilities, seed=5, groups=np.arange(30), samples=60)
    plain = bootstrap.resampled(labels, probabilities, seed=5, samples=60)
    for name in metrics.NAMES:
        np.testing.assert_array_equal(alone[name], plain[name])


def test_undefined_resamples_are_left_out_and_counted():
    labels, probabilities = np.array([0, 0, 0, 1]), np.array([[0.9, 0.1]] * 3 + [[0.2, 0.8]])
    values = bootstrap.resampled(labels, probabilities, seed=0, samples=400)
    count = bootstrap.undefined(values)["auc"]
    # Undefined without the one positive, (3/4)^4 = 0.32, or with nothing else, (1/4)^4.
    assert 90 < count < 170
    assert bootstrap.intervals(labels, probabilities, seed=0, samples=400)["auc"] == (1.0, 1.0)


def test_never_defined_is_none():
    labels, probabilities = np.zeros(4, int), np.full((4, 2), 0.5)
    got = bootstrap.intervals(labels, probabilities, seed=0, samples=50)
    assert got["auc"] is None
    assert got["accuracy"] == (1.0, 1.0)


def test_intervals_hold_the_estimate_and_narrow_with_patients():
    widths = []
    for patients in (30, 480):
        labels, probabilities = _data(patients, 2)
        got = bootstrap.intervals(labels, probabilities, seed=1)
        point = metrics.compute(labels, probabilities)
        assert all(got[name][0] <= point[name] <= got[name][1] for name in metrics.NAMES)
        widths.append(got["auc"][1] - got["auc"][0])
    assert widths[1] < widths[0] / 2


def test_interval_of_accuracy_is_the_binomial_one():
    labels = np.zeros(400, int)
    probabilities = np.where(np.arange(400)[:, None] < 300, [[0.9, 0.1]], [[0.1, 0.9]])
    low, high = bootstrap.intervals(labels, probabilities, seed=2, samples=4000)["accuracy"]
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    np.testing.assert_allclose([low, high], [0.75 - half, 0.75 + half], atol=0.006)


def test_seed_decides_and_level_widens():
    labels, probabilities = _data()
    first = bootstrap.intervals(labels, probabilities, seed=1, samples=300)
    assert first == bootstrap.intervals(labels, probabilities, seed=1, samples=300)
    assert first != bootstrap.intervals(labels, probabilities, seed=2, samples=300)
    wide = bootstrap.intervals(labels, probabilities, seed=1, samples=300, level=0.99)
    assert wide["loss"][0] < first["loss"][0] < first["loss"][1] < wide["loss"][1]


@pytest.mark.parametrize("kwargs", [{"samples": 0}, {"level": 1.0}])
def test_out_of_range_is_refused(kwargs):
    labels, probabilities = _data()
    with pytest.raises(ConfigError):
        bootstrap.intervals(labels, probabilities, seed=0, **kwargs)
