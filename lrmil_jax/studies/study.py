"""Running a study: every run in a working directory of its own, and nothing done twice."""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from lrmil_jax import cluster, files, pipeline, processes
from lrmil_jax import config as configuration
from lrmil_jax.errors import ConfigError, UserError
from lrmil_jax.studies import results
from lrmil_jax.studies.plan import Run, plan, same_features, same_slides
from lrmil_jax.workspace import layout, provenance

log = logging.getLogger(__name__)


def run(
    config: ConfigDict,
    workdir: Path,
    names: Sequence[str] = (),
    *,
    after_stage: Callable[[], None] = lambda: None,
) -> int:
    """Runs what is not done yet and writes `study/`; the caller holds the lock of `workdir`.

    Args:
      config: with the study's seeds and variants.
      workdir: gets `runs/` and `study/`.
      names: must be empty: a study runs all stages.
      after_stage: called after each stage; of seeds side by side when all of them have ended.

    Returns:
      How many slides could not be prepared, over all runs.

    Raises:
      ConfigError: see `plan.plan`, or stages were named.
    """
    if names:
        raise ConfigError("--stages has no meaning for a study; leave it away")
    runs = plan(config, workdir)
    if cluster.is_shard():
        raise ConfigError(
            "--shard and Beam have no meaning for a study; run the study's configs one by one"
        )
    if cluster.is_first():
        files.write_json(workdir / "config.json", configuration.flatten(config))
    workers = _workers(config)
    done: list[Run] = []
    outcomes: list[Outcome] = []
    for seeds in _waves(runs):
        own = [[one for one in runs if one.seed == seed] for seed in seeds]
        jobs = [SeedJob(workdir, part, done) for part in own]
        alone = min(workers, len(jobs)) == 1
        alone_run = functools.partial(_run_seed, after_stage=after_stage)
        function = alone_run if alone else _run_in_worker
        outcomes += processes.map_jobs(
            function, jobs, workers=workers, label="seeds of the study", key="study.workers"
        )
        done = done + [one for part in own for one in part]
        after_stage()
    broken = next((one.error for one in outcomes if one.error is not None), None)
    if broken is not None:
        raise broken
    if cluster.is_first():
        results.save(workdir / "study", runs, side_by_side=workers != 1)
        log.info("table and plots of all runs: %s", workdir / "study")
    return sum(one.failed for one in outcomes)


@dataclasses.dataclass(frozen=True)
class SeedJob:
    """All runs of one seed, one after another, and those that had ended before."""

    workdir: Path
    runs: Sequence[Run]
    done: Sequence[Run]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How many slides of a seed could not be prepared, or the mistake that ended it."""

    failed: int = 0
    error: UserError | None = None


def _run_seed(job: SeedJob, after_stage: Callable[[], None] = lambda: None) -> Outcome:
    failed, longest = 0, 0.0
    for number, one in enumerate(job.runs):
        start = time.monotonic()
        log.info("run %d of %d: seed %d, %s", number + 1, len(job.runs), one.seed, one.variant)
        own = job.runs[:number]
        with layout.locked(one.folder):
            cluster.first_only("what earlier runs made", _share, one, [*job.done, *own])
            folders = [other.folder for other in own]
            failed += pipeline.run(one.config, one.folder, [], folders, after_stage=after_stage)
        jax.clear_caches()  # the programs of this run; the next one's come from disk
        longest = max(longest, time.monotonic() - start)
        if to_come := len(job.runs) - number - 1:
            # Mostly an upper bound: the first run makes what the others link.
            log.info(
                "runs of seed %d still to come: %d, about %.0f s if each takes the %.0f s of the "
                "longest so far", one.seed, to_come, to_come * longest, longest,
            )  # fmt: skip
    return Outcome(failed)


def _run_in_worker(job: SeedJob) -> Outcome:
    """As `_run_seed`, its lines marked with the seed; a mistake lets the other seeds go on."""
    mark = f"seed {job.runs[0].seed}: "

    def name_seed(record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith(mark):
            record.msg = mark + str(record.msg)
        return True

    handlers = logging.getLogger().handlers
    for handler in handlers:
        handler.filters[:] = [name_seed]  # a worker may have had another seed before
    try:
        return _run_seed(job)
    except UserError as error:
        log.error("%s", error)
        return Outcome(error=error)


def _workers(config: ConfigDict) -> int:
    """Seeds at once: an accelerator belongs to one process."""
    if config.study.workers == 1 or len(config.study.seeds) < 2 or cluster.several():
        return 1
    if jax.default_backend() != "cpu":
        log.info("study.workers: seeds run one after another, as one process holds the %s",
                 jax.default_backend())  # fmt: skip
        return 1
    return config.study.workers


def _waves(runs: Sequence[Run]) -> list[list[int]]:
    """Seeds that may run side by side: where they share slides, the first one makes them."""
    seeds = list(dict.fromkeys(one.seed for one in runs))
    first = [one for one in runs if one.seed == seeds[0]]
    others = [one for one in runs if one.seed != seeds[0]]
    if any(same_slides(one, other) for one in others for other in first):
        return [seeds[:1], seeds[1:]]
    return [seeds]


def _share(run: Run, before: Sequence[Run]) -> None:
    """Links slides, regions and features that an earlier run has made of the same settings."""
    if (run.folder / "cohort.json").exists():
        return
    earlier = next((other for other in before if same_features(run, other)), None)
    names = ["regions", "synthetic", "features"]
    if earlier is None:
        earlier = next((other for other in before if same_slides(run, other)), None)
        names.remove("features")
    if earlier is None:
        return
    for name in names:
        if (earlier.folder / name).exists():
            files.link(run.folder / name, earlier.folder / name)
    made_by = provenance.read(earlier.folder)
    if "features" not in names:
        made_by.pop("encoder", None)
    files.write_json(run.folder / "cohort.json", made_by)  # last: a kill before it does this again
