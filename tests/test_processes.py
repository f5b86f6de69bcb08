"""Jobs beside this process: results in order, and one sentence when a worker is lost."""

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


def test_few_jobs_are_done_here():
    assert processes.map_jobs(jobs.double, [], workers=0, label="none") == []
    assert processes.map_jobs(jobs.double, [4], workers=0, label="one") == [8]
