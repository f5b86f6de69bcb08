"""Parts of a cohort done by runs that know nothing of each other, as arrays of batch systems are:
`--shard i/n`. Finished slides are whole files, so any shard may be killed and run again."""

import contextlib
import fcntl
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lrmil_jax import cluster, files
from lrmil_jax import config as configuration
from lrmil_jax.errors import ConfigError, WorkdirError
from lrmil_jax.workspace import layout

_RECORD = "shards.json"  # the config of the shards that are at work, or were
# Keys in which shards may differ: they say how fast it goes, not what comes of it.
_OWN = ("prepare.workers", "encoder.workers", "encoder.threads", "encoder.batch")


def parse(text: str) -> tuple[int, int]:
    """Index from 0, and number, of "i/n", where i counts from 1.

    Raises:
      ConfigError: it is not of that form, or i is not one of n.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    number, count = (int(part) for part in match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise ConfigError(
            f"--shard is {text!r}; give i/n, one of 1/n, 2/n ... n/n, such as --shard 3/8"
        )
    return number - 1, count


@contextlib.contextmanager
def joined(text: str, config: ConfigDict, workdir: Path) -> Iterator[None]:
    """Holds the working directory together with other shards, but no other run.

    Args:
      text: of the flag.
      config: of the run.
      workdir: of all shards.

    Raises:
      ConfigError: see `parse`.
      WorkdirError: another run is at work there, the same shard is, one of another n is, or a shard
        of another config was.
    """
    index, count = parse(text)

    def one_at_a_time() -> contextlib.AbstractContextManager:
        return layout.held(workdir / ".shards.lock", fcntl.LOCK_EX, "")

    busy = layout.BUSY.format(workdir)
    twice = f"another process is at work as shard {index + 1}/{count} of {workdir}; wait for it"
    own = workdir / f".shard-{index + 1}-of-{count}.lock"
    with files.disk_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(layout.held(workdir / layout.LOCK, fcntl.LOCK_SH | fcntl.LOCK_NB, busy))
        with one_at_a_time():
            _refuse_other_number(index, count, workdir)
            stack.enter_context(layout.held(own, fcntl.LOCK_EX | fcntl.LOCK_NB, twice))
            _refuse_other_config(config, workdir)
        stack.enter_context(cluster.shard(index, count, one_at_a_time))
        yield


def _refuse_other_number(index: int, count: int, workdir: Path) -> None:
    """Raises WorkdirError where shards of another n are at work: slides would be done twice."""
    for path in workdir.glob(".shard-*-of-*.lock"):
        number, other = re.fullmatch(r"\.shard-(\d+)-of-(\d+)\.lock", path.name).groups()
        if int(other) == count:
            continue
        sentence = (
            f"shard {number}/{other} of {workdir} is at work, so {index + 1}/{count} cannot be: "
            f"give one of 1/{other} ... {other}/{other}, or wait until all of these have ended"
        )
        with layout.held(path, fcntl.LOCK_SH | fcntl.LOCK_NB, sentence):
            pass


def _kept(config: ConfigDict) -> dict[str, Any]:
    flat = json.loads(json.dumps(configuration.flatten(config), default=str))
    return {key: value for key, value in flat.items() if key not in _OWN}


def _refuse_other_config(config: ConfigDict, workdir: Path) -> None:
    path, own = workdir / _RECORD, _kept(config)
    if not path.is_file():
        return
    recorded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key in sorted(own.keys() | recorded.keys()):
        if own.get(key) != recorded.get(key):
            raise WorkdirError(
                f"this shard has {key}={own.get(key)!r}, but a shard before it had "
                f"{recorded.get(key)!r}: all shards of {workdir} need the same config (to change "
                "it, run the stages without --shard once, or use another --workdir)"
            )


def record(config: ConfigDict, workdir: Path) -> None:
    """What a shard does when its config has been found to be right: no other config may follow.

    Raises:
      WorkdirError: a shard of another config was quicker.
    """
    if cluster.is_shard():
        cluster.first_says("the shards' config", lambda: _record(config, workdir))


def _record(config: ConfigDict, workdir: Path) -> None:
    _refuse_other_config(config, workdir)
    files.write_json(workdir / _RECORD, _kept(config))


def forget(workdir: Path) -> None:
    """What a run without `--shard` does: the shards are joined, others may begin."""
    if cluster.is_first():
        for path in (workdir / _RECORD, *workdir.glob(".shard*.lock")):
            path.unlink(missing_ok=True)
