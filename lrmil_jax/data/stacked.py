"""Batches of several trainings side by side: every leaf has a leading axis of models."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from lrmil_jax.data.bag_batches import BagBatches
from lrmil_jax.data.batching import Batch, Planned, bucket_lengths, pack
from lrmil_jax.data.packing import pack_rows

_SAMPLE = 4  # epochs whose updates choose the lengths of rows


class StackedBatches(Planned):
    """What several `BagBatches` give, in batches of one shape for all of them.

    Each model sees the bags of its own updates, in its own order, as it does alone; only how they
    are packed is common. An update's bags are ranked by length, and at every rank there is room
    for the longest bag that any model has there.

    Items are those of `BagBatches` with leaves [M, B, ...]; `ends_update` is one for all.

    Args:
      sources: M, with equally many updates an epoch.
      budget: instances of a batch on one device, filling and all models counted.
    """

    def __init__(self, sources: Sequence[BagBatches], *, budget: int):
        self._sources, first = list(sources), sources[0]
        if len({(source.updates, source.endless) for source in sources}) > 1:
            raise ValueError("the sources must have equally many updates an epoch")
        super().__init__(endless=first.endless)
        self._budget = max(1, budget // len(self._sources))
        if first.packed:
            updates = [sizes.max(0) for epoch in range(_SAMPLE) for _, sizes in self._ranks(epoch)]
            self.lengths = first.rows_of(updates, models=len(self._sources))
            return
        used = np.concatenate([source.sizes[source.bags] for source in sources])
        # Each length is compiled for all models at once, which takes long.
        self.lengths = bucket_lengths(used, max_lengths=4)

    def plan(self, epoch: int) -> list[list[Batch]]:
        """The updates of one epoch; the bags of a batch are [M, B]."""
        return [self._packed(*ranks) for ranks in self._ranks(epoch)]

    def _ranks(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Bags [M, n] and sizes [M, n] of every update, by falling size; -1 and 0 where a source
        has fewer."""
        for update in zip(*(source.parts(epoch) for source in self._sources), strict=True):
            count = max(len(part) for part in update)
            bags = np.full((len(update), count), -1, np.int32)
            sizes = np.zeros((len(update), count), np.int64)
            for row, (source, part) in enumerate(zip(self._sources, update, strict=True)):
                own = source.sizes_of(epoch)
                ranked = part[np.argsort(-own[part], kind="stable")]
                bags[row, : len(part)], sizes[row, : len(part)] = ranked, own[ranked]
            yield bags, sizes

    def _packed(self, bags: np.ndarray, sizes: np.ndarray) -> list[Batch]:
        first = self._sources[0]
        if first.packed:
            return pack_rows(sizes.max(0), bags, self.lengths, slots=first.slots)
        options = {"budget": self._budget, "devices": first.devices}
        if self.endless:
            options["slots"] = first.largest_update
        ranks = pack(sizes.max(0), np.arange(bags.shape[1]), self.lengths, **options)
        bags = np.pad(bags, ((0, 0), (0, 1)), constant_values=-1)  # rank -1 is no bag
        return [Batch(bags=bags[:, batch.bags], length=batch.length) for batch in ranks]

    def item(self, batch: Batch) -> dict[str, Any]:
        """The arrays of a batch."""
        items = [
            source.item(dataclasses.replace(batch, bags=bags))
            for source, bags in zip(self._sources, batch.bags, strict=True)
        ]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *items)
