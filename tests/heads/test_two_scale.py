"""Heads that read two magnifications, against NumPy written from the papers' equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from lrmil_jax import heads
from lrmil_jax.heads import cells
from tests.heads.common import LABELS, applied, close, init, losses

N, K, W, C = 6, 3, 4, 3
OPTIONS = {"num_classes": C, "children": K, "hidden": 5, "rho": 0.4}
NAMES = ["zoom_mil", "hdmil"]


def drawn(seed=0):
    """Three bags of 6, 4 and 1 LR patches, some of their children missing."""
    rng = np.random.default_rng(seed)
    bags = rng.normal(size=(3, N, W * (K + 1) + K)).astype(np.float32)
    bags[..., -K:] = rng.random((3, N, K)) < 0.7
    bags[..., -K] = 1  # one at least
    return jnp.asarray(bags), jnp.arange(N)[None] < jnp.array([6, 4, 1])[:, None]


def built(name, **options):
    head = heads.create(name, **OPTIONS | options)
    bags, mask = drawn()
    return head, init(head, bags, mask, None), bags, mask


def parts(bags, mask, row):
    """LR features, HR features and which are there, of one bag without filling."""
    low, high, there = (np.asarray(part[row], np.float64) for part in cells.split(bags, mask, K))
    count = int(mask[row].sum())
    return low[:count], high[:count], there[:count].astype(bool)


def in_numpy(variables):
    return jax.tree.map(np.asarray, variables["params"])


def gated(params, rows):
    hidden = np.tanh(rows @ params["v"]["kernel"] + params["v"]["bias"])
    hidden = hidden * expit(rows @ params["u"]["kernel"] + params["u"]["bias"])
    return (hidden @ params["w"])[..., 0]


def screened(params, rows):
    hidden = np.maximum(rows @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    return (hidden @ params["weight"])[..., 0] + params["bias"]


def classified(params, pooled):
    return pooled @ params["classifier"]["kernel"] + params["classifier"]["bias"]


def top(scores):
    """The ceil(0.4 N) places with the highest scores."""
    return np.argsort(-scores, kind="stable")[: -(-len(scores) * 2 // 5)]


def pooled_within(regions, high, there, scores):
    """HR patches of some regions, one after the other, pooled by the softmax of their scores."""
    rows = np.concatenate([high[region][there[region]] for region in regions])
    within = np.concatenate([scores[region][there[region]] for region in regions])
    return softmax(within) @ rows


def test_zoom_mil_reads_the_regions_of_the_largest_attention():
    head, variables, bags, mask = built("zoom_mil")
    params, output = in_numpy(variables), applied(head)(variables, bags, mask)
    for row in range(3):
        low, high, there = parts(bags, mask, row)
        pooled_low = softmax(gated(params["attention_low"], low)) @ low
        chooses = gated(params["choice"], low)
        scores = gated(params["attention_high"], high)
        pooled_high = pooled_within(top(chooses), high, there, scores)
        expected = classified(params, np.concatenate([pooled_low, pooled_high]))
        close(output.logits[row], expected, 1e-5)
        close(output.attention_logits[row, : len(low)], chooses, 1e-5)


def test_little_noise_in_training_is_the_hard_choice():
    head, variables, bags, mask = built("zoom_mil", noise=1e-6, draws=4)
    rngs = {"dropout": jax.random.key(3)}
    trained = applied(head)(variables, bags, mask, train=True, rngs=rngs).logits
    close(trained, applied(head)(variables, bags, mask).logits, 1e-5)


def test_the_choice_of_zoom_mil_learns_through_what_it_reads():
    """Descending its own parameters lowers the loss in prediction: it learns where to look."""
    head, variables, bags, mask = built("zoom_mil", draws=200, noise=0.5)
    params, wanted = variables["params"], jnp.zeros((3, C)).at[:, 0].set(4.0)

    @jax.jit
    def slope(chooser, key):
        def loss(chooser):
            own = {"params": {**params, "choice": chooser}}
            out = head.apply(own, bags, mask, train=True, rngs={"dropout": key})
            return jnp.square(out.logits - wanted).sum()

        return jax.value_and_grad(loss)(chooser)

    chooser, values = params["choice"], []
    for step in range(60):
        value, grads = slope(chooser, jax.random.key(step))
        values.append(float(value))
        chooser = jax.tree.map(lambda p, g: p - 0.01 * g, chooser, grads)
    assert np.mean(values[-10:]) < 0.95 * np.mean(values[:3])


def test_hdmil_chooses_at_lr_and_learns_a_mask_at_hr():
    head, variables, bags, mask = built("hdmil", full=0.7, distil=0.5, rate=3.0, screen=0.2)
    params, output = in_numpy(variables), applied(head)(variables, bags, mask)
    found = losses(head, output, LABELS, mask)
    for row in range(3):
        low, high, there = parts(bags, mask, row)
        by, scores = screened(params["screen_net"], low), gated(params["attention"], high)
        relevance = np.where(there, screened(params["relevance"], high), -np.inf).max(1)
        every, needed = np.arange(len(low)), np.flatnonzero(relevance > 0)
        full = pooled_within(every, high, there, scores)
        masked = np.zeros(W) if not len(needed) else pooled_within(needed, high, there, scores)
        shown = classified(params, pooled_within(top(by), high, there, scores))
        close(output.logits[row], shown, 1e-5)
        close(output.attention_logits[row, : len(low)], by, 1e-5)

        def cost(logits, row=row):
            return -np.log(softmax(logits)[LABELS[row]])

        told = np.where(relevance > 0, -np.log(expit(by)), -np.log(expit(-by))).mean()
        excess = (len(needed) - len(top(by))) / len(low)
        expected = {
            "ce": cost(classified(params, masked)),
            "full": 0.7 * cost(classified(params, full)),
            "distil": 0.5 * np.square(masked - full).mean(),
            "rate": 3.0 * excess**2,
            "screen": 0.2 * told,
        }
        for name, value in expected.items():
            assert found[name][row] == pytest.approx(value, abs=1e-5), name


def test_the_network_at_lr_teaches_the_other_one_nothing():
    head, variables, bags, mask = built("hdmil")

    def screen(params):
        return losses(head, head.apply(params, bags, mask), LABELS, mask)["screen"].sum()

    grads = jax.jit(jax.grad(screen))(variables)["params"]
    own = jax.tree.leaves(grads.pop("screen_net"))
    assert all(np.abs(leaf).max() > 0 for leaf in own)
    assert not any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_chosen_need_not_be_read(name):
    """A prediction from a file has the HR patches of chosen regions alone, and chooses alike."""
    head, variables, bags, mask = built(name)
    whole = applied(head)(variables, bags, mask)
    read = np.array(bags)
    for row in range(3):
        count = int(mask[row].sum())
        others = np.setdiff1d(np.arange(N), top(np.asarray(whole.attention_logits[row, :count])))
        read[row, others, W:] = 0
    again = applied(head)(variables, jnp.asarray(read), mask)
    np.testing.assert_array_equal(whole.attention_logits, again.attention_logits)
    close(whole.logits, again.logits)
    assert np.abs(read - bags).max() > 0
