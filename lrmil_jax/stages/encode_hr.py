"""encode_hr: every HR patch through the frozen encoder, once per cohort, a file a slide.

Two files a slide: the embeddings in large blocks, which the teacher reads whole, and the targets
of stage 1 (CLS at the chosen blocks), one record per LR patch, which training reads at random.
"""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax import cluster, methods
from lrmil_jax.data import features, slide_jobs
from lrmil_jax.models import encoding, trained
from lrmil_jax.workspace import cohorts, feature_sets, layout, provenance, stage_files, statuses


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes `features/hr` and `features/hr_targets_<blocks>` for every prepared slide."""
    cohort = cohorts.prepared(config, workdir)
    encoder = trained.hr_encoder(config, workdir)
    provenance.record(workdir, "encoder", trained.encoder_facts(config, workdir))
    blocks = methods.of(config).layers(config, encoder.module)
    jobs = cohorts.slide_jobs(config, workdir, cohort.table)
    own = cluster.mine(jobs)
    pending = [job for job in own if not _is_done(workdir, job, blocks)]
    for folder in stage_files.hr_folders(workdir, blocks).values():
        folder.mkdir(parents=True, exist_ok=True)
    if pending:
        encoding.encode_slides(
            config,
            workdir,
            trained.batch_encoder(config, encoder, blocks),
            pending,
            lambda job, readers: cohorts.patch_source(
                config, workdir, job, high=True, readers=readers
            ),
            lambda job, source, rows: _write_slide(config, workdir, job, rows, blocks),
            label="encode_hr",
            total=len(own),
        )
    statuses.meet("encode_hr")
    cluster.first_only("their views", _finish, config, workdir, jobs, blocks)


def _finish(
    config: ConfigDict, workdir: Path, jobs: list[slide_jobs.SlideJob], blocks: tuple[int, ...]
) -> None:
    """What is of all slides together; always, as a killed run may have encoded the last slide and
    not come to this."""
    cohorts.write_slides_csv(config, workdir)
    slide_ids = cohorts.prepared(config, workdir).table.slide_id.tolist()
    for name, folder in stage_files.hr_folders(workdir, blocks).items():
        num_layers = len(blocks) if name == "targets" else 0
        record = feature_sets.record(config, workdir, num_layers=num_layers)
        features.write_view(folder, slide_ids, record)
    if config.prepare.hr == "store" and not config.prepare.keep_hr:
        for job in jobs:
            if job.slide_id in slide_ids:
                _drop_mosaics(workdir, job)
        cohorts.write_view(config, workdir, jobs)


def _is_done(workdir: Path, job: slide_jobs.SlideJob, blocks: tuple[int, ...]) -> bool:
    # `prepare` removes the features of a slide that it makes anew.
    return all(
        layout.shard(folder, job.slide_id).is_file()
        for folder in stage_files.hr_folders(workdir, blocks).values()
    )


def _write_slide(
    config: ConfigDict,
    workdir: Path,
    job: slide_jobs.SlideJob,
    rows: features.SlideFeatures,
    blocks: tuple[int, ...],
) -> None:
    found = stage_files.hr_folders(workdir, blocks)
    if blocks:
        encoding.write(config, found["targets"], job, rows, by_region=True)
    # Other blocks may be asked for after the mosaics are gone; the teacher's features stay then.
    if not layout.shard(found["embedding"], job.slide_id).is_file():
        encoding.write(config, found["embedding"], job, dataclasses.replace(rows, cls=None))


def _drop_mosaics(workdir: Path, job: slide_jobs.SlideJob) -> None:
    """Deletes the HR mosaics: most of the bytes, needed no more."""
    if statuses.read(workdir, job.slide_id)["hr"]:
        statuses.mark(workdir, job, hr=False)
    job.mosaics.unlink(missing_ok=True)
