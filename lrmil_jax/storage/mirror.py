"""The local folder that stands for a bucket: a path for each object, and a record of it beside."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

from lrmil_jax import files
from lrmil_jax.errors import DataError
from lrmil_jax.storage import objects
from lrmil_jax.storage.objects import StoredObject

SETTINGS = ".staging.json"  # in the staging folder itself
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Record:
    """What belongs at a path.

    Attributes:
      object: as it was listed.
      staging: the folder in which copies are kept.
    """

    object: StoredObject
    staging: Path


@dataclasses.dataclass(frozen=True)
class Staging:
    """Where copies are kept, and how much of them.

    Attributes:
      folder: of copies; by default in the user's cache.
      gib: of all copies together, at most.
    """

    folder: str | None
    gib: float

    @property
    def path(self) -> Path:
        """The folder, absolute."""
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return Path(os.path.abspath(self.folder or base / "lrmil_jax" / "staging"))


_listed: dict[tuple[str, Path], list[Path]] = {}  # once a process, so that a run sees one state


def forget() -> None:
    """The next use of a URL lists it again."""
    _listed.clear()


def local_folder(url: str, staging: Staging) -> Path:
    """The local folder of all objects below a URL, which are listed but not fetched.

    Raises:
      ConfigError: no such scheme, or its package is missing.
      DataError: nothing is there, or it cannot be listed.
      WorkdirError: the staging folder cannot be written.
    """
    scheme, place = objects.parted(url)
    folder = staging.path / scheme / place
    if (url, folder) not in _listed:
        _prepare(staging)
        found = [_note(one, staging.path) for one in objects.listed(url)]
        for path in set(paths(folder)) - set(found):
            record_path(path).unlink(missing_ok=True)  # the object is gone
        _listed[url, folder] = found
    return folder


def local_file(url: str, staging: Staging) -> Path:
    """The local path of one object, which is listed but not fetched.

    Raises:
      DataError: it is not there, or is no single object.
      ConfigError, WorkdirError: see `local_folder`.
    """
    scheme, place = objects.parted(url)
    path = staging.path / scheme / place
    if (url, path) not in _listed:
        _prepare(staging)
        found = objects.listed(url)
        if [one.url for one in found] != [f"{scheme}://{place}"]:
            raise DataError(f"{url} is a folder and not a file; give the file")
        _listed[url, path] = [_note(found[0], staging.path)]
    return path


def _prepare(staging: Staging) -> None:
    files.write_json(staging.path / SETTINGS, {"bytes": int(staging.gib * _GIB)})


def _note(one: StoredObject, staging: Path) -> Path:
    """Writes the record of an object, and gives its path."""
    scheme, place = objects.parted(one.url)
    path = staging / scheme / place
    files.write_json(record_path(path), dataclasses.asdict(one) | {"staging": str(staging)})
    return path


def remember(known: Record, gib: float) -> None:
    """Notes what another host has listed, so that it can be fetched here.

    Args:
      known: what belongs at a path, which is the same on both.
      gib: see `Staging`.

    Raises:
      WorkdirError: the staging folder cannot be written.
    """
    _prepare(Staging(str(known.staging), gib))
    _note(known.object, known.staging)


def record_path(path: Path) -> Path:
    """Where the record of the object at a path lies."""
    return path.with_name(f".{path.name}.object")


def record(path: Path) -> Record | None:
    """What belongs at a path; None of an ordinary file."""
    try:
        known = json.loads(record_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    staging = Path(known.pop("staging"))
    return Record(StoredObject(**known), staging)


def exists(path: Path) -> bool:
    """Whether there is such a file, here or in object storage."""
    return path.exists() or record_path(path).is_file()


def shown(path: Path) -> str:
    """What users call a file: its URL, or its path."""
    known = record(path)
    return str(path) if known is None else known.object.url


def paths(folder: Path) -> Iterator[Path]:
    """Of all objects that are known below a folder, fetched or not, in order; none of a folder
    that stands for no bucket."""
    # Looked for above, not below: a folder of slides on a disk may hold very many files.
    of_bucket = any((parent / SETTINGS).is_file() for parent in folder.parents)
    for found in sorted(folder.rglob(".*.object")) if of_bucket else ():
        yield found.with_name(found.name[1 : -len(".object")])
