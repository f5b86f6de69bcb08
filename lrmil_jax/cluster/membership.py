"""Which process of a run this one is. Everything here is for all stages; none knows how many
processes there are but by asking here."""

import contextlib
import dataclasses
import hashlib
import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from lrmil_jax.cluster import rendezvous
from lrmil_jax.cluster.channel import Channel
from lrmil_jax.cluster.stopping import Stopping, stopping
from lrmil_jax.errors import ConfigError, WorkdirError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@runtime_checkable
class Member(Protocol):
    """One process of a run.

    Attributes:
      index: of this process, counted from 0.
      count: of all processes.
    """

    index: int
    count: int

    def exchange(self, name: str, value: Any) -> list[Any]:
        """What every process says at this place of the run; waits for all of them."""


@dataclasses.dataclass(frozen=True)
class Alone:
    """The only process of a run, or one that works apart from the others for a while."""

    index: int = 0
    count: int = 1

    def exchange(self, name: str, value: Any) -> list[Any]:
        """See `Member`."""
        del name
        return [value]


@dataclasses.dataclass(frozen=True)
class Shard:
    """One of several runs that know nothing of each other but their number: each does its part of
    the slides, at its own time, and none does what is of all slides.

    Attributes:
      index, count: as of a `Member`.
      one_at_a_time: what every shard does, and finds done by others, is done within this.
    """

    index: int
    count: int
    one_at_a_time: Callable[[], contextlib.AbstractContextManager]

    def exchange(self, name: str, value: Any) -> list[Any]:
        """See `Member`; nobody is there to answer."""
        del name
        return [value]


_members: list[Member] = [Alone()]  # the last one is in force


def _now() -> Member:
    return _members[-1]


def index() -> int:
    """Of this process, counted from 0."""
    return _now().index


def several() -> bool:
    """Whether this process is one of several that work together."""
    return _now().count > 1 and not is_shard()


def is_first() -> bool:
    """Whether this process writes what is of all slides."""
    return _now().index == 0 and not is_shard()


def is_shard() -> bool:
    """Whether this run does a part of the slides, and knows nothing of who does the others."""
    return isinstance(_now(), Shard)


def mine(items: Sequence[Item]) -> Sequence[Item]:
    """Those of some items (slides, in the order of the table) that this process sees to; every
    process must give the same."""
    member = _now()
    return items[member.index :: member.count]


def exchange(name: str, value: Any) -> list[Any]:
    """What every process says at this place, in their order; each waits for all others."""
    return _now().exchange(name, value)


def meet(name: str) -> None:
    """Returns when all processes have come to this place."""
    exchange(name, None)


def first_says(name: str, function: Callable[[], Any]) -> Any:
    """Runs a function in the first process, and gives its result, which JSON can hold, to all."""
    member = _now()
    if isinstance(member, Shard):
        with member.one_at_a_time(), apart():
            return function()
    return exchange(name, function() if is_first() else None)[0]


def first_only(name: str, function: Callable[..., Any], *arguments: Any) -> None:
    """Runs a function in the first process; all go on when it is done."""
    if is_first():
        function(*arguments)
    meet(name)


def first_then_rest(name: str, function: Callable[[], Result]) -> Result:
    """Runs a function in the first process and, when it is done there, in all others: they find
    what it wrote."""
    if is_shard():
        return first_says(name, function)
    if not is_first():
        meet(name)
        return function()
    result = function()
    meet(name)
    return result


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Within this, the process is on its own: it waits for nobody, and computes on its own
    devices."""
    with _as(Alone()):
        yield


def shard(
    index: int, count: int, one_at_a_time: Callable[[], contextlib.AbstractContextManager]
) -> contextlib.AbstractContextManager[None]:
    """Within this, the run is a `Shard`."""
    return _as(Shard(index, count, one_at_a_time))


@contextlib.contextmanager
def _as(member: Member) -> Iterator[None]:
    _members.append(member)
    try:
        yield
    finally:
        _members.pop()


def is_apart() -> bool:
    """Whether this process works apart from others that there are."""
    return _members[-1].count == 1 and _members[0].count > 1


def join(
    coordinator: str, processes: int | None, process: int | None, *, seconds: int = 300
) -> None:
    """Makes this process one of several, and of JAX's devices one set.

    Args:
      coordinator: HOST:PORT of the first process, or "auto" where Slurm, Open MPI or a TPU slice
        tells it.
      processes: how many there are; process: which one this is, from 0; both None with "auto".
      seconds: to wait for the others.

    Raises:
      ConfigError: what is given cannot be, or not all processes came.
    """
    here = rendezvous.place(coordinator, processes, process)
    links = rendezvous.links(here, seconds=seconds)
    if not links:
        log.info("--coordinator %s: this is the only process", coordinator)
        return
    _members[0] = Channel(here.index, here.count, links, ended=_ended, stop=Stopping.end_now)
    stopping.listen(_members[0])
    rendezvous.initialise(here, seconds=seconds)


def same(facts: Mapping[str, Any]) -> None:
    """Refuses to go on where another process has another command, config or version.

    Raises:
      ConfigError: the first fact that differs, with both values.
    """
    told = exchange("the start", dict(facts))
    for other, own in enumerate(told):
        for name, value in told[0].items():
            if own.get(name) != value:
                raise ConfigError(
                    f"process {other} has {name} {own.get(name)!r}, process 0 has {value!r}: the "
                    "processes of a run need the same command, config, version and devices"
                )


def sees(workdir: Path) -> None:
    """Refuses a working directory that is not one for all processes.

    Raises:
      WorkdirError: a process does not see what the first wrote there.
    """
    if not several():
        return
    name = f".seen.{uuid.uuid4().hex[:8]}.tmp"  # `files.remove_leftovers` knows such names
    name = first_says("a file of the working directory", lambda: _touch(workdir / name))
    blind = [
        number
        for number, there in enumerate(exchange("the file", (workdir / name).is_file()))
        if not there
    ]
    if is_first():
        (workdir / name).unlink(missing_ok=True)
    if blind:
        raise WorkdirError(
            f"process {blind[0]} does not see the --workdir of process 0: {workdir} must be on a "
            "file system that all of them share"
        )


def _touch(path: Path) -> str:
    path.touch()
    return path.name


def code() -> str:
    """A hash of this package's own files: two versions in one run would be told apart by it."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def devices() -> str:
    """What this process computes with; batches are parted evenly, so it must be the same."""
    import jax

    return f"{jax.local_device_count()} x {jax.default_backend()}"


def fail(sentence: str) -> None:
    """Tells the other processes why this one ends, if there are some."""
    member = _members[0]
    if isinstance(member, Channel):
        member.fail(sentence)


def leave(status: int) -> None:
    """Ends this process of several with a status; of one alone, nothing happens.

    JAX's own farewell would wait for processes that have failed.
    """
    if not isinstance(_members[0], Channel):
        return
    logging.shutdown()
    os._exit(status)


def finish() -> None:
    """Waits until all processes are done."""
    member = _members[0]
    if isinstance(member, Channel):
        member.leave()


def _ended(sentence: str) -> None:
    log.error(
        "%s; this process (%d, on %s) stops with it: what is done is kept, so mend the cause and "
        "run the same command on all again", sentence, _members[0].index, socket.gethostname(),
    )  # fmt: skip
    logging.shutdown()
    os._exit(1)
