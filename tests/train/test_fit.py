"""The loop: learning, devices, sharding, accumulation, choice of the best, stops."""

import json

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrmil_jax.errors import ConfigError, TrainingError
from lrmil_jax.train import TrainSettings, make_mesh
from tests.train import toy


def one_device():
    return make_mesh(jax.devices()[:1])


def assert_same(left, right, **tolerance):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def rows(directory, prefix):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    parsed = [json.loads(line) for line in lines]
    return [row for row in parsed if any(name.startswith(prefix) for name in row)]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The toy trained on one device, once for all that compare with it."""
    directory = tmp_path_factory.mktemp("single")
    return directory, toy.train(directory, mesh=one_device())


def test_learns_and_writes_rows_at_the_right_steps(single):
    directory, result = single
    training, validation = rows(directory, "train/"), rows(directory, "validation/")
    assert [row["step"] for row in validation] == [4, 8, 12, 16, 20, 24]
    # Every third step, and wherever a checkpoint ends a window.
    expected = sorted({*range(3, 25, 3), *range(4, 25, 4)})
    assert [row["step"] for row in training] == expected
    assert result.metrics["loss"] < 0.6 * validation[0]["validation/loss"]
    best = min(validation, key=lambda row: row["validation/loss"])
    assert (result.step, result.metrics["loss"]) == (best["step"], best["validation/loss"])
    assert not (directory / "checkpoints").exists()


def test_result_is_evaluated_params(single):
    _, result = single
    assert toy.validation(one_device())(result.params) == result.metrics


def test_second_call_returns_at_once(single):
    directory, result = single

    def never(*_):
        raise AssertionError("trained again")

    again = toy.train(directory, loss=never, validate=never)
    assert_same(again.params, result.params, rtol=0, atol=0)
    assert (again.step, again.metrics) == (result.step, result.metrics)


@pytest.mark.parametrize("fsdp", [False, True])
def test_eight_devices_are_one_device(single, tmp_path, fsdp, monkeypatch):
    monkeypatch.setattr("lrmil_jax.train.sharding.FSDP_MIN_SIZE", 1)
    directory, result = single
    many = toy.train(tmp_path, mesh=make_mesh(), fsdp=fsdp)
    assert many.step == result.step
    assert_same(many.params, result.params, rtol=2e-4, atol=2e-6)
    left, right = ([row["train/loss"] for row in rows(d, "train/")] for d in (directory, tmp_path))
    np.testing.assert_allclose(left, right, rtol=1e-4)


def test_accumulated_batches_are_one_big_batch(tmp_path):
    # Without dropout, whose mask belongs to the micro-batch; unequal weights and sizes.
    def loss(params, constants, batch, key, train):
        return toy.loss_fn(params, constants, batch, key, False)

    small = toy.train(tmp_path / "a", mesh=one_device(), loss=loss, accumulate=4)
    big = toy.train(tmp_path / "b", mesh=one_device(), loss=loss, data=toy.batches(size=20))
    assert_same(small.params, big.params, rtol=1e-4, atol=1e-6)
    assert small.metrics["loss"] == pytest.approx(big.metrics["loss"], rel=1e-5)


def scripted(values):
    """A `validate` that gives the values one after another."""
    given = iter(values)
    return lambda params: {"auc": next(given)}


@pytest.mark.parametrize(
    ("values", "direction", "step", "evaluations"),
    [
        ([0.6, 0.8, 0.7, 0.75, 0.9, 0.9], "max", 8, 4),  # two without improvement: stop
        ([0.6, 0.8, 0.7, 0.81, 0.7, 0.7], "max", 16, 6),
        ([0.6, 0.5, 0.55, 0.5, 0.4, 0.3], "min", 8, 4),  # equal is no improvement
        ([None, float("nan"), None, 0.4, None, 0.3], "max", 16, 6),  # undefined never wins
        ([None] * 6, "max", 24, 6),
    ],
)
def test_early_stopping_and_best(tmp_path, values, direction, step, evaluations):
    result = toy.train(
        tmp_path,
        mesh=one_device(),
        validate=scripted(values),
        select=(("auc", direction),),
        patience=2,
    )
    assert result.step == step
    assert len(rows(tmp_path, "validation/")) == evaluations


def test_the_second_metric_decides_where_the_first_is_equal(tmp_path):
    """However small a step of the first: it is never outweighed."""
    auc = [0.9, 0.9, 0.9 + 1e-7, 0.9, 0.9 + 1e-7, None]
    loss = [0.5, 0.4, 9.0, 0.1, 8.0, 0.0]
    given = iter(zip(auc, loss, strict=True))

    def validate(params):
        return dict(zip(("auc", "loss"), next(given), strict=True))

    select = (("auc", "max"), ("loss", "min"))
    result = toy.train(tmp_path, mesh=one_device(), validate=validate, select=select)
    assert result.step == 20
    assert result.metrics == {"auc": 0.9 + 1e-7, "loss": 8.0}


def test_parts_of_a_batch_are_one_batch(tmp_path):
    """Batches that come in parts give the same updates as whole ones, whatever the parts."""

    def loss(params, constants, batch, key, train):
        return toy.loss_fn(params, constants, batch, key, False)

    def in_parts():
        for batch in toy.batches(size=20):
            for start, stop in ((0, 3), (3, 15), (15, 20)):
                part = {name: values[start:stop] for name, values in batch.items()}
                yield part | {"ends_update": stop == 20}

    class Parts(grain.IterDataset):
        def __iter__(self):
            return toy.Unsaved(in_parts())

    parts = toy.train(tmp_path / "a", mesh=one_device(), loss=loss, data=Parts())
    whole = toy.train(tmp_path / "b", mesh=one_device(), loss=loss, data=toy.batches(size=20))
    assert parts.step == whole.step
    assert_same(parts.params, whole.params, rtol=1e-4, atol=1e-6)


def test_best_params_are_those_of_the_best_step(tmp_path):
    values = [0.1, 0.9, 0.2, 0.3, 0.4, 0.5]
    seen = []

    def validate(params):
        seen.append(jax.device_get(params))
        return {"auc": values[len(seen) - 1]}

    result = toy.train(tmp_path, mesh=one_device(), validate=validate, select=(("auc", "max"),))
    assert_same(result.params, seen[1], rtol=0, atol=0)


def test_best_is_kept_although_checkpoints_are_rarer(tmp_path):
    values = scripted([0.1, 0.9, 0.2, 0.3, 0.4, 0.5])
    result = toy.train(
        tmp_path,
        mesh=one_device(),
        validate=values,
        select=(("auc", "max"),),
        checkpoint_every=20,
    )
    assert result.step == 8


def order_of_rows():
    """The rows in the order in which batches of one bring them."""
    return [int(b["row"][0]) for b, _ in zip(toy.batches(size=1), range(40), strict=False)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path, accumulate):
    tenth = order_of_rows()[9]

    def broken(params, constants, batch, key, train):
        terms = toy.loss_fn(params, constants, batch, key, train)
        bad = jnp.where(batch["row"] == tenth, jnp.nan, 0.0)
        return {**terms, "loss": terms["loss"] + bad}

    with pytest.raises(TrainingError, match=r"step \d+ of 'toy'; the last good checkpoint") as info:
        toy.train(
            tmp_path,
            mesh=one_device(),
            loss=broken,
            data=toy.batches(size=1),
            eval_every=1,
            accumulate=accumulate,
            steps=40,
        )
    bad = -(-10 // accumulate)
    assert f"at step {bad} of 'toy'" in str(info.value)
    step = bad - 1
    assert f"of step {step}, stays in" in str(info.value)
    assert (tmp_path / "checkpoints" / str(step)).is_dir()
    assert not (tmp_path / "result.json").exists()


def test_nan_names_the_very_step(tmp_path):
    def broken(params, constants, batch, key, train):
        loss = toy.loss_fn(params, constants, batch, key, train)["loss"]
        return {"loss": jnp.where(batch["row"] == 17, jnp.inf, loss)}

    expected = order_of_rows().index(17) + 1
    with pytest.raises(TrainingError, match=f"at step {expected} of"):
        toy.train(
            tmp_path,
            mesh=one_device(),
            loss=broken,
            data=toy.batches(size=1),
            steps=40,
            eval_every=40,
            log_every=40,
        )


def test_broken_params_are_not_saved(tmp_path):
    def overflowing(params, constants, batch, key, train):
        return {"loss": toy.loss_fn(params, constants, batch, key, train)["loss"]}

    with pytest.raises(TrainingError, match="no checkpoint was made before"):
        toy.train(
            tmp_path,
            mesh=one_device(),
            loss=overflowing,
            learning_rate=3e38,
            weight_decay=10.0,
            schedule="constant",
            steps=2,
            eval_every=1,
        )


def test_data_that_ends_early_is_an_error(tmp_path):
    short = grain.experimental.LimitIterDataset(toy.batches(), 7)
    with pytest.raises(TrainingError, match="ended at step 8 of 24: give at least 24 batches"):
        toy.train(tmp_path, mesh=one_device(), data=short)


def test_missing_metric_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"chosen by 'auc'.*\['accuracy', 'loss'\]"):
        toy.train(tmp_path, mesh=one_device(), select=(("auc", "max"),))


def test_caller_keeps_its_params(tmp_path, monkeypatch):
    params = jax.device_put(toy.init_params())
    monkeypatch.setattr(toy, "init_params", lambda: params)
    before = jax.tree.map(np.array, params)
    toy.train(tmp_path, mesh=one_device(), steps=2)
    assert_same(params, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 5, "warmup_steps": 6}, "more than the 5 steps"),
        ({"steps": 5, "select": (("auc", "best"),)}, "'max' or 'min'"),
        ({"steps": 5, "learning_rate": -1.0}, "must not be negative"),
        ({"steps": 5, "patience": 0}, "patience is 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainSettings(**settings)
