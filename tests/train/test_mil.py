"""Stage 2 and the teacher: loss terms, standardisation, learning, streaming, saving."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from lrmil_jax import config as configuration
from lrmil_jax import heads
from lrmil_jax.distill import slide as slide_losses
from lrmil_jax.errors import ConfigError, WeightsError
from lrmil_jax.tasks.classification import Classification
from lrmil_jax.train import bag_model, batches, mil
from lrmil_jax.train.bags import BagLoader
from lrmil_jax.train.validation import Validation
from tests.train import bags

pytestmark = pytest.mark.usefixtures("one_device")
# What the loss is of: three classes, by a head without a loss of its own.
OF = {
    "task": Classification(("a", "b", "c")),
    "head": heads.create("abmil", num_classes=3),
}
LAMBDAS = ("ce", "bag", "soft", "hard")


@pytest.fixture(scope="module")
def output():
    """A head's word on three bags of up to six instances, and what a teacher says of them."""
    keys = iter(jax.random.split(jax.random.key(0), 8))
    mask = np.arange(6) < np.array([6, 4, 5])[:, None]
    guide = jax.random.uniform(next(keys), (3, 6)) * mask
    batch = {
        "target": jnp.array([[0.0], [2.0], [1.0]]),
        "mask": jnp.asarray(mask),
        "teacher_logits": jax.random.normal(next(keys), (3, 3)),
        "guide": guide / guide.sum(-1, keepdims=True),
        "covered": jnp.asarray(mask & (np.arange(6) != 2)),
    }
    said = heads.HeadOutput(
        jax.random.normal(next(keys), (3, 3)),
        jnp.where(mask, jax.random.normal(next(keys), (3, 6)), 0.0),
        jax.random.normal(next(keys), (3, 6, 2)),
    )
    return said, batch


def test_a_teacher_has_cross_entropy_alone(output):
    said, batch = output
    terms = mil.SlideLoss().terms(said, batch, **OF)
    assert set(terms) == {"loss", "ce"}
    expected = -log_softmax(np.asarray(said.logits, np.float64), -1)[np.arange(3), [0, 2, 1]]
    np.testing.assert_allclose(terms["ce"], expected, rtol=1e-5)
    np.testing.assert_array_equal(terms["loss"], terms["ce"])


@pytest.mark.parametrize("hard", ["rank", "instance"])
def test_the_loss_is_the_weighted_sum_of_the_pure_terms(output, hard):
    said, batch = output
    loss = mil.SlideLoss(
        lambda_ce=0.7, lambda_bag=0.5, lambda_soft=2.0, lambda_hard=0.25, temperature_bag=3.0,
        temperature_attn=0.5, topk=2, hard=hard,
    )  # fmt: skip
    guided = batch["mask"] & batch["covered"]
    pure = {
        "ce": mil.SlideLoss().terms(said, batch, **OF)["ce"],
        "bag": slide_losses.bag_loss(said.logits, batch["teacher_logits"], temperature=3.0),
        "soft": slide_losses.attention_kl_loss(
            said.attention_logits, batch["guide"], guided, temperature=0.5
        ),
        "hard": slide_losses.attention_rank_loss(said.attention_logits, batch["guide"], guided, k=2)
        if hard == "rank"
        else slide_losses.instance_loss(said.instance_logits, batch["guide"], guided, k=2),
    }
    terms = loss.terms(said, batch, **OF)
    assert set(terms) == {"loss", *pure}
    for name, value in pure.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-6, err_msg=name)
        assert (np.asarray(value) > 0).all(), name
    total = 0.7 * pure["ce"] + 0.5 * pure["bag"] + 2.0 * pure["soft"] + 0.25 * pure["hard"]
    np.testing.assert_allclose(terms["loss"], total, rtol=1e-6)


