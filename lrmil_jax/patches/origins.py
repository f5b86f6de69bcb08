"""Regions of a slide, and what gives them: its shards, or the slide file itself."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, UInt8


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

    def take(self, indices: Sequence[int]) -> "Places":
        """Some of them."""
        return Places(self.xy[indices], self.side, self.child_mask[indices])


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
