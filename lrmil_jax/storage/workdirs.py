"""`--workdir s3://bucket/path`: a local folder stands for it, which is restored when a run begins,
and saved after each stage and at the end."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lrmil_jax.errors import UserError, WorkdirError
from lrmil_jax.storage import manifests, objects, scratch
from lrmil_jax.storage.bucket_folder import BucketFolder
from lrmil_jax.storage.leases import Lease
from lrmil_jax.storage.manifests import Entry, Manifest
from lrmil_jax.storage.transactions import MAIN, Transactions, in_order_of_size

log = logging.getLogger(__name__)

_READINGS = 3  # of what other shards are saving meanwhile
_NOTHING = Entry()


@dataclasses.dataclass(frozen=True)
class Work:
    """What a run does in a working directory.

    Attributes:
      shard: "3-of-8" of a run with `--shard 3/8`, else "".
      below: names in the folder that it reads and writes; none: all.
      saved: whether anything is restored and saved.
    """

    shard: str = ""
    below: tuple[str, ...] = ()
    saved: bool = True

    @property
    def part(self) -> str:
        """Runs of different parts do not share a local folder."""
        return self.shard or "+".join(self.below)


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A working directory while a run is at work in it.

    Attributes:
      folder: on this host.
      save: keeps what is there now; called where no stage is at work.
    """

    folder: Path
    save: Callable[[], None]


@contextlib.contextmanager
def opened(name: str, work: Work, given: str | None = None) -> Iterator[Workdir]:
    """The working directory of a run: a folder as it is, or what stands for one in a bucket, which
    is saved when the block ends, whether well or not.

    Args:
      name: a folder, or its URL.
      work: what the run does.
      given: the local folder for a URL; None: one in the user's cache.

    Raises:
      ConfigError: it is no such URL, a package is missing, or the local folder holds other files.
      WorkdirError: another run is at work there, shards disagree, the bucket cannot be read or
        written, or the disk is full.
    """
    if not objects.is_url(name):
        yield Workdir(Path(name), lambda: None)
        return
    bucket = BucketFolder(name)
    root = scratch.folder(bucket.url, work.part, given)
    with scratch.locked(root, bucket.url) as state:
        if not work.saved:
            bucket.names(manifests.FOLDER)  # credentials that are missing are told
            yield Workdir(root, lambda: None)
            return
        with Lease(bucket, work.shard, state.lease) as lease:
            state.lease = lease.token
            scratch.note(root, state)
            copy = _Copy(root, state, Transactions(bucket, lease, work.shard), work)
            log.info("%s is in %s on this host", bucket.url, root)
            copy.restore()
            yield from _saved(Workdir(root, copy.save), copy)


def _saved(workdir: Workdir, copy: "_Copy") -> Iterator[Workdir]:
    try:
        yield workdir
        copy.save(last=True)
    except KeyboardInterrupt:
        log.warning("not saved after the last stage, as it was stopped by hand: the same command "
                    "on this host goes on with what is in %s", workdir.folder)  # fmt: skip
        raise
    except BaseException as error:  # of any kind: stages may be killed at any moment
        if error is not copy.failure:
            try:
                copy.save(last=True)
            except UserError as other:
                log.error("%s", other)
        raise


