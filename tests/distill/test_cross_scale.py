"""Cross-scale alignment against loops written straight from the equations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lrmil_jax.distill import cross_scale
from lrmil_jax.errors import ConfigError

B, K, D, C = 5, 6, 7, 3


def _data(seed=0):
    rng = np.random.default_rng(seed)
    z = 4 * rng.normal(size=(B, D)).astype(np.float32)
    children = rng.normal(size=(B, K, D)).astype(np.float32)
    children *= rng.uniform(0.2, 5, (B, K, 1)).astype(np.float32)
    mask = rng.random((B, K)) < 0.6
    mask[:, 0] = True
    classes = 3 * rng.normal(size=(C, D)).astype(np.float32)
    return z, children, mask, classes


def _unit(vector):
    vector = np.asarray(vector, np.float64)
    return vector / np.linalg.norm(vector)


def _softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum()


def _mean_loop(children, mask):
    return np.array(
        [
            _unit(sum(_unit(c) for c, real in zip(row, own, strict=True) if real))
            for row, own in zip(children, mask, strict=True)
        ]
    )


def _loss_loop(z, target, classes, scale, beta):
    texts = np.array([_unit(t) for t in classes])
    out = []
    for one, to in zip(z, target, strict=True):
        p, q = _softmax(scale * texts @ _unit(one)), _softmax(scale * texts @ _unit(to))
        kl = sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))
        out.append(1 - _unit(one) @ _unit(to) + beta * kl)
    return np.array(out)


def _whole(z, children, mask, classes, *, scale=8.0, beta=0.5):
    target = cross_scale.children_mean(children, mask)
    return cross_scale.cross_scale_loss(z, target, classes, scale=scale, beta=beta)["loss"]


def test_against_loops():
    z, children, mask, classes = _data()
    target = _mean_loop(children, mask)
    np.testing.assert_allclose(cross_scale.children_mean(children, mask), target, 1e-5, 1e-6)
    for scale, beta in ((8.0, 0.5), (60.0, 2.0), (1.0, 0)):
        expected = _loss_loop(z, target, classes, scale, beta)
        value = _whole(z, children, mask, classes, scale=scale, beta=beta)
        np.testing.assert_allclose(value, expected, rtol=2e-4, atol=1e-5)
    jitted = jax.jit(_whole)(z, children, mask, classes)
    np.testing.assert_allclose(jitted, _whole(z, children, mask, classes), 1e-5, 1e-6)


def test_by_hand():
    # Children along x and, five times as long, along y: their mean points between the two.
    children = jnp.array([[[1.0, 0.0], [0.0, 5.0], [9.0, 9.0]]])
    target = cross_scale.children_mean(children, jnp.array([[True, True, False]]))
    np.testing.assert_allclose(target, [[0.5**0.5, 0.5**0.5]], rtol=1e-6)
    z = jnp.array([[2.0, 0.0]])
    np.testing.assert_allclose(cross_scale.cosine_loss(z, target), [1 - 0.5**0.5], rtol=1e-6)
    # Texts x and y: the target says 1/2, 1/2; with s = log 3 the patch says 3/4, 1/4.
    classes, scale = jnp.eye(2), math.log(3.0)
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    loss = cross_scale.agreement_loss(z, target, classes, scale=scale)
    np.testing.assert_allclose(loss, [expected], rtol=1e-5)
    both = cross_scale.cross_scale_loss(z, target, classes, scale=scale, beta=3.0)["loss"]
    np.testing.assert_allclose(both, [1 - 0.5**0.5 + 3 * expected], rtol=1e-5)


def test_no_length_matters():
    z, children, mask, classes = _data()
    stretch = np.array([0.01, 3, 100, 1, 7], np.float32)[:, None]
    spread = children * np.linspace(0.1, 9, K, dtype=np.float32)[:, None]
    longer = _whole(stretch * z, spread, mask, 0.2 * classes)
    np.testing.assert_allclose(longer, _whole(z, children, mask, classes), 1e-4, 1e-5)


def test_masking_is_removal_and_order_does_not_matter():
    z, children, mask, classes = _data()
    whole = _whole(z, children, mask, classes)
    for i in range(B):
        kept = np.flatnonzero(mask[i])[::-1]
        alone = _whole(z[i : i + 1], children[i : i + 1, kept], mask[i : i + 1, kept], classes)
        np.testing.assert_allclose(alone[0], whole[i], 1e-5, 1e-6)


def test_absent_children_may_hold_anything():
    z, children, mask, classes = _data()
    spoiled = np.where(mask[..., None], children, np.nan)

    def loss(z, children):
        return _whole(z, children, mask, classes).sum()

    value, grads = jax.value_and_grad(loss, (0, 1))(z, spoiled)
    np.testing.assert_allclose(value, loss(z, children), rtol=1e-6)
    assert all(np.isfinite(grad).all() for grad in grads)
    assert not np.any(np.asarray(grads[1])[~mask])


def test_without_children_the_loss_and_its_gradients_are_finite():
    z, children, mask, classes = _data()
    mask[2] = False
    assert not np.any(cross_scale.children_mean(children, mask)[2])

    def loss(z, children, weight):
        return (weight * _whole(z, children, mask, classes)).sum()

    for weight in (1.0, (np.arange(B) != 2).astype(np.float32)):
        value, grads = jax.value_and_grad(loss, (0, 1))(z, children, weight)
        assert np.isfinite(value)
        assert all(np.isfinite(grad).all() for grad in grads)
    assert not np.any(grads[0][2])
    assert np.all(np.abs(np.delete(grads[0], 2, 0)).max(1) > 0)


def test_at_the_target_there_is_nothing_to_learn():
    _, children, mask, classes = _data()
    target = cross_scale.children_mean(children, mask)

    def loss(z):
        return cross_scale.cross_scale_loss(z, target, classes, scale=50.0, beta=1.0)["loss"]

    np.testing.assert_allclose(loss(3 * target), 0, atol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda z: loss(z).sum())(target), 0, atol=1e-4)
    assert np.all(loss(-target) > 2)


def test_gradients_are_those_of_finite_differences():
    z, children, mask, classes = _data()
    with jax.enable_x64(True):  # the differences' own rounding; inside, all is f32 as ever
        check_grads(
            lambda a, b, c: _whole(a, b, mask, c, scale=2.0),
            (jnp.asarray(z), jnp.asarray(children), jnp.asarray(classes)),
            order=1,
            modes=["rev"],
            atol=2e-2,
            rtol=2e-2,
            eps=1e-2,
        )


def test_eight_devices_equal_one():
    z, children, mask, classes = _data()
    data = [np.concatenate([a, a[:3]]) for a in (z, children, mask)]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = [jax.device_put(a, jax.NamedSharding(mesh, jax.P("data"))) for a in data]
    np.testing.assert_allclose(
        jax.jit(_whole)(*spread, classes), _whole(*data, classes), 1e-5, 1e-6
    )


def test_bf16_is_reduced_in_f32():
    z, children, mask, classes = _data()
    half = _whole(jnp.asarray(z, jnp.bfloat16), jnp.asarray(children, jnp.bfloat16), mask, classes)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, _whole(z, children, mask, classes), rtol=5e-2, atol=1e-2)


def test_scale_may_be_traced_but_not_zero():
    z, children, mask, classes = _data()
    traced = jax.jit(lambda s: _whole(z, children, mask, classes, scale=s))(8.0)
    np.testing.assert_allclose(traced, _whole(z, children, mask, classes), 1e-5, 1e-6)
    with pytest.raises(ConfigError, match="logit scale must be above 0"):
        _whole(z, children, mask, classes, scale=0.0)
