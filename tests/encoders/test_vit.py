"""The vision transformer against a plain NumPy forward pass and its own invariants."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from lrmil_jax import encoders
from lrmil_jax.encoders import attention, blocks, grid, pretrained
from lrmil_jax.encoders.pretrained import parameter_shapes
from lrmil_jax.errors import ConfigError

# Test folders are no packages, so the reference is loaded by its path.
_SPEC = importlib.util.spec_from_file_location(
    "encoder_reference", Path(__file__).with_name("reference.py")
)
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)

SMALL = {"px": 32, "patch": 8, "width": 12, "depth": 2, "heads": 2}


def _run(model, params, images, blocks=()):
    return jax.jit(lambda p, x: model.apply(p, x, blocks=blocks))(params, images)


def _model(name="vit", **kwargs):
    model = encoders.create(name, **{**SMALL, **kwargs})
    rng = np.random.default_rng(1)
    # Drawn here, not by `init`: no parameter is 0 or 1, so that none can be forgotten unseen.
    flat = {
        key: jnp.asarray(0.3 * rng.normal(size=shape) + ("scale" in key), jnp.float32)
        for key, shape in pretrained.parameter_shapes(model).items()
    }
    images = jnp.asarray(rng.normal(size=(2, model.px, model.px, 3)), jnp.float32)
    return model, {"params": traverse_util.unflatten_dict(flat, sep="/")}, images


def _kinds():
    """One name of each architecture: encoders that differ in their sizes alone are one."""
    found = {}
    for name, entry in encoders.ENCODERS.items():
        rest = {key: value for key, value in entry.kwargs.items() if key not in SMALL}
        found.setdefault(str(sorted(rest.items())), name)
    return sorted(found.values())


@pytest.fixture(params=_kinds())
def name(request):
    return request.param


@pytest.mark.parametrize("name", sorted(encoders.ENCODERS))
def test_every_encoder_has_the_shapes_that_it_promises(name):
    model = encoders.create(name, depth=2)  # deep ones take long to trace
    images = jax.ShapeDtypeStruct((2, model.px, model.px, 3), jnp.float32)

    def run(images):
        return model.init_with_output(jax.random.key(0), images, blocks=(0, -1))[0]

    out = jax.eval_shape(run, images)
    side = model.px // model.patch
    assert out.embedding.shape == (2, model.embedding_width)
    assert out.tokens[-1].shape == (2, side, side, model.width)
    assert out.cls[0].shape == (2, model.width)


def test_every_encoder_at_a_small_size(name):
    model, params, images = _model(name, depth=1)  # the kind of its blocks; two compile for longer

    def loss(params):
        out = model.apply(params, images, blocks=(0, -1))
        return (out.embedding[:, :3] ** 2).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert out.embedding.shape == (2, model.embedding_width)
    assert out.embedding.dtype == jnp.float32
    assert set(out.cls) == set(out.tokens) == {0, -1}
    assert out.cls[0].shape == (2, 12)
    assert out.tokens[-1].shape == (2, 4, 4, 12)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((out, grads)))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


def test_every_encoder_has_a_transform_of_its_size(name):
    images = np.zeros((1, 40, 40, 3), np.uint8)
    assert encoders.transform(name, px=32).normalise(images).shape == (1, 32, 32, 3)
    assert encoders.transform(name).px == encoders.create(name).px


@pytest.mark.parametrize(("px", "qkv_bias"), [(32, True), (48, False), (16, True)])
def test_against_numpy(px, qkv_bias):
    model, params, _ = _model(qkv_bias=qkv_bias)
    images = jax.random.normal(jax.random.key(3), (2, px, px, 3))
    out = _run(model, params, images, (0, 1))
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
    for i in range(2):
        image = np.asarray(images[i], np.float64)
        embedding, cls, tokens = reference.vit(exact, image, patch=8, heads=2, depth=2)
        np.testing.assert_allclose(out.embedding[i], embedding, rtol=1e-4, atol=1e-5)
        for block in range(2):
            np.testing.assert_allclose(out.cls[block][i], cls[block], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(out.tokens[block][i], tokens[block], rtol=1e-4, atol=1e-5)


def test_blocks_keep_the_callers_names():
    model, params, images = _model()
    out = _run(model, params, images, (0, -1, 1, 0))
    assert set(out.cls) == set(out.tokens) == {0, -1, 1}
    np.testing.assert_array_equal(out.cls[1], out.cls[-1])
    np.testing.assert_array_equal(out.tokens[1], out.tokens[-1])
    assert np.abs(out.cls[0] - out.cls[1]).max() > 1e-3
    alone = _run(model, params, images)
    assert alone.cls == {}
    assert alone.tokens == {}
    np.testing.assert_allclose(alone.embedding, out.embedding, rtol=1e-6)


@pytest.mark.parametrize("block", [2, -3])
def test_blocks_that_are_not_there_are_refused(block):
    model, params, images = _model()
    with pytest.raises(ConfigError, match=f"Block {block} is not there"):
        _run(model, params, images, (0, block))


def test_images_of_a_batch_do_not_mix():
    model, params, images = _model()
    alone = _run(model, params, images[1:]).embedding
    np.testing.assert_allclose(_run(model, params, images).embedding[1:], alone, 1e-5, 1e-6)


def test_tokens_lie_row_by_column():
    model, params, images = _model(depth=1)
    changed = images.at[:, 8:16, 24:32].add(5.0)  # the patch at row 1, column 3
    before = _run(model, params, images, (0,)).tokens[0]
    after = _run(model, params, changed, (0,)).tokens[0]
    moved = np.abs(after - before).sum((0, -1))
    assert np.unravel_index(moved.argmax(), moved.shape) == (1, 3)


def test_bf16_is_close():
    model, params, images = _model()
    half = encoders.create("vit", **SMALL, dtype=jnp.bfloat16)
    exact = _run(model, params, images).embedding
    rough = _run(half, params, images).embedding
    assert rough.dtype == jnp.float32
    assert np.linalg.norm(rough - exact) < 3e-2 * np.linalg.norm(exact)


def test_gelu_of_halves_is_the_exact_one_rounded():
    x = jnp.linspace(-6, 6, 501).astype(jnp.bfloat16)
    exact = jax.nn.gelu(x.astype(jnp.float32), approximate=False)
    found = blocks.ACTIVATIONS["gelu"](x)
    assert found.dtype == jnp.bfloat16
    # One rounding; far below 0, where little is left of 1 + erf, that of float32.
    np.testing.assert_allclose(np.asarray(found, np.float32), exact, rtol=2**-8, atol=1e-6)


def test_remat_changes_neither_parameters_nor_gradients():
    model, params, images = _model()

    def grads(model):
        def total(params):
            output = model.apply(params, images, blocks=(0,))
            return (output.embedding**2).sum() + (output.tokens[0] ** 2).sum()

        return jax.jit(jax.grad(total))(params)

    anew = model.clone(remat=True)
    assert parameter_shapes(anew) == parameter_shapes(model)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), grads(anew), grads(model)
    )


@pytest.mark.parametrize("new", [3, 5, 8, 13])
def test_positions_are_resampled_as_an_independent_bicubic_does(new):
    stored = np.random.default_rng(0).normal(size=(8, 8, 4)).astype(np.float32)
    got = grid.resample_positions(jnp.asarray(stored), new)
    np.testing.assert_allclose(got, reference.resize(stored, new), rtol=1e-4, atol=1e-5)


def test_position_gradients_reach_the_stored_grid():
    stored = jnp.ones((4, 4, 2))
    grad = jax.grad(lambda p: grid.resample_positions(p, 6).sum())(stored)
    # Rows of the resampling weights sum to 1, so their total is the number of outputs.
    np.testing.assert_allclose(grad.sum(), 6 * 6 * 2, rtol=1e-5)


@pytest.mark.parametrize("count", [5, attention._CPU_LOOP_TOKENS + 3])
def test_attention_is_the_same_in_both_formulations(count):
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, count, 3, 4))

    def value_and_grads(function):
        return jax.jit(jax.value_and_grad(lambda *a: (function(*a) ** 2).sum(), (0, 1, 2)))(
            3 * query, key, value
        )

    ours = value_and_grads(attention.attend)
    theirs = value_and_grads(jax.nn.dot_product_attention)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), ours, theirs)


def test_attention_on_eight_devices_equals_one():
    qkv = jax.random.normal(jax.random.key(0), (3, 8, attention._CPU_LOOP_TOKENS, 2, 4))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(qkv, jax.NamedSharding(mesh, jax.P(None, "data")))
    attend = jax.jit(lambda a: attention.attend(*a))
    np.testing.assert_allclose(attend(spread), attend(qkv), 1e-5, 1e-6)


def test_attention_survives_large_scores():
    query = jnp.full((1, 3, 1, 4), 200.0)
    value = jax.random.normal(jax.random.key(0), (1, 3, 1, 4))
    out = attention.attend(query, query, value)
    np.testing.assert_allclose(
        out, np.broadcast_to(value.mean(1, keepdims=True), value.shape), 1e-5
    )


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [({"patch": 7}, "whole number of patches"), ({"heads": 5}, "5 heads"), ({"dept": 1}, "dept")],
)
def test_impossible_geometry_is_refused(kwargs, said):
    with pytest.raises(ConfigError, match=said):
        encoders.create("vit", **{**SMALL, **kwargs})


def test_images_of_a_broken_size_are_refused():
    model, params, _ = _model()
    with pytest.raises(ConfigError, match="Images of 36 px"):
        model.apply(params, jnp.zeros((1, 36, 36, 3)))


def test_unknown_encoder_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'vit-b16'"):
        encoders.create("vit-b-16")


@pytest.mark.parametrize(
    ("depth", "layers"), [(12, (0, 1, 10)), (24, (0, 1, 22)), (3, (0, 1)), (2, (0, 1)), (1, (0,))]
)
def test_default_layers(depth, layers):
    assert encoders.default_layers(depth) == layers


@pytest.mark.parametrize("pool", ["cls", "cls+mean", "mean", "attention"])
@pytest.mark.parametrize("registers", [0, 2])
def test_windows_are_embedded_as_images_are(pool, registers):
    more = {"pool": pool, "registers": registers, "projection": 5, "final_norm": True}
    model, params, images = _model(depth=1, pool_width=8, pool_heads=2, **more)
    out = jax.jit(lambda p, x: model.apply(p, x, blocks=(-1,), windows=2))(params, images)
    plain = _run(model, params, images)
    np.testing.assert_allclose(out.embedding, plain.embedding, 1e-5, 1e-6)
    assert plain.windows is None
    assert out.windows.shape == (2, 2, 2, model.embedding_width)
    # The second row's first window, of the second image: two by two tokens of four by four.
    own = np.asarray(out.tokens[-1])[1, 2:4, 0:2].reshape(4, -1).astype(np.float64)
    weights = jax.tree.map(np.asarray, params["params"])
    mean = own.mean(0)
    norm = lambda x: reference._norm(x, weights["norm"])  # noqa: E731
    if pool == "attention":
        tokens = np.concatenate([np.tile(mean, (1 + registers, 1)), own])
        pooler = blocks.AttentionPool(8, 2)
        normed = jnp.asarray(norm(tokens)[None], jnp.float32)
        pooled = pooler.apply({"params": weights["pool"]}, normed)[0]
    else:
        mean_token, tokens_mean = norm(mean), norm(own).mean(0)
        pooled = {
            "cls": mean_token,
            "cls+mean": np.concatenate([mean_token, tokens_mean]),
            "mean": tokens_mean,
        }[pool]
    expected = pooled @ weights["projection"]["kernel"]
    np.testing.assert_allclose(out.windows[1, 1, 0], expected, 1e-4, 1e-5)


def test_windows_that_cannot_share_the_tokens_are_refused():
    model, params, images = _model(depth=1)
    with pytest.raises(ConfigError, match="4 x 4 tokens cannot be shared out among 3 x 3 windows"):
        model.apply(params, images, windows=3)
