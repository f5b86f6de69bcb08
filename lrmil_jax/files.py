"""Whole files or none, and disk trouble told in one sentence."""

import contextlib
import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lrmil_jax.errors import WorkdirError

_SENTENCES = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "your disk quota is used up: free some space and run the same command again",
    errno.EROFS: "the file system is read-only: choose a folder that can be written",
    errno.EACCES: "permission is denied: choose a folder that can be written",
    errno.EPERM: "permission is denied: choose a folder that can be written",
    errno.ENOTDIR: "a file is in the way of a folder: choose another folder",
    errno.EEXIST: "a file is in the way of a folder: choose another folder",
}


def _errno(error: BaseException) -> int | None:
    """The known disk error behind an exception, or None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _SENTENCES:
            return seen.errno
        # Orbax writes through TensorStore, which reports the system's error only as text.
        for code in _SENTENCES:
            if os.strerror(code) in str(seen):
                return code
        seen = seen.__cause__ or seen.__context__
    return None


@contextlib.contextmanager
def disk_errors(path: Path | str) -> Iterator[None]:
    """Turns a full, read-only or forbidden disk under `path` into a WorkdirError.

    Every other exception passes unchanged.

    Raises:
      WorkdirError: nothing can be written under `path`.
    """
    try:
        yield
    except Exception as error:
        code = _errno(error)
        if code is None:
            raise
        raise WorkdirError(f"cannot write under {path}: {_SENTENCES[code]}.") from error


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text that others wrote.

    Raises:
      ValueError: it is none, is not UTF-8, or is nested beyond all use.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _temporary(path: Path) -> Path:
    """A name beside `path` that `remove_leftovers` knows."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Gives a temporary path beside `path` that becomes `path` when the block ends well.

    The content is on disk before the name is, so a file under its final name is complete even
    after a power cut.

    Raises:
      WorkdirError: the disk is full, read-only or forbidden.
    """
    path = Path(path)
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """As `atomic_path`, of a folder that the block makes, without waiting for the disk; a folder
    that is there is replaced.

    Raises:
      WorkdirError: the disk is full, read-only or forbidden.
    """
    path = Path(path)
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            yield temporary
            if path.is_dir():
                shutil.rmtree(path)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def link(path: Path, target: Path) -> None:
    """Makes `path` a link to `target`, relative so that both may move together."""
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        temporary.symlink_to(os.path.relpath(target.resolve(), path.parent.resolve()))
        os.replace(temporary, path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: Path | str, text: str) -> None:
    """Writes a small file, whole or not at all; one that says the same already is left alone."""
    path, content = Path(path), text.encode()
    if path.is_file() and path.read_bytes() == content:
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def remove_leftovers(folder: Path, *, below: bool = True) -> None:
    """Removes files and folders that a killed run left under the temporary names of `atomic_path`
    and `atomic_folder`.

    The caller must be the only one at work there.

    Args:
      folder: where to look; it need not exist.
      below: in the folders below it too.
    """
    for path in list(folder.rglob(".*.tmp") if below else folder.glob(".*.tmp")):
        if not _TEMPORARY.fullmatch(path.name):
            continue
        if path.is_file() or path.is_symlink():
            path.unlink(missing_ok=True)
        elif path.is_dir():
            shutil.rmtree(path)


def write_table(path: Path, frame) -> None:
    """Writes a pandas frame as CSV, whole or not at all; the same content is left alone."""
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))
