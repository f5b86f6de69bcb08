"""Copies of objects on the local disk: fetched once, held while they are read, removed for room.

A copy is held by a shared lock on a small file beside it, and fetched or removed under an exclusive
one, so that processes agree, and whatever a process held is free when it ends.
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lrmil_jax import files
from lrmil_jax.errors import SlideError
from lrmil_jax.storage import mirror, objects

log = logging.getLogger(__name__)

_GIB = 2**30
_PATIENCE = 300.0  # seconds that a reader waits until others let go of their files
_LOOK = 0.1  # seconds between two looks for room
_MARK = ".staged"  # ends the name of the file that tells what a copy is of


class _StoppedError(Exception):
    """Nobody wants the copy any longer."""


_tables: dict[
    Path, contextlib.ExitStack
] = {}  # stay for as long as the run, which reads them often


def fetched(url: str, folder: mirror.Staging) -> Path:
    """The local path of one object that stays there until the run ends, for small files.

    Raises:
      UserError: see `mirror.local_file` and `hold`.
    """
    path = mirror.local_file(url, folder)
    if path not in _tables:
        _tables[path] = hold(path)
    return path


def forget() -> None:
    """The next use of a URL asks the storage again."""
    mirror.forget()
    while _tables:
        _tables.popitem()[1].close()


def hold(path: Path, *, interrupted: Callable[[], bool] | None = None) -> contextlib.ExitStack:
    """Sees to it that a file is on the local disk, and that it stays until this is closed.

    Args:
      path: of any file; nothing is done for one that stands for no object.
      interrupted: gives up, if given, and waits for room for as long as it takes.

    Raises:
      SlideError: the object cannot be fetched, was changed, or has no room.
      ConfigError: the package that reads such objects is not installed.
      WorkdirError: the disk is full.
    """
    known = mirror.record(path)
    held = contextlib.ExitStack()
    if known is None:
        return held
    lock = held.enter_context(_lock_path(path).open("ab"))
    try:
        while True:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if _is_current(path, known):
                os.utime(path)  # the least recently used goes first
                return held
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_current(path, known):
                _fetch(path, known, interrupted)
    except BaseException:
        held.close()
        raise


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _mark_path(path: Path) -> Path:
    return path.with_name(f".{path.name}{_MARK}")


def _is_current(path: Path, known: mirror.Record) -> bool:
    """Whether a whole copy of this very object is there."""
    try:
        copied = json.loads(_mark_path(path).read_text(encoding="utf-8"))
        size = path.stat().st_size
    except (OSError, ValueError):
        return False
    return copied == dataclasses.asdict(known.object) and size == known.object.size


def _fetch(path: Path, known: mirror.Record, interrupted: Callable[[], bool] | None) -> None:
    """Copies the object; its lock is held exclusively."""
    _drop(path)
    try:
        # Before the copy, which is one whole or none: no copy is ever without a mark and uncounted.
        files.write_json(_mark_path(path), dataclasses.asdict(known.object))
        with files.atomic_path(path) as temporary:
            _make_room(temporary, known, interrupted)
            if not objects.fetch(known.object, temporary, interrupted=interrupted or _never):
                raise _StoppedError
    except BaseException:
        _drop(path)
        raise


def _never() -> bool:
    return False


def _drop(path: Path) -> None:
    """Removes a copy."""
    path.unlink(missing_ok=True)
    _mark_path(path).unlink(missing_ok=True)


def _make_room(
    temporary: Path, known: mirror.Record, interrupted: Callable[[], bool] | None
) -> None:
    """Waits until the object fits, removing copies that nobody holds; then `temporary` has its
    size, so that others count it.

    Raises:
      SlideError: it is larger than all room, or others hold too much for too long.
    """
    size, limit = known.object.size, _limit(known.staging)
    if size > limit:
        raise SlideError(
            f"{known.object.url} has {size / _GIB:.2g} GiB, and staged files may have "
            f"{limit / _GIB:.2g} GiB together; raise data.staging_gib"
        )
    end, told = time.monotonic() + _PATIENCE, interrupted is not None
    while True:
        with _alone(known.staging):
            if _shrunk_to(known.staging, limit - size):
                with open(temporary, "wb") as file:
                    file.truncate(size)
                return
        if interrupted is not None and interrupted():
            raise _StoppedError
        if not told:
            log.warning(
                "%s waits for room among the staged files (data.staging_gib)", known.object.url
            )
            told = True
        if interrupted is None and time.monotonic() > end:
            raise SlideError(
                f"{known.object.url} has no room beside the staged files that are being read "
                f"({limit / _GIB:.2g} GiB together); raise data.staging_gib"
            )
        time.sleep(_LOOK)


def _limit(staging: Path) -> int:
    return json.loads((staging / mirror.SETTINGS).read_text(encoding="utf-8"))["bytes"]


@contextlib.contextmanager
def _alone(staging: Path) -> Iterator[None]:
    """One process, and one thread of it, at a time counts and removes."""
    with open(staging / ".lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _shrunk_to(staging: Path, room: int) -> bool:
    """Removes copies that nobody holds, the least recently used first, until `room` bytes at most
    are left; False if more are held."""
    copies = sorted(_copies(staging), key=lambda copy: copy[1].st_mtime)
    total = sum(state.st_size for _, state in copies)
    for path, state in copies:
        if total <= room:
            return True
        if _removed(path):
            total -= state.st_size
    return total <= room


def _copies(staging: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Copies, and what is being fetched or was left over by a killed process."""
    for mark in staging.rglob(f".*{_MARK}"):
        with contextlib.suppress(OSError):
            path = mark.with_name(mark.name[1 : -len(_MARK)])
            yield path, path.stat()
    for path in staging.rglob(".*.tmp"):
        with contextlib.suppress(OSError):
            yield path, path.stat()


def _removed(path: Path) -> bool:
    """Removes a copy, or what was left over of one, if nobody holds it."""
    owner = path
    if path.suffix == ".tmp":  # .NAME.xxxxxxxx.tmp of `files.atomic_path`
        owner = path.with_name(path.name[1:].rpartition(".")[0].rpartition(".")[0])
    with open(_lock_path(owner), "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        _drop(owner)
        path.unlink(missing_ok=True)
    return True


class Ahead:
    """Fetches files in a thread, before they are opened; of files on a disk it does nothing.

    Args:
      paths: in the order in which they will be read.
      count: files that are fetched and not yet done with, at most.
    """

    def __init__(self, paths: Sequence[Path], *, count: int):
        self._paths = [path for path in paths if mirror.record(path) is not None]
        self._count = max(1, count)
        self._held: dict[Path, contextlib.ExitStack] = {}
        self._done: set[Path] = set()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Ahead":
        if self._paths:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._paths:
            self._thread.join()
        for held in self._held.values():
            held.close()

    def finished(self, path: Path) -> None:
        """A file was read, or is not wanted any longer; its copy may go."""
        with self._changed:
            self._done.add(path)
            held = self._held.pop(path, None)
            self._changed.notify_all()
        if held is not None:
            held.close()

    def _run(self) -> None:
        for path in self._paths:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or len(self._held) < self._count)
                if self._stopped:
                    return
            try:
                held = hold(path, interrupted=lambda path=path: self._unwanted(path))
            except Exception:  # of any kind: who opens it is told
                continue
            with self._changed:
                if not self._unwanted(path):
                    self._held[path] = held
                    continue
            held.close()

    def _unwanted(self, path: Path) -> bool:
        return self._stopped or path in self._done
