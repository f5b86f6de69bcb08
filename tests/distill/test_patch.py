"""Stage-1 losses against loops written straight from the equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrmil_jax.distill import patch
from lrmil_jax.errors import ConfigError

B, G, R, D = 3, 8, 4, 5


def _data(seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(B, G, G, D)).astype(np.float32)
    cls = rng.normal(size=(B, R, R, D)).astype(np.float32)
    mask = rng.random((B, R, R)) < 0.6
    mask[:, 0, 0] = True
    return tokens, cls, mask


def _layer_loop(tokens, cls, mask):
    out = []
    window = G // R
    for i in range(len(tokens)):
        terms = []
        for v in range(R):
            for u in range(R):
                if not mask[i, v, u]:
                    continue
                own = tokens[i, v * window : (v + 1) * window, u * window : (u + 1) * window]
                terms.append(np.mean((own.mean((0, 1)) - cls[i, v, u]) ** 2))
        out.append(np.mean(terms) if terms else 0.0)
    return np.array(out)


def test_layer_loss_against_loops():
    tokens, cls, mask = _data()
    expected = _layer_loop(tokens, cls, mask)
    np.testing.assert_allclose(patch.layer_loss(tokens, cls, mask), expected, rtol=1e-5)
    jitted = jax.jit(patch.layer_loss)(jnp.asarray(tokens), jnp.asarray(cls), jnp.asarray(mask))
    np.testing.assert_allclose(jitted, expected, rtol=1e-5)


def test_layer_loss_by_hand():
    # 2 x 2 tokens, one child: the window's mean is 2.5 and the target 0.5, so (2)^2 = 4.
    tokens = jnp.array([[[[1.0], [2.0]], [[3.0], [4.0]]]])
    cls = jnp.array([[[[0.5]]]])
    assert patch.layer_loss(tokens, cls, jnp.ones((1, 1, 1), bool)).tolist() == [4.0]


def test_children_lie_row_by_column():
    # Only the upper right window is 1; its child is [v, u] = [0, 1].
    tokens = jnp.zeros((1, 4, 4, 1)).at[:, :2, 2:].set(1.0)
    assert patch.pool_windows(tokens, 2)[0, :, :, 0].tolist() == [[0.0, 1.0], [0.0, 0.0]]


def test_layer_loss_ignores_absent_children():
    tokens, cls, mask = _data()
    spoiled = np.where(mask[..., None], cls, np.nan)
    loss, grad = jax.value_and_grad(lambda t: patch.layer_loss(t, spoiled, mask).sum())(tokens)
    np.testing.assert_allclose(loss, patch.layer_loss(tokens, cls, mask).sum(), rtol=1e-6)
    assert np.isfinite(grad).all()
    window = G // R
    absent = np.repeat(np.repeat(~mask, window, 1), window, 2)
    assert not np.any(np.asarray(grad)[absent])
    assert np.all(np.abs(np.asarray(grad)[~absent]).sum(-1) > 0)


def test_layer_loss_refuses_a_broken_geometry():
    tokens, cls, mask = _data()
    with pytest.raises(ConfigError, match=r"8 x 8 tokens .* 3 x 3 children"):
        patch.layer_loss(tokens, cls[:, :3, :3], mask[:, :3, :3])


def test_layer_losses_are_the_scaled_mean():
    parts = [_data(seed) for seed in range(3)]
    mask = parts[0][2]
    scale = np.array([0.5, 2.0, 3.0], np.float32)
    expected = np.mean(
        [_layer_loop(t, c, mask) / s for (t, c, _), s in zip(parts, scale, strict=True)], 0
    )
    tokens, cls = np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts])
    np.testing.assert_allclose(patch.layer_losses(tokens, cls, mask, scale), expected, rtol=1e-5)


def _attention_data(seed=0, count=6):
    rng = np.random.default_rng(seed)
    student = rng.normal(size=(B, D)).astype(np.float32)
    cls = rng.normal(size=(B, count, D)).astype(np.float32)
    logits = 3 * rng.normal(size=(B, count)).astype(np.float32)
    mask = rng.random((B, count)) < 0.6
    mask[:, 0] = True
    return student, cls, logits, mask


def test_attention_loss_against_loops():
    student, cls, logits, mask = _attention_data()
    expected = []
    for i in range(B):
        weights = np.exp(logits[i, mask[i]])
        weights /= weights.sum()
        squares = [np.mean((t - student[i]) ** 2) for t in cls[i, mask[i]]]
        expected.append(np.dot(weights, squares))
    np.testing.assert_allclose(
        patch.attention_loss(student, cls, logits, mask), expected, rtol=1e-5
    )


def test_attention_loss_mask_is_removal_and_order_does_not_matter():
    student, cls, logits, mask = _attention_data()
    whole = patch.attention_loss(student, cls, logits, mask)
    for i in range(B):
        kept = np.flatnonzero(mask[i])[::-1]
        alone = patch.attention_loss(
            student[i : i + 1],
            cls[i : i + 1, kept],
            logits[i : i + 1, kept],
            np.ones((1, len(kept)), bool),
        )
        np.testing.assert_allclose(whole[i], alone[0], rtol=1e-5)


def test_attention_loss_ignores_absent_children():
    student, cls, logits, mask = _attention_data()
    spoiled = np.where(mask[..., None], cls, np.nan)
    bad_logits = np.where(mask, logits, np.inf)
    loss, grad = jax.value_and_grad(
        lambda s: patch.attention_loss(s, spoiled, bad_logits, mask).sum()
    )(student)
    np.testing.assert_allclose(
        loss, patch.attention_loss(student, cls, logits, mask).sum(), rtol=1e-6
    )
    assert np.isfinite(grad).all()


def test_nothing_to_learn_is_zero_with_zero_gradients():
    tokens, cls, mask = _data()
    none = np.zeros_like(mask)
    loss, grad = jax.value_and_grad(lambda t: patch.layer_loss(t, cls, none).sum())(tokens)
    assert loss == 0
    assert not np.any(grad)
    student, cls, logits, mask = _attention_data()
    none = np.zeros_like(mask)
    loss, grad = jax.value_and_grad(lambda s: patch.attention_loss(s, cls, logits, none).sum())(
        student
    )
    assert loss == 0
    assert not np.any(grad)


def test_bf16_inputs_are_reduced_in_f32():
    tokens, cls, mask = _data()
    half = patch.layer_loss(
        jnp.asarray(tokens, jnp.bfloat16), jnp.asarray(cls, jnp.bfloat16), jnp.asarray(mask)
    )
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, _layer_loop(tokens, cls, mask), rtol=2e-2)
