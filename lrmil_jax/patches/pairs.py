"""Training examples across scales: an LR tile, its children's HR features and, for stage 1, the
teacher's attention."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import grain
import numpy as np

from lrmil_jax.data import source
from lrmil_jax.data.features import read_index
from lrmil_jax.data.schema import Geometry, RecordParser
from lrmil_jax.errors import DataError
from lrmil_jax.patches.shards import tile_parser
from lrmil_jax.processes import Workers
from lrmil_jax.slides import stain

_OTHER = "other_"


class PatchPairs:
    """One example per LR patch that has HR children, random access, in the order of the slides.

    Items are dicts: `lr` uint8 [px, px, 3]; `child_embedding` [r*r, D] as stored, 0 where masked;
    `child_mask` bool [r, r]; where they are given, `child_cls` [r, r, L, W], `attention` float32
    [r*r], the teacher's logits, and `other_<i>` [r*r, D_i], the children's embeddings by other
    encoders, from 0.

    Args:
      regions: region shards, one a slide.
      targets: the target shards of the same slides.
      counts: records of each region shard.
      geometry: of the run.
      target_parser: reads `embedding`, `child` and perhaps `cls`.
      attention: the teacher's attention logits over each slide's HR patches, or None.
      others: of each further encoder the target shards of the same slides, with the same rows, and
        what reads their `embedding`.

    Raises:
      DataError: the targets of another encoder are of other LR patches.
    """

    def __init__(
        self,
        regions: Sequence[Path],
        targets: Sequence[Path],
        *,
        counts: Sequence[int],
        geometry: Geometry,
        target_parser: RecordParser,
        attention: Sequence[np.ndarray] | None = None,
        others: Sequence[tuple[Sequence[Path], RecordParser]] = (),
    ):
        self._others = [source.RecordSource(paths, parser) for paths, parser in others]
        for paths, _ in others:
            _refuse_other_rows(targets, paths)
        self._regions = source.RecordSource(regions, tile_parser(geometry))
        self._targets = source.RecordSource(targets, target_parser)
        self._ratio = geometry.ratio
        self._attention = None
        if attention is not None:
            self._attention = np.concatenate(
                [np.asarray(logits, np.float32) for logits in attention]
            )
        # A region of which no child exists has no target record, so places are counted apart.
        first_region, region, rows = 0, [], []
        for count, target in zip(counts, targets, strict=True):
            index = read_index(target)
            region += [first_region + parent for parent in index["parent"].tolist()]
            rows += index["rows"].tolist()
            first_region += count
        self._region = np.array(region)
        self._first_row = np.concatenate([[0], np.cumsum(rows)])

    def __len__(self) -> int:
        return len(self._region)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        target = self._targets[index]
        child, children = target["child"], self._ratio**2
        rows = slice(self._first_row[index], self._first_row[index + 1])

        complete = len(child) == children and bool((np.diff(child) == 1).all())

        def spread(values: np.ndarray) -> np.ndarray:
            if complete:
                return values
            full = np.zeros((children, *values.shape[1:]), values.dtype)
            full[child] = values
            return full

        square = (self._ratio, self._ratio)
        item = {
            "lr": source.decode_lr(self._regions[int(self._region[index])]),
            "child_embedding": spread(target["embedding"]),
            "child_mask": spread(np.ones(len(child), bool)).reshape(square),
        }
        if "cls" in target:
            cls = spread(target["cls"])
            item["child_cls"] = cls.reshape(*square, *cls.shape[1:])
        if self._attention is not None:
            item["attention"] = spread(self._attention[rows])
        for number, other in enumerate(self._others):
            item[f"{_OTHER}{number}"] = spread(other[index]["embedding"])
        return item

    def batches(
        self,
        *,
        batch: int,
        seed: int,
        steps: int,
        threads: int,
        flips: bool = False,
        stain_jitter: float | int = 0.0,
        makers: Workers | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> grain.IterDataset:
        """Shuffled batches for `steps`; decode runs in Grain's threads, or in processes.

        Args:
          batch: examples a batch.
          seed: of the order and the flips.
          steps: batches that will be asked for.
          threads: examples made at once.
          flips: every example is turned and mirrored at random, its children with it.
          stain_jitter: the LR tile of every example has its stains scaled at random, by at most
            this share; its children's features stay.
          makers: processes that hold these pairs; None, or one, makes them here.
          part: (index, count): this process's part of every batch.
        """
        in_processes = makers is not None and makers.count > 1
        return source.training_batches(
            _Beside(self, makers) if in_processes else self,
            batch=batch,
            seed=seed,
            steps=steps,
            threads=max(threads, makers.room) if in_processes else threads,
            augment=Change(flips, stain_jitter) if flips or stain_jitter else None,
            part=part,
        )

    def sample(
        self, *, batch: int, most: int, part: tuple[int, int] = (0, 1)
    ) -> list[dict[str, np.ndarray]]:
        """At most `most` evenly spaced examples in batches, or a process's part of each; the last
        batch's filling weighs 0."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(int))
        return source.held_out_batches(self, chosen, batch=batch, part=part)


def _refuse_other_rows(targets: Sequence[Path], others: Sequence[Path]) -> None:
    for own, other in zip(targets, others, strict=True):
        here, there = read_index(own), read_index(other)
        if not all(np.array_equal(here[name], there[name]) for name in ("parent", "rows")):
            raise DataError(
                f"{other} is of other patches than {own}; both encoders must have read the same HR "
                "patches"
            )


class _Beside:
    """The same examples, each made in one of the processes that hold them."""

    def __init__(self, pairs: PatchPairs, makers: Workers):
        self._pairs, self._makers = pairs, makers

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._makers.submit(PatchPairs.__getitem__, int(index)).result()


@dataclasses.dataclass(frozen=True)
class Change(grain.transforms.RandomMap):
    """A random change of an LR patch, whose children's features stay as they were encoded.

    Attributes:
      flips: one of the eight turns and mirrorings, the grid of its children turned alike: encoders
        of tissue hardly mind.
      stain_jitter: its haematoxylin, eosin and the rest are each scaled by 1 -+ at most this: the
        student learns to say the same of a paler or a redder slide.
    """

    flips: bool = True
    stain_jitter: float | int = 0.0

    def random_map(self, element: dict, rng: np.random.Generator) -> dict:
        if self.flips:
            element = _turned(element, rng)
        if self.stain_jitter:
            factors = 1 + self.stain_jitter * rng.uniform(-1, 1, 3)
            element = element | {"lr": stain.restained(element["lr"], factors)}
        return element


def _turned(element: dict, rng: np.random.Generator) -> dict:
    turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
    ratio = element["child_mask"].shape[0]

    def turn(values: np.ndarray) -> np.ndarray:
        turned = np.rot90(values, turns)
        return np.ascontiguousarray(turned[:, ::-1] if mirror else turned)

    def turn_flat(values: np.ndarray) -> np.ndarray:
        return turn(values.reshape(ratio, ratio, *values.shape[1:])).reshape(values.shape)

    square = ("lr", "child_cls", "child_mask")
    turned = {name: turn(element[name]) for name in square if name in element}
    others = (name for name in element if name.startswith(_OTHER))
    flattened = ("child_embedding", "attention", *others)
    flat = {name: turn_flat(element[name]) for name in flattened if name in element}
    return element | turned | flat
