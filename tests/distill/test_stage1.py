"""An LR encoder of another shape than its teacher: which blocks answer, and through which maps."""

import jax
import numpy as np
import pytest

from lrmil_jax import encoders
from lrmil_jax.distill import stage1
from lrmil_jax.encoders import adapters


@pytest.mark.parametrize(
    ("blocks", "depth", "teacher_depth", "expected"),
    [
        ((0, 1, 10), 12, 12, (0, 1, 10)),  # of the same depth each answers for itself
        ((0, 1, 10), 6, 12, (0, 0, 5)),  # half as deep
        ((0, 1, 10), 3, 12, (0, 0, 2)),
        ((0, 2), 6, 3, (1, 5)),  # a deeper one
    ],
)
def test_blocks_answer_those_as_deep_as_they(blocks, depth, teacher_depth, expected):
    assert stage1.answering(blocks, depth=depth, teacher_depth=teacher_depth) == expected


def test_the_loss_sees_what_the_maps_make_of_a_student():
    """With maps of a student's own that only widen by zeros, a teacher of the same first half and
    zeros behind it is met exactly, and any other map is not."""
    module = encoders.create("vit", px=16, patch=8, width=8, depth=1, heads=2)
    transform = encoders.transform("vit", px=16)
    images = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), np.uint8)
    params = jax.jit(module.init)(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))["params"]
    output = module.apply({"params": params}, transform.normalise(images), blocks=(0,))
    widened = np.pad(np.asarray(output.tokens[0]), ((0, 0), (0, 0), (0, 0), (0, 4)))
    children = np.pad(np.asarray(output.embedding), ((0, 0), (0, 4)))[:, None].repeat(4, 1)
    batch = {
        "lr": images,
        "child_cls": widened[:, :, :, None],
        "child_embedding": children,
        "child_mask": np.ones((2, 2, 2), bool),
        "attention": np.zeros((2, 4), np.float32),
    }
    maps = {"layers": np.eye(8, 12, dtype=np.float32)[None], "embedding": np.eye(8, 12)}
    options = {"lambda_layer": 1.0, "lambda_attn": 1.0, "projected": True}
    loss_fn = stage1.make_loss(module, transform, (0,), **options)

    def loss(maps):
        learned = {"encoder": params, "projections": maps}
        terms = loss_fn(learned, {"scale": np.ones(1, np.float32)}, batch, None, True)
        return {name: float(value.max()) for name, value in terms.items()}

    assert loss(maps) == pytest.approx({"loss": 0, "layer": 0, "attn": 0}, abs=1e-8)
    other = stage1.projections(module, encoders.create("vit", width=12, heads=2), layers=1, seed=0)
    assert other["layers"].shape == (1, 8, 12)
    assert other["embedding"].shape == (8, 12)
    assert min(loss(other).values()) > 0.1


@pytest.fixture(scope="module")
def taught():
    """An encoder, a batch with the children's embeddings by two further encoders, and maps."""
    module = encoders.create("vit", px=16, patch=8, width=8, depth=1, heads=2)
    transform = encoders.transform("vit", px=16)
    params = jax.jit(module.init)(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))["params"]
    rng = np.random.default_rng(0)
    batch = {
        "lr": rng.integers(0, 255, (3, 16, 16, 3), np.uint8),
        "child_cls": rng.normal(size=(3, 2, 2, 1, 8)).astype(np.float32),
        "child_embedding": rng.normal(size=(3, 4, 8)).astype(np.float32),
        "child_mask": rng.random((3, 2, 2)) > 0.2,
        "attention": rng.normal(size=(3, 4)).astype(np.float32),
        "other_0": rng.normal(size=(3, 4, 5)).astype(np.float32),
        "other_1": rng.normal(size=(3, 4, 12)).astype(np.float32),
    }
    maps = stage1.other_maps(module, [5, 12], seed=0)
    assert {name: one.shape for name, one in maps.items()} == {
        "other_0": (8, 5),
        "other_1": (8, 12),
    }
    return module, transform, params, batch, maps


def gradient(taught, batch=None, form=adapters.WHOLE, **options):
    """Of the mean loss, and the terms."""
    module, transform, params, whole, maps = taught
    options = {"lambda_layer": 0.0, "lambda_attn": 0.0} | options
    loss_fn = stage1.make_loss(module, transform, (0,), **options)
    learned, constants = {"encoder": params, "projections": maps}, {"scale": np.ones(1)}
    if form == adapters.ADAPTERS:
        low = adapters.initial(params, rank=2, seed=0)
        learned = {"adapters": low, "projections": maps}
        constants[adapters.FROZEN] = params
    if not options.get("others"):
        learned = params

    def loss(learned):
        terms = loss_fn(learned, constants, batch or whole, None, True)
        return terms["loss"].mean(), terms

    return jax.jit(jax.grad(loss, has_aux=True))(learned)


def test_the_share_of_each_teacher_in_the_gradient_is_its_weight(taught):
    both, terms = gradient(taught, lambda_attn=0.5, others=[0.7, 2.0])
    assert set(terms) == {"loss", "attn", "attn_0", "attn_1"}
    total = 0.5 * terms["attn"] + 0.7 * terms["attn_0"] + 2.0 * terms["attn_1"]
    np.testing.assert_allclose(terms["loss"], total, rtol=1e-6)
    own, _ = gradient(taught, lambda_attn=1.0)
    first, _ = gradient(taught, others=[1.0, 0.0])
    second, _ = gradient(taught, others=[0.0, 1.0])
    wanted = jax.tree.map(
        lambda a, b, c: 0.5 * a + 0.7 * b + 2.0 * c, own, first["encoder"], second["encoder"]
    )
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6),
        both["encoder"], wanted,
    )  # fmt: skip
    # The maps learn along, each of its own encoder.
    maps = both["projections"]
    np.testing.assert_allclose(maps["other_0"], 0.7 * first["projections"]["other_0"], rtol=1e-4)
    np.testing.assert_allclose(maps["other_1"], 2.0 * second["projections"]["other_1"], rtol=1e-4)
    assert np.abs(maps["other_0"]).max() > 0


def test_equal_teachers_are_one_with_the_sum_of_their_weights(taught):
    """Of one encoder and one map."""
    module, transform, params, batch, maps = taught
    twice = batch | {"other_1": batch["other_0"]}
    same = (module, transform, params, twice, {**maps, "other_1": maps["other_0"]})
    two, _ = gradient(same, others=[0.5, 1.5])
    one, _ = gradient(same, others=[2.0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
        two["encoder"], one["encoder"],
    )  # fmt: skip


def test_adapters_learn_from_further_teachers_too(taught):
    learned, terms = gradient(taught, form=adapters.ADAPTERS, lambda_attn=1.0, others=[1.0, 1.0])
    _, whole = gradient(taught, lambda_attn=1.0, others=[1.0, 1.0])
    np.testing.assert_allclose(terms["loss"], whole["loss"], rtol=1e-5)  # they begin at no change
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(learned["adapters"])) > 0