class _Copy:
    """A local folder and what is saved of it.

    Attributes:
      failure: why it could not be saved last; None if it could.
    """

    def __init__(self, root: Path, state: scratch.State, saved: Transactions, work: Work):
        self._root, self._state, self._saved, self._work = root, state, saved, work
        self.failure: UserError | None = None

    def restore(self) -> None:
        """Makes the folder what was saved last. What a killed run on this host had made since its
        last save stays, unless another one has saved meanwhile."""
        readings = _READINGS if self._work.shard else 1
        for reading in range(1, readings + 1):
            known = self._saved.begin()
            try:
                self._restore(known)
                break
            except WorkdirError:
                # Another shard may have replaced an object after its manifest was read.
                if reading == readings:
                    raise

    def _restore(self, known: Mapping[str, Manifest]) -> None:
        begun, state = time.perf_counter(), self._state
        saves, view = {name: one.save for name, one in known.items()}, self._view(known)
        same = all(saves.get(name) == state.saves.get(name) for name in (MAIN, self._saved.own))
        ahead = state.unsaved and state.part == self._work.part and same
        before, was_unsaved = state.view, state.unsaved
        local = self._scan(follow=ahead)
        differing = [
            path
            for path in sorted(local.keys() | view.keys())
            if _differ(local, view, path) and (not ahead or _differ(before, view, path))
        ]
        lost = [path for path in differing if _differ(local, before, path)]
        if was_unsaved and lost:
            log.warning("%d files that a run on this host had not saved are given up, as another "
                        "one has saved since", len(lost))  # fmt: skip
        if not ahead:  # half restored, the folder is no state of any run
            self._note(saves={}, view={}, unsaved=False)
        self._fetch(differing, view, known)
        if not ahead:
            self._scan()  # so that what came is not read again
        self._note(saves=saves, view=view, unsaved=True, part=self._work.part)
        if differing:
            log.info("restored: %s", _told(differing, view, begun))

    def _fetch(
        self, paths: list[str], view: Mapping[str, Entry], known: Mapping[str, Manifest]
    ) -> None:
        for path in paths:
            scratch.remove(self._root, path)
        for path in paths:
            if view.get(path, _NOTHING).link:
                scratch.put_link(self._root, path, view[path].link)
        wanted = {path: view[path] for path in paths if view.get(path, _NOTHING).md5}
        in_order_of_size(lambda path: self._saved.fetch(path, known, self._root / path), wanted)

    def save(self, *, last: bool = False) -> None:
        """Makes what is saved what the folder is.

        Args:
          last: whether the run ends now.
        """
        try:
            self._save(last=last)
        except UserError as error:
            self.failure = error
            raise

    def _save(self, *, last: bool) -> None:
        begun = time.perf_counter()
        known = self._saved.read()
        view, local = self._view(known), self._scan()
        before = self._state.view if self._work.shard else view
        changed = [path for path in local.keys() | before.keys() if _differ(local, before, path)]
        changes = {
            path: local.get(path, _NOTHING) for path in changed if _differ(local, view, path)
        }
        for path in sorted(changes):
            if _differ(before, view, path) and _owner(known, path) != self._saved.own:
                manifests.refuse(path, self._saved.own, _owner(known, path))
        if changes:
            known = {**known, self._saved.own: self._saved.commit(self._root, changes, known)}
            self._keep(known, before, local)
            known[self._saved.own] = self._saved.settle(known)
            log.info("saved: %s", _told(list(changes), local, begun))
        self._keep(known, before, local, unsaved=not last)

    def _keep(
        self,
        known: Mapping[str, Manifest],
        before: Mapping[str, Entry],
        local: Mapping[str, Entry],
        *,
        unsaved: bool = True,
    ) -> None:
        """Notes that the folder has been saved."""
        merged = self._view(known)
        view = {
            path: merged[path] if _differ(local, before, path) else before[path] for path in local
        }
        saves = {name: one.save for name, one in known.items()}
        self._note(saves=saves, view=view, unsaved=unsaved)

    def _note(self, **changes: object) -> None:
        for name, value in changes.items():
            setattr(self._state, name, value)
        scratch.note(self._root, self._state)

    def _scan(self, *, follow: bool = True) -> dict[str, Entry]:
        return scratch.scan(self._root, self._state, below=self._work.below, follow=follow)

    def _view(self, known: Mapping[str, Manifest]) -> dict[str, Entry]:
        """What was saved of the part that this run works on."""
        below = self._work.below
        return {
            path: entry
            for path, entry in manifests.merged(known).items()
            if entry.exists and (not below or path.split("/")[0] in below)
        }


def _differ(one: Mapping[str, Entry], other: Mapping[str, Entry], path: str) -> bool:
    return one.get(path, _NOTHING).content != other.get(path, _NOTHING).content


def _owner(known: Mapping[str, Manifest], path: str) -> str:
    """The manifest of which a path is."""
    having = [name for name, one in known.items() if path in one.files]
    return max(having, key=lambda name: known[name].files[path].version, default=MAIN)


def _told(paths: list[str], entries: Mapping[str, Entry], begun: float) -> str:
    size = sum(entries.get(path, _NOTHING).size for path in paths) / 1e6
    files = f"{len(paths)} file{'' if len(paths) == 1 else 's'}"
    return f"{files}, {size:.1f} MB, in {time.perf_counter() - begun:.1f} s"
