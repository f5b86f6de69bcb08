"""What must not be rounded to 16 bits where a device would do so by itself, as TPUs do."""

import re

import jax
import jax.numpy as jnp
import pytest

from lrmil_jax.heads import Packing, layers, nystrom

WEIGHTS, INSTANCES = jnp.ones((2, 5, 1)), jnp.ones((2, 5, 3))
PACKED = Packing(jnp.array([0, 5]), jnp.array([5, 5]))


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda: layers.pool(WEIGHTS, INSTANCES), 1),
        (lambda: layers.pool(WEIGHTS, INSTANCES.astype(jnp.bfloat16)), 1),
        (lambda: layers.pool(WEIGHTS, INSTANCES.reshape(1, 10, 3), PACKED), 1),
        (lambda: nystrom._inverse(jnp.ones((1, 1, 4, 4)), 2), 8),
    ],
    ids=["pool", "pool 16 bits", "pool of a row", "pseudo-inverse"],
)
def test_products_are_exact_on_every_device(function, products):
    program = str(jax.make_jaxpr(function)())
    asked = re.findall(r"precision=(\S+)", program.replace("(Precision.HIGHEST, ", "HIGHEST "))
    assert program.count("dot_general[") == products
    assert len(asked) == products
    assert all("HIGHEST" in one for one in asked), asked
