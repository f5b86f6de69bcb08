"""What every bag weighs, measured on gradients: its class weight and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax

from lrmil_jax import heads, processes
from lrmil_jax.errors import TrainingError
from lrmil_jax.train import bags as bags_of_fold
from lrmil_jax.train import make_mesh, memory, mil, place_batch, sharding
from lrmil_jax.train.state import TrainState
from lrmil_jax.train.step import Stepper
from tests.train import bags

HEAD = heads.create("abmil", num_classes=2, hidden=8)


class Sizes:
    """A store of nothing but sizes: features of one number."""

    def __init__(self, sizes):
        self.sizes = np.asarray(sizes)
        self.slide_ids = [f"slide_{place}" for place in range(len(sizes))]

    def embedding(self, slide):
        return np.zeros((self.sizes[slide], 1), np.float16)

    def places(self, slide):
        return {"xy": np.zeros((self.sizes[slide], 2), np.int32)}

    def statistics(self, slides):
        return np.zeros(1, np.float32), np.ones(1, np.float32)


def sizes_of(median, high, count, seed=0):
    """Log-normal sizes by median and 95th percentile, as slides have them."""
    spread = np.log(high / median) / 1.645
    sizes = median * np.exp(spread * np.random.default_rng(seed).standard_normal(count))
    return np.maximum(1, sizes).astype(int)


def gradient_weights(sizes, labels, *, devices=1, epochs=1, **block):
    """What each bag weighs in all updates of some epochs: the probe's loss for a bag is that bag's
    own parameter, so plain gradient descent leaves the bag's weight in it."""
    mesh = make_mesh(jax.devices()[:devices])
    data = mil.BagData(
        store=Sizes(sizes), targets=labels[:, None].astype(np.float32),
        task=bags.TASK, cases=[""] * len(sizes),
        train=np.arange(len(sizes)), val=np.arange(1),
    )  # fmt: skip
    loader = bags_of_fold.BagLoader(data, bags.block(**block), mesh, "probe", head=HEAD)
    batches = loader.training(seed=0)
    tx = optax.sgd(1.0)
    theta = jnp.zeros(len(sizes))
    state = TrainState(step=jnp.int32(0), params=theta, opt_state=tx.init(theta))
    shardings = sharding.state_shardings(state, mesh, fsdp=False)
    stepper = Stepper(
        lambda params, constants, batch, key, train: {"loss": params[batch["bag"]]},
        tx, mesh, shardings, batches.bags_of_an_update,
    )  # fmt: skip
    state, done, index = jax.device_put(state, shardings), 0, 0
    while done < epochs * batches.updates:
        summed, ends = None, False
        while not ends:
            batch = {name: batches[index][name] for name in ("bag", "weight", "ends_update")}
            ends = batch.pop("ends_update")
            placed = place_batch(batch, mesh)
            summed, _ = stepper.add(state, None, placed, jax.random.key(0), 0, summed)
            index += 1
        state, _ = stepper.update(state, summed)
        done += 1
    return -np.asarray(state.params) / epochs / batches.updates * len(sizes)


UNEVEN = (np.random.default_rng(1).random(600) < 0.2).astype(np.int32)


@pytest.mark.parametrize(
    ("median", "high", "budget"), [(700, 2500, 32_768), (9500, 30_000, 4096)], ids=["LR", "HR"]
)
@pytest.mark.parametrize("block", [{}, {"bags": 1}, {"accumulate": 3}, {"devices": 8}], ids=str)
def test_a_bag_weighs_its_class_weight_at_real_sizes(median, high, budget, block):
    """Neither its length nor what stands beside it: every single one is compared."""
    sizes = sizes_of(median, high, len(UNEVEN))
    options = {"bags": 16, "budget": budget, "balance": "weights"} | block
    weights = gradient_weights(sizes, UNEVEN, **options)
    share = UNEVEN.mean()
    np.testing.assert_allclose(weights[UNEVEN == 1], 0.5 / share, rtol=1e-4)
    np.testing.assert_allclose(weights[UNEVEN == 0], 0.5 / (1 - share), rtol=1e-4)


