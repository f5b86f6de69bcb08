"""Stopped at any moment and started again: bit-identical parameters, metrics and rows."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lrmil_jax.cluster.stopping import StoppedError, stopping
from lrmil_jax.errors import WorkdirError
from lrmil_jax.train import make_mesh, mil, sharding
from lrmil_jax.train.checkpoint import Checkpoints
from tests.train import bags, toy

ROOT = pathlib.Path(__file__).parents[2]


def outcome(directory):
    """The bytes that must not depend on interruptions."""
    names = ("best.safetensors", "result.json", "metrics.jsonl")
    return {name: (directory / name).read_bytes() for name in names}


class Stop(BaseException):
    """As sudden as a signal inside one process can be."""


def stopping_after(calls, mesh=None):
    """A `validate` that stops the process at its n-th call."""
    validate = toy.validation(mesh or make_mesh(jax.devices()[:1]))
    left = iter(range(calls))

    def wrapped(params):
        if next(left, None) is None:
            raise Stop
        return validate(params)

    return wrapped


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    toy.train(directory, mesh=make_mesh(jax.devices()[:1]))
    return outcome(directory)


@pytest.mark.parametrize(
    "stops", [*(pytest.param(one, marks=pytest.mark.slow) for one in ([0], [1])), [3, 0, 1], [5]]
)
def test_stopped_and_resumed_is_bit_identical(whole, tmp_path, stops):
    mesh = make_mesh(jax.devices()[:1])
    for calls in stops:
        with pytest.raises(Stop):
            toy.train(tmp_path, mesh=mesh, validate=stopping_after(calls))
    toy.train(tmp_path, mesh=mesh)
    assert outcome(tmp_path) == whole


def test_resume_does_not_start_again(tmp_path):
    mesh = make_mesh(jax.devices()[:1])
    with pytest.raises(Stop):
        toy.train(tmp_path, mesh=mesh, validate=stopping_after(4))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["16"]
    steps = []

    def counting(params):
        steps.append(1)
        return {"loss": 0.0}

    toy.train(tmp_path, mesh=mesh, validate=counting)
    assert len(steps) == 2  # steps 20 and 24


def test_early_stopping_is_remembered(tmp_path):
    """The counter of bad evaluations survives, so both runs stop at the same step."""
    mesh = make_mesh(jax.devices()[:1])
    values = [0.9, 0.1, 0.2, 0.3, 0.4, 0.5]

    def scripted(given, stop_after):
        given = iter(given[:stop_after])

        def validate(params):
            value = next(given, None)
            if value is None:
                raise Stop
            return {"auc": value}

        return validate

    settings = {"mesh": mesh, "select": (("auc", "max"),), "patience": 3}
    with pytest.raises(Stop):
        toy.train(tmp_path, validate=scripted(values, 3), **settings)
    result = toy.train(tmp_path, validate=scripted(values[3:], 1), **settings)
    assert (result.step, result.metrics) == (4, {"auc": 0.9})


@pytest.mark.parametrize(
    ("before", "after"),
    [((8, True), (1, False)), pytest.param((1, False), (8, True), marks=pytest.mark.slow)],
)
def test_resumes_on_other_devices(whole, tmp_path, before, after, monkeypatch):
    monkeypatch.setattr("lrmil_jax.train.sharding.FSDP_MIN_SIZE", 1)

    meshes = [make_mesh(jax.devices()[:devices]) for devices, _ in (before, after)]
    stop = stopping_after(3, meshes[0])
    with pytest.raises(Stop):
        toy.train(tmp_path, mesh=meshes[0], fsdp=before[1], validate=stop)
    result = toy.train(tmp_path, mesh=meshes[1], fsdp=after[1])
    assert f'"step": {result.step}' in whole["result.json"].decode()


def test_remainders_of_a_kill_while_finishing_are_cleared(tmp_path, monkeypatch):
    mesh = make_mesh(jax.devices()[:1])
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "delete", lambda self: None)
        first = toy.train(tmp_path, mesh=mesh, steps=4)
    (tmp_path / ".best.safetensors.0123.tmp").write_bytes(b"half")
    assert toy.train(tmp_path, mesh=mesh, steps=4).metrics == first.metrics
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"best.safetensors", "result.json", "metrics.jsonl", "tensorboard"}


def test_checkpoint_of_another_model_is_refused(tmp_path, monkeypatch):
    mesh = make_mesh(jax.devices()[:1])
    with pytest.raises(Stop):
        toy.train(tmp_path, mesh=mesh, validate=stopping_after(2))
    with pytest.raises(WorkdirError, match="another model or optimiser"):
        toy.train(tmp_path, mesh=mesh, optimizer="sgd")


def child(cache, steps, pause, *directories):
    """The toy in a process of its own, started."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    script = str(ROOT / "tests/train/toy.py")
    return subprocess.Popen(
        [sys.executable, script, str(steps), str(pause), *map(str, directories)], env=environment
    )


