"""Batches of several trainings side by side: every leaf has a leading axis of models."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lrmil_jax.data.batching import BagBatches, Batch, Planned, bucket_lengths, pack


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
        used = np.concatenate([source.sizes[source.bags] for source in sources])
        # Each length is compiled for all models at once, which takes long.
        self.lengths = bucket_lengths(used, max_lengths=4)

    def plan(self, epoch: int) -> list[list[Batch]]:
        """The updates of one epoch; the bags of a batch are [M, B]."""
        parts = [source.parts(epoch) for source in self._sources]
        return [self._packed(update) for update in zip(*parts, strict=True)]

    def _packed(self, update: Sequence[np.ndarray]) -> list[Batch]:
        count = max(len(part) for part in update)
        bags = np.full((len(update), count), -1, np.int32)
        sizes = np.zeros((len(update), count), np.int64)
        for row, (source, part) in enumerate(zip(self._sources, update, strict=True)):
            ranked = part[np.argsort(-source.sizes[part], kind="stable")]
            bags[row, : len(part)], sizes[row, : len(part)] = ranked, source.sizes[ranked]
        options = {"budget": self._budget, "devices": self._sources[0].devices}
        if self.endless:
            options["slots"] = -(-len(self._sources[0].bags) // self._sources[0].updates)
        ranks = pack(sizes.max(0), np.arange(count), self.lengths, **options)
        bags = np.pad(bags, ((0, 0), (0, 1)), constant_values=-1)  # rank -1 is no bag
        return [Batch(bags=bags[:, batch.bags], length=batch.length) for batch in ranks]

    def item(self, batch: Batch) -> dict[str, Any]:
        """The arrays of a batch."""
        items = [
            source.item(Batch(bags=bags, length=batch.length))
            for source, bags in zip(self._sources, batch.bags, strict=True)
        ]
        return {name: np.stack([item[name] for item in items]) for name in items[0]}
