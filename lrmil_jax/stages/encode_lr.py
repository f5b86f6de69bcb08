"""encode_lr: LR tiles through the fold's distilled encoder."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from lrmil_jax.data import features, schema, source
from lrmil_jax.data.regions import SlideJob
from lrmil_jax.stages import layout, models
from lrmil_jax.train.encode import BatchEncoder, Encoder
from lrmil_jax.train.logging import progress


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/encode_lr/features`."""
    distilled = functools.partial(models.distilled_encoder, config, workdir, fold)
    encode_cohort(config, workdir, distilled, distilled_folder(workdir, fold))


def distilled_folder(workdir: Path, fold: int) -> Path:
    """LR features of the fold's distilled encoder."""
    return layout.stage_folder(workdir, "encode_lr", fold) / "features"


def undistilled_folder(workdir: Path) -> Path:
    """LR features of the HR encoder itself, the same for all folds."""
    return layout.features_folder(workdir, "lr_undistilled")


def encode_cohort(
    config: ConfigDict, workdir: Path, load_encoder: Callable[[], Encoder], folder: Path
) -> None:
    """Writes LR features of every slide that has none in `folder` yet; the encoder is loaded only
    if there is one."""
    cohort = layout.prepared_cohort(config, workdir)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = layout.slide_jobs(config, workdir, cohort.table)
    pending = [job for job in jobs if not layout.shard(folder, job.slide_id).is_file()]
    if pending:
        encode = models.batch_encoder(config, load_encoder())
        with progress("encode_lr", len(jobs), done=len(jobs) - len(pending)) as bar:
            for job in pending:
                rows = _encode_slide(config, job, encode)
                features.write(
                    layout.shard(folder, job.slide_id),
                    job.slide_id,
                    rows,
                    dtype=config.features.dtype,
                    block=config.features.rows,
                )
                bar.advance()
    record = models.feature_schema(config, workdir)
    features.write_view(folder, cohort.table.slide_id.tolist(), record)


def _encode_slide(
    config: ConfigDict, job: SlideJob, encode: BatchEncoder
) -> features.SlideFeatures:
    geometry = layout.geometry(config)
    names = ("lr", "lr_xy", "child_mask")
    parser = schema.RecordParser(schema.region_features(geometry, with_hr=False), names)
    records = source.RecordSource([job.shard], parser)
    places: list[tuple[np.ndarray, np.ndarray]] = []

    def decode(record: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return source.decode_lr(record), record["lr_xy"], record["child_mask"]

    def images() -> Iterator[np.ndarray]:
        for tile, xy, mask in source.stream(records, decode, threads=config.encoder.threads):
            places.append((xy, mask))
            yield tile[None]

    embedding = encode(images())["embedding"]
    count = len(embedding)
    return features.SlideFeatures(
        embedding=embedding,
        xy=np.stack([xy for xy, _ in places]),
        parent=np.arange(count, dtype=np.int32),
        child=np.full(count, -1, np.int32),
        child_mask=np.stack([mask for _, mask in places]),
    )
