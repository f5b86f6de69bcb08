"""Bags of any size in batches of few static shapes, planned per epoch and read through Grain.

Bags are sorted into length buckets, in random order inside a bucket. Batches are cut from the
longest bag downwards, each as wide as its longest bag's bucket and holding as many bags as the
budget of instances allows; then the batches are shuffled. So every bag comes once an epoch, shapes
are few and the same in every epoch, only the last batch can have empty slots, and the plan knows
nothing of devices.
"""

import dataclasses
import threading
from collections.abc import Callable, Mapping
from typing import Any

import grain
import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

# Share of filled instances that an epoch's plan may have, and what lengths aim at to keep to it.
_WASTE = 0.10
_AIMS = (0.06, 0.045, 0.03, 0.02, 0.01)
# More candidate lengths than this do not lower the waste visibly, but the search is quadratic.
_MAX_CANDIDATES = 256


@dataclasses.dataclass(frozen=True)
class Batch:
    """The bags of one batch, -1 for an empty slot, and the length that all are filled up to."""

    bags: Int[np.ndarray, " B"]
    length: int


def bucket_lengths(
    sizes: Int[np.ndarray, " S"],
    *,
    max_shapes: int = 12,
    multiple: int = 8,
    waste: float = 0.05,
) -> tuple[int, ...]:
    """The fewest lengths to fill bags up to that keep the share of filling within `waste`.

    Exact (dynamic programming over the sorted sizes), so sizes that cluster need few lengths.

    Args:
      sizes: instances of each bag, at least 1.
      max_shapes: never more lengths than this, whatever the waste; each costs a compilation.
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
    while best[-1] > allowed and len(choices) + 1 < min(max_shapes, len(candidates)):
        options = np.concatenate([[np.inf], best[:-1]])[:, None] + cost
        choices.append(options.argmin(axis=0))
        best = options.min(axis=0)
    ends = [len(candidates) - 1]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]) - 1)
    return tuple(int(candidates[end]) for end in reversed(ends))


def plan_epoch(
    sizes: Int[np.ndarray, " S"],
    order: Int[np.ndarray, " n"],
    lengths: tuple[int, ...],
    *,
    budget: int,
    max_bags: int | None = None,
    exact_tail: bool = True,
    rng: np.random.Generator | None = None,
) -> list[Batch]:
    """Cuts the bags of one epoch into batches of at most `budget` instances.

    Args:
      sizes: instances of each bag.
      order: the bags of the epoch in random order, repeated where sampling says so.
      lengths: from `bucket_lengths`.
      budget: instances of a batch, filling counted; a longer bag is a batch of its own.
      max_bags: at most so many bags in a batch, for cohorts of very small bags.
      exact_tail: the last batch has no empty slot. Its shape is the same in every epoch as long
        as the epochs hold the same bags; where they are drawn with replacement, False halves
        its slots while half of them would be empty, so that shapes stay few.
      rng: shuffles the batches; None leaves the longest first.
    """
    bucket = np.searchsorted(np.asarray(lengths), sizes[order])
    if bucket.size and bucket.max() >= len(lengths):
        raise ValueError(f"a bag is longer than the longest length {lengths[-1]}")
    # Stable: inside a bucket the random order stays.
    descending = np.argsort(-bucket, kind="stable")
    order, bucket = order[descending], bucket[descending]
    batches, start = [], 0
    while start < len(order):
        length = lengths[bucket[start]]
        slots = max(1, min(budget // length, max_bags or budget))
        bags = order[start : start + slots]
        while len(bags) <= slots // 2:
            slots = -(-slots // 2)
        if exact_tail:
            slots = len(bags)
        filled = np.full(slots, -1, np.int32)
        filled[: len(bags)] = bags
        batches.append(Batch(bags=filled, length=length))
        start += len(bags)
    if rng is not None:
        rng.shuffle(batches)
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


class BagBatches:
    """A random-access Grain source of batches over as many epochs as are asked for.

    Items are dicts of numpy arrays: `rows` int32 [B, N], rows of a feature bank in which the bags
    lie one after another (or, with `read`, `features` [B, N, D]); `mask` bool [B, N]; `bag` int32
    [B], -1 in an empty slot; `weight` float32 [B], 0 there; and whatever `per_bag` and
    `per_instance` add. Item i is a function of the arguments and of i alone.

    Args:
      sizes: instances of every bag of the bank.
      bags: the bags to use (a fold's training slides); None: all.
      budget: instances of a batch, see `plan_epoch`.
      seed: of order and sampling; epochs differ.
      num_batches: length of the source, over epochs (steps * accumulate); None: one epoch.
      max_bags: at most so many bags in a batch.
      max_shapes: at most so many lengths, whatever they waste; each costs about half a second of
        compilation, which is much for a small cohort.
      lengths: bucket lengths; None: chosen for `bags`.
      draw: probability of each of `bags`: an epoch is then as many draws with replacement;
        None: every bag once an epoch.
      weight: weight of every bag of the bank (class weights); None: 1.
      per_bag: arrays [S, ...] over the bank's bags, gathered to [B, ...].
      per_instance: arrays [rows of the bank, ...], gathered to [B, N, ...], 0 outside the mask.
      read: gives a bag's features [n, D]; for cohorts that do not fit in device memory. Called
        in Grain's threads.
      shard: (index, count): this process's part of every batch, filled up to equal parts.
    """

    def __init__(
        self,
        sizes: Int[np.ndarray, " S"],
        *,
        budget: int,
        bags: Int[np.ndarray, " n"] | None = None,
        seed: int = 0,
        num_batches: int | None = None,
        max_bags: int | None = None,
        max_shapes: int = 12,
        lengths: tuple[int, ...] | None = None,
        draw: Float[np.ndarray, " n"] | None = None,
        weight: Num[np.ndarray, " S"] | None = None,
        per_bag: Mapping[str, Shaped[np.ndarray, "S ..."]] | None = None,
        per_instance: Mapping[str, Shaped[np.ndarray, "R ..."]] | None = None,
        read: Callable[[int], np.ndarray] | None = None,
        shard: tuple[int, int] = (0, 1),
    ):
        self.sizes = np.asarray(sizes, np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)])
        self._bags = np.arange(len(sizes)) if bags is None else np.asarray(bags)
        self._budget, self._max_bags, self._seed = budget, max_bags, seed
        self._draw, self._shard, self._read = draw, shard, read
        self._weight = np.ones(len(sizes)) if weight is None else weight
        self._per_bag, self._per_instance = dict(per_bag or {}), dict(per_instance or {})
        self._ends: list[int] = []  # number of batches up to the end of each epoch planned so far
        self._plans: dict[int, list[Batch]] = {}
        self._lock, self._max_shapes = threading.Lock(), max_shapes
        self.lengths = lengths or self._choose_lengths()
        self._num_batches = len(self.plan(0)) if num_batches is None else num_batches

    def __len__(self) -> int:
        return self._num_batches

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        batch = self._batch(int(index))
        bags = self._own_part(batch.bags)
        present = bags >= 0
        sizes = np.where(present, self.sizes[bags], 0)
        mask = np.arange(batch.length) < sizes[:, None]
        rows = np.where(mask, self.offsets[bags][:, None] + np.arange(batch.length), 0)
        item = {
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

    def _choose_lengths(self) -> tuple[int, ...]:
        """The fewest lengths with which a plan wastes little; empty slots and batches that reach
        over two buckets count too, so the plan itself is asked."""
        for aim in _AIMS:
            self.lengths = bucket_lengths(
                self.sizes[self._bags], max_shapes=self._max_shapes, waste=aim
            )
            if padding_waste(self.plan(0), self.sizes) <= _WASTE:
                break
        return self.lengths

    def plan(self, epoch: int) -> list[Batch]:
        """The batches of one epoch."""
        rng = np.random.default_rng([self._seed, epoch])
        if self._draw is None:
            order = rng.permutation(self._bags)
        else:
            order = rng.choice(self._bags, size=len(self._bags), p=self._draw)
        return plan_epoch(
            self.sizes,
            order,
            self.lengths,
            budget=self._budget,
            max_bags=self._max_bags,
            exact_tail=self._draw is None,
            rng=rng,
        )

    def dataset(self, *, threads: int = 2, prefetch: int = 4) -> grain.IterDataset:
        """The batches in order, made ahead in threads; its iterator can be checkpointed."""
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        return grain.MapDataset.source(self).to_iter_dataset(options)

    def _batch(self, index: int) -> Batch:
        # Epochs drawn with replacement differ in their number of batches, so the way from an
        # index to its epoch is found by planning; threads ask for neighbouring indices.
        with self._lock:
            while not self._ends or self._ends[-1] <= index:
                epoch = len(self._ends)
                self._plans[epoch] = self.plan(epoch)
                self._plans.pop(epoch - 3, None)
                before = self._ends[-1] if self._ends else 0
                self._ends.append(before + len(self._plans[epoch]))
            epoch = int(np.searchsorted(self._ends, index, side="right"))
            plan = self._plans.get(epoch) or self.plan(epoch)
            return plan[index - (self._ends[epoch - 1] if epoch else 0)]

    def _own_part(self, bags: Int[np.ndarray, " B"]) -> Int[np.ndarray, " b"]:
        index, count = self._shard
        filled = np.pad(bags, (0, -len(bags) % count), constant_values=-1)
        return np.split(filled, count)[index]

    def _features(self, bags: Int[np.ndarray, " B"], length: int) -> Num[np.ndarray, "B N D"]:
        arrays = {int(bag): self._read(int(bag)) for bag in bags if bag >= 0}
        if not arrays:  # this process's part of a last batch can be all empty slots
            first = self._read(int(self._bags[0]))
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
