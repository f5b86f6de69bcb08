"""Bags of LR patches, each beside the HR patches that lie in it, as heads with two magnifications
read them (`heads.cells`)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from lrmil_jax.data import schema
from lrmil_jax.data.features import FeatureStore


def assemble(
    low: Float[np.ndarray, "N W"],
    high: Float[np.ndarray, "M W"],
    place: Int[np.ndarray, " M"],
    child: Int[np.ndarray, " M"],
    *,
    children: int,
) -> Float[np.ndarray, "N D"]:
    """Rows [LR feature, features of the children, which of them are there], W (K + 1) + K numbers.

    Args:
      low: features of the LR patches.
      high: of HR patches, in any order; children without one are not there.
      place: of each HR patch, its LR patch among the N.
      child: its place in that, below K.
      children: K.
    """
    count, width = low.shape
    rows = np.zeros((count, width * (children + 1) + children), low.dtype)
    rows[:, :width] = low
    inner = rows[:, width : width * (children + 1)].reshape(count, children, width)
    inner[place, child] = high
    rows[:, width : width * (children + 1)] = inner.reshape(count, -1)
    rows[place, width * (children + 1) + child] = 1
    return rows


class CellBags(FeatureStore):
    """The bags of some slides whose instances are LR patches beside their HR patches: a store of LR
    features in all but `embedding` and `statistics`.

    HR patches whose LR patch could not be read are left out.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        slide_ids: Sequence[str],
        parser: Callable[[tuple[str, ...]], schema.RecordParser],
        *,
        high: FeatureStore,
        children: int,
    ):
        """
        Args:
          paths, slide_ids, parser: of LR features, as `FeatureStore` takes them.
          high: HR features of the same slides in the same order, of the same width.
          children: HR patches of an LR patch, at most.
        """
        super().__init__(paths, slide_ids, parser)
        self._high, self._children = high, children

    def embedding(self, slide: int) -> Float[np.ndarray, "n D"]:
        """Rows of the slide at this place in the order, see `assemble`."""
        parent = self.places(slide)["parent"]
        places = self._high.places(slide)
        place = np.searchsorted(parent, places["parent"])
        known = np.append(parent, -1)[place] == places["parent"]
        return assemble(
            super().embedding(slide),
            self._high.embedding(slide)[known],
            place[known],
            places["child"][known],
            children=self._children,
        )

    def children(self, slide: int, chosen: Int[np.ndarray, " n"]) -> int:
        """How many HR patches the LR patches at these places have."""
        parent = self.places(slide)["parent"][chosen]
        return int(np.isin(self._high.places(slide)["parent"], parent).sum())

    def statistics(self, slides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and SD [D]: of all LR patches, of all HR patches for every child, and 0 and 1 for
        what says which are there."""
        sides = zip(super().statistics(slides), self._high.statistics(slides), (0, 1), strict=True)
        mean, sd = (
            np.concatenate([low, np.tile(high, self._children), np.full(self._children, there)])
            for low, high, there in sides
        )
        return mean.astype(np.float32), sd.astype(np.float32)
