"""The teacher's attention on the LR lattice, against loops."""

import functools

import jax
import numpy as np
import pytest

from lrmil_jax.distill import guidance
from lrmil_jax.errors import ConfigError

P = 5
GUIDES = {
    "mass": guidance.mass,
    "mean": functools.partial(guidance.pooled, how="mean"),
    "max": functools.partial(guidance.pooled, how="max"),
}


def _data():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=12).astype(np.float32)
    parent = np.array([0, 0, 1, 1, 1, 2, 4, 4, 4, 4, 3, 3])
    mask = np.ones(12, bool)
    mask[[1, 10, 11]] = False  # patch 3 loses both of its children
    return logits, parent, mask


def _loop(name, logits, parent, mask):
    children = [[float(logits[k]) for k in np.flatnonzero(mask & (parent == i))] for i in range(P)]
    if name == "mass":
        raw = [sum(np.exp(c)) for c in children]
    else:
        pool = np.mean if name == "mean" else np.max
        raw = [np.exp(pool(c)) if c else 0.0 for c in children]
    return np.array(raw) / np.sum(raw)


@pytest.fixture(params=sorted(GUIDES))
def name(request):
    return request.param


def test_against_loops(name):
    logits, parent, mask = _data()
    guide = GUIDES[name](logits, parent, P, mask)
    np.testing.assert_allclose(guide, _loop(name, logits, parent, mask), rtol=1e-5)
    np.testing.assert_allclose(guide.sum(), 1, rtol=1e-6)
    assert guide[3] == 0
    jitted = jax.jit(lambda a: GUIDES[name](a, parent, P, mask))(logits)
    np.testing.assert_allclose(jitted, guide, rtol=1e-6)


def test_masked_children_may_hold_anything(name):
    logits, parent, mask = _data()
    spoiled = np.where(mask, logits, np.nan)
    away = np.where(mask, parent, -1)
    value = GUIDES[name](spoiled, away, P, mask)
    np.testing.assert_allclose(value, GUIDES[name](logits, parent, P, mask), rtol=1e-6)


def test_order_and_shift_do_not_matter(name):
    logits, parent, mask = _data()
    order = np.random.default_rng(1).permutation(12)
    shuffled = GUIDES[name](logits[order] + 100, parent[order], P, mask[order])
    np.testing.assert_allclose(shuffled, GUIDES[name](logits, parent, P, mask), rtol=1e-4)


def test_no_child_at_all_is_zero_and_finite(name):
    logits, parent, mask = _data()
    none = np.zeros_like(mask)
    value, grad = jax.value_and_grad(lambda a: GUIDES[name](a, parent, P, none).sum())(logits)
    assert value == 0
    assert not np.any(grad)


def test_covered():
    _, parent, mask = _data()
    assert guidance.covered(parent, P, mask).tolist() == [True, True, True, False, True]


def test_mass_by_hand():
    logits = np.log(np.array([1.0, 2.0, 5.0], np.float32))
    guide = guidance.mass(logits, np.array([1, 0, 1]), 3, np.ones(3, bool))
    np.testing.assert_allclose(guide, [0.25, 0.75, 0.0], rtol=1e-6)


def test_unknown_pooling_is_refused():
    logits, parent, mask = _data()
    with pytest.raises(ConfigError, match="'median'"):
        guidance.pooled(logits, parent, P, mask, "median")
