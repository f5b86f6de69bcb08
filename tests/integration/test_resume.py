"""Killed in every stage, and at many random moments: the same command gives the same result."""

import collections
import contextlib
import os
import random
import shutil
import time

import pandas as pd
import pytest

from tests.integration import runs

SEED = 20260
# Of both methods together.
KILLS = int(os.environ.get("LRMIL_TEST_KILLS", "200"))
# Seconds into a stage at which it is still at work, compiled programs at hand.
LONGEST_DELAY = {"prepare": 8.0, "encode_hr": 1.0, "encode_lr": 0.8, "evaluate": 0.7, "report": 0.3}
# One of each kind: what processes write slide by slide, and a training.
KINDS = ("prepare", "distill")
# A checkpoint at every validation, so that there is one to go on from.
SAVING = tuple(
    f"--config.{block}.checkpoint_seconds=0.0"
    for block in ("pretrain", "teacher", "distill", "student", "align", "mil")
)


def has_checkpoint(workdir, stage):
    """True once a training of the stage has saved its state, whole."""
    folder = workdir / ("pretrain" if stage == "pretrain" else f"folds/1/{stage}") / "training"
    with contextlib.suppress(FileNotFoundError):
        return any(name.isdigit() for name in os.listdir(folder / "checkpoints"))
    return False


def kill_in_stage(run, workdir, number, delay):
    """Kills `run` about `delay` seconds into its stage; False if it was through before.

    In a training the time counts from its first checkpoint, so that there is one to go on from.
    """
    stage = runs.STAGES[number - 1]
    while run.running and run.stage() < number:
        time.sleep(0.005)
    while run.running and run.stage() == number and stage not in LONGEST_DELAY:
        if has_checkpoint(workdir, stage):
            break
        time.sleep(0.002)
    moment = time.monotonic() + delay
    while run.running and run.stage() == number and time.monotonic() < moment:
        time.sleep(0.002)
    inside = run.stage() == number
    return run.kill() and inside


@pytest.mark.parametrize("stages", [KINDS, pytest.param(runs.STAGES, marks=pytest.mark.slow)])
def test_one_kill_in_a_stage(finished, cache, tmp_path, stages):
    """Each run goes on where the last was killed, and is killed in a later stage."""
    workdir, before = tmp_path / "run", tmp_path / "before"
    workdir.mkdir()
    if stages[0] != "pretrain":  # what stands before the first kill
        for name in ("synthetic", "pretrain"):
            shutil.copytree(finished.workdir / name, workdir / name)
    rng = random.Random(SEED)
    went_on = 0
    for stage in stages:
        number = runs.STAGES.index(stage) + 1
        delay = rng.uniform(0.0, LONGEST_DELAY.get(stage, 0.1))
        shutil.copytree(workdir, before, symlinks=True)
        run = runs.train(cache, workdir, *SAVING)
        while not kill_in_stage(run, workdir, number, delay):
            delay /= 2  # too late: once more from the same state
            assert delay > 1e-4, f"{stage} is never caught at work: {run.log}"
            shutil.rmtree(workdir)
            shutil.copytree(before, workdir, symlinks=True)
            run = runs.train(cache, workdir, *SAVING)
        shutil.rmtree(before)
        went_on += "going on after step" in run.log
    done = runs.STAGES.index(stages[-1])
    needed = runs.STAGES[: done + 1]
    last = runs.train(cache, workdir, *SAVING, f"--stages={','.join(needed)}")
    assert last.wait() == 0, last.log
    went_on += "going on after step" in last.log
    assert last.log.count("already done") == done - 2  # two keep their own account
    assert went_on >= (3 if stages == runs.STAGES else 1)  # of five trainings
    assert_same(finished, workdir, whole=needed == runs.STAGES)


def predicted(workdir):
    """predictions.csv less the timings."""
    table = pd.read_csv(workdir / "predictions/predictions.csv")
    return table[[name for name in table if not name.startswith("seconds_")]]


