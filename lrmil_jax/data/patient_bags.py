"""All slides of a patient as one bag: the same features, read together."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Num

from lrmil_jax.places import NO_PLACE, lattice_step

# Empty columns between two slides of one bag, so that no patch has a neighbour across.
_GAP = 8


class PatientBags:
    """A store of bags (`train.bags.BagStore`) whose bags are patients.

    Attributes:
      slide_ids: the cases, one a bag, in order.
      sizes: [P] patches of each.
      first: [P] place of each one's first slide in the store of slides.
    """

    def __init__(self, store, cases: Sequence[str]):
        """
        Args:
          store: of slides, a `BagStore`.
          cases: [S] of each slide; the slides of one follow each other.

        Raises:
          ValueError: they do not.
        """
        cases = np.asarray(cases, object)
        starts = np.flatnonzero(np.append(True, cases[1:] != cases[:-1]))
        if len(set(cases)) != len(starts):
            raise ValueError("the slides of a patient must follow each other to be one bag")
        self._store, self._edges = store, [*starts.tolist(), len(cases)]
        self.first = starts
        self.slide_ids = cases[starts].tolist()
        sizes = np.asarray(store.sizes)
        self.sizes = np.array([sizes[self.slides(bag)].sum() for bag in range(len(starts))])

    def slides(self, bag: int) -> range:
        """Places of a bag's slides in the store of slides."""
        return range(self._edges[bag], self._edges[bag + 1])

    def embedding(self, bag: int) -> Float[np.ndarray, "n D"]:
        """Features of all slides of the bag at this place, slide after slide."""
        return np.concatenate([self._store.embedding(slide) for slide in self.slides(bag)])

    def places(self, bag: int) -> dict[str, np.ndarray]:
        """`xy` [n, 2] of its patches; see `side_by_side`."""
        each = [self._store.places(slide)["xy"] for slide in self.slides(bag)]
        return {"xy": side_by_side(each)}

    def statistics(self, bags: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and SD [D] of all patches of some bags."""
        return self._store.statistics([slide for bag in bags for slide in self.slides(bag)])


def side_by_side(places: Sequence[Num[np.ndarray, "_ 2"]]) -> Int[np.ndarray, "n 2"]:
    """Patches of several slides on one lattice, each slide right of the one before.

    In patches and not in pixels: slides of one patient may differ in um/px.

    Args:
      places: [n, 2] of each slide, level-0 px; of a slide without coordinates `NO_PLACE`.

    Returns:
      Columns and rows; `NO_PLACE` for all if a slide has no coordinates.
    """
    places = [np.asarray(xy, np.int64) for xy in places if len(xy)]
    count = sum(map(len, places))
    if any(xy[0, 0] == NO_PLACE for xy in places):
        return np.full((count, 2), NO_PLACE, np.int64)
    moved, right = [np.zeros((0, 2), np.int64)], 0
    for xy in places:
        lattice = np.rint((xy - xy.min(0)) / lattice_step(xy)).astype(np.int64)
        lattice[:, 0] += right
        moved.append(lattice)
        right = int(lattice[:, 0].max()) + 1 + _GAP
    return np.concatenate(moved)
