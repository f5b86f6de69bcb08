"""prepare: every slide into regions, one process a slide; finished slides are left alone.

With features of another tool, a slide's patches are those of its feature file: LR tiles are cut
where they lie if slides are given too, and without slides only what is there is noted.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import cluster, processes
from lrmil_jax.data import failures, slide_files
from lrmil_jax.data.regions import lost, tile_slide
from lrmil_jax.data.slide_jobs import SlideJob
from lrmil_jax.errors import DataError, WorkdirError
from lrmil_jax.interchange.slides import FeatureJob, prepare_slide
from lrmil_jax.workspace import beam, cohorts, data_files, foreign, layout, provenance, statuses

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes `regions/`, `slides.csv` and the tissue overlays.

    Raises:
      DataError: no slide could be prepared at all.
      WorkdirError: slides are there with enlarged pixels, which the config no longer asks for.
    """
    cohort = cohorts.read(config, workdir)
    cohorts.record_regions(config, workdir)
    folder = layout.regions_folder(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = cohorts.slide_jobs(config, workdir, cohort.table)
    if cluster.is_first():
        drawn = [job.annotations for job in jobs if job.annotations is not None]
        slide_files.warn_of_classes(drawn, key="data.annotation_classes")
    cluster.first_says("prepare begins", lambda: _refuse_enlarged(workdir, jobs))
    own = cluster.mine(jobs)
    pending = [job for job in own if not job.is_complete(statuses.read(workdir, job.slide_id))]
    if pending:
        for job in pending:  # what was encoded from an earlier file of this name is not its own
            for path in workdir.glob(f"features/*/{job.shard.name}"):
                path.unlink()
        _prepare(config, pending)
        statuses.forget()  # the workers wrote them
    statuses.meet("prepare")
    if cluster.is_shard():
        _tell(workdir, own)
        return
    if foreign.given(config):
        _take_stock(config, workdir, jobs)
    cluster.first_only("the slides' table", _write_tables, config, workdir, cohort.table, jobs)
    cluster.first_only("what failed", _tell, workdir, jobs)
    cohorts.prepared(config, workdir)  # the folds must still hold without failed slides


def _prepare(config: ConfigDict, pending: Sequence[SlideJob]) -> None:
    """Each slide by itself, in processes of this run or by a Beam job."""
    function = prepare_slide if foreign.given(config) else tile_slide
    limits = {"lost": lost, **cohorts.slide_limits(config)}
    if beam.is_on():
        beam.map_slides(function, pending, gib=config.data.staging_gib, **limits)
        return
    with data_files.ahead(config, [job.path for job in pending]) as ahead:
        processes.map_jobs(
            function,
            pending,
            workers=config.prepare.workers,
            label="prepare",
            finished=lambda job: ahead.finished(job.path),
            **limits,
        )


def _tell(workdir: Path, jobs: Sequence[SlideJob]) -> None:
    """Which slides failed, and why.

    Raises:
      DataError: all of the cohort.
    """
    known = [statuses.read(workdir, job.slide_id) for job in jobs]
    failed = [status for status in known if status["status"] != "ok"]
    for sentence in failures.sentences(failed):
        log.error("failed: %s", sentence)
    if len(failed) == len(jobs) > 0 and not cluster.is_shard():  # of a shard it may be chance
        raise DataError(f"none of the {len(jobs)} slides could be prepared; see the reasons above")


def _write_tables(
    config: ConfigDict, workdir: Path, table: pd.DataFrame, jobs: list[SlideJob]
) -> None:
    """What is of all slides together."""
    cohorts.write_slides_csv(config, workdir)
    if not foreign.given(config):
        cohorts.write_left_out(config, workdir, table)
    cohorts.write_view(config, workdir, jobs)


def _refuse_enlarged(workdir: Path, jobs: Sequence[SlideJob]) -> None:
    """Raises WorkdirError where slides would now be refused: all that was made of them would go."""
    names = [job.slide_id for job in jobs if job.was_enlarged(statuses.read(workdir, job.slide_id))]
    if names:
        count = "1 slide" if len(names) == 1 else f"{len(names)} slides"
        raise WorkdirError(
            f"{workdir} has {count} prepared with enlarged pixels ({', '.join(names[:5])}"
            f"{' ...' if len(names) > 5 else ''}), for which this config does not ask; set "
            "prepare.upsample=True, or use another --workdir"
        )


def _take_stock(config: ConfigDict, workdir: Path, jobs: list[FeatureJob]) -> None:
    """What all feature files together must be: of one width; with what is told of them."""
    widths = foreign.fail_odd_widths(workdir, jobs)
    if not widths:
        return
    if not foreign.reads_slides(config):
        provenance.record(workdir, "encoder", foreign.facts(config, workdir, jobs, widths))
    foreign.warn_of_resolution(config, workdir, jobs)
