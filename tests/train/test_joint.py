"""A loss of all slides of an update: the same whatever their batches and the devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lrmil_jax.errors import ConfigError
from lrmil_jax.tasks.cox import Cox
from lrmil_jax.train import bag_model, mil, sharding
from lrmil_jax.train.joint import Joint, JointPass, carried
from lrmil_jax.train.many_heads import HeadJob, train_heads
from lrmil_jax.train.state import TrainState
from lrmil_jax.train.step import Stepper
from tests.train import bags

make_mesh = sharding.make_mesh


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Bags with an outcome: those with the class live half as long, a third is censored."""
    store, labels = bags.write_store(tmp_path_factory.mktemp("bags"))
    time = np.random.default_rng(0).exponential(np.where(labels > 0, 10.0, 20.0)).round() + 1
    targets = np.stack([time, np.arange(20) % 3 > 0], 1).astype(np.float32)
    data = bags.data_of(store, labels)
    return dataclasses.replace(data, task=Cox(2).fitted(targets[data.train]), targets=targets)


def train(folder, data, **changes):
    block = {"epochs": 2, "bags": 8, "select": "loss", "dropout": 0.0, "head": "abmil"}
    return mil.train_head(
        name="cox", directory=folder, block=bags.block(**block | changes), loss=mil.SlideLoss(),
        data=data, seed=1,
    )  # fmt: skip


def assert_alike(one, other, store):
    """Parameters but the classifier's bias, whose gradient is 0 but for rounding, which Adam scales
    up: the level of all risks, which the baseline takes back from survival."""
    pairs = [dict(jax.tree_util.tree_leaves_with_path(model.params)) for model in (one, other)]
    for path, leaf in pairs[0].items():
        if "classifier" not in str(path) or "bias" not in str(path):
            np.testing.assert_allclose(leaf, pairs[1][path], atol=1e-5, err_msg=str(path))
    said = [model.task.link(model.predict(store.embedding(0))[0]) for model in (one, other)]
    np.testing.assert_allclose(said[0][1:], said[1][1:], atol=1e-4)


def test_batches_and_devices_have_no_say(tmp_path, data, monkeypatch):
    spread = train(tmp_path / "eight", data, budget=4096)
    monkeypatch.setattr(sharding, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
    small = train(tmp_path / "one", data, budget=16)
    assert_alike(spread, small, data.store)
    # The hazard is that of the trained head's own risks, and is kept with the model.
    assert spread.task.baseline != data.task.baseline
    spread.save(tmp_path / "model.safetensors")
    assert bag_model.BagModel.load(tmp_path / "model.safetensors").task == spread.task


def test_several_models_have_risk_sets_of_their_own(tmp_path, data, monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
    block = bags.block(epochs=1, bags=8, select="loss", head="abmil", budget=4096)
    jobs = {"a": HeadJob(data=data, seed=1), "b": HeadJob(data=data, seed=2)}
    models = train_heads(name="cox", directory=tmp_path / "both", block=block, jobs=jobs)
    alone = train(tmp_path / "alone", data, epochs=1)
    assert_alike(models["a"], alone, data.store)


def test_the_gradient_is_that_of_all_examples_at_once():
    """Three batches of other lengths, against the gradient of the whole by JAX; with chance, which
    both passes draw alike."""
    rng = np.random.default_rng(0)
    mesh = make_mesh(jax.devices()[:1])
    params = {"w": jnp.asarray(rng.normal(size=(4, 1)), jnp.float32)}
    state = TrainState(step=jnp.int32(3), params=params, opt_state=None)
    batches = [
        {"x": rng.normal(size=(size, 4)).astype(np.float32),
         "target": np.stack([rng.integers(1, 9, size), rng.random(size) < 0.6], 1)
         .astype(np.float32), "weight": np.ones(size, np.float32)}
        for size in (5, 2, 4)
    ]  # fmt: skip

    def outputs(params, constants, batch, key, train):
        kept = jax.random.bernoulli(key, 0.5, batch["x"].shape)
        return (batch["x"] * kept) @ params["w"]

    def loss_fn(params, constants, batch, key, train):
        said = outputs(params, constants, batch, key, train)
        return {"loss": carried(said, batch["joint_value"], batch["joint_slope"])}

    task, key = Cox(2), jax.random.key(5)
    ready = JointPass(Joint(outputs, task.loss), mesh)(state, None, batches, key)

    where = sharding.state_shardings(state, mesh, fsdp=False)
    stepper, summed = Stepper(loss_fn, optax.sgd(1.0), mesh, where), None
    for index, batch in enumerate(ready):
        placed = sharding.place_batch(batch, mesh)
        summed, _ = stepper.add(state, None, placed, key, index, summed)

    def whole(params):
        step = jax.random.fold_in(key, 3)
        said = [outputs(params, None, batch, jax.random.fold_in(step, index), True)
                for index, batch in enumerate(batches)]  # fmt: skip
        targets = np.concatenate([batch["target"] for batch in batches])
        return task.loss(jnp.concatenate(said), targets).sum()

    value, slope = jax.value_and_grad(whole)(params)
    np.testing.assert_allclose(summed.terms["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(summed.grads["w"], slope["w"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["dsmil", "acmil"])
def test_a_head_with_a_loss_of_its_own_is_refused(tmp_path, data, head):
    with pytest.raises(ConfigError, match=f"the head {head} has a loss of its own"):
        train(tmp_path, data, head=head)
