import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from lrmil_jax import encoders
from lrmil_jax.encoders import adapters
from lrmil_jax.errors import ConfigError


@pytest.fixture(scope="module")
def tower():
    module = encoders.create("vit-tiny", px=16, depth=2)
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    return module, jax.jit(module.init)(jax.random.key(0), images)["params"], images


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def test_an_encoder_begins_as_it_came(tower):
    _, params, _ = tower
    start = adapters.merged(params, adapters.initial(params, rank=3, seed=0))
    jax.tree.map(np.testing.assert_array_equal, params, start)


def test_every_matrix_of_the_blocks_has_adapters_and_nothing_else(tower):
    _, params, _ = tower
    start = flat(adapters.initial(params, rank=3, seed=0))
    of_a_block = {"attn/qkv/kernel", "attn/proj/kernel", "mlp/fc1/kernel", "mlp/fc2/kernel"}
    assert set(start) == {
        f"block_{block}/{name}/{factor}"
        for block in (0, 1) for name in of_a_block for factor in ("down", "up")
    }  # fmt: skip
    assert start["block_0/mlp/fc1/kernel/down"].shape == (64, 3)
    assert start["block_0/mlp/fc1/kernel/up"].shape == (3, 256)


def test_merged_is_the_sum_worked_out_by_hand():
    params = {"block_0": {"proj": {"kernel": np.float32([[1, 2], [3, 4]]), "bias": np.ones(2)}}}
    factors = {"down": np.float32([[1], [2]]), "up": np.float32([[5, -1]])}
    found = adapters.merged(params, {"block_0": {"proj": {"kernel": factors}}})
    np.testing.assert_array_equal(found["block_0"]["proj"]["kernel"], [[6, 1], [13, 2]])
    np.testing.assert_array_equal(found["block_0"]["proj"]["bias"], [1, 1])


def test_the_gradient_reaches_the_second_factor_alone_at_first(tower):
    module, params, images = tower
    start = adapters.initial(params, rank=2, seed=0)

    def loss(trained):
        output = module.apply({"params": adapters.merged(params, trained)}, images)
        return jnp.square(output.embedding).sum()

    for path, gradient in flat(jax.grad(loss)(start)).items():
        # A's factor, B, is zero.
        assert bool(np.any(gradient)) == path.endswith("/up"), path


def test_the_same_seed_gives_the_same_adapters(tower):
    _, params, _ = tower
    one, same, other = (adapters.initial(params, rank=2, seed=seed) for seed in (5, 5, 6))
    name = "block_1/attn/qkv/kernel/down"
    np.testing.assert_array_equal(flat(one)[name], flat(same)[name])
    assert np.any(flat(one)[name] != flat(other)[name])


def test_what_cannot_be_adapted_is_said(tower):
    _, params, _ = tower
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        adapters.initial(params, rank=0, seed=0)
    with pytest.raises(ConfigError, match="no kernels in transformer blocks"):
        adapters.initial({"conv_0": {"kernel": np.zeros((3, 3, 3, 8))}}, rank=2, seed=0)
