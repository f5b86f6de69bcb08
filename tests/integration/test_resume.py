"""Killed in every stage, and at many random moments: the same command gives the same result."""

import random
import shutil
import time

import pytest

from tests.integration import runs

SEED = 20260
# Seconds into a stage at which it is still at work, compiled programs at hand.
LONGEST_DELAY = {"prepare": 8.0, "encode_lr": 0.8, "evaluate": 0.7, "report": 0.3}


def kill_in_stage(run, number, delay):
    """Kills `run` about `delay` seconds into its stage; False if it was through before."""
    while run.running and run.stage() < number:
        time.sleep(0.005)
    moment = time.monotonic() + delay
    while run.running and run.stage() == number and time.monotonic() < moment:
        time.sleep(0.005)
    inside = run.stage() == number
    return run.kill() and inside


def test_one_kill_in_every_stage(finished, cache, tmp_path):
    """Each run goes on where the last was killed, and is killed in the stage after it."""
    workdir, before = tmp_path / "run", tmp_path / "before"
    workdir.mkdir()
    rng = random.Random(SEED)
    for number, stage in enumerate(runs.STAGES, 1):
        delay = rng.uniform(0.02, LONGEST_DELAY.get(stage, 1.2))
        shutil.copytree(workdir, before, symlinks=True)
        while not kill_in_stage(runs.train(cache, workdir), number, delay):
            delay /= 2  # too late: once more from the same state
            assert delay > 1e-3, f"{stage} is never caught at work"
            time.sleep(0.5)  # until the workers have noticed
            shutil.rmtree(workdir)
            shutil.copytree(before, workdir, symlinks=True)
        shutil.rmtree(before)
    last = runs.train(cache, workdir)
    assert last.wait() == 0, last.log
    assert last.log.count("already done") == len(runs.STAGES) - 3  # two keep their own account
    assert_same(finished, workdir)


@pytest.mark.slow
def test_many_random_kills(finished, cache, tmp_path):
    """At least 24 kills anywhere, over as many whole runs as that takes."""
    rng = random.Random(SEED + 1)
    kills, rounds = 0, 0
    while kills < 24:
        workdir = tmp_path / f"run_{rounds}"
        rounds += 1
        while True:
            run = runs.train(cache, workdir)
            moment = time.monotonic() + rng.uniform(1.0, 14.0)
            while run.running and time.monotonic() < moment:
                time.sleep(0.01)
            if not run.running or not run.kill():
                break
            kills += 1
        assert run.wait() == 0, run.log
        assert_same(finished, workdir)
        shutil.rmtree(workdir)
    print(f"{kills} kills in {rounds} runs")


def assert_same(finished, workdir):
    """The same results byte by byte, the same files, and nothing left over."""
    expected, found = runs.results(finished.workdir), runs.results(workdir)
    assert found.keys() == expected.keys()
    assert len(found) > 20
    different = [name for name in expected if found[name] != expected[name]]
    assert different == []
    names = [set(runs.files(folder)) for folder in (finished.workdir, workdir)]
    names = [{name for name in each if "/tensorboard/" not in name} for each in names]
    assert names[0] == names[1]
    assert runs.leftovers(workdir) == []
