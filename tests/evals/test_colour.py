"""The colour-only baseline: statistics by hand, and a classifier that chooses on validation."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from lrmil_jax.errors import DataError
from lrmil_jax.evals import colour, metrics


def clouds(per_class, classes, *, seed=0, spread=1.0, apart=1.0):
    """Six values a slide around a centre of its class, on scales that differ, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    centres = apart * np.random.default_rng(99).normal(size=(classes, 6))
    values = centres[labels] + spread * rng.normal(size=(len(labels), 6))
    return 100 + values * np.array([30, 20, 10, 5, 1, 0.1]), labels


def test_statistics_by_hand():
    first = np.array([[[0, 10, 100], [2, 10, 100]]], np.uint8)
    second = np.array([[[4, 10, 200], [6, 10, 200]]], np.uint8)
    expected = [3, 10, 150, np.sqrt(5), 0, 50]
    np.testing.assert_allclose(colour.statistics(iter([first, second])), expected)
    assert len(colour.NAMES) == 6


def test_statistics_of_many_tiles_are_those_of_all_pixels_in_any_order():
    tiles = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3)).astype(np.uint8)
    pixels = tiles.reshape(-1, 3).astype(float)
    got = colour.statistics(tiles)
    np.testing.assert_allclose(got, np.concatenate([pixels.mean(0), pixels.std(0)]), rtol=1e-10)
    np.testing.assert_array_equal(got, colour.statistics(tiles[::-1]))
    np.testing.assert_array_equal(colour.statistics(np.full((1, 4, 4, 3), 255, np.uint8))[3:], 0)


def test_no_tile_is_refused():
    with pytest.raises(DataError, match="no colour"):
        colour.statistics([])


@pytest.mark.parametrize("classes", [2, 4])
def test_classes_that_differ_in_colour_are_told_apart(classes):
    values, labels = clouds(15, classes, spread=0.2)
    val_values, val_labels = clouds(8, classes, seed=1, spread=0.2)
    test_values, test_labels = clouds(10, classes, seed=2, spread=0.2)
    found = colour.fit(
        values, labels, val_values=val_values, val_labels=val_labels, num_classes=classes
    )
    got = metrics.compute(test_labels, found.predict(test_values))
    assert got["auc"] > 0.99
    assert found.predict(test_values).shape == (10 * classes, classes)


def test_classes_of_one_colour_are_not():
    values, labels = clouds(30, 2, apart=0.0)
    val_values, val_labels = clouds(30, 2, seed=1, apart=0.0)
    test_values, test_labels = clouds(300, 2, seed=2, apart=0.0)
    found = colour.fit(values, labels, val_values=val_values, val_labels=val_labels, num_classes=2)
    assert abs(metrics.compute(test_labels, found.predict(test_values))["auc"] - 0.5) < 0.1
    assert found.strength <= 0.1  # what cannot be learnt is best left alone


def test_the_strength_of_least_validation_loss_is_taken():
    values, labels = clouds(10, 3)
    val_values, val_labels = clouds(40, 3, seed=1)
    found = colour.fit(values, labels, val_values=val_values, val_labels=val_labels, num_classes=3)
    losses = []
    for strength in colour.STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=10_000)
        model.fit((values - values.mean(0)) / values.std(0), labels)
        said = model.predict_proba((val_values - values.mean(0)) / values.std(0))
        losses.append(-np.log(said[np.arange(120), val_labels]).mean())
    assert found.strength == colour.STRENGTHS[int(np.argmin(losses))]
    assert 0.01 < found.strength < 100  # so that the test could fail on either side


def test_units_do_not_matter():
    """Grey levels or shares of them: standardisation takes the units away."""
    values, labels = clouds(12, 2)
    val_values, val_labels = clouds(12, 2, seed=1)
    arguments = {"val_labels": val_labels, "num_classes": 2}
    grey = colour.fit(values, labels, val_values=val_values, **arguments)
    share = colour.fit(values / 255, labels, val_values=val_values / 255, **arguments)
    np.testing.assert_allclose(grey.predict(values), share.predict(values / 255), atol=1e-6)


def test_a_channel_that_never_varies_and_a_class_that_training_lacks():
    values, labels = clouds(8, 2)
    values[:, 4] = 7.0
    found = colour.fit(values, 2 * labels, val_values=values, val_labels=2 * labels, num_classes=3)
    said = found.predict(values)
    np.testing.assert_array_equal(said[:, 1], 0)
    np.testing.assert_allclose(said.sum(1), 1)
    assert np.isfinite(metrics.compute(2 * labels, said)["loss"])