@pytest.mark.slow
def test_a_cohort_prediction_killed_half_way(finished, cache, tmp_path):
    arguments = ("--stages", "predict", "--model", finished.workdir / "model",
                 "--slides", finished.workdir / "synthetic/slides", "--workdir")  # fmt: skip
    whole = runs.Run(cache, *arguments, tmp_path / "whole")
    assert whole.wait() == 0, whole.log
    workdir, wanted = tmp_path / "run", random.Random(SEED).randint(1, 8)
    marks = {}
    while not 0 < len(marks) < 20:  # too late: once more from nothing
        shutil.rmtree(workdir, ignore_errors=True)
        run = runs.Run(cache, *arguments, workdir)
        while run.running and len(list(workdir.glob("predictions/*/prediction.json"))) < wanted:
            time.sleep(0.002)
        run.kill()
        marks = {p: p.stat().st_mtime_ns for p in workdir.glob("predictions/*/prediction.json")}
    again = runs.Run(cache, *arguments, workdir)
    assert again.wait() == 0, again.log
    assert {path: path.stat().st_mtime_ns for path in marks} == marks
    pd.testing.assert_frame_equal(predicted(workdir), predicted(tmp_path / "whole"))
    assert set(runs.files(workdir)) == set(runs.files(tmp_path / "whole"))


def kill_somewhere(run, rng, stages):
    """Kills a run some seconds into its work, or soon after it has begun some stage; the stage that
    it was in, or None if it was through before."""
    anywhere = rng.random() < 0.5  # short stages are hardly met so
    stage = stages[0] if anywhere else rng.choice(stages)
    while run.running and stage not in run.begun():
        time.sleep(0.005)
    moment = time.monotonic() + rng.uniform(0.0, 14.0 if anywhere else 1.0)
    while run.running and time.monotonic() < moment:
        time.sleep(0.005)
    return run.begun()[-1] if run.running and run.kill() else None


@pytest.mark.slow
@pytest.mark.parametrize("config", [runs.TINY, runs.GUIDED])
def test_many_random_kills(finished, cache, tmp_path, config):
    """At least so many kills anywhere, over as many whole runs as that takes."""
    if config != runs.TINY:
        whole = runs.train(cache, tmp_path / "whole", *SAVING, config=config)
        assert whole.wait() == 0, whole.log
        finished = runs.Finished(tmp_path / "whole", cache, whole.log)
        stages = whole.begun()
    else:
        stages = list(runs.STAGES)
    rng, start = random.Random(SEED + 1), time.monotonic()
    killed, rounds = collections.Counter(), 0
    while killed.total() < KILLS // 2:
        workdir = tmp_path / f"run_{rounds}"
        rounds += 1
        while True:
            run = runs.train(cache, workdir, *SAVING, config=config)
            enough = killed.total() >= KILLS // 2
            inside = None if enough else kill_somewhere(run, rng, stages)
            if inside is None:
                break
            killed[inside] += 1
        assert run.wait() == 0, run.log
        assert_same(finished, workdir)
        shutil.rmtree(workdir)
    minutes = (time.monotonic() - start) / 60
    print(f"{killed.total()} kills in {rounds} runs, {minutes:.1f} minutes: {dict(killed)}")
    if KILLS >= 200:
        assert set(stages) <= set(killed)


def assert_same(finished, workdir, *, whole=True):
    """The same results byte by byte, the same files, and nothing left over; of a run that went
    through some stages only, those that it has."""
    expected, found = runs.results(finished.workdir), runs.results(workdir)
    if not whole:
        expected = {name: content for name, content in expected.items() if name in found}
    assert found.keys() == expected.keys()
    assert len(found) > 20
    different = [name for name in expected if found[name] != expected[name]]
    assert different == []
    names = [set(runs.files(folder)) for folder in (finished.workdir, workdir)]
    names = [{name for name in each if "/tensorboard/" not in name} for each in names]
    assert names[0] == names[1] if whole else names[0] > names[1]
    assert runs.leftovers(workdir) == []
