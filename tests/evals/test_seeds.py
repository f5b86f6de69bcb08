import numpy as np
import pytest

from lrmil_jax.evals import seeds


def test_mean_sd_and_range_by_hand():
    found = seeds.summarise([0.8, 0.6, 1.0], [np.full(50, v) for v in (0.8, 0.6, 1.0)], seed=0)
    assert found.mean == pytest.approx(0.8)
    assert found.sd == pytest.approx(0.2)
    assert (found.smallest, found.largest, found.seeds) == (0.6, 1.0, 3)
    assert 0.6 <= found.low < 0.8 < found.high <= 1.0


def test_interval_of_seeds_alone_is_that_of_drawing_them():
    """Without any spread of patients, the mean of three draws of 0 and 1 (one in three is 1)."""
    found = seeds.summarise([0.0, 0.0, 1.0], [np.full(20_000, v) for v in (0.0, 0.0, 1.0)], seed=3)
    # P(no 1 in three draws) = 8/27 > 2.5 %, P(three 1s) = 1/27 > 2.5 %.
    assert (found.low, found.high) == (0.0, 1.0)


def test_interval_of_patients_alone_with_one_seed():
    values = np.linspace(0, 1, 10_001)
    found = seeds.summarise([0.5], [values], seed=1)
    assert found.sd is None
    assert found.low == pytest.approx(0.025, abs=0.01)
    assert found.high == pytest.approx(0.975, abs=0.01)


def test_both_levels_are_wider_than_either():
    rng = np.random.default_rng(0)
    noise = [rng.normal(mean, 0.1, 4000) for mean in (0.5, 0.9)]
    both = seeds.summarise([0.5, 0.9], noise, seed=2)
    only_seeds = seeds.summarise([0.5, 0.9], [np.full(4000, m) for m in (0.5, 0.9)], seed=2)
    assert both.high - both.low > only_seeds.high - only_seeds.low


def test_undefined_figures_leave_their_seed_out():
    found = seeds.summarise([None, 0.2], [np.full(10, np.nan), np.full(10, 0.2)], seed=0)
    assert (found.mean, found.low, found.high, found.seeds) == (0.2, 0.2, 0.2, 1)
    nothing = seeds.summarise([None], [np.full(10, np.nan)], seed=0)
    assert nothing.mean is nothing.low is nothing.sd is None


def test_differences_ahead_are_counted():
    found = seeds.summarise([0.1, -0.1, 0.3, 0.0], [np.zeros(5)] * 4, seed=0)
    assert (found.above_zero, found.seeds) == (2, 4)
