"""One suite over every registered head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrmil_jax import heads
from lrmil_jax.errors import ConfigError
from lrmil_jax.tasks.classification import Classification
from lrmil_jax.train.bag_model import BagModel
from tests.heads.common import (
    LABELS,
    SMALL,
    B,
    C,
    D,
    N,
    applied,
    bags_of,
    close,
    computed,
    create,
    init,
    weights,
)

# Time and memory of their heads are linear in the bag, with few numbers an instance.
LINEAR = sorted(set(heads.HEADS) - {"transformer", "transmil"})
ALL = sorted(heads.HEADS)


def few(*names, of=ALL):
    """Every head, all but these as slow tests: what depends little on the head."""
    return pytest.mark.parametrize(
        "name",
        [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in of],
        indirect=True,
    )


@pytest.fixture(scope="module", params=ALL)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def setting(name):
    bags, mask, xy = bags_of()
    head = create(name)
    return head, init(head, bags, mask, xy), bags, mask, xy


def test_shapes_and_types(setting):
    head, params, bags, mask, xy = setting
    out = computed(head)(params, bags, mask, xy).output
    assert out.logits.shape == (B, C)
    assert out.logits.dtype == jnp.float32
    assert head.has_attention == (out.attention_logits is not None)
    for field, shape in {
        "attention_logits": (B, N), "class_attention_logits": (B, N, C),
    }.items():  # fmt: skip
        values = getattr(out, field)
        if values is not None:
            assert values.shape == shape
            assert values.dtype == jnp.float32
            assert not np.any(np.asarray(values)[~np.asarray(mask)])


def without_filling(setting, row):
    """One bag of a batch as a batch of its own: instances, mask, places."""
    _, _, bags, mask, xy = setting
    part, count = slice(row, row + 1), int(mask[row].sum())
    return bags[part, :count], jnp.ones((1, count), bool), xy[part, :count]


def test_masked_is_removed(setting):
    head, params, *batch = setting
    out = computed(head)(params, *batch).output
    for row in (1, 2):
        rows, real, places = without_filling(setting, row)
        count = real.size
        if count > 1:  # the gradient of this one is asked for too
            by_itself = computed(head)(params, rows, real, places, LABELS[row : row + 1]).output
        else:
            by_itself = applied(head)(params, rows, real, xy=places)
        close(out.logits[row], by_itself.logits[0], 5e-6)
        if out.attention_logits is not None:
            shown = weights(out.attention_logits[row, :count])
            close(shown, weights(by_itself.attention_logits[0]), 5e-6)
        if out.class_attention_logits is not None:
            shown = out.class_attention_logits[row, :count]
            close(shown, by_itself.class_attention_logits[0], 5e-6)


def test_rows_may_be_masked_anywhere(setting):
    head, params, bags, mask, xy = setting
    more = np.array([4, 0, 1, 6, 2, 5, 3])  # the second bag's four, with filling between
    spread, spread_xy = bags.at[1].set(bags[1, more]), xy.at[1].set(xy[1, more])
    holes = mask.at[1].set(more < N - 3)
    assert not np.array_equal(holes, mask)
    out = computed(head)(params, spread, holes, spread_xy).output
    close(out.logits, computed(head)(params, bags, mask, xy).output.logits, 5e-6)


def test_padding_content_does_not_matter(setting):
    head, params, bags, mask, xy = setting
    garbage = jnp.where(mask[..., None], bags, 1e4)
    mask = mask.at[1].set(False)
    first = computed(head)(params, bags.at[1].set(7.0), mask, xy)
    second = computed(head)(params, garbage, mask, xy)
    close(first.loss, second.loss)
    jax.tree.map(lambda a, b: close(a, b, 1e-5), first.gradient, second.gradient)


def test_longer_padding_and_other_rows_do_not_matter(setting):
    head, params, bags, mask, xy = setting
    wide = jnp.pad(bags, ((0, 2), (0, 5), (0, 0)), constant_values=3.0)
    wide_mask, wide_xy = (
        jnp.pad(a, ((0, 2), (0, 5)) + ((0, 0),) * (a.ndim - 2)) for a in (mask, xy)
    )
    shown = applied(head)(params, wide, wide_mask, xy=wide_xy).logits[:B]
    close(shown, computed(head)(params, bags, mask, xy).output.logits, 5e-6)


def test_every_bag_has_its_share_of_the_gradient(setting):
    """The gradient of a batch is the sum of those of its bags, and that of a filled bag what it is
    alone and without filling."""
    head, params, *batch = setting
    together = computed(head)(params, *batch).gradient
    each = [computed(head)(params, *batch, share=share).gradient for share in np.eye(B)]
    jax.tree.map(lambda total, *parts: close(total, sum(parts), 2e-5), together, *each)
    cut = without_filling(setting, 1)
    alone = computed(head)(params, *cut, LABELS[1:2]).gradient
    jax.tree.map(lambda a, b: close(a, b, 2e-5), each[1], alone)


def test_order_of_rows(setting):
    head, params, bags, mask, xy = setting
    order = np.random.default_rng(3).permutation(N)
    out = computed(head)(params, bags, mask, xy).output
    shuffled = computed(head)(params, bags[:, order], mask[:, order], xy[:, order]).output
    if not head.order_free:
        assert np.abs(out.logits - shuffled.logits).max() > 1e-4
        return
    close(out.logits, shuffled.logits)
    if out.attention_logits is not None:
        close(out.attention_logits[:, order], shuffled.attention_logits)


def test_empty_bag_is_finite(setting):
    head, params, bags, mask, xy = setting
    empty = computed(head)(params, bags, mask.at[0].set(False), xy)
    assert np.isfinite(empty.loss)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(empty.gradient))


def test_bf16_is_close(name, setting):
    head, params, bags, mask, xy = setting
    whole = computed(head)(params, bags, mask, xy).output
    half = applied(create(name, dtype="bfloat16"))(params, bags, mask, xy=xy)
    assert all(np.isfinite(values).all() for values in jax.tree.leaves(half))
    assert half.logits.dtype == jnp.float32
    assert np.abs(half.logits - whole.logits).max() < 5e-2 * max(1, np.abs(whole.logits).max())


def test_every_parameter_learns(setting):
    head, params, bags, mask, xy = setting
    grads = computed(head)(params, bags, jnp.ones_like(mask), xy).gradient["params"]
    still = [grads.pop(name) for name in head.learns_by_chance]
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    assert not any(np.abs(g).max() > 0 for g in jax.tree.leaves(still))


@few("abmil", "clam_mb", "transformer")
def test_vmap_over_parameters(setting):
    head, params, bags, mask, xy = setting
    several = jax.tree.map(lambda a: np.stack([a, 2 * np.asarray(a)]), params)
    both = jax.jit(jax.vmap(lambda p: head.apply(p, bags, mask, xy=xy)))(several)
    close(both.logits[0], computed(head)(params, bags, mask, xy).output.logits, 1e-5)


PACKING = sorted(name for name, head in heads.HEADS.items() if head.packs)


@pytest.mark.parametrize("name", PACKING)
def test_bags_in_one_row_are_what_they_are_filled_up(name):
    """Logits, attention, losses and gradients; with an empty slot, gaps, and whole or split over
    eight devices wherever bags begin."""
    bags, mask, xy = bags_of()
    head = create(name)
    params = init(head, bags, mask, xy)
    sizes, first = [N, N - 3, 1, 0], [0, 13, 9, 0]
    row = np.random.default_rng(9).normal(size=(1, 24, D)).astype(np.float32)
    for place, size, bag in zip(first, sizes, bags, strict=False):
        row[0, place : place + size] = bag[:size]
    packing = heads.Packing(first=jnp.array(first), size=jnp.array(sizes))
    labels, present = jnp.append(LABELS, 0), jnp.array([1.0, 1.0, 1.0, 0.0])

    def packed(params, row):
        out = head.apply(params, row, packing.mask(N), packing=packing)
        costs = head.label_losses(
            out, labels, packing.mask(N),
            lambda logits: -(jax.nn.log_softmax(logits) * jax.nn.one_hot(labels, C)).sum(-1),
        )  # fmt: skip
        return jnp.vdot(sum(costs.values()), present), out

    alone, expected, grads = computed(head)(params, bags, mask, xy)
    gradient = jax.jit(jax.value_and_grad(packed, has_aux=True))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    for placed in (row, jax.device_put(row, jax.NamedSharding(mesh, jax.P(None, "data")))):
        (cost, out), found = gradient(params, placed)
        close(cost, expected, 1e-5)
        close(out.logits[:B], alone.logits, 5e-6)
        jax.tree.map(lambda one, other: close(one, other, 2e-5), found, grads)
        if head.has_attention:
            close(out.attention_logits[:B], alone.attention_logits, 5e-6)
        assert np.isfinite(out.logits).all()


@few("clam_mb", "transformer")
def test_eight_devices_equal_one(setting):
    head, params, *batch = setting
    expected = computed(head)(params, *batch, share=[3, 3, 2])  # of the three bags in eight rows
    batch = [jnp.concatenate([a, a, a])[:8] for a in (*batch, LABELS, jnp.ones(B))]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    whole = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    spread = computed(head)(whole, *jax.device_put(batch, rows))
    close(spread.loss, expected.loss, 2e-5)
    jax.tree.map(lambda a, b: close(a, b, 2e-5), spread.gradient, expected.gradient)


@few("clam_mb", "acmil", "dtfd", "gated_abmil", "perceiver")
def test_chance_only_in_training(name, setting):
    head, params, bags, mask, xy = setting
    dropping = create(name, dropout=0.5)
    plain = computed(head)(params, bags, mask, xy).output.logits
    close(applied(dropping)(params, bags, mask, xy=xy).logits, plain)
    rngs = {"dropout": jax.random.key(5)}
    trained = applied(dropping)(params, bags, mask, xy=xy, train=True, rngs=rngs).logits
    assert np.isfinite(trained).all()
    assert np.abs(trained - plain).max() > 1e-3


@few("abmil", "perceiver")
def test_bf16_features_are_taken(setting):
    head, params, bags, mask, xy = setting
    rounded = bags.astype(jnp.bfloat16)
    out = applied(head)(params, rounded, mask, xy=xy)
    assert out.logits.dtype == jnp.float32
    whole = computed(head)(params, rounded.astype(jnp.float32), mask, xy)
    close(out.logits, whole.output.logits, 1e-5)


@few("clam_sb", "perceiver", of=LINEAR)
def test_100_000_instances(name):
    rng = np.random.default_rng(0)
    bags = jnp.asarray(rng.normal(size=(1, 100_000, D)), jnp.float32)
    mask = jnp.arange(100_000)[None] < 99_000
    head = create(name)
    params = jax.jit(head.init)(jax.random.key(0), bags[:, :8], mask[:, :8])
    out = applied(head)(params, bags, mask)
    close(out.logits, applied(head)(params, bags[:, :99_000], mask[:, :99_000]).logits, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_head_says_what_it_keeps_of_an_instance(name):
    """Bytes that XLA plans for a gradient, for each further instance of a bag, and its features."""
    head, planned = heads.create(name, num_classes=2), []
    shaped = jax.ShapeDtypeStruct
    params = jax.eval_shape(
        head.init, jax.random.key(0), jnp.zeros((1, 8, 768)), jnp.ones((1, 8), bool)
    )

    def loss(params, bags, mask, xy):
        rngs = {"dropout": jax.random.key(0)}
        out = head.apply(params, bags.astype(jnp.float32), mask, xy=xy, train=True, rngs=rngs)
        terms = head.label_losses(
            out, jnp.zeros(1, int), mask, lambda logits: jnp.square(logits).sum(-1)
        )
        return sum(term.sum() for term in terms.values())

    for count in (2048, 4096):
        given = (
            shaped((1, count, 768), jnp.float16), shaped((1, count), bool),
            shaped((1, count, 2), jnp.float32),
        )  # fmt: skip
        compiled = jax.jit(jax.grad(loss)).lower(params, *given).compile()
        planned.append(compiled.memory_analysis().temp_size_in_bytes)
    each = (planned[1] - planned[0]) / 2048 + 2 * 768
    assert 0.8 * each < head.instance_bytes(768) < 2.5 * each


def test_saved_classifiers_say_the_same(tmp_path, name, setting):
    _, params, bags, _, xy = setting
    options = SMALL.get(name, {})
    scale = (np.zeros(D, np.float32), np.ones(D, np.float32))
    task = Classification(tuple("abc"))
    saved = BagModel(name, options, task, params["params"], *scale)
    saved.save(tmp_path / "head.safetensors")
    loaded = BagModel.load(tmp_path / "head.safetensors")
    assert loaded.options == options
    assert loaded.has_attention == heads.find(name).has_attention
    rows = (np.asarray(bags[0]), np.asarray(xy[0], np.int32))
    for left, right in zip(saved.predict(*rows), loaded.predict(*rows), strict=True):
        np.testing.assert_array_equal(left, right)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'gated_abmil'"):
        heads.create("gated-abmil", num_classes=2)
    with pytest.raises(ConfigError, match="hiden"):
        heads.create("abmil", num_classes=2, hiden=3)
    with pytest.raises(ConfigError, match="at least one class"):
        heads.create("mean", num_classes=0)


def test_options_are_read():
    texts = ("bag_weight=0.5", "k=3", "subtyping=true", " gated = False")
    read = heads.parse_options("clam_sb", texts)
    assert read == {"bag_weight": 0.5, "k": 3, "subtyping": True, "gated": False}
    assert heads.parse_options("dtfd", ("distill=afs",)) == {"distill": "afs"}
    assert heads.parse_options("mean", ()) == {}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("clam_sb", "bag_wieght=0.5", "no option 'bag_wieght': did you mean 'bag_weight'"),
        ("clam_sb", "bag_weight", "has no value; write bag_weight=VALUE"),
        ("clam_sb", "k=2.5", "k of MIL head 'clam_sb' is '2.5', but it must be a whole number"),
        ("clam_sb", "subtyping=yes", "must be true or false"),
        ("clam_sb", "bag_weight=1.5", "must be from 0.0 to 1.0"),
        ("clam_sb", "hidden=5", "a config key of its own"),
        ("clam_sb", "num_classes=5", "no option 'num_classes'"),
        ("dtfd", "distill=mxmin", "must be one of maxmin, max, afs"),
        ("mean", "k=1", "has no options"),
        ("maen", "k=1", "did you mean 'mean'"),
    ],
)
def test_wrong_options_are_refused(name, text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        heads.parse_options(name, (text,))
