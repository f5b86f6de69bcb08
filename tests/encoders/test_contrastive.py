"""The image-text loss: by hand, against PyTorch, and what must not change it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from lrmil_jax.encoders import contrastive
from lrmil_jax.train import make_mesh, place_batch

GROUPS = np.array([0, 1, 2, 0, 3, 1, 4, 5])


def pairs(seed=0, count=8, width=5):
    """Images and texts of length 1."""
    rng = np.random.default_rng(seed)
    both = rng.normal(size=(2, count, width)).astype(np.float32)
    return tuple(np.array(contrastive.normalise(one)) for one in both)


def loss(images, texts, group, mask=None, scale=7.0):
    mask = np.ones(len(group), bool) if mask is None else mask
    return np.asarray(contrastive.contrastive_loss(images, texts, group, mask, scale=scale))


def test_two_pairs_by_hand():
    """Logits 2 and 0 in each row: softmax of the right one is 1 / (1 + e^-2)."""
    same = np.eye(2, dtype=np.float32)
    np.testing.assert_allclose(
        loss(same, same, np.array([0, 1]), scale=2.0), [np.log1p(np.exp(-2))] * 2, rtol=1e-6
    )
    # Of one group: both texts are right, so the target is a half each.
    expected = 0.5 * np.log1p(np.exp(-2)) + 0.5 * np.log1p(np.exp(2))
    np.testing.assert_allclose(
        loss(same, same, np.array([4, 4]), scale=2.0), [expected] * 2, rtol=1e-6
    )


@pytest.mark.parametrize("group", [np.arange(8), GROUPS], ids=["clip", "groups"])
def test_agrees_with_plain_numpy(group):
    images, texts = pairs()
    logits = 7.0 * images.astype(np.float64) @ texts.T.astype(np.float64)
    match = (group[:, None] == group[None]).astype(np.float64)
    target = match / match.sum(1, keepdims=True)
    both = [-(target * scipy.special.log_softmax(one, 1)).sum(1) for one in (logits, logits.T)]
    np.testing.assert_allclose(loss(images, texts, group), sum(both) / 2, rtol=1e-5)


def test_filling_is_as_if_it_were_not_there():
    images, texts = pairs()
    mask = np.array([1, 1, 0, 1, 0, 1, 1, 0], bool)
    found = loss(images, texts, GROUPS, mask)
    np.testing.assert_allclose(
        found[mask], loss(images[mask], texts[mask], GROUPS[mask]), rtol=1e-5
    )
    assert (found[~mask] == 0).all()
    accuracy = contrastive.in_batch_accuracy(images, texts, GROUPS, mask)
    rest = contrastive.in_batch_accuracy(
        images[mask], texts[mask], GROUPS[mask], np.ones(mask.sum(), bool)
    )
    np.testing.assert_array_equal(np.asarray(accuracy)[mask], rest)


def test_order_makes_no_difference():
    images, texts = pairs()
    order = np.random.default_rng(1).permutation(8)
    np.testing.assert_allclose(
        loss(images[order], texts[order], GROUPS[order]),
        loss(images, texts, GROUPS)[order],
        rtol=1e-5,
    )


@pytest.mark.parametrize("mask", [np.zeros(8, bool), np.arange(8) < 1, np.arange(8) < 5])
def test_gradients_are_finite_and_leave_the_filling_alone(mask):
    images, texts = pairs()

    def total(images, texts, scale):
        return contrastive.contrastive_loss(images, texts, GROUPS, mask, scale=scale).sum()

    arguments = (jnp.asarray(images), jnp.asarray(texts), jnp.float32(100))
    *grads, of_scale = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*arguments)
    for grad in grads:
        assert np.isfinite(grad).all()
        assert (np.asarray(grad)[~mask] == 0).all()
    part = (arguments[0][mask], arguments[1][mask])

    def alone(scale):
        every = np.ones(mask.sum(), bool)
        return contrastive.contrastive_loss(*part, GROUPS[mask], every, scale=scale).sum()

    expected = jax.grad(alone)(jnp.float32(100)) if mask.any() else 0.0
    np.testing.assert_allclose(of_scale, expected, rtol=1e-3, atol=1e-6)


def test_eight_devices_share_their_negatives():
    """A batch of 13 is filled to 16 and split; each part alone would have another loss."""
    images, texts = pairs(count=13)
    group = np.arange(13) % 6

    @jax.jit
    def both(batch):
        def total(images):
            each = contrastive.contrastive_loss(
                images, batch["text"], batch["group"], batch["weight"] > 0, scale=7.0
            )
            return each.sum(), each

        return jax.grad(total, has_aux=True)(batch["image"])

    mesh = make_mesh(jax.devices())
    assert mesh.size == 8
    placed = place_batch({"image": images, "text": texts, "group": group}, mesh)
    grad, each = both(placed)
    alone = both({"image": images, "text": texts, "group": group, "weight": np.ones(13)})
    np.testing.assert_allclose(np.asarray(each)[:13], alone[1], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(grad)[:13], alone[0], rtol=1e-4, atol=1e-6)
    assert abs(loss(images[:2], texts[:2], group[:2]) - alone[1][:2]).min() > 0.1


def test_scale_starts_at_14_and_stops_at_100():
    assert float(contrastive.logit_scale(jnp.float32(contrastive.FIRST_LOG_SCALE))) == (
        pytest.approx(1 / 0.07)
    )
    assert float(contrastive.logit_scale(jnp.float32(9.0))) == pytest.approx(100)


def test_chance_is_the_share_of_the_largest_group():
    group = np.array([4, 2, 4, 4, 7, 7, 7, 7])
    whole = contrastive.in_batch_chance(group, np.ones(8, bool))
    assert whole.tolist() == [0.5] * 8  # four of group 7
    # Of the first five, three are of group 4; filling neither counts nor is counted.
    part = contrastive.in_batch_chance(group, np.arange(8) < 5)
    assert part.tolist() == pytest.approx([0.6] * 8)
    assert contrastive.in_batch_chance(group, np.zeros(8, bool)).tolist() == [0] * 8


def test_one_text_for_all_images_is_chance():
    """Embeddings that have collapsed score what `in_batch_chance` says, at best."""
    group = np.array([1, 1, 1, 0, 2])
    images, texts = np.tile([[1.0, 0.0]], (5, 1)), np.tile([[0.0, 1.0]], (5, 1))
    texts[2] = [1.0, 0.0]
    mask = np.ones(5, bool)
    accuracy = contrastive.in_batch_accuracy(images, texts, group, mask)
    assert accuracy.mean() == pytest.approx(contrastive.in_batch_chance(group, mask).mean())


def test_nearest_text_of_the_batch():
    texts = np.eye(3, dtype=np.float32)
    images = texts[[0, 2, 2]]
    mask = np.ones(3, bool)
    found = contrastive.in_batch_accuracy(images, texts, np.array([0, 1, 2]), mask)
    assert found.tolist() == [1, 0, 1]
    # The second image is nearest to the third text, which is of its group now.
    found = contrastive.in_batch_accuracy(images, texts, np.array([0, 1, 1]), mask)
    assert found.tolist() == [1, 1, 1]
    # Where that text is filling, the next best is not of its group.
    found = contrastive.in_batch_accuracy(images, texts, np.array([0, 1, 1]), np.arange(3) < 2)
    assert found.tolist() == [1, 0, 0]


def test_zero_shot_by_hand():
    """Class 0 is said in two ways, at right angles: its mean lies between them."""
    texts = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    label = np.array([0, 0, 1])
    classes = contrastive.class_embedding(texts, label, num_classes=3)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(classes, [[half, half, 0], [0, 0, 1], [0, 0, 0]], rtol=1e-6)
    images = np.array([[1, 0, 0], [0, 0.6, 0.8]], np.float32)
    scores = contrastive.zero_shot(images, texts, label, num_classes=3)
    np.testing.assert_allclose(scores, [[half, 0, 0], [0.6 * half, 0.8, 0]], rtol=1e-6)


def test_a_zero_vector_stays_zero_and_has_a_gradient():
    vectors = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(contrastive.normalise(vectors), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda v: contrastive.normalise(v).sum())(vectors)).all()
