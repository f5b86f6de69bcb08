"""Bags of any size in batches of few static shapes, planned per epoch and read through Grain.

What an update learns from is a matter of statistics: `bags` bags drawn at random from the epoch,
whatever their length. How they are computed is a matter of memory: the bags of an update are
packed, longest first, into batches of about `budget` instances a device, and the gradients of
these batches are summed. So neither budget nor devices nor the length of a bag has a say in what
is learned; they only cost time. Shapes are few, because lengths and numbers of bags come from
short lists.
"""

import dataclasses
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    import grain

# More candidate lengths than this do not lower the waste visibly, but the search is quadratic.
_MAX_CANDIDATES = 256
# A further batch of an update costs as much as this share of a full one: dispatch, and small
# products that leave the device half idle.
BATCH_COST = 1 / 8
# Batches that an endless source claims to have; nobody comes to the end of it.
_ENDLESS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Batch:
    """The bags of one batch, -1 for an empty slot, and the length that all are filled up to; of
    bags side by side in a row the row's length, and where in it each begins. And its epoch."""

    bags: Int[np.ndarray, "*models B"]
    length: int
    first: Int[np.ndarray, " B"] | None = None
    epoch: int = 0


def bucket_lengths(
    sizes: Int[np.ndarray, " S"],
    *,
    max_lengths: int = 8,
    multiple: int = 8,
    waste: float = 0.05,
) -> tuple[int, ...]:
    """The fewest lengths to fill bags up to that keep the share of filling within `waste`.

    Exact (dynamic programming over the sorted sizes), so sizes that cluster need few lengths.

    Args:
      sizes: instances of each bag, at least 1.
      max_lengths: never more lengths than this, whatever the waste; each costs compilations.
      multiple: lengths are multiples of this.
      waste: share of filled instances, aimed at.

    Returns:
      Ascending lengths; the last holds the largest bag.
    """
    sizes = np.asarray(sizes, np.int64)
    if not len(sizes) or sizes.min() < 1:
        raise ValueError("bags must hold at least one instance each, and there must be one")
    rounded = -(-sizes // multiple) * multiple
    candidates = np.unique(rounded)
    if len(candidates) > _MAX_CANDIDATES:
        picks = np.linspace(0, len(candidates) - 1, _MAX_CANDIDATES).round().astype(int)
        candidates = candidates[picks]
    bucket = np.searchsorted(candidates, sizes)
    count = np.concatenate([[0], np.cumsum(np.bincount(bucket, minlength=len(candidates)))])
    # cost[j, i]: instances, filled ones too, if the candidates j..i are all filled up to i.
    cost = (count[None, 1:] - count[:-1, None]) * candidates[None, :].astype(np.float64)
    cost[np.tril_indices(len(candidates), -1)] = np.inf
    allowed = sizes.sum() / (1.0 - waste)
    best, choices = cost[0], []
    while best[-1] > allowed and len(choices) + 1 < min(max_lengths, len(candidates)):
        options = np.concatenate([[np.inf], best[:-1]])[:, None] + cost
        choices.append(options.argmin(axis=0))
        best = options.min(axis=0)
    ends = [len(candidates) - 1]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]) - 1)
    return tuple(int(candidates[end]) for end in reversed(ends))


