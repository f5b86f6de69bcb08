"""Flags that do not go together, refused before anything is begun."""

from collections.abc import Sequence

from lrmil_jax import storage
from lrmil_jax.errors import ConfigError

_ALONE = (["predict"], ["check"])  # stages that are no run


def check(
    *,
    stages: Sequence[str],
    workdir: str | None,
    scratch: str | None,
    cohort: str | None,
    shard: str | None,
    beam: Sequence[str] | None,
    coordinator: str | None,
    numbered: bool,
) -> None:
    """Refuses what a command line asks for at once and cannot have.

    Args:
      stages, workdir, scratch, cohort, shard, coordinator: the flags of these names.
      beam: --beam_pipeline_options.
      numbered: whether --processes or --process is given.

    Raises:
      ConfigError: one flag has no meaning beside another.
    """
    if shard is not None:
        _check_shard(stages, cohort, coordinator)
    if beam is not None:
        _check_beam(stages, shard, coordinator)
    _check_bucket(workdir, scratch, coordinator, beam)
    if coordinator is None and numbered:
        raise ConfigError("--processes and --process need --coordinator HOST:PORT")
    if coordinator is not None and (stages in _ALONE or cohort is not None):
        raise ConfigError(
            "--coordinator is for runs and studies; predict, check and --cohort are one process"
        )


def _check_shard(stages: Sequence[str], cohort: str | None, coordinator: str | None) -> None:
    if stages in _ALONE or cohort is not None:
        what = f"--stages {stages[0]}" if stages in _ALONE else "--cohort"
        raise ConfigError(
            f"--shard does a part of the slides of a run, and {what} is none; leave --shard away"
        )
    if coordinator is not None:
        raise ConfigError("--shard is for runs of one process; leave --coordinator away")


def _check_beam(stages: Sequence[str], shard: str | None, coordinator: str | None) -> None:
    if stages != ["prepare"]:
        raise ConfigError("--beam_pipeline_options is for --stages prepare, and no other beside it")
    if shard is not None or coordinator is not None:
        raise ConfigError(
            "--beam_pipeline_options lets Beam share out the slides; leave --shard and "
            "--coordinator away"
        )


def _check_bucket(
    workdir: str | None, scratch: str | None, coordinator: str | None, beam: Sequence[str] | None
) -> None:
    if not storage.is_url(workdir):
        if scratch is not None:
            raise ConfigError("--scratch is for a --workdir in a bucket; leave it away")
        return
    together = "--coordinator" if coordinator is not None else None
    together = "--beam_pipeline_options" if beam is not None else together
    if together is not None:
        raise ConfigError(
            f"{together} is for processes that work in one folder at once, and --workdir "
            f"{workdir} is no folder of a file system; give one that all hosts share, such as a "
            "network disk (--shard and runs of one process may have theirs in a bucket)"
        )
