"""One job a process: results as they come, workers that end with their parent."""

import concurrent.futures
import contextlib
import logging
import logging.handlers
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lrmil_jax.errors import WorkdirError
from lrmil_jax.train.logging import progress, setup_logging


def map_jobs(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    *,
    workers: int,
    label: str,
    key: str = "prepare.workers",
) -> list[Any]:
    """`function` of every job, in the order of the jobs, with progress.

    Args:
      function: imported anew by every worker, so better without JAX where JAX is not needed.
      jobs: one a slide, or whatever is done on its own.
      workers: processes; 0 is one per core, and 1 stays in this one.
      label: for the progress display.
      key: the config key of `workers`, for the sentence that tells of a lost one.

    Raises:
      WorkdirError: a worker was ended from outside; what it had finished stays.
    """
    if not jobs:
        return []
    workers = min(workers or usable_cores(), len(jobs))
    with progress(label, len(jobs)) as bar:
        if workers <= 1:
            results = []
            for job in jobs:
                results.append(function(job))
                bar.advance()
            return results
        with _pool(workers) as pool, _told_of_loss(label, f", with fewer {key}"):
            futures = [pool.submit(function, job) for job in jobs]
            for future in concurrent.futures.as_completed(futures):
                future.result()
                bar.advance()
            return [future.result() for future in futures]


@contextlib.contextmanager
def _told_of_loss(label: str, advice: str = "") -> Iterator[None]:
    """Makes one sentence of a worker that was ended from outside.

    Raises:
      WorkdirError: one was.
    """
    try:
        yield
    except concurrent.futures.process.BrokenProcessPool as error:
        raise WorkdirError(
            f"a process of {label} was ended from outside (out of memory?); what was "
            f"finished is kept: run the same command again{advice}"
        ) from error


class Background:
    """Jobs handed to processes beside this one, as they come; for few jobs, or on one core, they
    are done here.

    Args:
      function: of one job; imported anew by every worker, so better without JAX.
      jobs: how many there will be, at most.
      label: what is done, for the sentence that tells of a lost worker.
    """

    _FEW = 3  # starting a process takes longer than drawing so few slides
    _WAITING = 4  # jobs held in memory for each worker

    def __init__(self, function: Callable[[Any], Any], jobs: int, *, label: str):
        self._function, self._label = function, label
        self._workers = min(jobs, usable_cores()) if jobs > self._FEW else 1
        self._futures: list[concurrent.futures.Future] = []
        self._results: list[Any] = []

    def __enter__(self) -> "Background":
        self._stack = contextlib.ExitStack()
        if self._workers > 1:
            self._pool = self._stack.enter_context(_pool(self._workers))
        return self

    def submit(self, job: Any) -> None:
        """Does the job, or hands it over once there is room.

        Raises:
          WorkdirError: a worker was ended from outside.
        """
        if self._workers <= 1:
            self._results.append(self._function(job))
            return
        self._futures.append(self._pool.submit(self._function, job))
        behind = len(self._futures) - self._WAITING * self._workers
        if behind >= 0:
            self._result(self._futures[behind])

    def results(self) -> list[Any]:
        """Of all jobs so far, in their order; waits for them.

        Raises:
          WorkdirError: a worker was ended from outside.
        """
        return self._results + [self._result(future) for future in self._futures]

    def _result(self, future: concurrent.futures.Future) -> Any:
        with _told_of_loss(self._label):
            return future.result()

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Workers that end with their parent, whose log is this process's."""
    context = multiprocessing.get_context("spawn")  # forking a process that holds JAX hangs
    told = context.Queue()
    listener = logging.handlers.QueueListener(told, _Retold())
    listener.start()
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(), told)
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        listener.stop()


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine's in a container or batch job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Retold(logging.Handler):
    """Log records of a worker, as if they were this process's own."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(record.name).handle(record)


def _start_worker(parent: int, told: Any) -> None:
    # One process writes to the terminal, or bars and lines of several would mix.
    setup_logging(handler=logging.handlers.QueueHandler(told))

    # A killed run must not leave workers behind that write while its successor does.
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
