"""Work in processes beside this one: results as they come, one lost process loses one job, and no
process outlives its parent."""

import concurrent.futures
import contextlib
import logging
import logging.handlers
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from lrmil_jax.errors import WorkdirError
from lrmil_jax.progress import progress, setup_logging

# Jobs handed out and not yet done, for each process: a process that ends takes so many with it.
_WAITING = 2
# Why a slide is left out on which a process ended twice.
DIED = (
    "the process that read it was ended from outside, twice (a decoder that broke, or too little "
    "memory); leave the slide out or convert it"
)


def map_jobs(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    *,
    workers: int,
    label: str,
    key: str = "prepare.workers",
    lost: Callable[[Any, str], Any] | None = None,
) -> list[Any]:
    """`function` of every job, in the order of the jobs, with progress.

    Args:
      function: imported anew by every worker, so better without JAX where JAX is not needed.
      jobs: one a slide, or whatever is done on its own.
      workers: processes; 0 is one per core, and 1 stays in this one.
      label: for the progress display.
      key: the config key of `workers`, for the sentence that tells of a lost one.
      lost: the result of a job that ended its process twice, from the job and the reason; without
        it such a job ends all.

    Raises:
      WorkdirError: a job ended its process twice; what had been finished stays.
    """
    if not jobs:
        return []
    workers = min(workers or usable_cores(), len(jobs))
    results: list[Any] = [None] * len(jobs)
    with progress(label, len(jobs)) as bar, Workers(workers, label=label, key=key) as others:
        waiting: dict[concurrent.futures.Future, tuple[int, Answer]] = {}
        for number, job in enumerate(jobs):
            answer = others.submit(function, job)
            waiting[answer.future] = number, answer
            last = number == len(jobs) - 1
            while waiting and (last or len(waiting) >= others.room):
                done, _ = concurrent.futures.wait(waiting, return_when="FIRST_COMPLETED")
                for future in done:
                    place, answer = waiting.pop(future)
                    results[place] = _result(answer, jobs[place], lost)
                    bar.advance()
    return results


def _result(answer: "Answer", job: Any, lost: Callable[[Any, str], Any] | None) -> Any:
    try:
        return answer.result()
    except LostError as error:
        if lost is None:
            raise
        return lost(job, str(error))


class LostError(WorkdirError):
    """A job ended the process that worked on it, and did so again when it was alone."""


class Workers:
    """Processes that work while this one goes on.

    A process that is ended from outside, by the system or by a broken decoder, takes with it what
    the others were at: all that is done once more, each job in a process of its own, so that only
    the job at fault is lost.

    Args:
      count: processes; 1 or fewer means that this one does the work when it is asked to.
      label: what is done, for the sentence that tells of a lost process.
      key: the config key of `count`, if there is one.
      held: given to every process once; the functions get it as their first argument. None: the
        functions get their own arguments alone.
    """

    def __init__(self, count: int, *, label: str, key: str | None = None, held: Any = None):
        self.count = count
        self._label, self._key, self._held = label, key, held
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def room(self) -> int:
        """Jobs that may be waited for at a time: enough that no process waits for the next."""
        return 1 if self.count <= 1 else _WAITING * self.count

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Answer":
        """Begins with `function(*arguments)`, or `function(held, *arguments)`; any thread may."""
        if self.count <= 1:
            return Answer(self, _done_here(function, self._arguments(arguments)), None, ())
        call = (function, arguments, self._held is not None)
        while True:
            with self._lock:
                if self._pool is None:
                    self._pool = self._stack.enter_context(_pool(self.count, self._held))
                pool = self._pool
            try:
                return Answer(self, pool.submit(_call, *call), pool, call)
            except BrokenProcessPool:
                self._give_up(pool)

    def _arguments(self, arguments: tuple) -> tuple:
        return arguments if self._held is None else (self._held, *arguments)

    def _give_up(self, pool: Any) -> None:
        """Forgets a pool that has lost a process; whoever comes first makes another."""
        with self._lock:
            if self._pool is pool:
                self._pool = None

    def _alone(self, pool: Any, call: tuple) -> Any:
        """Once more what was lost with its pool, in a process where nothing else can be at fault.

        Raises:
          LostError: that process ended too.
        """
        self._give_up(pool)
        try:
            with _pool(1, self._held) as own:
                return own.submit(_call, *call).result()
        except BrokenProcessPool as error:
            fewer = "" if self._key is None else f", with fewer {self._key}"
            raise LostError(
                f"a process of {self._label} was ended from outside (out of memory?); what was "
                f"finished is kept: run the same command again{fewer}"
            ) from error


class Answer:
    """What a process will say; see `Workers.submit`."""

    def __init__(self, workers: Workers, future: concurrent.futures.Future, pool: Any, call: tuple):
        self.future = future
        self._workers, self._pool, self._call = workers, pool, call

    def result(self) -> Any:
        """Waits for it; what the function raises is raised here.

        Raises:
          LostError: the job ended its process twice.
        """
        try:
            return self.future.result()
        except BrokenProcessPool:
            return self._workers._alone(self._pool, self._call)


def _done_here(function: Callable[..., Any], arguments: tuple) -> concurrent.futures.Future:
    future: concurrent.futures.Future = concurrent.futures.Future()
    try:
        future.set_result(function(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future


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

    def __exit__(self, *_: object) -> None:
        self._workers.__exit__()


@contextlib.contextmanager
def _pool(workers: int, held: Any):
    """Processes that end with their parent, whose log is this process's."""
    context = multiprocessing.get_context("spawn")  # forking a process that holds JAX hangs
    told = context.Queue()
    listener = logging.handlers.QueueListener(told, _Retold())
    listener.start()
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(), told, held)
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


_held: list[Any] = [None]  # in a worker: what its `Workers` gave to every process


def _call(function: Callable[..., Any], arguments: tuple, with_held: bool) -> Any:
    return function(_held[0], *arguments) if with_held else function(*arguments)


def _start_worker(parent: int, told: Any, held: Any) -> None:
    # One process writes to the terminal, or bars and lines of several would mix.
    setup_logging(handler=logging.handlers.QueueHandler(told))
    _held[0] = held

    # A killed run must not leave workers behind that write while its successor does.
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
