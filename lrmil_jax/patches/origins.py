"""Where the patches of one slide come from: its shards, or the slide file itself."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, UInt8

from lrmil_jax.data import regions, schema, slide_jobs, source
from lrmil_jax.data.schema import Geometry
from lrmil_jax.errors import TileError
from lrmil_jax.slides import Slide


@dataclasses.dataclass(frozen=True)
class Region:
    """One LR patch and what was read of it.

    Attributes:
      index: its place on the slide's lattice.
      xy: [2] level-0 corner; side: in level-0 px.
      child_mask: [r, r] True where a child is there and could be read.
      images: its LR tile, or its children [row by row], each [px, px, 3]; views where they can be.
    """

    index: int
    xy: Int[np.ndarray, "2"]
    side: int
    child_mask: Bool[np.ndarray, "r r"]
    images: Sequence[UInt8[np.ndarray, "px px 3"]]


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the LR patches of a slide lie: a lattice, or what the shard keeps of it.

    Attributes:
      xy: [N, 2] level-0 corners; side: in level-0 px.
      child_mask: [N, r, r].
    """

    xy: Int[np.ndarray, "N 2"]
    side: int
    child_mask: Bool[np.ndarray, "N r r"]


@runtime_checkable
class Origin(Protocol):
    """Reads regions of one slide.

    Attributes:
      damage: what could not be decoded, as `slides.csv` counts it: {"what", "xy", "side"}.
      levels: level-0 and coarser pixels read from the slide itself, per level.
    """

    damage: list[dict]
    levels: dict[int, int]

    def begin(self, indices: Sequence[int] | None, *, high: bool) -> None:
        """Begins to read, where others do it; `regions` is asked for the same later."""

    def regions(self, indices: Sequence[int] | None, *, high: bool) -> Iterator[Region]:
        """The wanted regions in order, or all; with `high` their children instead of tiles."""
        ...


class ReadHere:
    """An origin that reads in this process, when it is asked."""

    def begin(self, indices: Sequence[int] | None, *, high: bool) -> None:
        """See `Origin`: there is nothing to begin."""


class Shards(ReadHere):
    """Regions as `prepare` stored them, decoded in threads.

    Args:
      shard: the slide's LR shard; its HR shard lies where `slide_jobs.mosaics_path` says.
      geometry: of the run.
      threads: tiles or mosaics decoded at once.

    Raises (when it is read):
      DataError: a shard is missing or cut short, named in the message.
    """

    def __init__(self, shard: Path, geometry: Geometry, *, threads: int):
        self._shard, self._geometry, self._threads = shard, geometry, threads
        self.damage: list[dict] = []
        self.levels: dict[int, int] = {}

    def regions(self, indices: Sequence[int] | None, *, high: bool) -> Iterator[Region]:
        """See `Origin`."""
        fields = ("lr_xy", "lr_side", "child_mask")
        if high:
            path = slide_jobs.mosaics_path(self._shard)
            features = schema.mosaic_features(self._geometry)
            records = source.RecordSource([path], schema.RecordParser(features, (*fields, "hr")))
        else:
            records = source.RecordSource(
                [self._shard], tile_parser(self._geometry, (*fields, "lr"))
            )

        def decode(index: int) -> Region:
            record = records[int(index)]
            mask = record["child_mask"]
            if high:
                images = _present(source.decode_hr(record, self._geometry.ratio), mask)
            else:
                images = [source.decode_lr(record)]
            return Region(int(index), record["lr_xy"], int(record["lr_side"]), mask, images)

        indices = range(len(records)) if indices is None else indices
        yield from source.stream(indices, decode, threads=self._threads)


class OpenSlide(ReadHere):
    """Regions read from an open slide, which this does not close."""

    def __init__(self, slide: Slide, places: Places, geometry: Geometry):
        self._slide, self._places, self._geometry = slide, places, geometry
        self.damage: list[dict] = []

    @property
    def levels(self) -> dict[int, int]:
        """See `Origin`."""
        return {int(level): int(pixels) for level, pixels in self._slide.read_log.items()}

    def regions(self, indices: Sequence[int] | None, *, high: bool) -> Iterator[Region]:
        """See `Origin`."""
        for index in range(len(self._places.xy)) if indices is None else indices:
            xy, mask = self._places.xy[index], self._places.child_mask[index].copy()
            images = self._children(xy, mask) if high else self._tile(xy)
            yield Region(int(index), xy, self._places.side, mask, images)

    def _tile(self, xy: np.ndarray) -> list[np.ndarray]:
        try:
            return [self._slide.read(xy, self._geometry.patch_px, self._places.side)]
        except TileError:
            corner = [int(value) for value in xy]
            self.damage.append({"what": "lr", "xy": corner, "side": self._places.side})
            return []

    def _children(self, xy: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
        mosaic = regions.read_mosaic(
            self._slide,
            lr_xy=xy,
            lr_side=self._places.side,
            geometry=self._geometry,
            mask=mask,
            unreadable=self.damage,
        )
        return _present(source.cut_mosaic(mosaic, self._geometry.ratio), mask)


class SlideAtRegions(ReadHere):
    """HR patches of a prepared slide whose shard has none: they are read from the slide file."""

    def __init__(self, job: slide_jobs.SlideJob):
        self._job = job
        self.damage: list[dict] = []
        self.levels: dict[int, int] = {}

    def regions(self, indices: Sequence[int] | None, *, high: bool) -> Iterator[Region]:
        """See `Origin`."""
        if indices is not None and not len(indices):
            return
        settings = self._job.settings
        places = stored_places(self._job.shard, settings.geometry)
        with self._job.open() as slide:
            origin = OpenSlide(slide, places, settings.geometry)
            yield from origin.regions(indices, high=high)
            self.damage, self.levels = origin.damage, origin.levels


def tile_parser(geometry: Geometry, names: tuple[str, ...] = ("lr",)) -> schema.RecordParser:
    """Reads the named parts of LR records, by default the tile alone."""
    return schema.RecordParser(schema.region_features(geometry), names)


def stored_places(shard: Path, geometry: Geometry) -> Places:
    """Where a prepared slide's LR patches lie.

    Raises:
      DataError: the shard is missing or cut short.
    """
    records = source.RecordSource(
        [shard], tile_parser(geometry, ("lr_xy", "lr_side", "child_mask"))
    )
    rows = [records[index] for index in range(len(records))]
    return Places(
        np.stack([row["lr_xy"] for row in rows]),
        int(rows[0]["lr_side"]),
        np.stack([row["child_mask"] for row in rows]),
    )


def _present(children: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Views of the children that are there, row by row."""
    return [children[v, u] for v, u in np.argwhere(mask)]
