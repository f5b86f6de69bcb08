"""Bags of any size in batches of few static shapes, planned per epoch and read through Grain.

What an update learns from is a matter of statistics: `bags` bags drawn at random from the epoch,
whatever their length. How they are computed is a matter of memory: the bags of an update are
packed, longest first, into batches of at most `budget` instances a device, and the gradients of
these batches are summed. So neither budget nor devices nor the length of a bag has a say in what
is learned; they only cost time. Shapes are few, because lengths and numbers of bags come from
short lists.
"""

import dataclasses
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

if TYPE_CHECKING:
    import grain

# More candidate lengths than this do not lower the waste visibly, but the search is quadratic.
_MAX_CANDIDATES = 256
# A further batch of an update costs as much as this share of a full one: dispatch, and small
# products that leave the device half idle.
_BATCH_COST = 1 / 8
# Batches that an endless source claims to have; nobody comes to the end of it.
_ENDLESS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Batch:
    """The bags of one batch, -1 for an empty slot, and the length that all are filled up to."""

    bags: Int[np.ndarray, "*models B"]
    length: int


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
        costs = fitting * width[first] + _BATCH_COST * budget + rest[after]
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
    slots = sum(batch.length * len(batch.bags) for batch in plan)
    real = sum(int(sizes[batch.bags[batch.bags >= 0]].sum()) for batch in plan)
    return 1.0 - real / slots