def finish(cache, steps, *directories):
    """What stands in each directory when the training in it is through."""
    assert child(cache, steps, 0.0, *directories).wait() == 0
    return [outcome(directory) for directory in directories]


def kill_after(cache, steps, directory, seconds):
    """Kills the child some seconds after its first row; True if it still ran then."""
    process = child(cache, steps, 0.02, directory)
    rows = directory / "metrics.jsonl"
    before = rows.stat().st_mtime_ns if rows.exists() else 0
    while process.poll() is None:
        if rows.exists() and rows.stat().st_size and rows.stat().st_mtime_ns != before:
            time.sleep(seconds)
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_killed_process_is_bit_identical(tmp_path, cache):
    steps, killed = 60, tmp_path / "killed"
    while not kill_after(cache, steps, killed, 0.4):
        shutil.rmtree(killed)  # too late, as the machine is busy: once more from nothing
    assert not (killed / "result.json").exists()
    resumed, undisturbed = finish(cache, steps, killed, tmp_path / "whole")
    assert resumed == undisturbed


@pytest.mark.slow
def test_killed_at_many_random_moments(tmp_path, cache):
    seed = random.randrange(10**6)
    print("seed", seed)  # shown when the test fails
    rng, steps, kills = random.Random(seed), 100, 0
    directories = []
    while kills < 10:
        directory = tmp_path / f"killed{len(directories)}"
        directories.append(directory)
        kills += sum(kill_after(cache, steps, directory, rng.uniform(0, 0.8)) for _ in range(7))
    *resumed, undisturbed = finish(cache, steps, *directories, tmp_path / "whole")
    assert all(one == undisturbed for one in resumed)


@pytest.mark.parametrize(
    "head", ["gated_abmil", pytest.param("transformer", marks=pytest.mark.slow)]
)
def test_another_number_of_devices_goes_on_at_the_same_update(tmp_path, monkeypatch, head):
    """An update has other batches on other devices, but the same bags."""
    store, labels = bags.write_store(tmp_path)
    data = bags.data_of(store, labels)
    block = bags.block(head=head, epochs=6, budget=24, eval_every=2, learning_rate=1e-3)
    options = {"block": block, "loss": mil.SlideLoss(), "data": data, "seed": 3, "name": "t"}
    make_mesh = sharding.make_mesh

    def on(devices, folder, last=None):
        few = make_mesh(jax.devices()[:devices])
        monkeypatch.setattr(sharding, "make_mesh", lambda _=None: few)
        may = (lambda update: True) if last is None else (lambda update: update != last)
        monkeypatch.setattr(stopping, "before", may)
        return mil.train_head(directory=tmp_path / folder, **options)

    whole = on(1, "whole")
    plans = [mil.HeadTraining("t", block, mil.SlideLoss(), data, 3, make_mesh(few), None).batches
             for few in (jax.devices()[:1], jax.devices()[:8])]  # fmt: skip
    assert plans[0].before(7) != plans[1].before(7)  # or this would prove nothing
    for devices, last in ((8, 5), (2, 8)):
        with pytest.raises(StoppedError):
            on(devices, "parts", last=last)
    parts = on(1, "parts")
    for one, other in zip(*map(jax.tree.leaves, (whole.params, parts.params)), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=5e-4)
    texts = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts"))
    rows = [[json.loads(line) for line in text.splitlines()] for text in texts]
    assert [row["step"] for row in rows[1]] == [row["step"] for row in rows[0]]
    for one, other in zip(*rows, strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)
