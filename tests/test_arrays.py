"""NumPy in, NumPy out, and the same numbers as JAX gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrmil_jax import arrays
from lrmil_jax.distill import guidance
from lrmil_jax.encoders import contrastive
from lrmil_jax.selection import fuse


def rng():
    return np.random.default_rng(0)


def test_softmax_is_that_of_jax_with_and_without_a_mask():
    values = rng().normal(size=(5, 7)).astype(np.float32) * 30
    where = rng().random((5, 7)) < 0.6
    where[2] = False
    expected = jax.nn.softmax(jnp.asarray(values), where=jnp.asarray(where))
    found = arrays.softmax(values, where)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not found[2].any()
    np.testing.assert_allclose(arrays.softmax(values), jax.nn.softmax(values), atol=1e-6)


def test_groups_are_summed_and_their_largest_found():
    values, group = np.array([1.0, 4.0, -2.0, 3.0], np.float32), np.array([2, 0, 2, 0])
    np.testing.assert_array_equal(arrays.sum_by(values, group, 4), [7, 0, -1, 0])
    np.testing.assert_array_equal(arrays.max_by(values, group, 4), [4, -np.inf, 1, -np.inf])


def of_slides(count=101, parents=9):
    logits = rng().normal(size=count).astype(np.float32) * 3
    parent = rng().integers(-1, parents, count)
    return logits, parent, parents, parent >= 0


@pytest.mark.parametrize("how", ["mass", "mean", "max", "covered"])
def test_guides_are_the_same_in_numpy_and_in_jax(how):
    logits, parent, parents, mask = of_slides()

    def run(logits, parent, mask):
        if how == "mass":
            return guidance.mass(logits, parent, parents, mask)
        if how == "covered":
            return guidance.covered(parent, parents, mask)
        return guidance.pooled(logits, parent, parents, mask, how)

    host = run(logits, parent, mask)
    assert isinstance(host, np.ndarray)
    device = run(jnp.asarray(logits), jnp.asarray(parent), jnp.asarray(mask))
    assert isinstance(device, jax.Array)
    np.testing.assert_allclose(host, device, atol=1e-6)


@pytest.mark.parametrize("name", sorted(fuse.FUSIONS))
def test_fusions_are_the_same_in_numpy_and_in_jax(name):
    feature, z = rng().normal(size=(11, 6)), rng().normal(size=(11, 4))
    classes, mask = rng().normal(size=(3, 4)), rng().random(11) < 0.7
    values = [feature.astype(np.float32), z.astype(np.float32), classes.astype(np.float32), mask]
    host = fuse.FUSIONS[name](*values, tau=8.0)
    assert isinstance(host, np.ndarray)
    device = fuse.FUSIONS[name](*map(jnp.asarray, values), tau=8.0)
    np.testing.assert_allclose(host, device, atol=2e-5)


def test_nothing_is_compiled_for_a_slide_of_a_new_size():
    compiled = []
    event = "/jax/core/compile/backend_compile_duration"
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if name == event else None
    )
    classes = rng().normal(size=(2, 4)).astype(np.float32)
    for count in (50, 51, 52):
        logits, parent, parents, mask = of_slides(count)
        guidance.mass(logits, parent, parents, mask)
        guidance.pooled(logits, parent, parents, mask, "max")
        guidance.covered(parent, parents, mask)
        z = contrastive.normalise(rng().normal(size=(count, 4)).astype(np.float32))
        for function in fuse.FUSIONS.values():
            function(z, z, classes, mask, tau=4.0)
    assert not compiled
