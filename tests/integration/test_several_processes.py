"""One run in several processes with two devices each, by the command line: what one process gives,
whatever is killed on the way. Minutes long: `pytest -m slow tests/integration/test_several...`."""

import signal
import time

import pandas as pd
import psutil
import pytest

from tests.integration import runs
from tests.integration.test_devices import assert_close
from tests.integration.test_resume import SAVING

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(cache, tmp_path_factory):
    """Runs of one process, by config."""
    found = {}

    def run(config):
        if config not in found:
            workdir = tmp_path_factory.mktemp("alone") / "run"
            one = runs.train(cache, workdir, *SAVING, config=config)
            assert one.wait() == 0, one.log
            found[config] = workdir
        return found[config]

    return run


def ended(processes):
    """Exit statuses and logs."""
    return [one.wait() for one in processes], [one.log for one in processes]


def written(root):
    """Names of all files but TensorBoard's, which have the time in them."""
    names = (str(path.relative_to(root)) for path in root.rglob("*.*"))
    return {name for name in names if "tfevents" not in name}


def assert_same_results(one, other, names):
    """Files of these names: as of several devices, which round differently."""
    compared = 0
    for path in one.rglob("*"):
        if path.name in names:
            assert_close(path, other / path.relative_to(one), path.name)
            compared += 1
    assert compared


@pytest.mark.parametrize(
    ("config", "count"), [(runs.TINY, 2), (runs.TINY, 4), (runs.GUIDED, 2), (runs.GUIDED, 4)]
)
def test_they_give_what_one_gives(alone, cache, tmp_path, config, count):
    workdir = tmp_path / "run"
    statuses, logs = ended(runs.together(cache, workdir, count, *SAVING, config=config))
    assert statuses == [0] * count, "\n".join(logs)
    whole = alone(config)
    assert_same_results(whole, workdir, ("predictions.csv", "validation.csv"))
    assert written(workdir) == written(whole)
    assert not [log for log in logs[1:] if "[1/" in log]  # the first alone tells of progress
    again, logs = ended(runs.together(cache, workdir, count, *SAVING, config=config))
    assert again == [0] * count
    assert "already done" in logs[0]


def child_of(run):
    """The process that works, of the one that watches over it."""
    (child,) = psutil.Process(run.pid).children()
    return child


def wait_for(processes, stage, folder=None):
    """Returns in this stage, once it has saved a checkpoint in the folder."""
    while all(one.running for one in processes):
        if stage in processes[0].begun():
            saved = folder is None or any(
                path.name.isdigit() for path in folder.glob("training/checkpoints/*")
            )
            if saved:
                return
        time.sleep(0.01)
    raise AssertionError("\n".join(one.log for one in processes))


@pytest.mark.parametrize(
    ("stage", "victim", "before", "after"),
    [
        *((stage, 0, 2, 1) for stage in ("prepare", "distill", "report")),
        *((stage, 1, 2, 4) for stage in ("prepare", "distill", "report")),
        ("distill", 3, 4, 2),
    ],
)
def test_a_killed_process_ends_the_others_and_any_number_goes_on(
    alone, cache, tmp_path, stage, victim, before, after
):
    workdir = tmp_path / "run"
    processes = runs.together(cache, workdir, before, *SAVING)
    wait_for(processes, stage, workdir / "folds/1/distill" if stage == "distill" else None)
    child_of(processes[victim]).send_signal(signal.SIGKILL)
    statuses, logs = ended(processes)
    assert statuses == [1] * before
    assert "was killed from outside" in logs[victim]
    told = f"process {victim} of {before} has ended without a word"
    for log in (*logs[:victim], *logs[victim + 1 :]):
        assert told in log or "another process of it is gone" in log
    assert "Traceback" not in "".join(logs)
    if after > 1:
        statuses, logs = ended(runs.together(cache, workdir, after, *SAVING))
    else:
        statuses, logs = ended([runs.train(cache, workdir, *SAVING, fresh=True)])
    assert not any(statuses), "\n".join(logs)
    if stage == "distill":
        assert "distill, fold 1: going on after step" in logs[0]
    assert_same_results(alone(runs.TINY), workdir, ("predictions.csv", "validation.csv"))


