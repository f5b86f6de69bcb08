"""The K highest, and the gradient of their mean under noise, against independent estimates."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from lrmil_jax.heads import choice
from lrmil_jax.selection import score

SCORES = np.array([0.3, -0.2, 0.9, 0.25, 0.1], np.float32)


def drawn(draws, count, seed=0):
    """Noise with its mirror image, which halves what chance leaves of a mean."""
    half = np.random.default_rng(seed).normal(size=(draws // 2, count))
    return jnp.asarray(np.concatenate([half, -half]), jnp.float32)


def test_one_of_two_has_a_closed_form():
    """P(s_0 + d Z_0 > s_1 + d Z_1) = Phi((s_0 - s_1) / (d sqrt 2))."""
    scores, deviation = jnp.array([0.4, 0.1]), 0.5
    noise = drawn(100_000, 2)

    def first(scores):
        return choice.perturbed(scores, jnp.int32(1), noise, deviation, 1)[0, 0]

    value, slope = jax.value_and_grad(first)(scores)
    away = 0.3 / (deviation * np.sqrt(2))
    assert value == pytest.approx(norm.cdf(away), abs=5e-3)
    steep = norm.pdf(away) / (deviation * np.sqrt(2))
    np.testing.assert_allclose(slope, [steep, -steep], atol=0.02)


def enumerated(scores, deviation, size):
    """The mean choice by counting over a grid of quantiles of the noise, without sampling."""
    points = deviation * norm.ppf((np.arange(12) + 0.5) / 12)
    mean = np.zeros((size, len(scores)))
    for noise in itertools.product(points, repeat=len(scores)):
        rows = np.sort(np.argsort(-(scores + np.array(noise)))[:size])
        mean[np.arange(size), rows] += 1
    return mean / 12 ** len(scores)


def test_mean_choice_is_that_of_a_grid_of_the_noise():
    scores = SCORES[:4]
    found = choice.perturbed(jnp.asarray(scores), jnp.int32(2), drawn(40_000, 4), 0.4, 2)
    np.testing.assert_allclose(found, enumerated(scores, 0.4, 2), atol=0.02)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-4)


def test_gradient_is_the_slope_of_the_mean_choice():
    """Against differences of the mean choice itself, with the same noise on both sides."""
    noise, weights = drawn(60_000, 5), np.random.default_rng(1).normal(size=(2, 5))

    @jax.jit
    def value(scores):
        chosen = choice.perturbed(scores, jnp.int32(2), noise, 0.4, 2)
        return (chosen * weights).sum()

    slope = jax.jit(jax.grad(value))(jnp.asarray(SCORES))
    steps = 0.1 * np.eye(5, dtype=np.float32)
    numeric = [(value(SCORES + step) - value(SCORES - step)) / 0.2 for step in steps]
    np.testing.assert_allclose(slope, numeric, atol=0.03)
    assert np.abs(numeric).max() > 0.2


def test_little_noise_is_the_ranking():
    found = choice.perturbed(jnp.asarray(SCORES), jnp.int32(3), drawn(50, 5), 1e-6, 4)
    expected = np.zeros((4, 5))
    expected[[0, 1, 2], [0, 2, 3]] = 1  # the three highest in the order of their places
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_cannot_be_chosen_is_not():
    scores = jnp.array([0.0, -jnp.inf, 0.1, -jnp.inf])
    found = choice.perturbed(scores, jnp.int32(2), drawn(20, 4), 5.0, 3)
    np.testing.assert_allclose(found, [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], atol=1e-5)


def test_highest_are_those_that_the_ranking_chooses():
    scores = np.array([[1.0, 3.0, 3.0, 2.0, 3.0], [5.0, 1.0, 2.0, 9.0, 9.0]])
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    found = choice.highest(jnp.asarray(scores), jnp.asarray(mask), jnp.array([2, 1]))
    assert np.flatnonzero(found[0]).tolist() == [1, 2]  # ties to the lower place
    assert np.flatnonzero(found[1]).tolist() == [0]
    assert np.flatnonzero(found[0]).tolist() == score.select(scores[0][:, None], 2).tolist()


@pytest.mark.parametrize(("rho", "count"), [(0.1, 0), (0.25, 0), (1.0, 0), (0.25, 7)])
def test_budgets_are_those_of_a_slide(rho, count):
    mask = np.arange(31)[None] < np.arange(32)[:, None]
    wanted, most = choice.sizes(jnp.asarray(mask), rho, count)
    rule = {"count": count} if count else {"rho": rho}
    assert wanted.tolist() == [score.budget(total, **rule) for total in range(32)]
    assert most == wanted[-1]