def test_a_head_brings_its_own_terms_of_the_label(output):
    """They take the place of the cross-entropy, and lambda_ce weighs their sum."""
    said, batch = output
    head = heads.create("dsmil", num_classes=3)
    said = said.replace(aux={"bag": said.logits, "max_instance": -said.logits})
    loss = mil.SlideLoss(lambda_ce=0.5, lambda_bag=1.0)
    of_head = OF | {"head": head}
    terms, plain = loss.terms(said, batch, **of_head), loss.terms(said, batch, **OF)
    assert set(terms) == {"loss", "ce", "max_instance", "bag"}
    np.testing.assert_allclose(terms["ce"], plain["ce"] / 2, rtol=1e-6)
    total = 0.5 * (terms["ce"] + terms["max_instance"]) + plain["bag"]
    np.testing.assert_allclose(terms["loss"], total, rtol=1e-6)
    without = mil.SlideLoss(lambda_ce=0.0, lambda_bag=1.0)
    assert "max_instance" not in without.terms(said, batch, **of_head)


@pytest.fixture(scope="module")
def mixed(output):
    """The same bags, each mixed with another slide; what the label's share weighs is another number
    than the share of instances, as classes weigh differently."""
    _, batch = output
    return batch | {
        "share": jnp.array([0.25, 1.0, 0.6]),
        "label_share": jnp.array([0.5, 1.0, 0.2]),
        "second": jnp.arange(6)[None] >= jnp.array([2, 6, 4])[:, None],
        "second_target": jnp.array([[1.0], [0.0], [1.0]]),
        "second_teacher_logits": batch["teacher_logits"][::-1],
    }


def test_labels_of_mixed_bags_are_mixed(output, mixed):
    """Cross-entropy against the mean of both one-hot labels, by hand."""
    said, _ = output
    target = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    expected = -(target * log_softmax(np.asarray(said.logits, np.float64), -1)).sum(-1)
    terms = mil.SlideLoss().terms(said, mixed, **OF)
    np.testing.assert_allclose(terms["ce"], expected, rtol=1e-5)
    np.testing.assert_array_equal(terms["loss"], terms["ce"])


def test_what_a_teacher_says_of_mixed_bags_is_mixed(output, mixed):
    said, batch = output
    terms = mil.SlideLoss(lambda_bag=1.0, lambda_soft=1.0).terms(said, mixed, **OF)
    of = [slide_losses.bag_loss(said.logits, batch["teacher_logits"][::step], temperature=1.0)
          for step in (1, -1)]  # fmt: skip
    share = np.array([0.5, 1.0, 0.2])
    np.testing.assert_allclose(terms["bag"], share * of[0] + (1 - share) * of[1], rtol=1e-5)
    # The guide of each slide's patches sums to its share; those without HR patches have none.
    guide = np.array(batch["guide"] * batch["covered"])
    for row, (share, first) in enumerate(((0.25, 2), (1.0, 6), (0.6, 4))):
        guide[row, :first] *= share / guide[row, :first].sum()
        guide[row, first:] *= (1 - share) / max(guide[row, first:].sum(), 1e-30)
    expected = slide_losses.attention_kl_loss(
        said.attention_logits, guide, batch["mask"] & batch["covered"], temperature=1.0
    )
    np.testing.assert_allclose(terms["soft"], expected, rtol=1e-5)


