"""Several models trained in one program are what each is alone."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from lrmil_jax.data.bag_batches import BagBatches
from lrmil_jax.data.stacked import StackedBatches
from lrmil_jax.errors import TrainingError
from lrmil_jax.tasks.regression import Regression
from lrmil_jax.train import checkpoint, many_heads, mil, sharding
from lrmil_jax.train.many_heads import HeadJob, train_heads
from tests.train import bags

CHANGES = {
    "epochs": 6, "eval_every": 1, "patience": 2, "select": "loss", "learning_rate": 0.3,
    "budget": 4096, "bags": 6, "weight_decay": 0.1,
}  # fmt: skip
make_mesh = sharding.make_mesh


@pytest.fixture
def one_device(monkeypatch):
    """Programs for one device compile sooner."""
    monkeypatch.setattr(sharding, "make_mesh", lambda: make_mesh(jax.devices()[:1]))


def jobs_of(store, labels):
    """Two folds with other validation bags and two seeds, 15 and 16 bags to learn from."""
    data = bags.data_of(store, labels)
    places = np.arange(len(labels))
    other = dataclasses.replace(data, train=places[5:], val=places[:5])
    return {
        "fold_1": HeadJob(data=data, seed=1),
        "fold_2": HeadJob(data=other, seed=1),
        "fold_1_again": HeadJob(data=data, seed=2),
    }


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    return jobs_of(*bags.write_store(tmp_path_factory.mktemp("bags")))


def together(folder, jobs, **changes):
    block = bags.block(**CHANGES | changes)
    return train_heads(name="toy", directory=folder, block=block, jobs=jobs)


def compare_with_alone(folder, model, job, *, atol, **changes):
    """Trains a job alone: its parameters are the model's."""
    alone = mil.train_head(
        name="toy", directory=folder, block=bags.block(**CHANGES | changes),
        loss=job.loss, data=job.data, seed=job.seed,
    )  # fmt: skip
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, atol=atol),
        model.params, alone.params,
    )  # fmt: skip
    return alone


def test_each_model_is_what_it_is_alone(tmp_path, jobs, monkeypatch):
    """Parameters, the epoch that was chosen, its metrics, also of one that stops before others, in
    small batches on one device as in large ones on eight."""
    models = together(tmp_path / "together", jobs)
    monkeypatch.setattr(sharding, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
    steps = set()
    for key, job in jobs.items():
        alone = compare_with_alone(tmp_path / key, models[key], job, atol=1e-5, budget=48)
        np.testing.assert_array_equal(models[key].mean, alone.mean)
        one = checkpoint.load_result(tmp_path / key)
        other = checkpoint.load_result(tmp_path / "together/group_0" / key)
        assert one.step == other.step
        assert other.metrics == pytest.approx(one.metrics, abs=1e-5)
        steps.add(one.step)
    assert len(steps) > 1  # they had something to choose
    rows = [json.loads(line) for line in
            (tmp_path / "together/group_0/metrics.jsonl").read_text().splitlines()]  # fmt: skip
    ends = {key: max(row["step"] for row in rows if f"{key}/train/loss" in row) for key in jobs}
    assert min(ends.values()) < max(ends.values())  # and one stopped before another


def guided(data):
    """With teacher outputs, and two guides of which a point takes one."""
    rng = np.random.default_rng(4)
    slides, rows = len(data.store.sizes), int(data.store.sizes.sum())
    guides = np.abs(rng.normal(size=(rows, 2))).astype(np.float32)
    logits = rng.normal(size=(slides, 2)).astype(np.float32)
    instances = {"guide": guides, "covered": rng.random(rows) < 0.9}
    return dataclasses.replace(data, per_bag={"teacher_logits": logits}, per_instance=instances)


def test_points_of_a_sweep_are_what_they_are_alone(tmp_path, jobs, one_device):
    """Two streams of batches, and on each of them four models that differ in all that a point may
    differ in; another loss goes into a program of its own."""
    every = {"lambda_bag": 1.0, "lambda_soft": 1.0, "lambda_hard": 0.5, "topk": 3, "guide": 0}
    points = {
        "plain": ({}, None),
        "no terms": ({"lambda_bag": 0.0, "lambda_soft": 0.0, "lambda_hard": 0.0}, None),
        "warm": (
            {"lambda_ce": 0.0, "temperature_bag": 4.0, "temperature_attn": 2.0, "guide": 1},
            0.1,
        ),
        "few": ({"topk": 1, "lambda_hard": 3.0}, 0.05),
        "instances": ({"hard": "instance"}, None),
    }
    data = guided(jobs["fold_1"].data)
    other = dataclasses.replace(data, train=data.train[::-1].copy())
    heads = {
        f"{name}, {place}": HeadJob(data=one, seed=place, learning_rate=rate,
                                    loss=mil.SlideLoss(**every | changes))
        for place, one in enumerate((data, other)) for name, (changes, rate) in points.items()
    }  # fmt: skip
    models = together(tmp_path / "together", heads, epochs=3)
    folders = sorted(path.name for path in (tmp_path / "together").iterdir() if path.is_dir())
    assert folders == ["group_0", "group_1"]
    for key in ("warm, 1", "instances, 1"):
        job = heads[key]
        rate = job.learning_rate or CHANGES["learning_rate"]
        compare_with_alone(tmp_path / key, models[key], job, atol=2e-5, epochs=3,
                           learning_rate=rate)  # fmt: skip
    assert models["instances, 0"].options["instance_classes"] == 2


def test_models_on_mixed_bags_are_what_they_are_alone(tmp_path, jobs, one_device):
    changes = {"epochs": 2, "mixup": 0.5}
    models = together(tmp_path / "together", jobs, **changes)
    compare_with_alone(tmp_path / "alone", models["fold_2"], jobs["fold_2"], atol=2e-5, **changes)


def test_a_second_call_returns_what_was_trained(tmp_path, jobs, one_device):
    first = together(tmp_path, jobs, epochs=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("best.safetensors")}
    again = together(tmp_path, jobs, epochs=1)
    for key, model in first.items():
        jax.tree.map(np.testing.assert_array_equal, model.params, again[key].params)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("best.safetensors")}
    assert len(before) == 3
    assert not list(tmp_path.rglob("checkpoints"))


