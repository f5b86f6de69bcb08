"""Calibration against scikit-learn's curve and by hand; temperatures that are known."""

import numpy as np
import pytest
from scipy import stats
from sklearn.calibration import calibration_curve

from lrmil_jax.evals import calibration
from lrmil_jax.evals.calibration import Forecast


def forecast(count=200, seed=0, power=1.0, digits=2):
    """Outcomes that are so with the probability to the `power`: 1 is calibrated."""
    rng = np.random.default_rng(seed)
    probability = np.round(rng.beta(1.2, 2, count), digits)
    return Forecast.of(probability, rng.random(count) < probability**power)


@pytest.mark.parametrize("seed", range(3))
def test_bins_are_scikit_learns_of_equal_mass(seed):
    one = forecast(seed=seed)
    found = calibration.reliability(one)
    observed, predicted = calibration_curve(
        one.outcome, one.probability, n_bins=calibration.BINS, strategy="quantile"
    )
    np.testing.assert_allclose(found.observed, observed)
    np.testing.assert_allclose(found.predicted, predicted)
    assert found.count.sum() == 200
    assert found.error == pytest.approx((found.count / 200) @ np.abs(observed - predicted))


def test_error_and_its_bounds_by_hand():
    probability = np.array([0.1, 0.1, 0.1, 0.1, 0.8, 0.8, 0.8, 0.8])
    outcome = np.array([0, 0, 0, 1, 1, 1, 1, 1], bool)
    found = calibration.reliability(Forecast.of(probability, outcome), bins=2)
    # |0.1 - 1/4| and |0.8 - 1|, each of half of the patients.
    assert found.error == pytest.approx(0.5 * 0.15 + 0.5 * 0.2)
    exact = stats.binomtest(1, 4).proportion_ci(0.95)
    assert (found.low[0], found.high[0]) == pytest.approx((exact.low, exact.high))
    assert (found.low[1], found.high[1]) == pytest.approx((0.025 ** (1 / 4), 1.0))


def test_equal_probabilities_share_a_bin():
    one = Forecast.of(np.full(50, 0.3), np.arange(50) % 10 < 3)
    found = calibration.reliability(one)
    assert found.count.tolist() == [50]
    assert found.error == pytest.approx(0, abs=1e-12)


def test_unknown_outcomes_do_not_count():
    one = forecast(60)
    weight = np.where(np.arange(60) % 3, 1.5, 0.0)
    found = calibration.reliability(Forecast(one.probability, one.outcome, weight), bins=4)
    known = weight > 0
    alone = calibration.reliability(Forecast.of(one.probability[known], one.outcome[known]), bins=4)
    np.testing.assert_allclose(found.observed, alone.observed)
    assert np.isnan(found.low).all()
    assert calibration.error_by_chance(Forecast(one.probability, one.outcome, weight)) is None
    nothing = Forecast(one.probability, one.outcome, np.zeros(60))
    assert calibration.reliability(nothing) is None


def test_error_by_chance_is_that_of_a_calibrated_model():
    errors = [calibration.reliability(forecast(seed=seed)).error for seed in range(200)]
    mean, high = calibration.error_by_chance(forecast())
    assert mean == pytest.approx(np.mean(errors), rel=0.08)
    assert 0.01 < np.mean(np.array(errors) > high) < 0.12
    wrong = calibration.reliability(forecast(power=2.5))
    assert wrong.error > calibration.error_by_chance(forecast(power=2.5))[1]


def test_what_is_told():
    one = forecast(100, power=2.0)
    patients = np.arange(100).astype(str)
    told = calibration.summary(one, patients)
    error = one.probability - one.outcome
    assert told["bias"] == pytest.approx(error.mean())
    assert told["brier"] == pytest.approx((error**2).mean())
    half = stats.t.ppf(0.975, 99) * error.std(ddof=1) / 10
    assert told["bias_interval"] == pytest.approx((error.mean() - half, error.mean() + half))
    assert told["ece"] == calibration.reliability(one).error


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_probabilities_wrong_is_recovered(true):
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=2, size=20_000)
    right = 1 / (1 + np.exp(-logits))
    outcome = rng.random(20_000) < right

    def loss(temperature):
        scaled = true * logits / temperature
        return np.logaddexp(0, np.where(outcome, -scaled, scaled)).mean()

    assert calibration.temperature(loss) == pytest.approx(true, rel=0.05)


def test_no_temperature_where_patients_tell_none():
    assert calibration.temperature(lambda t: t) is None  # all right: the colder the better
    assert calibration.temperature(lambda t: 1 / t) is None  # of no use: the hotter the better
