"""prepare: every slide into regions, one process a slide; finished slides are left alone."""

import logging
from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax import processes
from lrmil_jax.data.regions import fail, tile_slide
from lrmil_jax.data.slide_jobs import SlideJob
from lrmil_jax.errors import DataError
from lrmil_jax.workspace import cohorts, layout, statuses

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes `regions/`, `slides.csv` and the tissue overlays.

    Raises:
      DataError: no slide could be prepared at all.
    """
    cohort = cohorts.read(config, workdir)
    cohorts.claim_regions(config, workdir)
    folder = layout.regions_folder(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = cohorts.slide_jobs(config, workdir, cohort.table)
    pending = [job for job in jobs if not _is_done(statuses.read(workdir, job.slide_id), job)]
    if pending:
        for job in pending:  # what was encoded from an earlier file of this name is not its own
            for path in workdir.glob(f"features/*/{job.shard.name}"):
                path.unlink()
        processes.map_jobs(
            tile_slide,
            pending,
            workers=config.prepare.workers,
            label="prepare",
            lost=lambda job, _: fail(job, f"{job.path}: {processes.DIED}"),
        )
        statuses.forget()  # the workers wrote them
    cohorts.write_slides_csv(config, workdir)
    cohorts.write_view(config, workdir, jobs)
    known = [statuses.read(workdir, job.slide_id) for job in jobs]
    failed = [status for status in known if status["status"] != "ok"]
    for status in failed:
        log.error("slide %s failed: %s", status["slide_id"], status["reason"])
    if len(failed) == len(jobs):
        raise DataError(f"none of the {len(jobs)} slides could be prepared; see the reasons above")
    cohorts.prepared(config, workdir)  # the folds must still hold without failed slides


def _is_done(status: dict | None, job: SlideJob) -> bool:
    # A failed slide is tried again: it costs little, and its file or the reader may be mended.
    return (
        status is not None
        and status["status"] == "ok"
        and status["source"] == job.source()
        and job.shard.is_file()
        and (not status["hr"] or job.mosaics.is_file())
    )