def test_what_was_killed_goes_on_bit_for_bit(tmp_path, jobs, one_device, monkeypatch):
    whole = together(tmp_path / "whole", jobs, patience=0, epochs=4)
    save, saved = checkpoint.Checkpoints.save, []

    def dying(self, *arguments, **options):
        save(self, *arguments, **options)
        saved.append(1)
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoints, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        together(tmp_path / "killed", jobs, patience=0, epochs=4)
    # Not undone as a whole: that would give the devices back too.
    monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
    monkeypatch.setattr(many_heads, "_most", lambda _: 1)  # less memory now: no other programs
    resumed = together(tmp_path / "killed", jobs, patience=0, epochs=4)
    for key, model in whole.items():
        jax.tree.map(np.testing.assert_array_equal, model.params, resumed[key].params)
    lines = [
        (tmp_path / name / "group_0/metrics.jsonl").read_text() for name in ("whole", "killed")
    ]
    assert lines[0] == lines[1]


def test_the_one_that_diverges_is_named(tmp_path, jobs, one_device):
    numbers = {
        key: dataclasses.replace(
            job.data, task=Regression(),
            targets=job.data.targets * (1e30 if key == "fold_2" else 1.0),
        )
        for key, job in jobs.items()
    }  # fmt: skip
    with pytest.raises(TrainingError, match=r"toy, 3 models, fold_2'; no checkpoint was made"):
        together(tmp_path, {key: HeadJob(data=data, seed=1) for key, data in numbers.items()})


def test_unlike_trainings_are_trained_apart(tmp_path, jobs, one_device):
    """By updates of an epoch, and where features do not stay on the device."""
    alone = dataclasses.replace(jobs["fold_1"].data, train=np.arange(4))
    models = together(tmp_path / "a", dict(jobs, small=HeadJob(data=alone, seed=1)), epochs=1)
    assert list(models) == [*jobs, "small"]
    assert (tmp_path / "a/group_1/small/result.json").is_file()
    streamed = together(
        tmp_path / "b", {"fold_2": jobs["fold_2"]}, epochs=1, resident_gib=0.0, budget=48
    )
    assert (tmp_path / "b/group_0/fold_2/result.json").is_file()
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5),
        models["fold_2"].params, streamed["fold_2"].params,
    )  # fmt: skip


def test_the_example_of_the_docs(tmp_path, one_device):
    page = (Path(__file__).parents[2] / "docs/heads.md").read_text(encoding="utf-8")
    names = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    (tmp_path / "bags").mkdir()
    store, labels = bags.write_store(tmp_path / "bags", bags=12)
    places = np.arange(12)
    folds = [(places[4:], places[:4]), (places[:8], places[8:])]
    models = names["cross_validated"](store, labels, folds, tmp_path / "models")
    assert list(models) == ["fold_0", "fold_1"]
    assert models["fold_1"].predict_slide(store, 0)[0].shape == (2,)


def test_every_source_gives_its_own_updates():
    """Bags of the same updates in the same epochs as alone, none twice, none lost."""
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(4, 1, 60)).astype(int) + 1
    sources = [
        BagBatches(sizes, budget=512, bags=part, bags_per_update=8, seed=seed, devices=2)
        for part, seed in ((np.arange(50), 1), (np.arange(10, 60), 1), (np.arange(49), 3))
    ]
    stacked = StackedBatches(sources, budget=512)
    for epoch in range(3):
        plan = stacked.plan(epoch)
        for row, source in enumerate(sources):
            parts = source.parts(epoch)
            assert len(parts) == len(plan)
            for part, update in zip(parts, plan, strict=True):
                seen = np.concatenate([batch.bags[row] for batch in update])
                assert sorted(seen[seen >= 0]) == sorted(part)
    for index in range(12):
        item = stacked[index]
        shape = item["mask"].shape
        assert shape[0] == 3
        assert shape[1] % 2 == 0
        assert shape[1] == 2 or np.prod(shape) <= 2 * 512
        np.testing.assert_array_equal(
            item["mask"].sum(-1), np.where(item["bag"] >= 0, sizes[item["bag"]], 0)
        )
        assert item["rows"].shape == shape
    shapes = {stacked[index]["mask"].shape for index in range(100)}
    assert len(shapes) <= 24
    with pytest.raises(ValueError, match="equally many updates"):
        StackedBatches([*sources, BagBatches(sizes, budget=512, bags_per_update=30)], budget=9)
