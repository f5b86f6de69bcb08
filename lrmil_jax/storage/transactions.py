"""Saves of a working directory in a bucket, which always has exactly one of the states that were
saved, whenever a run is killed or cut off.

Files that no manifest names are put under their own names. Those that take the place of others are
put among the incoming objects, and the manifest that then replaces the old one, at once, says so.
Only then are they copied to their names, and what is gone is removed; whoever finds that unfinished
finishes it.
"""

import dataclasses
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from lrmil_jax.errors import WorkdirError
from lrmil_jax.storage import manifests
from lrmil_jax.storage.bucket_folder import LARGE, BucketFolder, in_threads
from lrmil_jax.storage.leases import Lease
from lrmil_jax.storage.manifests import FOLDER, Entry, Manifest

MAIN = f"{FOLDER}/manifest.json"
_THREADS = 16  # small objects on their way at once: each is mostly waiting
_FEW = 2  # large ones, each of which is held in memory in parts
_NOTHING = Entry()


class Transactions:
    """What is saved in a bucket, and saving more.

    Args:
      bucket: the working directory.
      lease: under which this run writes.
      shard: "3-of-8" of a run with `--shard 3/8`, else "".

    Attributes:
      own: name of the manifest that this run writes.
    """

    def __init__(self, bucket: BucketFolder, lease: Lease, shard: str):
        self._bucket, self._lease, self._shard = bucket, lease, shard
        suffix = f"-{shard}" if shard else ""
        self.own = f"{FOLDER}/manifest{suffix}.json"
        self._uploads = f"{FOLDER}/uploads{suffix}.json"
        self._uploaded: set[str] = set()  # objects that no manifest may name

    def begin(self) -> dict[str, Manifest]:
        """The manifests, as `read` gives them. A run of all takes those of shards into its own, and
        removes what killed runs have uploaded for nothing.

        Raises:
          WorkdirError: two shards disagree, or see `BucketFolder`.
        """
        known = self.read()
        if self._shard:
            self._uploaded |= self._listed(self._uploads)
            return known
        if known.keys() - {MAIN}:
            known = self._joined(known)
        for name in self._named("uploads"):
            self._uploaded |= self._listed(name)
            self._sweep(known.get(MAIN, Manifest()))
            self._bucket.remove(name)
        return known

    def read(self) -> dict[str, Manifest]:
        """All manifests by their names; what a save of this run's left unfinished is finished, and
        what one of any shard left where this is a run of all.

        Raises:
          WorkdirError: another run has taken over, two shards disagree, or see `BucketFolder`.
        """
        self._lease.require()
        known: dict[str, Manifest] = {}
        for name in self._named("manifest"):
            content = self._bucket.read(name)
            if content is not None:
                known[name] = Manifest.of(content, f"{self._bucket.url}/{name}")
        view = manifests.merged(known)
        for name in [self.own] if self._shard else list(known):
            if name in known:
                known[name] = self._finished(name, known[name], view)
        return known

    def fetch(self, path: str, known: Mapping[str, Manifest], target: Path) -> None:
        """Copies what was saved at a path to a file."""
        entry = manifests.merged({name: _only(one, path) for name, one in known.items()})[path]
        for name, one in known.items():
            if path in one.changing and one.files[path].content == entry.content:
                incoming = f"{_incoming(name)}/{path}"
                try:
                    return self._bucket.download(incoming, target, size=entry.size, md5=entry.md5)
                except WorkdirError:
                    break  # the shard that is saving it has just copied it to its name
        return self._bucket.download(path, target, size=entry.size, md5=entry.md5)

    def commit(
        self, root: Path, changes: Mapping[str, Entry], known: Mapping[str, Manifest]
    ) -> Manifest:
        """Saves changes, all of them or none.

        Args:
          root: the folder with the files.
          changes: what belongs at paths now; `Entry()` where nothing does.
          known: from `read`.

        Returns:
          The manifest of this run as it is now.

        Raises:
          WorkdirError: another run has taken over, or see `BucketFolder`.
        """
        view = manifests.merged(known)
        mine = known.get(self.own, Manifest())
        entries = dict(mine.files)
        for path, entry in changes.items():
            version = view.get(path, _NOTHING).version + 1 if self._shard else 0
            entries[path] = dataclasses.replace(entry, version=version)
        if not self._shard:  # nobody else says that what is removed is there
            entries = {path: entry for path, entry in entries.items() if entry.exists}
        taken = {path for path in changes if view.get(path, _NOTHING).md5}
        puts = [path for path, entry in changes.items() if entry.md5]
        self._upload(root, {path: f"{_incoming(self.own)}/{path}" if path in taken else path
                            for path in puts}, changes)  # fmt: skip
        changing = tuple(sorted(taken.intersection(puts)))
        made = Manifest(uuid.uuid4().hex, entries, changing, tuple(sorted(taken.difference(puts))))
        self._lease.require()
        self._bucket.write(self.own, made.content())
        return made

    def settle(self, known: Mapping[str, Manifest]) -> Manifest:
        """Finishes a save of this run's.

        Args:
          known: from `read`, with what `commit` gave.
        """
        made = self._finished(self.own, known[self.own], manifests.merged(known))
        if not self._shard and self._uploaded:
            self._sweep(made)
            self._bucket.remove(self._uploads)
        return made

    def _upload(self, root: Path, names: Mapping[str, str], entries: Mapping[str, Entry]) -> None:
        if not names:
            return
        self._uploaded |= set(names.values())
        self._bucket.write(self._uploads, json.dumps(sorted(self._uploaded), indent=1).encode())

        def upload(path: str) -> None:
            self._bucket.upload(root / path, names[path], entries[path].md5)

        in_order_of_size(upload, {path: entries[path] for path in names})

    def _finished(self, name: str, manifest: Manifest, view: Mapping[str, Entry]) -> Manifest:
        """A manifest after what it says is still to be done has been done."""
        if not manifest.changing and not manifest.removing:
            return manifest
        folder = _incoming(name)
        # What another shard has changed or made since stays.
        changing = [path for path in manifest.changing
                    if view[path].content == manifest.files[path].content]  # fmt: skip
        removing = [path for path in manifest.removing if not view.get(path, _NOTHING).md5]
        in_threads(lambda path: self._bucket.copy(f"{folder}/{path}", path), changing, _THREADS)
        incoming = [f"{folder}/{path}" for path in manifest.changing]
        in_threads(self._bucket.remove, [*incoming, *removing], _THREADS)
        manifest = dataclasses.replace(manifest, changing=(), removing=())
        self._lease.require()  # or it might take the place of a newer one
        self._bucket.write(name, manifest.content())
        return manifest

    def _joined(self, known: Mapping[str, Manifest]) -> dict[str, Manifest]:
        """One manifest in place of several that are settled."""
        # With versions, and with what was removed, so that it holds beside any of them.
        made = Manifest(uuid.uuid4().hex, manifests.merged(known))
        self._lease.require()
        self._bucket.write(MAIN, made.content())
        in_threads(self._bucket.remove, sorted(known.keys() - {MAIN}), _THREADS)
        return {MAIN: made}

    def _named(self, kind: str) -> list[str]:
        names = self._bucket.names(FOLDER)
        return [name for name in names if name.startswith(f"{FOLDER}/{kind}")
                and name.endswith(".json")]  # fmt: skip

    def _listed(self, name: str) -> set[str]:
        content = self._bucket.read(name)
        return set() if content is None else {*json.loads(content)}

    def _sweep(self, manifest: Manifest) -> None:
        """Removes what was uploaded for nothing; objects of others in the folder are let be."""
        named = {path for path, entry in manifest.files.items() if entry.md5}
        in_threads(self._bucket.remove, sorted(self._uploaded - named), _THREADS)
        self._uploaded.clear()


def in_order_of_size(function: Callable[[str], object], entries: Mapping[str, Entry]) -> None:
    """Calls a function with each path, in threads; few at once where files are large."""
    small = [path for path, entry in entries.items() if entry.size <= LARGE]
    in_threads(function, small, _THREADS)
    in_threads(function, [path for path in entries if entries[path].size > LARGE], _FEW)


def _incoming(manifest: str) -> str:
    """The folder of incoming objects that belongs to a manifest."""
    return manifest.replace("/manifest", "/incoming", 1).removesuffix(".json")


def _only(manifest: Manifest, path: str) -> Manifest:
    files = {path: manifest.files[path]} if path in manifest.files else {}
    return dataclasses.replace(manifest, files=files)
