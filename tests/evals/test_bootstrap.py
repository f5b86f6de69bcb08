"""The paired bootstrap: a mean whose spread is known, and patients who are in several folds."""

import numpy as np
import pytest

from lrmil_jax.evals import bootstrap


def measure_of(values):
    return lambda rows: {"mean": float(values[rows].mean())}


def test_a_mean_has_its_standard_error():
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 1, 100)
    found = bootstrap.paired([(np.arange(100), measure_of(values))], draws=800)["mean"]
    half = 1.96 * values.std() / 10
    assert found.low == pytest.approx(values.mean() - half, abs=0.05)
    assert found.high == pytest.approx(values.mean() + half, abs=0.05)
    assert found.draws == 800
    assert (found.p < 0.05) == (found.low > 0)


def test_a_patient_of_two_folds_is_one_patient():
    values, who = np.random.default_rng(1).normal(size=60), np.arange(60)
    one = bootstrap.paired([(who, measure_of(values))], draws=300)["mean"]
    twice = bootstrap.paired([(who, measure_of(values))] * 2, draws=300)["mean"]
    assert (twice.low, twice.high) == pytest.approx((one.low, one.high))
    others = [(who, measure_of(values)), (who + 60, measure_of(values))]
    narrower = bootstrap.paired(others, draws=300)["mean"]
    assert narrower.high - narrower.low < 0.85 * (one.high - one.low)


def test_no_p_of_0_and_nothing_where_draws_do_not_define_it():
    sure = bootstrap.paired([(np.arange(20), lambda rows: {"x": 1.0})], draws=99)["x"]
    assert sure.p == pytest.approx(2 / 100)
    same = bootstrap.paired([(np.arange(20), lambda rows: {"x": 0.0})], draws=99)["x"]
    assert same.p == 1.0
    seldom = lambda rows: {"x": None if 0 in rows else 1.0}  # noqa: E731
    assert bootstrap.paired([(np.arange(20), seldom)], draws=99)["x"] is None


def test_the_same_draws_every_time():
    values = np.random.default_rng(2).normal(size=30)
    one, other = (bootstrap.paired([(np.arange(30), measure_of(values))], draws=50) for _ in "ab")
    assert one == other