def test_sigterm_saves_and_an_equal_number_goes_on_bit_for_bit(cache, tmp_path):
    """Results of an undisturbed run of two, and of one that was asked to stop in its training."""
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    statuses, logs = ended(runs.together(cache, whole, 2, "--stages=pretrain"))
    assert statuses == [0, 0], "\n".join(logs)
    processes = runs.together(cache, workdir, 2, "--stages=pretrain")
    folder = workdir / "pretrain/training"
    rows = folder / "metrics.jsonl"
    while all(one.running for one in processes) and not (rows.exists() and rows.read_bytes()):
        time.sleep(0.01)
    processes[1]._process.terminate()  # the process that watches hands it on
    statuses, logs = ended(processes)
    assert statuses == [75, 75], "\n".join(logs)
    assert "pretrain: saved after step" in logs[0]
    saved = int(logs[0].split("pretrain: saved after step ")[1].split()[0])
    assert [p.name for p in (folder / "checkpoints").iterdir() if p.name == str(saved)]
    statuses, logs = ended(runs.together(cache, workdir, 2, "--stages=pretrain"))
    assert statuses == [0, 0], "\n".join(logs)
    assert f"going on after step {saved}" in logs[0]
    for name in ("encoder.safetensors", "training/metrics.jsonl", "training/result.json"):
        assert (whole / "pretrain" / name).read_bytes() == (
            workdir / "pretrain" / name
        ).read_bytes()


def test_sigterm_of_one_process_goes_on_bit_for_bit(finished, cache, tmp_path):
    workdir = tmp_path / "run"
    run = runs.train(cache, workdir, "--stages=pretrain", fresh=True)
    folder = workdir / "pretrain/training"
    rows = folder / "metrics.jsonl"
    while run.running and not (rows.exists() and rows.read_bytes()):
        time.sleep(0.01)
    run._process.terminate()
    assert run.wait() == 75, run.log
    assert "saved after step" in run.log
    assert "Traceback" not in run.log
    again = runs.train(cache, workdir, "--stages=pretrain", fresh=True)
    assert again.wait() == 0, again.log
    for name in ("encoder.safetensors", "training/metrics.jsonl"):
        other = finished.workdir / "pretrain" / name
        assert other.read_bytes() == (workdir / "pretrain" / name).read_bytes()


def test_what_differs_is_told_to_all(cache, tmp_path):
    workdir = tmp_path / "run"
    processes = runs.together(cache, workdir, 2, process_1=["--config.seed=5"])
    statuses, logs = ended(processes)
    assert statuses == [1, 1]
    assert all("process 1 has seed '5', process 0 has '0'" in log for log in logs)
    assert not workdir.exists()


def test_a_process_that_never_comes(cache, tmp_path):
    first, second = runs.together(cache, tmp_path / "run", 2, "--join_seconds=5",
                                  process_1=["--coordinator=127.0.0.1:1"])  # fmt: skip
    assert (first.wait(), second.wait()) == (1, 1)
    assert "process 1 of 2 did not come within 5 s" in first.log
    assert "process 1 of 2 did not reach process 0 at 127.0.0.1, port 1" in second.log
    assert not (tmp_path / "run").exists()


def test_two_that_say_they_are_the_same(cache, tmp_path):
    processes = runs.together(cache, tmp_path / "run", 3, "--join_seconds=60",
                              process_2=["--process=1"])  # fmt: skip
    statuses, logs = ended(processes)
    assert statuses == [1, 1, 1]
    assert "says that it is process 1 of 3, beside process 0 of 3, and so did another" in logs[0]
    assert "Traceback" not in "".join(logs)


def test_with_parameters_split_over_all_devices(alone, cache, tmp_path):
    flags = ("--config.distill.fsdp=True", "--config.pretrain.fsdp=True", *SAVING)
    statuses, logs = ended(runs.together(cache, tmp_path / "run", 2, *flags))
    assert statuses == [0, 0], "\n".join(logs)
    # Adam follows the rounding of sums in another order through all stages.
    one, other = (pd.read_csv(root / "folds/1/evaluate/predictions.csv")
                  for root in (alone(runs.TINY), tmp_path / "run"))  # fmt: skip
    pd.testing.assert_frame_equal(other, one, rtol=1e-2, atol=1e-3)


def test_a_frozen_encoder_split_over_the_devices_of_each(alone, cache, tmp_path):
    stages = "--stages=pretrain,prepare,encode_hr"
    processes = runs.together(cache, tmp_path / "run", 2, stages, "--config.encoder.fsdp=True")
    statuses, logs = ended(processes)
    assert statuses == [0, 0], "\n".join(logs)
    assert len(list((tmp_path / "run/features/hr").glob("*.array_record"))) == 20


def test_unequal_devices_are_told(cache, tmp_path):
    processes = runs.together(cache, tmp_path / "run", 2, devices=(2, 1))
    statuses, logs = ended(processes)
    assert statuses == [1, 1]
    assert all("process 1 has devices '1 x cpu', process 0 has '2 x cpu'" in log for log in logs)


def test_sigterm_outside_of_a_training(cache, tmp_path):
    processes = runs.together(cache, tmp_path / "run", 2)
    wait_for(processes, "prepare")
    processes[1]._process.terminate()
    statuses, logs = ended(processes)
    assert statuses == [75, 75], "\n".join(logs)
    assert all("the same command goes on" in log for log in logs)
