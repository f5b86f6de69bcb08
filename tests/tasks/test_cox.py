"""Cox's partial likelihood and Breslow's hazard are those of lifelines."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from lrmil_jax.tasks.cox import Cox, cumulative_hazard, partial_likelihood


@pytest.fixture(scope="module")
def fitted():
    """Many ties, a third censored, a number that tells of the time, and lifelines' fit."""
    from lifelines import CoxPHFitter

    rng = np.random.default_rng(0)
    number = rng.normal(size=60)
    time = np.ceil(4 * rng.exponential(np.exp(-number)))
    event = rng.random(60) < 0.67
    frame = pd.DataFrame({"number": number, "time": time, "event": event})
    model = CoxPHFitter().fit(frame, "time", "event")
    assert len(np.unique(time[event])) < event.sum() / 2
    return model, time, event, model.params_["number"] * (number - number.mean())


def test_the_likelihood_is_lifelines(fitted):
    model, time, event, risk = fitted
    terms = partial_likelihood(risk, time, event)
    assert -terms.sum() == pytest.approx(model.log_likelihood_, rel=1e-9)
    assert not terms[~event].any()
    moved = partial_likelihood(risk + 50, time, event)
    np.testing.assert_allclose(moved, terms, atol=1e-9)
    far = partial_likelihood(np.where(np.arange(60) == 3, 900.0, risk), time, event)
    assert np.isfinite(far).all()


def test_breslows_hazard_is_lifelines(fitted):
    model, time, event, risk = fitted
    wanted = model.baseline_cumulative_hazard_.iloc[:, 0]
    at = wanted.index.to_numpy()
    np.testing.assert_allclose(cumulative_hazard(risk, time, event, at), wanted, rtol=1e-9)


def test_three_patients_by_hand():
    """One event, one tied pair of an event and a censored patient."""
    risk, time = np.log([2.0, 3.0, 5.0]), np.array([4.0, 2.0, 4.0])
    event = np.array([True, True, False])
    wanted = [-np.log(2 / 7), -np.log(3 / 10), 0.0]
    np.testing.assert_allclose(partial_likelihood(risk, time, event), wanted)
    both = np.array([True, True, True])  # Efron: 2 and 5 are at risk, then half of each
    wanted = [-np.log(2 / 7), -np.log(3 / 10), -np.log(5 / 3.5)]
    np.testing.assert_allclose(partial_likelihood(risk, time, both), wanted)


def test_jax_agrees_and_filling_changes_nothing(fitted):
    _, time, event, risk = fitted
    task = Cox(3)
    targets = np.stack([time, event], 1).astype(np.float32)
    logits = risk[:, None].astype(np.float32)

    def total(logits, targets):
        return task.loss(logits, targets).sum()

    value, slope = jax.value_and_grad(total)(jnp.asarray(logits), targets)
    assert value == pytest.approx(partial_likelihood(risk, time, event).sum(), rel=1e-5)
    filled = (np.pad(one, ((0, 4), (0, 0))) for one in (logits, targets))
    again, more = jax.value_and_grad(total)(*map(jnp.asarray, filled))
    assert again == pytest.approx(float(value), rel=1e-6)
    np.testing.assert_allclose(more[:60], slope, atol=1e-6)
    assert not np.asarray(more[60:]).any()
    np.testing.assert_allclose(slope.sum(), 0, atol=1e-4)  # their common level is free
    # A censored patient pulls no other's loss by its own event, but is at risk until its time.
    assert (np.asarray(slope)[~event & (time > time[event].min()), 0] > 0).all()


def test_survival_follows_from_risk_and_baseline(fitted):
    _, time, event, risk = fitted
    targets = np.stack([time, event], 1)
    task = Cox(3).fitted(targets).calibrated(risk[:, None], targets)
    at = np.array([*task.edges, time[event].max()])
    values = task.link(risk[:, None])
    wanted = np.exp(-cumulative_hazard(risk, time, event, at)[None] * np.exp(risk)[:, None])
    np.testing.assert_allclose(values[:, 0], risk)
    np.testing.assert_allclose(values[:, 1:], wanted, rtol=1e-6)
    assert (np.diff(values[:, 1:]) <= 0).all()
    huge = task.link(np.array([[500.0]]))  # no overflow
    np.testing.assert_array_equal(huge[0, 1:], 0.0)
