"""The local folder that stands for a working directory in a bucket, and what is known of it."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lrmil_jax import files
from lrmil_jax.errors import ConfigError, WorkdirError
from lrmil_jax.storage import objects
from lrmil_jax.storage.manifests import FOLDER, Entry, entries_of

_STATE = "state.json"
# Locks, what `files.atomic_path` and checkpoints write to before it is whole, and what is on its
# way out: of no use to another host.
_PASSING = re.compile(r"\.(.*\.)?(lock|new|stale|tmp)|.*\.orbax-checkpoint-tmp.*")


@dataclasses.dataclass
class State:
    """What the folder was when it was last the same as the bucket.

    Attributes:
      url: of the working directory.
      part: of the run that worked here: a shard, or what else does not take all.
      saves: of each manifest, the name of its last save.
      unsaved: whether a run has begun to work here and was not saved at its end.
      lease: of the last run here.
      view: what belonged at each path.
      seen: of each file, size, time, inode and MD5, so that it is read once.
    """

    url: str
    part: str = ""
    saves: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unsaved: bool = False
    lease: str = ""
    view: Mapping[str, Entry] = dataclasses.field(default_factory=dict)
    seen: Mapping[str, list] = dataclasses.field(default_factory=dict)


def folder(url: str, part: str, given: str | None) -> Path:
    """Where a working directory of a bucket is on this host.

    Args:
      url: of the working directory.
      part: see `State`; shards on one host do not share a folder.
      given: by the user; None: in the user's cache.
    """
    if given is not None:
        return Path(os.path.abspath(given))
    scheme, place = objects.parted(url)
    bucket, _, path = place.partition("/")
    # One name, as a working directory may lie below another one.
    name = "+".join([*path.split("/"), *([part] if part else [])]) or "+"
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.path.abspath(base / "lrmil_jax" / "workdirs" / scheme / bucket / name))


@contextlib.contextmanager
def locked(root: Path, url: str) -> Iterator[State]:
    """Holds a folder, which is made if need be; gives what was noted of it.

    Raises:
      ConfigError: it holds other files, or another working directory.
      WorkdirError: another run is at work there, or it cannot be written to.
    """
    if root.is_dir() and not (root / FOLDER).is_dir() and any(root.iterdir()):
        raise ConfigError(f"--scratch {root} holds other files, which would be removed; give a "
                          "folder that is empty or not there")  # fmt: skip
    with files.disk_errors(root):
        (root / FOLDER).mkdir(parents=True, exist_ok=True)
        lock = open(root / FOLDER / "lock", "a+")  # noqa: SIM115 - held until the run ends
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WorkdirError(
                f"another run is at work in {root}, where {url} is on this host; wait for it, or "
                "give another --scratch"
            ) from error
        yield _state(root, url)


def _state(root: Path, url: str) -> State:
    try:
        value = json.loads((root / FOLDER / _STATE).read_text(encoding="utf-8"))
        state = State(**value | {"view": entries_of(value["view"])})
    except (OSError, ValueError, TypeError, KeyError):
        return State(url)
    if state.url != url:
        raise ConfigError(f"--scratch {root} stands for {state.url}; give {url} a folder of its "
                          "own")  # fmt: skip
    return state


def note(root: Path, state: State) -> None:
    """Keeps what is known of a folder for the next run on this host."""
    view = {path: dataclasses.asdict(entry) for path, entry in state.view.items()}
    content = json.dumps(dataclasses.asdict(state) | {"view": view})
    with files.atomic_path(root / FOLDER / _STATE) as temporary:
        temporary.write_text(content, encoding="utf-8")


def scan(root: Path, state: State, *, below: tuple[str, ...] = (), follow: bool = True
         ) -> dict[str, Entry]:  # fmt: skip
    """All files that are to be saved, by their paths relative to the folder. `state.seen` is
    brought up to date.

    Args:
      root: the folder.
      state: of it.
      below: names in the folder that are looked at; none: all.
      follow: whether a link that leads out of the folder stands for what it leads to.
    """
    found: dict[str, Entry] = {}
    seen: dict[str, list] = {}
    resolved = root.resolve()
    for path in _walk(root, resolved, below, follow=follow):
        name = path.relative_to(root).as_posix()
        if path.is_symlink() and not _leads_out(path, resolved, follow=follow):
            found[name] = Entry(link=os.readlink(path))
            continue
        known = path.stat()
        mark: list[Any] = [known.st_size, known.st_mtime_ns, known.st_ino]
        before = state.seen.get(name, [])
        seen[name] = [*mark, before[3] if before[:3] == mark else _md5(path)]
        found[name] = Entry(size=known.st_size, md5=seen[name][3])
    state.seen = seen
    return found


def _walk(folder: Path, root: Path, below: tuple[str, ...], *, follow: bool) -> Iterator[Path]:
    """Files and links below a folder, in order."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name == FOLDER or _PASSING.fullmatch(entry.name):
            continue
        if below and entry.name not in below:
            continue
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=_leads_out(path, root, follow=follow)):
            yield from _walk(path, root, (), follow=follow)
        elif entry.is_symlink() or entry.is_file():
            yield path


def _leads_out(path: Path, root: Path, *, follow: bool) -> bool:
    """Whether a link is to be followed: what it leads to is not in the folder, and there."""
    if not follow or not path.is_symlink():
        return False
    return not path.resolve().is_relative_to(root) and path.exists()


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def remove(root: Path, path: str) -> None:
    """Removes a file or link, and folders that are empty without it."""
    place = root / path
    place.unlink(missing_ok=True)
    for parent in place.parents:
        if parent == root:
            break
        try:
            parent.rmdir()
        except OSError:  # another file is there
            break


def put_link(root: Path, path: str, target: str) -> None:
    """Makes a link."""
    place = root / path
    with files.disk_errors(place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(target)
