"""LR features of a cohort."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from lrmil_jax.data import features, schema, source
from lrmil_jax.data.regions import SlideJob
from lrmil_jax.errors import UserError
from lrmil_jax.models import trained
from lrmil_jax.train.encode import Encoder
from lrmil_jax.train.logging import progress
from lrmil_jax.workspace import cohorts, feature_sets, layout


def encode_cohort(
    config: ConfigDict, workdir: Path, load_encoder: Callable[[], Encoder], folder: Path
) -> None:
    """Writes LR features of every slide that has none in `folder` yet; the encoder is loaded only
    if there is one."""
    cohort = cohorts.prepared(config, workdir)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = cohorts.slide_jobs(config, workdir, cohort.table)
    pending = [job for job in jobs if not layout.shard(folder, job.slide_id).is_file()]
    if pending:
        encode = trained.batch_encoder(config, load_encoder())
        with progress("encode_lr", len(jobs), done=len(jobs) - len(pending)) as bar:
            slides = (_Slide(config, job) for job in pending)
            for slide, encoded in encode.stream((slide, slide.images()) for slide in slides):
                if isinstance(encoded, UserError):
                    raise encoded
                features.write(
                    layout.shard(folder, slide.job.slide_id),
                    slide.job.slide_id,
                    slide.features(encoded["embedding"]),
                    dtype=config.features.dtype,
                    block=config.features.rows,
                )
                bar.advance()
    record = feature_sets.record(config, workdir)
    features.write_view(folder, cohort.table.slide_id.tolist(), record)


@dataclasses.dataclass
class _Slide:
    """A slide that is being read, and where its LR patches lie."""

    config: ConfigDict
    job: SlideJob
    places: list[tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)

    def images(self) -> Iterator[np.ndarray]:
        """One tile after another, decoded in threads."""
        geometry = cohorts.geometry(self.config)
        names = ("lr", "lr_xy", "child_mask")
        parser = schema.RecordParser(schema.region_features(geometry, with_hr=False), names)
        records = source.RecordSource([self.job.shard], parser)

        def decode(record: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            return source.decode_lr(record), record["lr_xy"], record["child_mask"]

        for tile, *place in source.stream(records, decode, threads=self.config.encoder.threads):
            self.places.append(tuple(place))
            yield tile[None]

    def features(self, embedding: np.ndarray) -> features.SlideFeatures:
        """All that is stored of the slide."""
        count = len(embedding)
        return features.SlideFeatures(
            embedding=embedding,
            xy=np.stack([xy for xy, _ in self.places]),
            parent=np.arange(count, dtype=np.int32),
            child=np.full(count, -1, np.int32),
            child_mask=np.stack([mask for _, mask in self.places]),
        )
