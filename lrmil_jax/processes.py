"""Work in processes beside this one: results as they come, in the order of the jobs."""

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lrmil_jax.progress import progress
from lrmil_jax.workers import DIED, TOO_LONG, Answer, LostError, Workers

__all__ = ["DIED", "TOO_LONG", "Answer", "Background", "LostError", "Workers", "map_jobs",
           "outcome", "usable_cores", "usable_memory"]  # fmt: skip

# Where a container says how much memory it may use, and how much it uses; cgroups 2 and 1.
_CONTAINER = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def map_jobs(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    *,
    workers: int,
    label: str,
    key: str = "prepare.workers",
    lost: Callable[[Any, str], Any] | None = None,
    finished: Callable[[Any], None] | None = None,
    seconds: float | int = 0.0,
    apart: bool = False,
) -> list[Any]:
    """`function` of every job, in the order of the jobs, with progress.

    Args:
      function: imported anew by every worker, so better without JAX where JAX is not needed.
      jobs: one a slide, or whatever is done on its own.
      workers: processes; 0 is one per core, and 1 stays in this one unless `apart`.
      label: for the progress display.
      key: the config key of `workers`, for the sentence that tells of a lost one.
      lost: the result of a job that ended its process twice or took too long, from the job and the
        reason; without it such a job ends all.
      finished: told of every job whose result is there.
      seconds: that a job may take in its process, which is then killed; 0: any.
      apart: a single worker is a process too.

    Raises:
      WorkdirError: a job ended its process twice, or took too long; what had been finished stays.
    """
    if not jobs:
        return []
    workers = min(workers or usable_cores(), len(jobs))
    results: list[Any] = [None] * len(jobs)
    with (
        progress(label, len(jobs)) as bar,
        Workers(workers, label=label, key=key, seconds=seconds, apart=apart) as others,
    ):
        waiting: dict[concurrent.futures.Future, tuple[int, Answer]] = {}
        for number, job in enumerate(jobs):
            answer = others.submit(function, job)
            waiting[answer.future] = number, answer
            last = number == len(jobs) - 1
            while waiting and (last or len(waiting) >= others.room):
                done, _ = concurrent.futures.wait(waiting, return_when="FIRST_COMPLETED")
                for future in done:
                    place, answer = waiting.pop(future)
                    results[place] = outcome(answer, jobs[place], lost)
                    if finished is not None:
                        finished(jobs[place])
                    bar.advance()
    return results


def outcome(answer: "Answer", job: Any, lost: Callable[[Any, str], Any] | None) -> Any:
    """What a job gave, or, of one that was lost, what `lost` gives; see `map_jobs`."""
    try:
        return answer.result()
    except LostError as error:
        if lost is None:
            raise
        return lost(job, error.reason)


class Background:
    """Jobs handed to processes beside this one, as they come; for few jobs, or on one core, they
    are done here.

    Args:
      function: of one job; imported anew by every worker, so better without JAX.
      jobs: how many there will be, at most.
      label: what is done, for the sentence that tells of a lost worker.
    """

    _FEW = 3  # starting a process takes longer than drawing so few slides

    def __init__(self, function: Callable[[Any], Any], jobs: int, *, label: str):
        self._function = function
        self._workers = Workers(min(jobs, usable_cores()) if jobs > self._FEW else 1, label=label)
        self._answers: list[Answer] = []

    def __enter__(self) -> "Background":
        self._workers.__enter__()
        return self

    def submit(self, job: Any) -> None:
        """Does the job, or hands it over once there is room.

        Raises:
          LostError: an earlier job ended its process twice.
        """
        self._answers.append(self._workers.submit(self._function, job))
        if len(self._answers) >= self._workers.room:
            self._answers[-self._workers.room].result()

    def results(self) -> list[Any]:
        """Of all jobs so far, in their order; waits for them.

        Raises:
          LostError: one ended its process twice.
        """
        return [answer.result() for answer in self._answers]

    def __exit__(self, *error: Any) -> None:
        self._workers.__exit__(*error)


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine's in a container or batch job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_memory() -> tuple[int, int]:
    """Bytes of memory that this process may use, and those of them that are free: fewer than the
    machine's in a container."""
    import psutil  # the processes of `map_jobs`, which import this module, do without

    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for limit, used in _CONTAINER:
        try:
            allowed, taken = int(Path(limit).read_text()), int(Path(used).read_text())
        except (OSError, ValueError):  # no such container, or one without a limit ("max")
            continue
        total, free = min(total, allowed), min(free, allowed - taken)
    return total, max(free, 0)
