"""Processes beside this one, one job at a time each: lost ones lose their own job, hanging ones are
ended, and none outlives its parent."""

import concurrent.futures
import contextlib
import logging
import logging.handlers
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from lrmil_jax.errors import WorkdirError
from lrmil_jax.progress import setup_logging

_CONTEXT = multiprocessing.get_context("spawn")  # forking a process that holds JAX hangs
# Jobs handed out and not yet done, for each process: one that works and one that waits.
_WAITING = 2
# Why a slide is left out on which a process ended twice, or did not end.
DIED = (
    "the process that read it was ended from outside, twice (a decoder that broke, or too little "
    "memory); leave the slide out or convert it"
)
TOO_LONG = (
    "reading it took longer than {seconds:g} s and was stopped (a decoder that hangs, or a slow "
    "disk); raise prepare.seconds_per_slide, or convert the slide"
)


class LostError(WorkdirError):
    """A job ended the process that worked on it, and did so again; or it did not end in time.

    Attributes:
      reason: why a slide is left out whose job it was.
    """

    def __init__(self, message: str, reason: str = DIED):
        super().__init__(message)
        self.reason = reason


class Workers:
    """Processes that work while this one goes on.

    Each has one job at a time, so that one that is ended from outside, by the system or by a broken
    decoder, takes no other job with it; its own is done once more in a new process.

    Args:
      count: processes; 1 or fewer means that this one does the work when it is asked to.
      label: what is done, for the sentence that tells of a lost process.
      key: the config key of `count`, if there is one.
      held: given to every process once; the functions get it as their first argument. None: the
        functions get their own arguments alone.
      seconds: that a job may take, or its process is killed; 0: any.
      apart: one process is one beside this one too.
    """

    def __init__(
        self,
        count: int,
        *,
        label: str,
        key: str | None = None,
        held: Any = None,
        seconds: float | int = 0.0,
        apart: bool = False,
    ):
        self.count = count
        self.beside = count > 1 or apart
        self._label, self._key, self._held, self._seconds = label, key, held, seconds
        self._slots: queue.LifoQueue[_Beside] = queue.LifoQueue()  # those that run go first
        self._all: list[_Beside] = []
        self._interrupted = False
        self._lock = threading.Lock()
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not issubclass(kind, Exception):
            self._interrupted = True  # nobody waits for what goes on
            for slot in self._all:
                slot.kill()
        self._stack.close()

    def begin(self) -> None:
        """Starts a process before there is work for it, if processes work at all."""
        if self.beside:
            self.submit(_nothing)

    @property
    def room(self) -> int:
        """Jobs that may be waited for at a time: enough that no process waits for the next."""
        return _WAITING * max(1, self.count) if self.beside else 1

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Answer":
        """Begins with `function(*arguments)`, or `function(held, *arguments)`; any thread may."""
        if not self.beside:
            held = () if self._held is None else (self._held,)
            return Answer(_done_here(function, (*held, *arguments)))
        with self._lock:
            if self._threads is None:
                self._start()
        call = (function, arguments, self._held is not None)
        return Answer(self._threads.submit(self._in_process, call))

    def _start(self) -> None:
        """One thread a process, which waits for it; processes start with their first job."""
        told = _CONTEXT.Queue()
        listener = logging.handlers.QueueListener(told, _Retold())
        listener.start()
        self._stack.callback(listener.stop)
        self._all = [_Beside(told, self._held) for _ in range(max(1, self.count))]
        for slot in self._all:
            self._stack.callback(slot.close)
            self._slots.put(slot)
        self._threads = concurrent.futures.ThreadPoolExecutor(len(self._all))
        self._stack.callback(self._threads.shutdown, cancel_futures=True)

    def _in_process(self, call: tuple) -> Any:
        """Of a call; raises what it raises.

        Raises:
          LostError: its process ended twice, or it took too long.
        """
        slot = self._slots.get()
        try:
            try:
                return self._once(slot, call)
            except BrokenProcessPool:
                return self._once(slot, call)
        except BrokenProcessPool as error:
            fewer = "" if self._key is None else f", with fewer {self._key}"
            raise LostError(
                f"a process of {self._label} was ended from outside (out of memory?); what was "
                f"finished is kept: run the same command again{fewer}"
            ) from error
        except _TooLongError as error:
            raise LostError(
                f"a process of {self._label} took longer than {self._seconds:g} s and was ended; "
                "what was finished is kept: run the same command again",
                TOO_LONG.format(seconds=self._seconds),
            ) from error
        finally:
            self._slots.put(slot)

    def _once(self, slot: "_Beside", call: tuple) -> Any:
        if self._interrupted:
            raise concurrent.futures.CancelledError
        return slot.do(call, self._seconds)


class _TooLongError(Exception):
    """A call did not end in time; its process is gone."""


class _Beside:
    """One process beside this one; when it was lost, the next call starts another."""

    def __init__(self, told: Any, held: Any):
        self._arguments = (os.getpid(), told, held)
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None
        self._pid: int | None = None

    def do(self, call: tuple, seconds: float | int) -> Any:
        """The value of a call.

        Raises:
          BrokenProcessPool: the process ended.
          _TooLongError: it took longer than this, if not 0, and its process was killed.
        """
        try:
            if self._pool is None:
                self._pool = concurrent.futures.ProcessPoolExecutor(
                    1, mp_context=_CONTEXT, initializer=_start_worker, initargs=self._arguments
                )
                self._pid = self._pool.submit(os.getpid).result()
            future = self._pool.submit(_call, *call)
            done, _ = concurrent.futures.wait([future], seconds or None)
            if not done:
                self.kill()
                raise _TooLongError
            return future.result()
        except (BrokenProcessPool, _TooLongError):
            self.close()
            raise

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """Waits until the process has ended."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = self._pid = None


class Answer:
    """What a process will say; see `Workers.submit`."""

    def __init__(self, future: concurrent.futures.Future):
        self.future = future

    def result(self) -> Any:
        """Waits for it; what the function raises is raised here.

        Raises:
          LostError: the job ended its process twice, or took too long.
        """
        return self.future.result()


def _done_here(function: Callable[..., Any], arguments: tuple) -> concurrent.futures.Future:
    future: concurrent.futures.Future = concurrent.futures.Future()
    try:
        future.set_result(function(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future


class _Retold(logging.Handler):
    """Log records of a worker, as if they were this process's own."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(record.name).handle(record)


def _nothing(*_: Any) -> None:
    """What a process does first."""


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