def test_classes_that_are_drawn_equally_often_weigh_alike():
    sizes = sizes_of(700, 2500, len(UNEVEN))
    weights = gradient_weights(sizes, UNEVEN, bags=16, balance="sampling", epochs=8)
    assert weights[UNEVEN == 1].sum() == pytest.approx(weights[UNEVEN == 0].sum(), rel=0.1)


class Noise(Sizes):
    """Features that say nothing of the class."""

    def embedding(self, slide):
        rng = np.random.default_rng(slide)
        return rng.normal(size=(self.sizes[slide], 4)).astype(np.float16)

    def statistics(self, slides):
        return np.zeros(4, np.float32), np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("case", "balance", "expected"),
    [
        ("one class is rare", "weights", 0.5),
        # What is learned without weights, so that it is learned at all.
        pytest.param("one class is rare", "none", 0.2, marks=pytest.mark.slow),
        pytest.param("one class has long bags", "weights", 0.5, marks=pytest.mark.slow),
    ],
)
def test_what_is_learned_of_noise(tmp_path, monkeypatch, case, balance, expected):
    """Class weights make up for numbers, and nothing has to be made up for lengths."""
    one_device = make_mesh(jax.devices()[:1])  # compiles faster
    monkeypatch.setattr(sharding, "make_mesh", lambda: one_device)
    rng = np.random.default_rng(0)
    labels = (np.arange(300) % 10 < 10 * (0.2 if "rare" in case else 0.5)).astype(np.int32)
    sizes = rng.integers(17, 25, 300)
    if "long" in case:
        sizes = np.where(labels == 1, 13, 1) * rng.integers(4, 8, 300)
    store = Noise(sizes)
    data = mil.BagData(
        store=store, targets=labels[:, None].astype(np.float32),
        task=bags.TASK, cases=[str(i) for i in range(300)],
        train=np.arange(200), val=np.arange(200, 300),
    )  # fmt: skip
    block = bags.block(
        balance=balance, bags=16, budget=128, epochs=6, eval_every=1, select="loss",
        learning_rate=3e-3 if "long" in case else 1e-2,
    )  # fmt: skip
    classifier = mil.train_head(
        name="noise", directory=tmp_path, block=block, loss=mil.SlideLoss(), data=data,
        seed=0,
    )  # fmt: skip
    likely = [softmax(classifier.predict(store.embedding(i))[0])[1] for i in range(200)]
    assert np.mean(likely) == pytest.approx(expected, abs=0.03)


def test_a_bag_that_cannot_fit_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda mesh: 64 * 10_000)
    data = mil.BagData(
        store=Sizes([10, 4000, 20]), targets=np.array([[0.0], [1.0], [0.0]]),
        task=bags.TASK, cases=["a", "b", "c"],
        train=np.arange(2), val=np.arange(2, 3),
    )  # fmt: skip
    sentence = r"slide slide_1 has 4,000 patches.*up to 2,\d{3} patches would fit"
    with pytest.raises(TrainingError, match=sentence):
        bags_of_fold.BagLoader(data, bags.block(), make_mesh(), "teacher, fold 1", head=HEAD)


@pytest.mark.parametrize(("free", "resident"), [(10_000_000, True), (200_000, False)])
def test_features_stay_on_the_device_if_it_has_room(monkeypatch, free, resident):
    monkeypatch.setattr(memory, "free_bytes", lambda mesh: free)
    data = mil.BagData(
        store=Sizes(np.full(50, 1000)), targets=np.arange(50.0)[:, None] % 2,
        task=bags.TASK, cases=[""] * 50,
        train=np.arange(40), val=np.arange(40, 50),
    )  # fmt: skip
    head = heads.create("abmil", num_classes=2, hidden=1)
    loader = bags_of_fold.BagLoader(data, bags.block(), make_mesh(), "probe", head=head)
    assert loader.resident == resident
    assert ("bank" in loader.constants) == resident
    assert ("rows" in loader.training(seed=0)[0]["instances"]) == resident
    forced = bags.block(resident_gib=0.0)
    assert not bags_of_fold.BagLoader(data, forced, make_mesh(), "probe", head=head).resident


def test_the_host_says_what_it_has_to_spare():
    total, free = processes.usable_memory()
    assert 0 < free < total
    assert memory.free_bytes(make_mesh(jax.devices()[:2])) <= total // 2
