"""HR patches of slides, all or some of them."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from lrmil_jax.data import features, regions, schema, source
from lrmil_jax.errors import SlideError, UserError
from lrmil_jax.slides import open_slide
from lrmil_jax.train.encode import BatchEncoder
from lrmil_jax.workspace import cohorts, statuses


@dataclasses.dataclass
class Slide:
    """A slide whose HR patches are read.

    Attributes:
      config: of the run.
      workdir: with the slide's regions.
      job: the slide.
      chosen: LR patches whose children are wanted, in order; None is all.
      places: where the patches lie that were read so far.
      read_log: level-0 pixels and coarser ones read from the slide itself, per level.
    """

    config: ConfigDict
    workdir: Path
    job: regions.SlideJob
    chosen: Sequence[int] | None = None
    places: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)
    read_log: dict[int, int] = dataclasses.field(default_factory=dict)

    def images(self) -> Iterator[np.ndarray]:
        """The present children of region after region."""
        status = statuses.read(self.workdir, self.job.slide_id)
        found = self._stored() if status["hr"] else self._from_slide(status)
        for region in found:
            self.places.append(_child_rows(region))
            yield region["children"][region["child_mask"]]

    def rows(self, encoded: dict[str, np.ndarray] | UserError) -> features.SlideFeatures:
        """The features as they are stored.

        Args:
          encoded: what `BatchEncoder.stream` made of `images`.

        Raises:
          UserError: what the reading ended with, or no patch could be decoded.
        """
        if isinstance(encoded, UserError):
            raise encoded
        if not encoded:
            raise SlideError(f"{self.job.path}: none of its HR patches could be decoded")
        joined = {
            name: np.concatenate([part[name] for part in self.places]) for name in self.places[0]
        }
        return features.SlideFeatures(
            embedding=encoded["embedding"], cls=encoded.get("cls"), **joined
        )

    def _records(self, *, with_hr: bool) -> source.RecordSource:
        names = ("lr_xy", "lr_side", "child_mask", *(("hr",) if with_hr else ()))
        fields = schema.region_features(cohorts.geometry(self.config), with_hr=with_hr)
        return source.RecordSource([self.job.shard], schema.RecordParser(fields, names))

    def _wanted(self, records: source.RecordSource) -> Sequence[int]:
        return range(len(records)) if self.chosen is None else self.chosen

    def _stored(self) -> Iterator[dict]:
        ratio, records = cohorts.geometry(self.config).ratio, self._records(with_hr=True)

        def decode(place: int) -> dict:
            record = records[int(place)]
            kept = {name: record[name] for name in ("lr_xy", "lr_side", "child_mask")}
            return kept | {"place": int(place), "children": source.decode_hr(record, ratio)}

        yield from source.stream(self._wanted(records), decode, threads=self.config.encoder.threads)

    def _from_slide(self, status: dict) -> Iterator[dict]:
        geometry, records = cohorts.geometry(self.config), self._records(with_hr=False)
        lost: list[dict] = []
        with open_slide(self.job.path, self.job.mpp, reader=self.config.prepare.reader) as slide:
            for place in self._wanted(records):
                region = records[int(place)]
                mask = region["child_mask"].copy()
                mosaic = regions.read_mosaic(
                    slide,
                    lr_xy=region["lr_xy"],
                    lr_side=int(region["lr_side"]),
                    geometry=geometry,
                    mask=mask,
                    unreadable=lost,
                )
                children = source.cut_mosaic(mosaic, geometry.ratio)
                yield region | {"place": int(place), "child_mask": mask, "children": children}
            self.read_log |= {int(level): int(n) for level, n in slide.read_log.items()}
        if lost:
            known = [item for item in status["unreadable"] if item["what"] != "hr"]
            statuses.mark(self.workdir, self.job, unreadable=known + lost)


def slides_images(
    config: ConfigDict,
    workdir: Path,
    jobs: Iterable[regions.SlideJob],
    chosen: Callable[[str], Sequence[int]] | None = None,
) -> Iterator[tuple[Slide, Iterator[np.ndarray]]]:
    """Every slide with its HR patches in groups, for `BatchEncoder.stream`.

    Args:
      config: of the run.
      workdir: with the regions.
      jobs: the slides.
      chosen: a slide's LR patches whose children are wanted; None is all.
    """
    for job in jobs:
        slide = Slide(config, workdir, job, None if chosen is None else chosen(job.slide_id))
        yield slide, slide.images()


def encode(
    encoder: BatchEncoder,
    config: ConfigDict,
    workdir: Path,
    jobs: Iterable[regions.SlideJob],
    chosen: Callable[[str], Sequence[int]] | None = None,
) -> Iterator[tuple[Slide, features.SlideFeatures | None]]:
    """Every slide with its encoded HR patches; None for one that is marked as failed.

    Raises:
      UserError: a mistake that is not one slide's own.
    """
    for slide, encoded in encoder.stream(slides_images(config, workdir, jobs, chosen)):
        rows = None
        try:
            rows = slide.rows(encoded)
        except SlideError as error:
            statuses.mark(workdir, slide.job, status="failed", reason=str(error))
        yield slide, rows


def _child_rows(region: dict) -> dict[str, np.ndarray]:
    """Where the present children of a region lie: one row each, as features are stored."""
    mask = region["child_mask"]
    ratio, present = len(mask), np.argwhere(mask)
    side = int(region["lr_side"]) // ratio
    return {
        "xy": (region["lr_xy"] + present[:, ::-1] * side).astype(np.int32),
        "parent": np.full(len(present), region["place"], np.int32),
        "child": (present[:, 0] * ratio + present[:, 1]).astype(np.int32),
        "child_mask": np.repeat(mask[None], len(present), 0),
    }
