"""What a working directory in a bucket consists of: its manifest, and those of its shards.

A manifest alone says which objects are of the run and what is in them. It is one object, and so it
is replaced at once: whatever else a killed run has left in the bucket is of no account.
"""

import dataclasses
import json
import posixpath
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from lrmil_jax.errors import WorkdirError

FOLDER = ".lrmil_jax"  # of all that is ours beside the run's own files, here and in the bucket
_SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Entry:
    """What belongs at a path.

    Attributes:
      size: bytes of the file.
      md5: of its content, in hexadecimal.
      link: what a symbolic link says; then there is no object.
      version: of shards, one more than that of the entry which it replaces.
    """

    size: int = 0
    md5: str = ""
    link: str = ""
    version: int = 0

    @property
    def content(self) -> tuple[str, str]:
        """Equal of entries that are the same; empty of a path where nothing is any longer."""
        return self.md5, self.link

    @property
    def exists(self) -> bool:
        """False where a shard has removed what was there."""
        return bool(self.md5 or self.link)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """One save.

    Attributes:
      save: a name that no other save has; "" of none.
      files: what belongs at each path, relative to the working directory.
      changing: paths whose content still lies among the incoming objects.
      removing: paths whose objects are still to be removed.
    """

    save: str = ""
    files: Mapping[str, Entry] = dataclasses.field(default_factory=dict)
    changing: tuple[str, ...] = ()
    removing: tuple[str, ...] = ()

    def content(self) -> bytes:
        """Of the object."""
        entries = {path: _fields(entry) for path, entry in sorted(self.files.items())}
        value = {"schema": _SCHEMA, "save": self.save, "files": entries}
        value |= {"changing": self.changing, "removing": self.removing}
        return json.dumps(value, indent=1).encode()

    @staticmethod
    def of(content: bytes, url: str) -> "Manifest":
        """From the object at a URL.

        Raises:
          WorkdirError: it is none of this version, or names files outside of the folder.
        """
        try:
            value = json.loads(content)
            if value["schema"] != _SCHEMA:
                raise ValueError(f"it has schema {value['schema']}")
            found = Manifest(value["save"], entries_of(value["files"]), tuple(value["changing"]),
                             tuple(value["removing"]))  # fmt: skip
            _require_inside(found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WorkdirError(
                f"{url} is not what this version of lrmil_jax writes ({error}); give another "
                "--workdir, or the version that made it"
            ) from error
        return found


def entries_of(value: Mapping[str, Mapping[str, Any]]) -> dict[str, Entry]:
    """From what `Manifest.content` writes of them."""
    return {path: Entry(**fields) for path, fields in value.items()}


def _fields(entry: Entry) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(entry).items() if value}


def _require_inside(manifest: Manifest) -> None:
    """Raises ValueError where a path or a link leads out of the folder: buckets may be shared."""
    links = {path for path, entry in manifest.files.items() if entry.link}
    for path in (*manifest.files, *manifest.removing):
        parents = [str(parent) for parent in PurePosixPath(path).parents]
        if not _is_inside(path) or links.intersection(parents):
            raise ValueError(f"it names {path!r}")
    for path in links:
        link = manifest.files[path].link
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
        if posixpath.normpath(link) != link or not _is_inside(target):
            raise ValueError(f"it has a link to {link!r}")
    if not manifest.files.keys() >= {*manifest.changing}:
        raise ValueError("it changes files that it does not have")


def _is_inside(path: str) -> bool:
    first = path.split("/")[0]
    return posixpath.normpath(path) == path and first not in ("", "..", FOLDER)


def merged(manifests: Mapping[str, Manifest]) -> dict[str, Entry]:
    """What the folder consists of: the newest entry of each path.

    Args:
      manifests: by the names of their objects.

    Raises:
      WorkdirError: two shards have made the same file with different contents.
    """
    found: dict[str, tuple[str, Entry]] = {}
    for name, manifest in sorted(manifests.items()):
        for path, entry in manifest.files.items():
            other, known = found.get(path, (name, entry))
            if entry.version == known.version and entry.content != known.content:
                refuse(path, other, name)
            if entry.version >= known.version:
                found[path] = name, entry
    return {path: entry for path, (_, entry) in found.items()}


def refuse(path: str, one: str, other: str) -> None:
    """Raises WorkdirError: two shards disagree."""
    raise WorkdirError(
        f"{path} of {_shown(one)} and of {_shown(other)} differ: all shards need the same config, "
        "version and slides; delete the manifest of the wrong one (in .lrmil_jax/), or begin anew "
        "with another --workdir"
    )


def _shown(name: str) -> str:
    """What users call who wrote a manifest."""
    _, dash, shard = posixpath.splitext(posixpath.basename(name))[0].partition("-")
    return f"shard {shard.replace('-of-', '/')}" if dash else "the whole run"