def test_a_heads_own_terms_of_mixed_bags_are_mixed(output, mixed):
    said, batch = output
    head = OF | {"head": heads.create("clam_mb", num_classes=3, k=2)}
    shape = (3, 3, 2)
    keys = jax.random.split(jax.random.key(5), 2)
    aux = {
        name: jax.random.normal(key, (*shape, 2))
        for name, key in zip(("top", "bottom"), keys, strict=True)
    }
    said = said.replace(aux=aux)
    terms = mil.SlideLoss().terms(said, mixed, **head)
    first = mil.SlideLoss().terms(said, batch, **head)
    second = mil.SlideLoss().terms(said, batch | {"target": mixed["second_target"]}, **head)
    share = np.array([0.5, 1.0, 0.2])
    assert set(terms) == {"loss", "ce", "instance"}
    for name, value in terms.items():
        np.testing.assert_allclose(
            value, share * first[name] + (1 - share) * second[name], rtol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("left_out", LAMBDAS)
def test_a_term_of_weight_0_is_not_computed(output, left_out):
    said, batch = output
    weights = {f"lambda_{name}": float(name != left_out) for name in LAMBDAS}
    needed = {
        "ce": ["target", "mask"], "bag": ["teacher_logits"], "soft": ["guide", "covered", "mask"],
        "hard": ["guide", "covered", "mask"],
    }  # fmt: skip
    names = {name for term in LAMBDAS if term != left_out for name in needed[term]}
    terms = mil.SlideLoss(**weights).terms(said, {name: batch[name] for name in names}, **OF)
    assert set(terms) == {"loss", *LAMBDAS} - {left_out}


def test_patches_without_hr_patches_feel_no_guide(output):
    said, batch = output
    loss = mil.SlideLoss(lambda_ce=0.0, lambda_soft=1.0, lambda_hard=1.0)

    def total(scores):
        return loss.terms(said.replace(attention_logits=scores), batch, **OF)["loss"].sum()

    gradient = np.asarray(jax.grad(total)(said.attention_logits))
    uncovered = ~np.asarray(batch["covered"] & batch["mask"])
    assert not gradient[uncovered].any()
    assert gradient[~uncovered].any()


def test_standardise_brings_training_features_to_mean_0_and_sd_1(tmp_path):
    store, _ = bags.write_store(tmp_path)
    mean, sd = store.statistics(range(12))
    rows = np.concatenate([store.embedding(i) for i in range(12)])[None]
    scaled = np.asarray(batches.standardise(rows, mean, sd))[0]
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(0), 1, atol=1e-3)


def test_switches_of_the_config_become_settings_of_the_trainer():
    block = bags.block(clip_norm=0.0, patience=0, warmup_steps=50)
    settings = mil.train_settings(block, steps=20, epoch=4)
    assert settings.clip_norm is None
    assert settings.patience is None
    assert settings.warmup_steps == 20  # never longer than the training
    # Rhythm in epochs of four steps, validation every fifth of them.
    assert (settings.steps, settings.log_every, settings.eval_every) == (20, 20, 20)
    assert mil.train_settings(bags.block(patience=12), steps=20).patience == 3  # evaluations
    steps = configuration.training(eval_every=7, patience=2)
    assert mil.train_settings(steps, steps=20).eval_every == 7
    assert mil.train_settings(steps, steps=20).patience == 2


def train(folder, data, *, loss=None, **changes):
    return mil.train_head(
        name="toy",
        directory=folder,
        block=bags.block(**changes),
        loss=loss or mil.SlideLoss(),
        data=data,
        seed=1,
    )


def probabilities(classifier, store):
    return np.array([softmax(classifier.predict(store.embedding(i))[0])
                     for i in range(len(store.slide_ids))])  # fmt: skip


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left.params, right.params)
    np.testing.assert_array_equal(left.mean, right.mean)
    np.testing.assert_array_equal(left.sd, right.sd)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return bags.write_store(tmp_path_factory.mktemp("bags"))


FULL = mil.SlideLoss(lambda_bag=1.0, lambda_soft=1.0, lambda_hard=0.1, temperature_bag=2.0, topk=2)


@pytest.mark.parametrize(
    ("loss", "dtype"),
    [
        pytest.param(mil.SlideLoss(), "bfloat16", id="teacher", marks=pytest.mark.slow),
        pytest.param(FULL, "float16", id="student"),
    ],
)
def test_separable_bags_are_learned_and_streaming_changes_no_bit(tmp_path, loss, dtype):
    store, labels = bags.write_store(tmp_path / "bags", dtype=dtype)
    data = bags.data_of(store, labels, teaching=True)
    resident = train(tmp_path / "resident", data, loss=loss, select="loss")
    streamed = train(tmp_path / "streamed", data, loss=loss, select="loss", resident_gib=0.0)
    assert_same(resident, streamed)
    said, val = probabilities(resident, store), np.isin(np.arange(len(labels)), data.val)
    assert said[val & (labels == 1), 1].min() > said[val & (labels == 0), 1].max()  # AUC 1
    assert said[val & (labels == 1), 1].min() > 0.75
    assert said[val & (labels == 0), 1].max() < 0.25
    result = json.loads((tmp_path / "resident" / "result.json").read_text())
    assert result["metrics"]["auc"] == 1.0
    if loss is FULL:  # and the student looks where the teacher looks
        for slide in data.val:
            attention = softmax(resident.predict(store.embedding(int(slide)))[1])
            assert attention[:3].sum() > 0.6


