"""What a run tells in the terminal: log lines, and progress of long work."""

import contextlib
import io
import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import rich.box
import rich.console
import rich.logging
import rich.progress
import rich.table
import rich.text

_log = logging.getLogger(__name__)
# Without a terminal, a line of progress at most this often (seconds).
_LINE_SECONDS = 10.0
_NOISY = ("orbax", "grain", "jax", "tensorboardX", "tifffile", "PIL", "matplotlib")


def setup_logging(level: int = logging.INFO, *, handler: logging.Handler | None = None) -> None:
    """Sends this package's log to stderr, coloured in a terminal; libraries only warn.

    Replaces whatever handlers the root logger had (absl installs one of its own).

    Args:
      level: of this package's lines.
      handler: takes them instead, and no bar is drawn here: a worker's lines to its parent.
    """
    root = logging.getLogger()
    _shared["live"] = handler is None
    root.handlers[:] = [_terminal_handler() if handler is None else handler]
    root.setLevel(level)
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    # What tifffile says of a broken file stands in our own sentence.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    # Orbax warns through absl about every remainder of a killed run that it cleans up.
    logging.getLogger("absl").setLevel(logging.ERROR)


def _terminal_handler() -> logging.Handler:
    if sys.stderr.isatty():
        handler: logging.Handler = rich.logging.RichHandler(
            console=_console(), show_path=False, log_time_format="%H:%M:%S"
        )
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handler


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows as a table for the log, as wide as the terminal, or 120 letters."""
    shown = rich.table.Table(*titles, box=rich.box.SIMPLE_HEAD)
    for row in rows:
        shown.add_row(*(rich.text.Text(cell) for cell in row))
    width = _console().width if sys.stderr.isatty() else 120
    console = rich.console.Console(file=io.StringIO(), width=width)
    console.print(shown)
    return "\n".join(line.rstrip() for line in console.file.getvalue().strip("\n").splitlines())


class Progress:
    """Counts finished items of one task; see `progress`."""

    def __init__(
        self, label: str, total: int | None, done: int, bar: rich.progress.Progress | None
    ):
        self._label, self._total, self._done = label, total, done
        self._bar = bar
        self._task = bar.add_task(label, total=total, completed=done, note="") if bar else None
        self._first = done
        self._start = self._last_line = time.monotonic()
        self._after_first: tuple[float, int] | None = None
        self._lock = threading.Lock()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts `count` more items; `note` is shown behind the numbers. Any thread may call."""
        with self._lock:
            self._done += count
            if self._after_first is None:
                self._after_first = time.monotonic(), self._done
            if self._bar is not None:
                self._bar.update(self._task, advance=count, **({"note": note} if note else {}))
            elif time.monotonic() - self._last_line >= _LINE_SECONDS:
                self._last_line = time.monotonic()
                _log.info("%s", self._line(note))

    def close(self) -> None:
        """Takes the bar away and leaves one line that says what was done."""
        if self._bar is not None:
            self._bar.remove_task(self._task)
        _log.info("%s", self._line())

    def _line(self, note: str = "") -> str:
        seconds = time.monotonic() - self._start
        rate = (self._done - self._first) / max(seconds, 1e-9)
        of = "" if self._total is None else f"/{self._total}"
        parts = [f"{self._label}: {self._done}{of}", per_second(rate), f"{seconds:.1f} s"]
        if self._total is not None and self._done < self._total and rate > 0:
            parts.append(f"{(self._total - self._done) / self._steady(rate):,.0f} s left")
        return ", ".join([*parts, note] if note else parts)

    def _steady(self, rate: float) -> float:
        """Items a second after the first step, which waits for compilation and for processes to
        start; the rate of all where there was one step only."""
        if self._after_first is None:
            return rate
        since, done = self._after_first
        seconds = time.monotonic() - since
        return (self._done - done) / seconds if self._done > done and seconds > 0 else rate


def per_second(rate: float) -> str:
    """A rate in three digits, whole from a hundred on."""
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s"


class _Rate(rich.progress.ProgressColumn):
    def render(self, task: rich.progress.Task) -> str:
        return "" if not task.speed else per_second(task.speed)


_shared_lock = threading.Lock()
_shared: dict[str, Any] = {"bar": None, "users": 0, "console": None, "live": True}


def _console() -> rich.console.Console:
    """One console for bars and log lines, so that lines appear above a live bar."""
    if _shared["console"] is None:
        _shared["console"] = rich.console.Console(stderr=True)
    return _shared["console"]


@contextlib.contextmanager
def _live_bar() -> Iterator[rich.progress.Progress | None]:
    """The one live display of the terminal, shared by nested tasks; None without a terminal."""
    if not (_shared["live"] and sys.stderr.isatty()):
        yield None
        return
    with _shared_lock:
        if _shared["bar"] is None:
            _shared["bar"] = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                _Rate(),
                rich.progress.TimeRemainingColumn(),
                rich.progress.TextColumn("{task.fields[note]}"),
                console=_console(),
                transient=True,
            )
            _shared["bar"].start()
        _shared["users"] += 1
    try:
        yield _shared["bar"]
    finally:
        with _shared_lock:
            _shared["users"] -= 1
            if not _shared["users"]:
                _shared["bar"].stop()
                _shared["bar"] = None


@contextlib.contextmanager
def progress(label: str, total: int | None, *, done: int = 0) -> Iterator[Progress]:
    """Shows done, total, rate and time left of a task; `with progress("prepare", 12) as bar:`.

    In a terminal a live bar, else a log line every ten seconds; at the end one log line.

    Args:
      label: what is being counted.
      total: number of items, or None where it is not known.
      done: items that an earlier run finished; they do not count for the rate.
    """
    with _live_bar() as bar:
        task = Progress(label, total, done, bar)
        try:
            yield task
        finally:
            task.close()
