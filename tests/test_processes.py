"""Jobs beside this process: results in order, and one sentence when a worker is lost."""

import functools
import multiprocessing
import os
import time
import types

import psutil
import pytest

from lrmil_jax import processes
from lrmil_jax.errors import WorkdirError
from tests import jobs


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(processes, "usable_cores", lambda: 2)


def all_in_background(function, count):
    with processes.Background(function, count, label="drawing") as drawing:
        for number in range(count):
            drawing.submit(number)
        return drawing.results()


@pytest.mark.parametrize("count", [0, 2, 9])
def test_results_come_in_the_order_of_the_jobs(count):
    assert all_in_background(jobs.double, count) == [2 * number for number in range(count)]


def test_a_lost_worker_is_told_in_one_sentence():
    with pytest.raises(WorkdirError, match=r"a process of drawing was ended from outside .* again"):
        all_in_background(jobs.die_at_three, 30)
    with pytest.raises(WorkdirError, match="a process of prepare was ended from outside"):
        processes.map_jobs(jobs.die_at_three, range(6), workers=2, label="prepare")


def test_one_lost_process_loses_one_job():
    """Each other job is done, whatever it shared a pool with."""
    lost = []
    results = processes.map_jobs(
        jobs.die_at_three,
        range(9),
        workers=2,
        label="prepare",
        lost=lambda job, reason: lost.append((job, reason)) or "lost",
    )
    assert results == [0, 1, 2, "lost", 4, 5, 6, 7, 8]
    ((job, reason),) = lost
    assert job == 3
    assert "was ended from outside" in reason


def test_a_job_that_was_only_unlucky_is_done_again(tmp_path):
    jobs_of_folder = functools.partial(jobs.die_when_crowded, tmp_path)
    assert processes.map_jobs(jobs_of_folder, range(6), workers=2, label="x") == list(range(6))
    assert (tmp_path / "died").exists()


@pytest.mark.parametrize("count", [1, 2])
def test_processes_hold_what_they_were_given(count):
    with processes.Workers(count, label="adding", held=10) as workers:
        answers = [workers.submit(jobs.add, number) for number in range(5)]
        assert [answer.result() for answer in answers] == [10, 11, 12, 13, 14]


def test_a_job_that_fails_raises_here_and_the_others_go_on():
    with processes.Workers(2, label="adding", held=10) as workers:
        answers = [workers.submit(jobs.add, number) for number in ("a", 1)]
        with pytest.raises(TypeError):
            answers[0].result()
        assert answers[1].result() == 11


def test_few_jobs_are_done_here():
    assert processes.map_jobs(jobs.double, [], workers=0, label="none") == []
    assert processes.map_jobs(jobs.double, [4], workers=0, label="one") == [8]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_never_ends_is_stopped_and_the_others_go_on(workers):
    reasons = []
    results = processes.map_jobs(
        jobs.hang_at_three,
        range(6),
        workers=workers,
        label="prepare",
        lost=lambda _, reason: reasons.append(reason) or "lost",
        seconds=1.0,
        apart=True,
    )
    assert results == [0, 1, 2, "lost", 4, 5]
    assert "longer than 1 s" in reasons[0]
    assert multiprocessing.active_children() == []
    with pytest.raises(WorkdirError, match=r"prepare took longer than 0\.5 s"):
        processes.map_jobs(
            jobs.hang_at_three, [3], workers=1, label="prepare", seconds=0.5, apart=True
        )
    assert multiprocessing.active_children() == []


def test_a_decoder_that_crashes_loses_one_job_with_one_worker_too():
    results = processes.map_jobs(
        jobs.crash_at_three, range(5), workers=1, label="x", lost=lambda *_: (3, None), apart=True
    )
    numbers, pids = zip(*results, strict=True)
    assert numbers == (0, 1, 2, 3, 4)
    assert os.getpid() not in pids
    assert len({*pids} - {None}) == 2  # before the crash and after it


def interrupted():
    with processes.Workers(1, label="x", apart=True) as workers:
        workers.submit(jobs.double, 1).result()
        workers.submit(jobs.hang_at_three, 3)
        time.sleep(0.1)
        raise KeyboardInterrupt


def test_an_interrupt_waits_for_no_job():
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - start < 20
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("containers", "expected"),
    [
        ((("max", "1"),), (800, 500)),  # cgroup 2 without a limit
        ((("600", "200"),), (600, 400)),
        (((None, None), ("300", "200")), (300, 100)),  # cgroup 1
        (((str(2**63 - 4096), "200"),), (800, 500)),  # cgroup 1 without a limit
        ((("100", "200"),), (100, 0)),
    ],
)
def test_memory_is_that_of_the_container(containers, expected, tmp_path, monkeypatch):
    machine = types.SimpleNamespace(total=800, available=500)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    places = []
    for number, texts in enumerate(containers):
        places.append([tmp_path / f"{number}-{name}" for name in ("limit", "used")])
        for path, text in zip(places[-1], texts, strict=True):
            if text is not None:
                path.write_text(f"{text}\n")
    monkeypatch.setattr(processes, "_CONTAINER", places)
    assert processes.usable_memory() == expected