def balanced_probabilities(labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Probabilities that draw every class equally often."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return 1.0 / (counts[inverse] * len(counts))


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

    def dataset(self, *, threads: int = 2, prefetch: int = 4) -> "grain.IterDataset":
        """The batches in order, made ahead in threads; its iterator can be checkpointed."""
        import grain  # late: plans and batches need no Grain

        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        return grain.MapDataset.source(self).to_iter_dataset(options)

    def _batches(self, epoch: int) -> list[tuple[Batch, bool]]:
        """The batches of one epoch, and whether each ends an update."""
        return [
            (batch, place == len(update) - 1)
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


class BagBatches(Planned):
    """Batches of bags: a source that is endless for training, or one pass over the bags.

    Items are dicts of numpy arrays: `rows` int32 [B, N], rows of a feature bank in which the bags
    lie one after another (or, with `read`, `features` [B, N, D]); `mask` bool [B, N]; `bag` int32
    [B], -1 in an empty slot; `weight` float32 [B], 0 there; and whatever `per_bag` and
    `per_instance` add. With `bags_per_update`, `ends_update` is True in the last batch of an
    update. Item i is a function of the arguments and of i alone.

    Attributes:
      sizes: instances of every bag of the bank.
      bags: the bags that are used.
      devices: over which a batch will be split.

    Args:
      sizes: instances of every bag of the bank.
      bags: the bags to use (a fold's training slides); None: all.
      budget: instances of a batch on one device, see `pack`.
      bags_per_update: an epoch is cut into updates of equally many bags (to one), at most this;
        the source is endless. None: all bags once, in the order that packs best.
      devices: over which a batch will be split.
      seed: of order and sampling; epochs differ.
      max_lengths: see `bucket_lengths`.
      draw: probability of each of `bags`: an epoch is then as many draws with replacement;
        None: every bag once an epoch.
      weight: weight of every bag of the bank (class weights); None: 1.
      per_bag: arrays [S, ...] over the bank's bags, gathered to [B, ...].
      per_instance: arrays [rows of the bank, ...], gathered to [B, N, ...], 0 outside the mask.
      read: gives a bag's features [n, D]; for cohorts that do not fit in device memory. Called
        in Grain's threads.
      shard: (index, count): this process's part of every batch.
    """

    def __init__(
        self,
        sizes: Int[np.ndarray, " S"],
        *,
        budget: int,
        bags: Int[np.ndarray, " n"] | None = None,
        bags_per_update: int | None = None,
        devices: int = 1,
        seed: int = 0,
        max_lengths: int = 8,
        draw: Float[np.ndarray, " n"] | None = None,
        weight: Num[np.ndarray, " S"] | None = None,
        per_bag: Mapping[str, Shaped[np.ndarray, "S ..."]] | None = None,
        per_instance: Mapping[str, Shaped[np.ndarray, "R ..."]] | None = None,
        read: Callable[[int], np.ndarray] | None = None,
        shard: tuple[int, int] = (0, 1),
    ):
        if devices % shard[1]:
            raise ValueError(f"{devices} devices cannot be split evenly among {shard[1]} processes")
        super().__init__(endless=bags_per_update is not None)
        self.sizes = np.asarray(sizes, np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)])
        self.bags = np.arange(len(sizes)) if bags is None else np.asarray(bags)
        self._bags_per_update, self.devices = bags_per_update, devices
        self._budget, self._seed = budget, seed
        self._draw, self._shard, self._read = draw, shard, read
        self._weight = np.ones(len(sizes)) if weight is None else weight
        self._per_bag, self._per_instance = dict(per_bag or {}), dict(per_instance or {})
        self.lengths = bucket_lengths(self.sizes[self.bags], max_lengths=max_lengths)

    @property
    def updates(self) -> int:
        """Updates of an epoch."""
        return -(-len(self.bags) // (self._bags_per_update or len(self.bags)))

    @property
    def bags_of_an_update(self) -> float:
        """Mean number of bags of an update, by which its gradient is divided: the updates of an
        epoch differ by a bag, which must not make one bag weigh more than another."""
        return len(self.bags) / self.updates

    def item(self, batch: Batch) -> dict[str, Any]:
        """The arrays of a batch."""
        bags = np.split(batch.bags, self._shard[1])[self._shard[0]]
        present = bags >= 0
        sizes = np.where(present, self.sizes[bags], 0)
        mask = np.arange(batch.length) < sizes[:, None]
        rows = np.where(mask, self.offsets[bags][:, None] + np.arange(batch.length), 0)
        item: dict[str, Any] = {
            "mask": mask,
            "bag": bags.astype(np.int32),
            "weight": np.where(present, self._weight[bags], 0.0).astype(np.float32),
        }
        for name, values in self._per_bag.items():
            item[name] = _keep(values[bags], present)
        for name, values in self._per_instance.items():
            item[name] = _keep(values[rows], mask)
        if self._read is None:
            item["rows"] = rows.astype(np.int32)
        else:
            item["features"] = self._features(bags, batch.length)
        return item

    def plan(self, epoch: int) -> list[list[Batch]]:
        """The updates of one epoch, each a list of batches."""
        options = {"budget": self._budget, "devices": self.devices}
        if self.endless:
            options["slots"] = -(-len(self.bags) // self.updates)
        return [pack(self.sizes, part, self.lengths, **options) for part in self.parts(epoch)]

    def parts(self, epoch: int) -> list[Int[np.ndarray, " n"]]:
        """The bags of each update of one epoch."""
        if not self.endless:
            return [self.bags]
        rng = np.random.default_rng([self._seed, epoch])
        if self._draw is None:
            order = rng.permutation(self.bags)
        else:
            order = rng.choice(self.bags, size=len(self.bags), p=self._draw)
        return np.array_split(order, self.updates)

    def _features(self, bags: Int[np.ndarray, " B"], length: int) -> Num[np.ndarray, "B N D"]:
        arrays = {int(bag): self._read(int(bag)) for bag in bags if bag >= 0}
        if not arrays:  # this process's part of a batch can be all empty slots
            first = self._read(int(self.bags[0]))
            return np.zeros((len(bags), length, first.shape[1]), first.dtype)
        first = next(iter(arrays.values()))
        features = np.zeros((len(bags), length, first.shape[1]), first.dtype)
        for slot, bag in enumerate(bags):
            if bag >= 0:
                features[slot, : self.sizes[bag]] = arrays[int(bag)]
        return features


def _keep(values: np.ndarray, where: Bool[np.ndarray, "..."]) -> Any:
    """`values`, zero where not `where` (over the leading axes)."""
    where = where.reshape(where.shape + (1,) * (values.ndim - where.ndim))
    return np.where(where, values, np.zeros((), values.dtype))
