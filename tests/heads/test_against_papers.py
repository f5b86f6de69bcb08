"""Heads against NumPy written from the papers, on the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrmil_jax import heads
from lrmil_jax.errors import ConfigError
from lrmil_jax.heads import blockwise
from tests.heads import references
from tests.heads.common import (
    LABELS,
    SMALL,
    B,
    applied,
    bags_of,
    close,
    create,
    init,
    losses,
    weights,
)

TOLERANCE = 1e-5
CLAM = {"k": 2, "bag_weight": 0.7}
CASES = {
    "clam_sb": ("clam_sb", {}, references.clam, CLAM | {"subtyping": False}),
    "clam_sb-subtyping": (
        "clam_sb", {"subtyping": True}, references.clam, CLAM | {"subtyping": True},
    ),
    "clam_mb": ("clam_mb", {}, references.clam, CLAM | {"subtyping": True}),
    "dsmil": ("dsmil", {"hidden": 4}, references.dsmil, {}),
    **{
        f"dtfd-{how}": ("dtfd", {"distill": how}, references.dtfd,
                        {"pseudo_bags": 2, "distill": how})
        for how in ("max", "maxmin", "afs")
    },
    "acmil": ("acmil", {"branches": 3, "diversity": 0.5}, references.acmil, {"diversity": 0.5}),
}  # fmt: skip
CLASSLESS = {
    "perceiver": (references.perceiver, {"heads": 2}),
    "transmil": (references.transmil, {"heads": 2, "landmarks": 4, "iterations": 6}),
    "topk": (references.topk, {"k": 2}),
    "noisy_and": (references.noisy_and, {"slope": 10.0}),
}


def built(name, seed=0, count=12, **options):
    """A head, its parameters, and three bags of 12, 9 and 1 instances in one array."""
    bags, mask, xy = bags_of(seed, count)
    head = heads.create(name, num_classes=3, **SMALL.get(name, {}) | options)
    return head, init(head, bags, mask, xy), bags, mask, xy


@functools.cache
def with_losses(head):
    """The head's output, its own terms of each bag and its attention, compiled once for all seeds:
    op by op takes far longer."""

    def of(variables, bags, mask, xy):
        output = head.apply(variables, bags, mask, xy=xy)
        shown = None if output.attention_logits is None else weights(output.attention_logits, mask)
        return output, losses(head, output, LABELS, mask), shown

    return jax.jit(of)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
def test_logits_losses_and_attention(case, seed):
    name, options, reference, facts = CASES[case]
    head, variables, bags, mask, xy = built(name, seed, **options)
    out, terms, shown = with_losses(head)(variables, bags, mask, xy)
    params = references.double(variables["params"])
    for row in range(B):
        count = int(mask[row].sum())
        x = np.asarray(bags[row, :count], np.float64)
        expected = reference(params, x, int(LABELS[row]), **facts)
        close(out.logits[row], expected.pop("logits"), TOLERANCE)
        if "attention" in expected:
            close(shown[row, :count], expected.pop("attention"), TOLERANCE)
        assert set(expected) == set(terms)
        for term, value in expected.items():
            close(terms[term][row], value, TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CLASSLESS)
def test_logits(name, seed):
    reference, facts = CLASSLESS[name]
    options = {"iterations": 6} if name == "transmil" else {}
    head, variables, bags, mask, xy = built(name, seed, **options)
    out = applied(head)(variables, bags, mask, xy=xy)
    params = references.double(variables["params"])
    for row in range(B):
        x = np.asarray(bags[row, : int(mask[row].sum())], np.float64)
        close(out.logits[row], reference(params, x, **facts)["logits"], TOLERANCE)


@pytest.mark.parametrize("positions", ["alibi", "rotary", "none"])
@pytest.mark.parametrize("size", [512, 5])
def test_transformer_in_blocks_of_any_size(monkeypatch, size, positions):
    _, variables, bags, mask, xy = built("transformer")
    monkeypatch.setattr(blockwise, "BLOCK", size)
    head = create("transformer", positions=positions)
    out = jax.jit(head.apply)(variables, bags, mask, xy=xy)  # anew: of this size of blocks
    params = references.double(variables["params"])
    for row in range(B):
        count = int(mask[row].sum())
        x, places = (np.asarray(a[row, :count], np.float64) for a in (bags, xy))
        expected = references.transformer(params, x, places, heads=2, positions=positions)
        close(out.logits[row], expected["logits"], TOLERANCE)


def test_the_gradient_in_blocks_is_that_of_plain_attention(monkeypatch):
    """By JAX, of softmax over all tokens at once; 11 tokens in three blocks of 4."""
    monkeypatch.setattr(blockwise, "BLOCK", 4)
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.normal(size=(2, 2, 11, 4)), jnp.float32) for _ in range(3)]
    wanted = jnp.asarray(rng.normal(size=(2, 2, 11, 4)), jnp.float32)
    real = jnp.arange(11)[None] < jnp.array([[11], [6]])
    places = jnp.asarray(rng.integers(0, 5, (2, 11, 2)), jnp.float32)

    def plain(query, keys, values):
        logits = blockwise.scores(query, keys, real, places, 0)
        return (jax.nn.softmax(logits) @ values * wanted).sum()

    def ours(*parts):
        return (blockwise.attention(*parts, real, places) * wanted).sum()

    for one, other in zip(*(jax.jit(jax.grad(f, (0, 1, 2)))(*parts) for f in (ours, plain)),
                          strict=True):  # fmt: skip
        close(one, other, 1e-5)


def test_rotary_places_tell_the_way_and_not_the_corner():
    _, variables, bags, mask, xy = built("transformer")
    head = create("transformer", positions="rotary")
    out, moved, turned = (
        applied(head)(variables, bags, mask, xy=places).logits
        for places in (xy, xy + 7, xy[..., ::-1])  # as it is, elsewhere, mirrored
    )
    close(out, moved, 1e-5)
    assert np.abs(out[:2] - turned[:2]).max() > 1e-4
    odd = heads.create("transformer", num_classes=2, width=8, heads=4, positions="rotary")
    with pytest.raises(ConfigError, match="with 4 heads and positions=rotary it must be"):
        odd.init(jax.random.key(0), bags, mask)


def test_abmil_on_a_projection():
    bags, mask, xy = bags_of()
    head = create("abmil", width=5, hidden=4)
    variables = init(head, bags, mask, xy)
    params = references.double(variables["params"])
    out = applied(head)(variables, bags, mask)
    for row in range(B):
        x = np.asarray(bags[row, : int(mask[row].sum())], np.float64)
        h = references.relu(references.linear(params["projection"]["dense"], x))
        scores = np.tanh(references.linear(params["attention_v"], h)) @ params["attention_w"]
        pooled = (references.softmax(scores, 0) * h).sum(0)
        close(out.logits[row], references.linear(params["classifier"], pooled), TOLERANCE)


@pytest.mark.parametrize("gated", [False, True])
def test_abmil(gated):
    bags, mask, xy = bags_of()
    head = create("gated_abmil" if gated else "abmil", hidden=5, instance_classes=2)
    variables = init(head, bags, mask, xy)
    out = applied(head)(variables, bags, mask)
    p = references.double(variables["params"])
    for row in range(B):
        instances = np.asarray(bags[row], np.float64)[np.asarray(mask[row])]
        scores, projected = [], []
        for t in instances:
            h = np.tanh(t @ p["attention_v"]["kernel"] + p["attention_v"]["bias"])
            if gated:
                gate = t @ p["attention_u"]["kernel"] + p["attention_u"]["bias"]
                h = h / (1 + np.exp(-gate))
            projected.append(h)
            scores.append(float(h @ p["attention_w"][:, 0]))
        alpha = np.exp(scores) / np.exp(scores).sum()
        pooled = sum(a * t for a, t in zip(alpha, instances, strict=True))
        close(out.logits[row], references.linear(p["classifier"], pooled), 1e-5)
        close(out.attention_logits[row, : len(scores)], scores, 1e-5)
        expected = references.linear(p["instance_classifier"], np.stack(projected))
        close(out.instance_logits[row, : len(scores)], expected, 1e-5)
        assert not np.any(out.instance_logits[row, len(scores) :])


def test_mean_and_max_by_hand():
    bags = jnp.array([[[1.0, 6.0], [3.0, 2.0], [100.0, 100.0]]])
    mask = jnp.array([[True, True, False]])
    params = {"classifier": {"kernel": jnp.array([[1.0], [10.0]]), "bias": jnp.array([0.5])}}
    for name, expected in {"mean": 2 + 40 + 0.5, "max": 3 + 60 + 0.5}.items():
        head = heads.create(name, num_classes=1)
        close(head.apply({"params": params}, bags, mask).logits, [[expected]])


def test_topk_and_noisy_and_by_hand():
    bags, mask = jnp.array([[[1.0], [3.0], [2.0], [100.0]]]), jnp.array([[True, True, True, False]])
    params = {"classifier": {"kernel": jnp.array([[2.0]]), "bias": jnp.array([0.5])}}
    head = heads.create("topk", num_classes=1, k=2)
    close(head.apply({"params": params}, bags, mask).logits, [[(6.5 + 4.5) / 2]])
    # Every instance is of the class by one half; so is the bag where a half is enough.
    nothing = jax.tree.map(jnp.zeros_like, params["classifier"])
    params = {"classifier": nothing, "share": jnp.zeros(1)}
    head = heads.create("noisy_and", num_classes=1)
    close(head.apply({"params": params}, bags, mask).logits, [[0.0]])


def test_acmil_leaves_out_a_share_of_the_most_attended():
    head = heads.create("acmil", num_classes=3, branches=2, k=4, drop=0.5)
    mask = jnp.arange(12)[None] < jnp.array([12, 9, 1])[:, None]
    scores = jnp.broadcast_to(jnp.arange(12.0)[None, :, None], (3, 12, 2))
    left_out = np.stack([
        head.apply({}, scores, mask, method="_left_out", rngs={"dropout": jax.random.key(seed)})
        for seed in range(20)
    ])  # fmt: skip
    np.testing.assert_array_equal(left_out[:, 0].sum(1), 2)  # half of 4
    assert set(np.flatnonzero(left_out[:, 0].any((0, 2)))) == {8, 9, 10, 11}
    assert set(np.flatnonzero(left_out[:, 1].any((0, 2)))) == {5, 6, 7, 8}
    assert not left_out[:, 2].any()  # half of one instance, rounded down


def test_dtfd_draws_pseudo_bags_of_equal_size_in_training():
    head = heads.create("dtfd", num_classes=2, pseudo_bags=3)
    mask = jnp.arange(12)[None] < jnp.array([12, 7, 1])[:, None]
    drawn = [
        head.apply({}, mask, True, method="_members", rngs={"dropout": jax.random.key(seed)})
        for seed in (0, 1)
    ]
    assert (np.asarray(drawn[0]) != np.asarray(drawn[1])).any()
    for members in drawn:
        np.testing.assert_array_equal(members.sum(-1), mask)
        sizes = np.sort(np.asarray(members.sum(1)), -1)
        np.testing.assert_array_equal(sizes, [[4, 4, 4], [2, 2, 3], [0, 0, 1]])


def test_places_are_counted_in_patches():
    xy = np.array([[1040, 500], [16, 500], [528, 1524]])
    found = heads.in_patches(xy)
    np.testing.assert_array_equal(found, np.array([[2, 0], [0, 0], [1, 2]], np.float32))
    np.testing.assert_array_equal(heads.in_patches(xy[:1]), np.zeros((1, 2)))
    assert heads.in_patches(xy[:0]).shape == (0, 2)
