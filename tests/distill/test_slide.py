"""Stage-2 losses against loops written straight from the equations."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrmil_jax.distill import slide
from lrmil_jax.errors import ConfigError

B, N = 4, 11
LENGTHS = np.array([11, 8, 3, 1])
LOSSES = {
    "kl": functools.partial(slide.attention_kl_loss, temperature=2.0),
    "rank": functools.partial(slide.attention_rank_loss, k=3),
    "instance": functools.partial(slide.instance_loss, k=3),
}


def _data(seed=0, name="kl"):
    rng = np.random.default_rng(seed)
    shape = (B, N, 2) if name == "instance" else (B, N)
    student = rng.normal(size=shape).astype(np.float32)
    mask = np.arange(N) < LENGTHS[:, None]
    guide = np.where(mask, rng.random((B, N)) ** 3 + 1e-4, 0).astype(np.float32)
    return student, guide / guide.sum(1, keepdims=True), mask


def _softmax(x):
    e = np.exp(np.asarray(x, np.float64) - np.max(x))
    return e / e.sum()


def _kl_loop(student, guide, temperature):
    q = np.asarray(guide, np.float64) ** (1 / temperature)
    q /= q.sum()
    p = _softmax(student / temperature)
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(q, p, strict=True) if a > 0)


def _rank_loop(student, guide, k):
    order = np.argsort(guide)
    k = min(k, len(guide) // 2)
    pairs = [
        math.log1p(math.exp(student[low] - student[high]))
        for low in order[:k]
        for high in order[len(order) - k :]
    ]
    return np.mean(pairs) if pairs else 0.0


def _instance_loop(student, guide, k):
    order = np.argsort(guide)
    k = min(k, len(guide) // 2)
    terms = [-math.log(_softmax(student[n])[0]) for n in order[:k]]
    terms += [-math.log(_softmax(student[n])[1]) for n in order[len(order) - k :]]
    return np.mean(terms) if terms else 0.0


LOOPS = {
    "kl": functools.partial(_kl_loop, temperature=2.0),
    "rank": functools.partial(_rank_loop, k=3),
    "instance": functools.partial(_instance_loop, k=3),
}


@pytest.fixture(params=sorted(LOSSES))
def name(request):
    return request.param


def test_against_loops(name):
    student, guide, mask = _data(name=name)
    expected = [LOOPS[name](student[i, mask[i]], guide[i, mask[i]]) for i in range(B)]
    np.testing.assert_allclose(LOSSES[name](student, guide, mask), expected, rtol=2e-5, atol=1e-6)
    jitted = jax.jit(LOSSES[name])(student, guide, mask)
    np.testing.assert_allclose(jitted, expected, rtol=2e-5, atol=1e-6)


def test_order_and_padding_content_do_not_matter(name):
    student, guide, mask = _data(name=name)
    whole = LOSSES[name](student, guide, mask)
    order = np.random.default_rng(1).permutation(N)
    shuffled = LOSSES[name](student[:, order], guide[:, order], mask[:, order])
    np.testing.assert_allclose(whole, shuffled, rtol=1e-5, atol=1e-6)
    padding = mask[..., None] if name == "instance" else mask
    spoiled = LOSSES[name](np.where(padding, student, 50.0), np.where(mask, guide, 9.0), mask)
    np.testing.assert_allclose(whole, spoiled, rtol=1e-5, atol=1e-6)


def test_empty_bag_is_zero_with_zero_gradients(name):
    student, guide, mask = _data(name=name)
    mask[1] = False

    def loss(student, guide):
        return LOSSES[name](student, guide, mask).sum()

    assert LOSSES[name](student, guide, mask)[1] == 0
    by_student, by_guide = jax.grad(loss, (0, 1))(student, guide)
    assert np.isfinite(by_student).all()
    assert np.isfinite(by_guide).all()
    assert not np.any(by_student[1])
    assert np.any(by_student[0])
    padding = ~mask[..., None] if name == "instance" else ~mask
    assert not np.any(np.where(padding, by_student, 0))


def test_scale_of_the_guide_does_not_matter(name):
    student, guide, mask = _data(name=name)
    np.testing.assert_allclose(
        LOSSES[name](student, guide, mask), LOSSES[name](student, 7 * guide, mask), rtol=1e-4
    )


def test_vmap_over_seeds(name):
    parts = [_data(seed, name) for seed in range(3)]
    stacked = [np.stack(x) for x in zip(*parts, strict=True)]
    together = jax.vmap(LOSSES[name])(*stacked)
    for row, part in zip(together, parts, strict=True):
        np.testing.assert_allclose(row, LOSSES[name](*part), rtol=1e-5)


def test_eight_devices_equal_one(name):
    data = [np.concatenate([a, a]) for a in _data(name=name)]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = [jax.device_put(a, jax.NamedSharding(mesh, jax.P("data"))) for a in data]
    np.testing.assert_allclose(jax.jit(LOSSES[name])(*spread), LOSSES[name](*data), 1e-5, 1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
def test_student_at_the_guide_has_no_loss_at_any_temperature(temperature):
    _, guide, mask = _data()
    student = np.log(np.where(mask, guide, 1.0)) + 3.0
    loss, grad = jax.value_and_grad(
        lambda s: slide.attention_kl_loss(s, guide, mask, temperature=temperature).sum()
    )(student)
    assert abs(float(loss)) < 1e-5
    assert np.abs(grad).max() < 1e-5


def test_patches_without_guide_attract_nothing_and_lose_attention():
    student = jnp.zeros((1, 3))
    guide = jnp.array([[0.5, 0.5, 0.0]])
    mask = jnp.ones((1, 3), bool)
    # p = 1/3 each, q = 1/2, 1/2, 0: KL = log(3/2).
    loss = slide.attention_kl_loss(student, guide, mask, temperature=1.0)
    np.testing.assert_allclose(loss, [math.log(1.5)], rtol=1e-6)
    grad = jax.grad(lambda s: slide.attention_kl_loss(s, guide, mask, temperature=1.0).sum())(
        student
    )
    np.testing.assert_allclose(grad, [[-1 / 6, -1 / 6, 1 / 3]], rtol=1e-5)


def test_guide_of_zeros_has_no_loss():
    student, guide, mask = _data()
    loss, grad = jax.value_and_grad(
        lambda s: slide.attention_kl_loss(s, 0 * guide, mask, temperature=2.0).sum()
    )(student)
    assert loss == 0
    assert not np.any(grad)


def test_bag_loss_by_hand_and_against_loops():
    # softmax(log 3, 0) = 3/4, 1/4 against 1/2, 1/2 at T = 1.
    student, teacher = jnp.zeros((1, 2)), jnp.array([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    np.testing.assert_allclose(
        slide.bag_loss(student, teacher, temperature=1.0), [expected], rtol=1e-6
    )
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 5, 4)).astype(np.float32) * 4
    for temperature in (0.5, 3.0):
        expected = [
            _kl_loop(s, _softmax(t), temperature) for s, t in zip(student, teacher, strict=True)
        ]
        got = slide.bag_loss(student, teacher, temperature=temperature)
        np.testing.assert_allclose(got, expected, rtol=1e-4)
        same = slide.bag_loss(teacher + 5, teacher, temperature=temperature)
        np.testing.assert_allclose(same, 0, atol=1e-5)


def test_bag_loss_survives_extreme_logits():
    teacher = jnp.array([[1e4, -1e4]])
    loss, grad = jax.value_and_grad(lambda s: slide.bag_loss(s, teacher, temperature=1.0).sum())(
        -teacher
    )
    np.testing.assert_allclose(loss, 2e4)
    assert np.isfinite(grad).all()


def test_temperature_may_be_traced():
    student, guide, mask = _data()
    traced = jax.jit(lambda t: slide.attention_kl_loss(student, guide, mask, temperature=t))(2.0)
    np.testing.assert_allclose(traced, LOSSES["kl"](student, guide, mask), rtol=1e-5)


def test_rank_loss_by_hand():
    guide = jnp.array([[0.6, 0.1, 0.3]])
    student = jnp.array([[2.0, 5.0, 9.0]])
    # k is cut to 1: patch 0 must outrank patch 1.
    loss = slide.attention_rank_loss(student, guide, jnp.ones((1, 3), bool), k=8)
    np.testing.assert_allclose(loss, [math.log1p(math.exp(3.0))], rtol=1e-6)


def test_top_and_bottom_never_share_a_patch_and_ties_are_left_alone():
    mask = np.ones((1, 6), bool)
    tied = np.array([[0.5, 0.0, 0.0, 0.5, 0.0, 0.0]], np.float32)
    top, bottom, valid = slide.extremes(tied, mask, k=3)
    assert valid[0].tolist() == [True, True, False]
    assert set(top[0, :2].tolist()) == {0, 3}
    assert set(bottom[0, :2].tolist()) <= {1, 2, 4, 5}
    flat = np.full((1, 6), 1 / 6, np.float32)
    student = np.arange(6, dtype=np.float32)[None]
    assert slide.attention_rank_loss(student, flat, mask, k=3)[0] == 0


def test_ranking_well_lowers_the_loss():
    _, guide, mask = _data()
    good = slide.attention_rank_loss(10 * guide, guide, mask, k=3)
    bad = slide.attention_rank_loss(-10 * guide, guide, mask, k=3)
    assert np.all(good[:3] < bad[:3])
    assert good[3] == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda a, b, c: slide.attention_kl_loss(a, b, c, temperature=0.0), "temperature"),
        (lambda a, b, c: slide.bag_loss(a, b, temperature=-1.0), "temperature"),
        (lambda a, b, c: slide.attention_rank_loss(a, b, c, k=0), "top-k"),
    ],
)
def test_hyper_parameters_are_checked(call, said):
    with pytest.raises(ConfigError, match=said):
        call(*_data())