@pytest.mark.slow
def test_streaming_changes_no_bit_of_what_is_learned_of_mixed_bags(tmp_path, store):
    data = bags.data_of(*store, teaching=True)
    options = {"loss": FULL, "select": "loss", "mixup": 1.0, "epochs": 3, "eval_every": 3}
    resident = train(tmp_path / "resident", data, **options)
    assert_same(resident, train(tmp_path / "streamed", data, resident_gib=0.0, **options))


@pytest.mark.slow
def test_separable_bags_are_learned_of_mixed_ones(tmp_path, store):
    data = bags.data_of(*store, teaching=True)
    model = train(tmp_path / "mixed", data, loss=FULL, select="loss", mixup=1.0)
    said, labels = probabilities(model, store[0]), store[1]
    val = np.isin(np.arange(len(labels)), data.val)
    assert said[val & (labels == 1), 1].min() > said[val & (labels == 0), 1].max()  # AUC 1
    # Most bags are of both classes, so it is less sure than without.
    plain = train(tmp_path / "plain", data, loss=FULL, select="loss")
    assert said[val].max(1).mean() < probabilities(plain, store[0])[val].max(1).mean()


SMALL = {"transmil": ("width=8", "heads=2", "landmarks=4"), "clam_sb": ("k=2", "width=6")}
SMALL |= dict.fromkeys(("transformer", "perceiver"), ("width=8", "heads=2"))


# All but one of each kind; each is trained as often as anybody asks for the slow tests.
LONG = set(heads.HEADS) - {"gated_abmil", "clam_sb", "max"}


@pytest.mark.parametrize(
    "head",
    [pytest.param(name, marks=pytest.mark.slow if name in LONG else ())
     for name in sorted(heads.HEADS)],
)  # fmt: skip
def test_every_head_trains(tmp_path, store, head):
    options = SMALL.get(head, ())
    classifier = train(tmp_path, bags.data_of(*store), head=head, epochs=2, options=options)
    assert heads.parse_options(head, options).items() <= classifier.options.items()
    logits, attention = classifier.predict_slide(store[0], 0)
    assert logits.shape == (2,)
    assert attention.shape == (store[0].sizes[0],)
    assert np.isfinite(logits).all()
    assert np.isfinite(attention).all()
    assert classifier.has_attention == bool(attention.any())


def test_a_head_with_positions_must_be_told_where_patches_lie(store):
    options = {"width": 8, "heads": 2}
    module = heads.create("transformer", num_classes=2, **options)
    sample = (jnp.zeros((1, 8, 6)), jnp.ones((1, 8), bool))
    params = jax.jit(module.init)(jax.random.key(0), *sample, xy=jnp.zeros((1, 8, 2)))["params"]
    scale = store[0].statistics(range(8))
    classifier = bag_model.BagModel("transformer", options, bags.TASK, params, *scale)
    rows = store[0].embedding(0)
    with pytest.raises(ValueError, match="transformer needs to know where patches lie"):
        classifier.predict(rows)
    line = np.stack([np.arange(len(rows)) * 512, np.zeros(len(rows))], -1).astype(np.int32)
    near = classifier.predict(rows, line)
    same = classifier.predict(rows, 2 * line + 7)  # another um/px, another corner
    np.testing.assert_allclose(near[0], same[0], rtol=1e-6)
    packed = classifier.predict(rows, np.zeros_like(line))
    assert np.abs(near[0] - packed[0]).max() > 1e-6


def test_the_instance_loss_gives_the_head_its_instance_classifier(tmp_path, store):
    loss = dataclasses.replace(FULL, hard="instance")
    classifier = train(tmp_path, bags.data_of(*store, teaching=True), loss=loss, epochs=2)
    assert classifier.options["instance_classes"] == 2
    assert "instance_classifier" in classifier.params


