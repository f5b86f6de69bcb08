"""A folder of a bucket that is written to: objects are put, read, copied and removed by their names
in it."""

import functools
import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TypeVar

from lrmil_jax import files
from lrmil_jax.errors import WorkdirError
from lrmil_jax.storage import objects
from lrmil_jax.storage.attempts import repeated

LARGE = 16 << 20  # bytes of an object that is not read in one piece
_Item = TypeVar("_Item")
_Value = TypeVar("_Value")


class BucketFolder:
    """All objects below a URL. Each method raises WorkdirError, with one sentence, where the
    storage cannot be read or written.

    Args:
      url: `s3://bucket/path` or `gs://bucket/path`.

    Attributes:
      url: the same, without a slash at its end.

    Raises:
      ConfigError: it is no such URL, or the package for it is not installed.
    """

    def __init__(self, url: str):
        scheme, self._place = objects.parted(url)
        self.url = f"{scheme}://{self._place}"
        self._system = objects.filesystem(scheme)

    def names(self, folder: str) -> list[str]:
        """Of the objects right in a folder below, in order; none if there is no such folder."""
        self._system.invalidate_cache()
        listing = functools.partial(self._system.ls, self._path(folder), detail=False)
        found = self._try(lambda: _or_if_missing(listing, []), folder, "read")
        return sorted(f"{folder}/{PurePosixPath(path).name}" for path in found)

    def read(self, name: str) -> bytes | None:
        """The content of a small object; None if there is none."""
        reading = functools.partial(self._system.cat_file, self._path(name))
        return self._try(lambda: _or_if_missing(reading, None), name, "read")

    def write(self, name: str, content: bytes) -> None:
        """Puts a small object, over what was there."""
        self._try(lambda: self._system.pipe_file(self._path(name), content), name, "written")

    def create(self, name: str, content: bytes) -> bool:
        """Puts a small object where none is.

        Returns:
          False where one is there. A storage that knows no conditions puts it over that one.
        """

        def put() -> bool:
            try:
                self._system.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return False
            return True

        return self._try(put, name, "written")

    def upload(self, path: Path, name: str, md5: str) -> None:
        """Puts a file, and looks whether the storage has what was sent.

        Args:
          path: of the file.
          name: of the object.
          md5: of the file's content.
        """
        size, place = path.stat().st_size, self._path(name)

        def put() -> None:
            self._system.put_file(str(path), place)
            self._system.invalidate_cache()
            stored = objects.described("", place, self._system.info(place))
            other = stored.md5 not in ("", md5) and not objects.is_encrypted(self._system, place)
            if stored.size != size or other:
                raise OSError("what is stored is not what was sent")

        self._try(put, name, "written")

    def download(self, name: str, path: Path, *, size: int, md5: str) -> None:
        """Copies an object to a file that is whole or not there.

        Args:
          name: of the object.
          path: of the file, whose folder is made if need be.
          size, md5: of the content that is wanted.

        Raises:
          WorkdirError: it is not there, cannot be read or has another content, or the disk is full.
        """
        url = f"{self.url}/{name}"
        with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
            if size <= LARGE:
                file.write(repeated(lambda: self._whole(name, md5), url, WorkdirError))
            elif objects.copy(url, size, file, kind=WorkdirError) != md5:
                raise WorkdirError(f"{url} has another content than the run that wrote it noted; "
                                   "run the same command again")  # fmt: skip

    def _whole(self, name: str, md5: str) -> bytes:
        content = self._system.cat_file(self._path(name))
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise OSError("another content than the run that wrote it noted")
        return content

    def copy(self, name: str, target: str) -> None:
        """Puts a copy of an object under another name, if it is there; the storage does it."""
        copying = functools.partial(self._system.cp_file, self._path(name), self._path(target))
        self._try(lambda: _or_if_missing(copying, None), target, "written")

    def remove(self, name: str) -> None:
        """Removes an object, if it is there."""
        removing = functools.partial(self._system.rm_file, self._path(name))
        self._try(lambda: _or_if_missing(removing, None), name, "written")

    def _path(self, name: str) -> str:
        return f"{self._place}/{name}"

    def _try(self, function: Callable[[], _Value], name: str, verb: str) -> _Value:
        return repeated(function, f"{self.url}/{name}", WorkdirError, verb)


def _or_if_missing(function: Callable[[], _Value], value: _Value) -> _Value:
    """What a function gives, or a value where there is no such object."""
    try:
        return function()
    except FileNotFoundError:
        return value


def in_threads(function: Callable[[_Item], object], items: Iterable[_Item], threads: int) -> None:
    """Calls a function with each item; the first error ends it, and what has not begun is left."""
    with ThreadPoolExecutor(threads) as pool:
        calls = [pool.submit(function, item) for item in items]
        try:
            for call in calls:
                call.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
