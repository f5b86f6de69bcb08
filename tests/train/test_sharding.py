"""Where arrays live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lrmil_jax.train import make_mesh, place_batch, replicate, sharding, to_host
from lrmil_jax.train.optim import decayed, schedule
from lrmil_jax.train.state import TrainSettings
from lrmil_jax.train.step import Evaluator, weighted_totals


def test_batches_are_filled_with_examples_of_weight_zero():
    placed = place_batch({"x": np.ones((5, 3), np.float32), "n": np.arange(5)}, make_mesh())
    assert placed["x"].shape == (8, 3)
    assert placed["x"].sharding.spec == PartitionSpec("data")
    np.testing.assert_array_equal(placed["weight"], [1, 1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(placed["x"].sum(1), [3, 3, 3, 3, 3, 0, 0, 0])


def test_fsdp_splits_the_largest_axis_that_divides():
    mesh = make_mesh()
    shapes = {
        "large": jax.ShapeDtypeStruct((64, 512), jnp.float32),
        "odd": jax.ShapeDtypeStruct((512, 513), jnp.float32),
        "none": jax.ShapeDtypeStruct((511, 513), jnp.float32),
        "small": jax.ShapeDtypeStruct((8, 8), jnp.float32),
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }
    split = sharding.state_shardings(shapes, mesh, fsdp=True)
    assert split["large"].spec == PartitionSpec(None, "data")
    assert split["odd"].spec == PartitionSpec("data", None)
    assert all(split[name].is_fully_replicated for name in ("none", "small", "step"))
    whole = sharding.state_shardings(shapes, mesh, fsdp=False)
    assert all(where.is_fully_replicated for where in whole.values())


def test_split_arrays_come_to_the_host_whole():
    mesh = make_mesh()
    x = np.arange(32.0, dtype=np.float32).reshape(16, 2)
    np.testing.assert_array_equal(to_host({"x": place_batch({"x": x}, mesh)["x"]}, mesh)["x"], x)


def test_replicate_leaves_what_is_there():
    mesh = make_mesh()
    first = replicate({"x": np.ones(3)}, mesh)
    assert replicate(first, mesh)["x"] is first["x"]
    assert replicate(None, mesh) is None


def test_weighted_totals_ignore_broken_filling():
    terms = {"loss": jnp.array([1.0, 2.0, jnp.nan])}
    totals = weighted_totals(terms, jnp.array([1.0, 3.0, 0.0]))
    assert (float(totals.terms["loss"]), float(totals.weight)) == (7.0, 4.0)
    with pytest.raises(ValueError, match="'loss' has shape \\(\\)"):
        weighted_totals({"loss": jnp.float32(1.0)}, jnp.ones(3))


def test_evaluator_means_over_unequal_batches():
    def loss_fn(params, constants, batch, key, train):
        assert not train
        return {"loss": params * batch["x"] + constants}

    evaluate = Evaluator(loss_fn, constants=np.float32(1.0))
    x = np.arange(7, dtype=np.float32)
    batches = [{"x": x[:5]}, {"x": x[5:], "weight": np.array([1.0, 0.0], np.float32)}]
    assert evaluate(jnp.float32(2.0), batches) == {"loss": pytest.approx(6.0)}


def test_evaluator_gives_single_examples_in_order_without_filling():
    """Batches of five and three are filled up to the eight devices, one example is filling."""

    def loss_fn(params, constants, batch, key, train):
        return {"loss": batch["x"], "rows": params * jnp.stack([batch["x"], -batch["x"]], 1)}

    evaluate = Evaluator(loss_fn, keep=("rows",))
    x = np.arange(8, dtype=np.float32)
    batches = [{"x": x[:5]}, {"x": x[5:], "weight": np.array([1.0, 0.0, 1.0], np.float32)}]
    means, examples = evaluate.with_examples(jnp.float32(2.0), batches)
    assert means == {"loss": pytest.approx(22 / 7)}
    wanted = 2 * np.array([0, 1, 2, 3, 4, 5, 7])
    np.testing.assert_array_equal(examples["rows"], np.stack([wanted, -wanted], 1))


def test_weight_decay_spares_biases_norms_tokens_and_positions():
    params = {
        "Dense_0": {"kernel": np.zeros((2, 2)), "bias": np.zeros(2)},
        "attention": {"bias": np.zeros((2, 3)), "kernel": np.zeros((2, 3, 4))},
        "norm": {"scale": np.zeros(2)},
        "cls_token": np.zeros((1, 1, 4)),
        "pos_embed": np.zeros((1, 5, 4)),
        "attention_w": np.zeros((4, 1)),
    }
    flat = jax.tree_util.tree_leaves_with_path(decayed(params))
    names = {jax.tree_util.keystr(p, simple=True, separator="/") for p, value in flat if value}
    assert names == {"Dense_0/kernel", "attention/kernel", "attention_w"}


@pytest.mark.parametrize(
    ("kind", "expected"), [("cosine", [0.0, 0.5, 1.0, 0.5, 0.0]), ("constant", [0, 0.5, 1, 1, 1])]
)
def test_schedules(kind, expected):
    settings = TrainSettings(steps=12, warmup_steps=2, learning_rate=1.0, schedule=kind)
    rates = [float(schedule(settings)(step)) for step in (0, 1, 2, 7, 12)]
    np.testing.assert_allclose(rates, expected, atol=1e-6)
