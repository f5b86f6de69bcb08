"""Regions as `prepare` stored them, and where they lie."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lrmil_jax.data import schema, slide_jobs, source
from lrmil_jax.data.schema import Geometry
from lrmil_jax.patches.open_slides import present
from lrmil_jax.patches.origins import Places, Region


class Shards:
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

    def begin(self, indices: Sequence[int] | None, *, high: bool) -> None:
        """See `Origin`: there is nothing to begin."""

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
                images = present(source.decode_hr(record, self._geometry.ratio), mask)
            else:
                images = [source.decode_lr(record)]
            return Region(int(index), record["lr_xy"], int(record["lr_side"]), mask, images)

        indices = range(len(records)) if indices is None else indices
        yield from source.stream(indices, decode, threads=self._threads)


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