def test_training_never_sees_a_bag_of_validation(tmp_path, store):
    """Other validation bags: the same mean, SD and, before a checkpoint is chosen, parameters."""
    features, labels = store
    data = bags.data_of(features, labels)
    alone = train(tmp_path / "a", data, epochs=1, eval_every=1000)
    other = dataclasses.replace(data, val=data.val[:2])
    assert_same(alone, train(tmp_path / "b", other, epochs=1, eval_every=1000))
    np.testing.assert_array_equal(alone.mean, features.statistics(data.train.tolist())[0])


def test_a_second_call_returns_what_was_trained(tmp_path, store):
    data = bags.data_of(*store)
    first = train(tmp_path, data, epochs=2)
    before = (tmp_path / "best.safetensors").stat().st_mtime_ns
    assert_same(first, train(tmp_path, data, epochs=2))
    assert (tmp_path / "best.safetensors").stat().st_mtime_ns == before


def test_validation_counts_patients_and_not_slides(store):
    """Two slides of one patient are averaged; a bag's filling in the batch counts nothing."""
    features, labels = store
    cases = [f"p{i // 4 * 2 + i % 2}" for i in range(len(labels))]  # slides i and i + 2 share
    data = bags.data_of(features, labels, val=8, cases=cases)
    module = heads.create("abmil", num_classes=2, hidden=4)
    params = module.init(jax.random.key(0), jnp.zeros((1, 8, 6)), jnp.ones((1, 8), bool))["params"]
    mesh = mil.sharding.make_mesh()
    loader = BagLoader(data, bags.block(), mesh, "toy", head=module)
    said = Validation(module, [loader], mesh)(params)
    one = bag_model.BagModel("abmil", {"hidden": 4}, bags.TASK, params, loader.mean, loader.sd)
    each = probabilities(one, features)
    patients = [(labels[i], (each[i] + each[i + 2]) / 2) for i in (12, 13, 16, 17)]
    expected = -np.mean([np.log(p[label]) for label, p in patients])
    assert said["loss"] == pytest.approx(expected, rel=1e-5)
    right = [p.argmax() == label for label, p in patients]
    assert said["accuracy"] == pytest.approx(np.mean(right))


def test_prediction_does_not_depend_on_the_filling(store):
    features, _ = store
    rng = np.random.default_rng(0)
    module = heads.create("gated_abmil", num_classes=2, hidden=4)
    params = module.init(jax.random.key(0), jnp.zeros((1, 8, 6)), jnp.ones((1, 8), bool))["params"]
    mean, sd = features.statistics(range(8))
    classifier = bag_model.BagModel("gated_abmil", {"hidden": 4}, bags.TASK, params, mean, sd)
    for count in (1, 256, 300):
        rows = (20 + rng.normal(size=(count, 6))).astype(np.float16)
        logits, attention = classifier.predict(rows)
        plain = module.apply(
            {"params": params},
            batches.standardise(rows[None], mean, sd),
            np.ones((1, count), bool),
        )
        np.testing.assert_allclose(logits, plain.logits[0], rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(attention, plain.attention_logits[0], rtol=2e-5, atol=2e-5)


def test_a_saved_classifier_says_the_same(tmp_path, store):
    classifier = train(tmp_path / "t", bags.data_of(*store), epochs=1)
    classifier.save(tmp_path / "model.safetensors", fold=2)
    loaded = bag_model.BagModel.load(tmp_path / "model.safetensors")
    assert_same(classifier, loaded)
    assert loaded.task == bags.TASK
    rows = store[0].embedding(3)
    for left, right in zip(classifier.predict(rows), loaded.predict(rows), strict=True):
        np.testing.assert_array_equal(left, right)
    with pytest.raises(WeightsError, match=r"nothing\.safetensors"):
        bag_model.BagModel.load(tmp_path / "nothing.safetensors")


def test_an_unknown_head_is_refused(tmp_path, store):
    with pytest.raises(ConfigError, match="gated_abmil"):
        train(tmp_path, bags.data_of(*store), head="gated_abml")
