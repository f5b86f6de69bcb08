"""One suite over every registered head, and golden values of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrmil_jax import heads
from lrmil_jax.errors import ConfigError

B, N, D, C = 3, 7, 6, 3


@pytest.fixture(params=sorted(heads.HEADS))
def name(request):
    return request.param


def _bags(seed=0, count=N):
    rng = np.random.default_rng(seed)
    bags = jnp.asarray(rng.normal(size=(B, count, D)), jnp.float32)
    lengths = np.array([count, count - 3, 1])
    return bags, jnp.arange(count)[None, :] < lengths[:, None]


def _init(name, bags, mask, **kwargs):
    head = heads.create(name, num_classes=C, **kwargs)
    params = head.init(jax.random.key(1), bags, mask)
    # Biases start at 0 and would hide their own mistakes.
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return head, jax.tree.unflatten(treedef, noisy)


def _close(a, b, tol=2e-6):
    np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), tol, tol)


def test_shapes_and_types(name):
    bags, mask = _bags()
    head, params = _init(name, bags, mask)
    out = head.apply(params, bags, mask)
    assert out.logits.shape == (B, C)
    assert out.logits.dtype == jnp.float32
    assert out.instance_logits is None
    if name != "mean":
        assert out.attention_logits.shape == (B, N)
        assert out.attention_logits.dtype == jnp.float32


def test_masked_is_removed(name):
    bags, mask = _bags()
    head, params = _init(name, bags, mask)
    out = head.apply(params, bags, mask)
    for row in range(B):
        count = int(mask[row].sum())
        alone = head.apply(params, bags[row : row + 1, :count], jnp.ones((1, count), bool))
        _close(out.logits[row], alone.logits[0])
        if out.attention_logits is not None:
            _close(out.attention_logits[row, :count], alone.attention_logits[0])
            assert not np.any(out.attention_logits[row, count:])


def test_padding_content_does_not_matter(name):
    bags, mask = _bags()
    head, params = _init(name, bags, mask)
    garbage = jnp.where(mask[..., None], bags, 1e4)

    def loss(params, bags):
        return (head.apply(params, bags, mask).logits ** 2).sum()

    first, first_grads = jax.value_and_grad(loss)(params, bags)
    second, second_grads = jax.value_and_grad(loss)(params, garbage)
    _close(first, second)
    jax.tree.map(lambda a, b: _close(a, b, 1e-5), first_grads, second_grads)


def test_longer_padding_and_other_rows_do_not_matter(name):
    bags, mask = _bags()
    head, params = _init(name, bags, mask)
    wide = jnp.pad(bags, ((0, 2), (0, 5), (0, 0)), constant_values=3.0)
    wide_mask = jnp.pad(mask, ((0, 2), (0, 5)))
    _close(head.apply(params, wide, wide_mask).logits[:B], head.apply(params, bags, mask).logits)


def test_permutation(name):
    bags, mask = _bags()
    order = np.random.default_rng(3).permutation(N)
    head, params = _init(name, bags, mask)
    out = head.apply(params, bags, mask)
    shuffled = head.apply(params, bags[:, order], mask[:, order])
    _close(out.logits, shuffled.logits)
    if out.attention_logits is not None:
        _close(out.attention_logits[:, order], shuffled.attention_logits)


def test_empty_bag_is_finite(name):
    bags, mask = _bags()
    head, params = _init(name, bags, mask)
    mask = mask.at[0].set(False)

    def loss(params):
        return (head.apply(params, bags, mask).logits ** 2).sum()

    value, grads = jax.value_and_grad(loss)(params)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    # Nothing is pooled, so only the classifier's bias speaks.
    bias = params["params"]["classifier"]["bias"]
    _close(head.apply(params, bags, mask).logits[0], bias)


def test_jit_equals_eager_and_bf16_is_close(name):
    bags, mask = _bags()
    head, params = _init(name, bags, mask)
    eager = head.apply(params, bags, mask)
    _close(eager.logits, jax.jit(head.apply)(params, bags, mask).logits)
    half = heads.create(name, num_classes=C, dtype=jnp.bfloat16).apply(params, bags, mask)
    assert half.logits.dtype == jnp.float32
    _close(half.logits, eager.logits, 5e-2)


def test_every_parameter_learns(name):
    bags, mask = _bags()
    head, params = _init(name, bags, mask)
    grads = jax.grad(lambda p: (head.apply(p, bags, mask).logits ** 2).sum())(params)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_vmap_over_parameters(name):
    bags, mask = _bags()
    head, params = _init(name, bags, mask)
    several = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)
    both = jax.vmap(lambda p: head.apply(p, bags, mask))(several)
    _close(both.logits[0], head.apply(params, bags, mask).logits)


def test_eight_devices_equal_one(name):
    bags, mask = _bags()
    head, params = _init(name, bags, mask)
    bags, mask = (jnp.concatenate([a, a, a])[:8] for a in (bags, mask))

    @jax.jit
    def loss_and_grads(params, bags, mask):
        return jax.value_and_grad(lambda p: (head.apply(p, bags, mask).logits ** 2).sum())(params)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    whole = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    spread = loss_and_grads(whole, jax.device_put(bags, rows), jax.device_put(mask, rows))
    jax.tree.map(lambda a, b: _close(a, b, 1e-5), spread, loss_and_grads(params, bags, mask))


def test_dropout_only_when_training(name):
    bags, mask = _bags()
    head, params = _init(name, bags, mask, dropout=0.5)
    plain = heads.create(name, num_classes=C)
    _close(head.apply(params, bags, mask).logits, plain.apply(params, bags, mask).logits)
    rngs = {"dropout": jax.random.key(5)}
    trained = head.apply(params, bags, mask, train=True, rngs=rngs).logits
    assert np.abs(trained - plain.apply(params, bags, mask).logits).max() > 1e-3


def test_bf16_features_are_taken(name):
    bags, mask = _bags()
    head, params = _init(name, bags, mask)
    rounded = bags.astype(jnp.bfloat16)
    out = head.apply(params, rounded, mask)
    assert out.logits.dtype == jnp.float32
    _close(out.logits, head.apply(params, rounded.astype(jnp.float32), mask).logits)


@pytest.mark.parametrize("gated", [False, True])
def test_abmil_against_loops(gated):
    bags, mask = _bags()
    name = "gated_abmil" if gated else "abmil"
    head, variables = _init(name, bags, mask, hidden=5, instance_classes=2)
    out = head.apply(variables, bags, mask)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
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
        logits = pooled @ p["classifier"]["kernel"] + p["classifier"]["bias"]
        _close(out.logits[row], logits, 1e-5)
        _close(out.attention_logits[row, : len(scores)], scores, 1e-5)
        layer = p["instance_classifier"]
        expected = np.stack(projected) @ layer["kernel"] + layer["bias"]
        _close(out.instance_logits[row, : len(scores)], expected, 1e-5)
        assert not np.any(out.instance_logits[row, len(scores) :])


def test_mean_by_hand():
    head = heads.create("mean", num_classes=1)
    bags = jnp.array([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]])
    mask = jnp.array([[True, True, False]])
    params = {"classifier": {"kernel": jnp.array([[1.0], [10.0]]), "bias": jnp.array([0.5])}}
    _close(head.apply({"params": params}, bags, mask).logits, [[2 + 40 + 0.5]])


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'gated_abmil'"):
        heads.create("gated-abmil", num_classes=2)
    with pytest.raises(ConfigError, match="hiden"):
        heads.create("abmil", num_classes=2, hiden=3)
    with pytest.raises(ConfigError, match="at least one class"):
        heads.create("mean", num_classes=0)
