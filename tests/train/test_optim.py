"""Rates of an encoder's layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrmil_jax.train import optim
from lrmil_jax.train.state import TrainSettings

TOWER = {
    "patch_embed": {"kernel": jnp.ones((2, 2))},
    "grid_position": jnp.ones((1, 1, 2)),
    **{f"block_{index}": {"mlp": {"kernel": jnp.ones((2, 2))}} for index in range(3)},
    "norm": {"scale": jnp.ones(2)},
}


def change(params, **settings):
    """What one update with a gradient of ones changes, at a rate of 1."""
    settings = {"learning_rate": 1.0, "weight_decay": 0.0, "optimizer": "sgd", **settings}
    tx = optim.create(TrainSettings(steps=10, schedule="constant", clip_norm=None, **settings))
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    return jax.tree.map(lambda leaf: float(leaf.ravel()[0]), updates)


@pytest.mark.parametrize("inside", ["encoder", "adapters", None])
def test_a_block_learns_slower_than_the_one_behind_it(inside):
    """Worked out by hand: depth 3 and a half a block; alone, or beside a text tower."""
    text = {"block_0": {"kernel": jnp.ones((2, 2))}}
    params = {inside: TOWER, "text": text} if inside else TOWER
    usual, found = change(params), change(params, layer_decay=0.5)
    if inside:
        assert found["text"] == usual["text"]
        usual, found = usual[inside], found[inside]
    share = jax.tree.map(lambda slow, fast: slow / fast, found, usual)
    assert share["norm"]["scale"] == pytest.approx(1)
    blocks = [share[f"block_{index}"]["mlp"]["kernel"] for index in range(3)]
    np.testing.assert_allclose(blocks, [1 / 8, 1 / 4, 1 / 2])
    assert share["patch_embed"]["kernel"] == pytest.approx(1 / 16)
    assert share["grid_position"] == pytest.approx(1 / 16)
