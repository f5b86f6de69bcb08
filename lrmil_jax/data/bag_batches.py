"""The batches of a training or validation on bags: which bags, in which order, as which arrays."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from lrmil_jax.data import mixup as mixing
from lrmil_jax.data.batching import Batch, Planned, bucket_lengths, pack
from lrmil_jax.data.packing import pack_rows, row_lengths

# Updates whose bags choose the lengths of rows.
_SAMPLE = 40
# Bags of a row where no update says how many.
_SLOTS = 64


def balanced_probabilities(labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Probabilities that draw every class equally often."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return 1.0 / (counts[inverse] * len(counts))


class BagBatches(Planned):
    """Batches of bags: a source that is endless for training, or one pass over the bags.

    Items are dicts of numpy arrays: `rows` int32 [B, N], rows of a feature bank in which the bags
    lie one after another (or, with `read`, `features` [B, N, D]); `mask` bool [B, N]; `bag` int32
    [B], -1 in an empty slot; `weight` float32 [B], 0 there; and whatever `per_bag` and
    `per_instance` add. With `mixup` a bag's instances are its own and then its partner's, where
    `second` bool [B, N]; what `per_bag` adds is its own, its partner's under `second_<name>`;
    `weight` is the mean of both by `share` float32 [B], lambda, and `label_share` is the own part
    of it. If `packed`, bags lie side by side in one row of T instances: what is of
    instances, with axes [T, ...], is under `instances`, and in place of `mask` there are `first`
    and `size` int32 [B] (`heads.Packing`). With `bags_per_update`, `ends_update` is True in the
    last batch of an update. Item i is a function of the arguments and of i alone.

    Attributes:
      sizes: instances of every bag of the bank that a batch holds.
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
      instances: share of a bag's instances that a batch holds, at least one of them; which ones is
        drawn anew in each epoch.
      mixup: alpha of `mixup.draw`, by which every bag is mixed with another; 0: none is.
      shard: (index, count): this process's part of every batch.
      packed: see above; less filling and fewer shapes, for heads that take it.
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
        instances: float = 1.0,
        mixup: float = 0.0,
        shard: tuple[int, int] = (0, 1),
        packed: bool = False,
    ):
        if devices % shard[1]:
            raise ValueError(f"{devices} devices cannot be split evenly among {shard[1]} processes")
        super().__init__(endless=bags_per_update is not None)
        self._whole = np.asarray(sizes, np.int64)
        self.sizes = np.ceil(self._whole * instances).astype(np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self._whole)])
        self.bags = np.arange(len(sizes)) if bags is None else np.asarray(bags)
        self._bags_per_update, self.devices = bags_per_update, devices
        self._budget, self._seed, self._mixup = budget, seed, mixup
        self._mix = functools.lru_cache(maxsize=4)(self._mixed)
        self._draw, self._shard, self._read = draw, shard, read
        self._weight = np.ones(len(sizes)) if weight is None else weight
        self._per_bag, self._per_instance = dict(per_bag or {}), dict(per_instance or {})
        self.packed = packed
        if packed:
            self.lengths = self.rows_of(self._sampled())
        else:
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

    @property
    def largest_update(self) -> int:
        """Bags of an update, at most."""
        return -(-len(self.bags) // self.updates)

    @property
    def slots(self) -> int:
        """Bags of a row, at most."""
        wanted = self.largest_update if self.endless else _SLOTS
        return -(-wanted // self.devices) * self.devices

    def sizes_of(self, epoch: int) -> Int[np.ndarray, " S"]:
        """Instances of every bag in an epoch, as batches hold them."""
        return self._mix(epoch).sizes if self._mixup else self.sizes

    def _mixed(self, epoch: int) -> mixing.Mix:
        return mixing.draw(self.sizes, self.bags, alpha=self._mixup, seed=self._seed, epoch=epoch,
                          probabilities=self._draw)  # fmt: skip

    def rows_of(self, updates: list[np.ndarray], *, models: int = 1) -> tuple[int, ...]:
        """Lengths of rows for bags of these sizes, an array an update, of as many models."""
        longest = max(int(sizes.max()) for sizes in updates)
        budget = self._budget * self.devices // models
        return row_lengths(updates, budget=budget, multiple=8 * self.devices,
                           longest=max(longest, int(self.sizes[self.bags].max())))  # fmt: skip

    def _sampled(self) -> list[np.ndarray]:
        """Sizes of the bags of some updates."""
        epochs = -(-_SAMPLE // self.updates) if self.endless else 1
        return [self.sizes_of(epoch)[part] for epoch in range(epochs) for part in self.parts(epoch)]

    def item(self, batch: Batch) -> dict[str, Any]:
        """The arrays of a batch."""
        return self._row(batch) if self.packed else self._filled(batch)

    def _row(self, batch: Batch) -> dict[str, Any]:
        """Bags side by side."""
        index, count = self._shard
        present = batch.bags >= 0
        sizes = np.where(present, self.sizes_of(batch.epoch)[batch.bags], 0)
        places = [first + np.arange(size) for first, size in zip(batch.first, sizes, strict=True)]
        places = np.concatenate(places)
        rows = np.zeros(batch.length, np.int64)
        drawn = [self._drawn(bag, batch.epoch) for bag in batch.bags[present].tolist()]
        rows[places] = np.concatenate(
            [self.offsets[bag] + taken for bags in drawn for bag, taken in bags]
        )
        real = np.zeros(batch.length, bool)
        real[places] = True
        instances = {name: _keep(values[rows], real) for name, values in self._per_instance.items()}
        if self._mixup:
            instances["second"] = np.zeros(batch.length, bool)
            instances["second"][places] = np.concatenate([_of_second(bags) for bags in drawn])
        if self._read is None:
            instances["rows"] = rows.astype(np.int32)
        else:
            instances["features"] = self._read_row(batch, sizes)
        of_bags = {"first": batch.first, "size": sizes.astype(np.int32)}
        of_bags |= self._of_bags(batch.bags, batch.epoch)
        cut = {name: np.split(value, count)[index] for name, value in of_bags.items()}
        whole = {name: np.split(value, count)[index] for name, value in instances.items()}
        return cut | {"instances": whole}

    def _read_row(self, batch: Batch, sizes: np.ndarray) -> Num[np.ndarray, "T D"]:
        """Features of a row, read from their files."""
        row = None
        for bag, first, size in zip(batch.bags.tolist(), batch.first, sizes, strict=True):
            if bag >= 0:
                features = self._taken(bag, batch.epoch)
                if row is None:
                    row = np.zeros((batch.length, features.shape[1]), features.dtype)
                row[first : first + size] = features
        return row

    def _drawn(self, bag: int, epoch: int) -> list[tuple[int, Int[np.ndarray, " _"]]]:
        """The instances that a bag of an epoch is made of, in order: its own, and its partner's."""
        if not self._mixup:
            return [(bag, self._some(bag, int(self.sizes[bag]), [self._seed, epoch, bag]))]
        mix = self._mix(epoch)
        own, other = mix.counts[bag].tolist()
        partner = int(mix.partner[bag])
        return [
            (bag, self._some(bag, own, [self._seed, epoch, bag])),
            (partner, self._some(partner, other, [self._seed, epoch, bag, 1])),
        ]

    def _some(self, bag: int, size: int, seed: list[int]) -> Int[np.ndarray, " n"]:
        if size == self._whole[bag]:
            return np.arange(size)
        return np.sort(np.random.default_rng(seed).choice(self._whole[bag], size, replace=False))

    def _taken(self, bag: int, epoch: int) -> Num[np.ndarray, "n D"]:
        """Features of a bag of an epoch, read from their files."""
        parts = []
        for source, rows in self._drawn(bag, epoch):
            if len(rows):
                features = self._read(source)
                parts.append(features if len(rows) == len(features) else features[rows])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _of_bags(self, bags: Int[np.ndarray, " B"], epoch: int) -> dict[str, np.ndarray]:
        """What is of whole bags: [B, ...], 0 in an empty slot."""
        present = bags >= 0
        found = {"bag": bags.astype(np.int32), "weight": self._weight[bags]}
        found |= {name: values[bags] for name, values in self._per_bag.items()}
        if self._mixup:
            mix = self._mix(epoch)
            partner, share = mix.partner[bags], mix.share[bags]
            own, other = share * self._weight[bags], (1 - share) * self._weight[partner]
            found |= {f"second_{name}": values[partner] for name, values in self._per_bag.items()}
            found |= {"weight": own + other, "share": share.astype(np.float32)}
            found["label_share"] = (own / (own + other)).astype(np.float32)
        kept = {name: _keep(values, present) for name, values in found.items() if name != "bag"}
        return {"bag": found["bag"], **kept, "weight": kept["weight"].astype(np.float32)}

    def _filled(self, batch: Batch) -> dict[str, Any]:
        """Bags filled up to one length."""
        bags = np.split(batch.bags, self._shard[1])[self._shard[0]]
        present = bags >= 0
        sizes = np.where(present, self.sizes_of(batch.epoch)[bags], 0)
        mask = np.arange(batch.length) < sizes[:, None]
        rows = np.zeros(mask.shape, np.int64)
        item: dict[str, Any] = {"mask": mask, **self._of_bags(bags, batch.epoch)}
        if self._mixup:
            item["second"] = np.zeros(mask.shape, bool)
        for slot in np.flatnonzero(present):
            drawn = self._drawn(int(bags[slot]), batch.epoch)
            taken = np.concatenate([self.offsets[bag] + places for bag, places in drawn])
            rows[slot, : len(taken)] = taken
            if self._mixup:
                item["second"][slot, : len(taken)] = _of_second(drawn)
        for name, values in self._per_instance.items():
            item[name] = _keep(values[rows], mask)
        if self._read is None:
            item["rows"] = rows.astype(np.int32)
        else:
            item["features"] = self._features(bags, batch)
        return item

    def plan(self, epoch: int) -> list[list[Batch]]:
        """The updates of one epoch, each a list of batches."""
        sizes = self.sizes_of(epoch)
        if self.packed:
            parts = self.parts(epoch)
            return [pack_rows(sizes[part], part, self.lengths, slots=self.slots) for part in parts]
        options = {"budget": self._budget, "devices": self.devices}
        if self.endless:
            options["slots"] = self.largest_update
        return [pack(sizes, part, self.lengths, **options) for part in self.parts(epoch)]

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

    def _features(self, bags: Int[np.ndarray, " B"], batch: Batch) -> Num[np.ndarray, "B N D"]:
        arrays = {int(bag): self._taken(int(bag), batch.epoch) for bag in bags if bag >= 0}
        if not arrays:  # this process's part of a batch can be all empty slots
            first = self._read(int(self.bags[0]))
            return np.zeros((len(bags), batch.length, first.shape[1]), first.dtype)
        first = next(iter(arrays.values()))
        features = np.zeros((len(bags), batch.length, first.shape[1]), first.dtype)
        for slot, bag in enumerate(bags.tolist()):
            if bag >= 0:
                features[slot, : len(arrays[bag])] = arrays[bag]
        return features


def _of_second(drawn: list[tuple[int, Int[np.ndarray, " _"]]]) -> Bool[np.ndarray, " _"]:
    """Which instances of a bag are its partner's."""
    return np.repeat([False, True][: len(drawn)], [len(rows) for _, rows in drawn])


def _keep(values: np.ndarray, where: Bool[np.ndarray, "..."]) -> Any:
    """`values`, zero where not `where` (over the leading axes)."""
    where = where.reshape(where.shape + (1,) * (values.ndim - where.ndim))
    return np.where(where, values, np.zeros((), values.dtype))