def pack(
    sizes: Int[np.ndarray, " S"],
    bags: Int[np.ndarray, " n"],
    lengths: tuple[int, ...],
    *,
    budget: int,
    devices: int = 1,
    slots: int | None = None,
) -> list[Batch]:
    """Packs bags into batches of few shapes at the least cost: instances, filling counted, and a
    part of the budget for every further batch.

    Args:
      sizes: instances of each bag.
      bags: those to pack, each slot of a batch taking one.
      lengths: from `bucket_lengths`.
      budget: instances of a batch on one device, filling counted; a longer bag is alone there.
      devices: the slots of a batch are a multiple of this, so that each device has work.
      slots: a number of bags that comes often (those of an update): a shape of its own.

    Returns:
      Batches, the longest bags first; empty slots only where a batch has no further bag.
    """
    bucket = np.searchsorted(np.asarray(lengths), sizes[bags])
    if bucket.size and bucket.max() >= len(lengths):
        raise ValueError(f"a bag is longer than the longest length {lengths[-1]}")
    # Stable: inside a bucket the random order stays.
    descending = np.argsort(-bucket, kind="stable")
    bags, width = bags[descending], np.asarray(lengths)[bucket[descending]]
    shared = {1} if slots is None else {1, -(-slots // devices)}
    counts = sorted(shared | {4**power for power in range(1, 13)})
    # rest[i]: the least cost of the bags from i on. A batch takes all bags that it has slots for,
    # as those left over would never be cheaper.
    rest, chosen = np.zeros(len(bags) + 1), np.zeros(len(bags), int)
    for first in range(len(bags) - 1, -1, -1):
        most = max(1, budget // int(width[first]))
        fitting = np.array([count for count in counts if count <= most])
        after = np.minimum(first + fitting * devices, len(bags))
        costs = fitting * width[first] + BATCH_COST * budget + rest[after]
        rest[first], chosen[first] = costs.min(), fitting[costs.argmin()]
    batches, first = [], 0
    while first < len(bags):
        filled = np.full(chosen[first] * devices, -1, np.int32)
        part = bags[first : first + len(filled)]
        filled[: len(part)] = part
        batches.append(Batch(bags=filled, length=int(width[first])))
        first += len(part)
    return batches


def padding_waste(plan: list[Batch], sizes: Int[np.ndarray, " S"]) -> float:
    """The share of a plan's instances that are filling or empty slots."""
    slots = sum(batch.length * (len(batch.bags) if batch.first is None else 1) for batch in plan)
    real = sum(int(sizes[batch.bags[batch.bags >= 0]].sum()) for batch in plan)
    return 1.0 - real / slots


class Planned:
    """A random-access Grain source of batches that are planned epoch by epoch.

    Args:
      endless: for training; else the batches of the first epoch are all.
    """

    def __init__(self, *, endless: bool):
        self.endless = endless
        self._ends: list[int] = []  # number of batches up to the end of each epoch planned so far
        self._plans: dict[int, list[tuple[Batch, bool]]] = {}
        self._lock = threading.Lock()

    def plan(self, epoch: int) -> list[list[Batch]]:
        """The updates of one epoch, each a list of batches."""
        raise NotImplementedError

    def item(self, batch: Batch) -> dict[str, Any]:
        """The arrays of a batch."""
        raise NotImplementedError

    def __len__(self) -> int:
        return _ENDLESS if self.endless else len(self._batches(0))

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch, ends_update = self._batch(int(index))
        item = self.item(batch)
        return item | {"ends_update": ends_update} if self.endless else item

    def before(self, updates: int) -> int:
        """Batches of the first so many updates: where a training goes on after them. How many
        batches an update has depends on the devices; which bags it has does not."""
        count, epoch = 0, 0
        while True:
            plan = [len(update) for update in self.plan(epoch)]
            if updates <= len(plan):
                return count + sum(plan[:updates])
            count, updates, epoch = count + sum(plan), updates - len(plan), epoch + 1

    def dataset(self, *, threads: int = 2, prefetch: int = 4) -> "grain.IterDataset":
        """The batches in order, made ahead in threads; its iterator can be checkpointed."""
        import grain  # late: plans and batches need no Grain

        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        return grain.MapDataset.source(self).to_iter_dataset(options)

    def _batches(self, epoch: int) -> list[tuple[Batch, bool]]:
        """The batches of one epoch, and whether each ends an update."""
        return [
            (dataclasses.replace(batch, epoch=epoch), place == len(update) - 1)
            for update in self.plan(epoch)
            for place, batch in enumerate(update)
        ]

    def _batch(self, index: int) -> tuple[Batch, bool]:
        # Epochs differ in their number of batches, so the way from an index to its epoch is found
        # by planning; threads ask for neighbouring indices.
        with self._lock:
            while not self._ends or self._ends[-1] <= index:
                epoch = len(self._ends)
                self._plans[epoch] = self._batches(epoch)
                self._plans.pop(epoch - 3, None)
                before = self._ends[-1] if self._ends else 0
                self._ends.append(before + len(self._plans[epoch]))
            epoch = int(np.searchsorted(self._ends, index, side="right"))
            plan = self._plans.get(epoch) or self._batches(epoch)
            return plan[index - (self._ends[epoch - 1] if epoch else 0)]
