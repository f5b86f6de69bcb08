"""encode_hr: every HR patch through the frozen encoder, once per cohort, a file a slide.

Two files a slide: the embeddings in large blocks, which the teacher reads whole, and the targets
of stage 1 (CLS at the chosen blocks), one record per LR patch, which training reads at random.
"""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax import files
from lrmil_jax.data import features, regions, schema, source, writer
from lrmil_jax.models import children, trained
from lrmil_jax.train.logging import progress
from lrmil_jax.workspace import claims, cohorts, feature_sets, layout, stage_files, statuses


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes `features/hr` and `features/hr_targets_<blocks>` for every prepared slide."""
    cohort = cohorts.prepared(config, workdir)
    encoder = trained.hr_encoder(config, workdir)
    claims.claim(workdir, "encoder", trained.encoder_facts(config, workdir))
    blocks = trained.layers(config, encoder.module) if config.method == "lrmil" else ()
    jobs = cohorts.slide_jobs(config, workdir, cohort.table)
    pending = [job for job in jobs if not _is_done(workdir, job, blocks)]
    for folder in stage_files.hr_folders(workdir, blocks).values():
        folder.mkdir(parents=True, exist_ok=True)
    if pending:
        encode = trained.batch_encoder(config, encoder, blocks)
        with progress("encode_hr", len(jobs), done=len(jobs) - len(pending)) as bar:
            for slide, rows in children.encode(encode, config, workdir, pending):
                if rows is not None:
                    _write_slide(config, workdir, slide.job, rows, blocks)
                bar.advance()
        cohorts.write_slides_csv(config, workdir)
    slide_ids = cohorts.prepared(config, workdir).table.slide_id.tolist()
    # Always: a killed run may have encoded the last slide and not come to this.
    for name, folder in stage_files.hr_folders(workdir, blocks).items():
        num_layers = len(blocks) if name == "targets" else 0
        record = feature_sets.record(config, workdir, num_layers=num_layers)
        features.write_view(folder, slide_ids, record)
    if config.prepare.hr == "store" and not config.prepare.keep_hr:
        for job in jobs:
            if job.slide_id in slide_ids:
                _drop_mosaics(config, workdir, job)
        cohorts.write_view(config, workdir, jobs)


def _is_done(workdir: Path, job: regions.SlideJob, blocks: tuple[int, ...]) -> bool:
    # `prepare` removes the features of a slide that it makes anew.
    return all(
        layout.shard(folder, job.slide_id).is_file()
        for folder in stage_files.hr_folders(workdir, blocks).values()
    )


def _write_slide(
    config: ConfigDict,
    workdir: Path,
    job: regions.SlideJob,
    rows: features.SlideFeatures,
    blocks: tuple[int, ...],
) -> None:
    found, dtype = stage_files.hr_folders(workdir, blocks), config.features.dtype
    if blocks:
        path = layout.shard(found["targets"], job.slide_id)
        features.write(path, job.slide_id, rows, dtype=dtype, block=None)
    # Other blocks may be asked for after the mosaics are gone; the teacher's features stay then.
    path = layout.shard(found["embedding"], job.slide_id)
    if not path.is_file():
        plain = dataclasses.replace(rows, cls=None)
        features.write(path, job.slide_id, plain, dtype=dtype, block=config.features.rows)


def _drop_mosaics(config: ConfigDict, workdir: Path, job: regions.SlideJob) -> None:
    """Writes the regions again without HR: most of the bytes, needed no more."""
    status = statuses.read(workdir, job.slide_id)
    if not status["hr"]:
        return
    geometry = cohorts.geometry(config)
    without = schema.region_features(geometry, with_hr=False)
    parser = schema.RecordParser(schema.region_features(geometry, with_hr=True), tuple(without))
    records = source.RecordSource([job.shard], parser)
    writer.write_records(job.shard, without, (records[i] for i in range(len(records))))
    files.write_json(job.status_path, status | {"hr": False})
