"""What a model says of a slide and its patches, for whoever writes a file of it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

ATTENTION, RANK = "attention", "attention rank"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlay:
    """What is laid over a slide.

    Attributes:
      slide_id: the slide's name; path: its file, as far as it is known.
      xy: [N, 2] level-0 corners of the patches in the frame of the file; side: theirs in level-0
        px.
      layers: of each number that patches have its name and [N] values: ATTENTION, which sums to 1
        over the slide, RANK, its rank from 0 to 1, and of a model that chooses regions its score
        of every class description.
      mpp: um/px of level 0.
      dimensions: width and height of level 0; None where they are not known.
      bounds: (x, y, width, height) of the scanned area in level-0 px, where QuPath has its origin;
        None where it is the whole slide.
      predicted: the slide's class; "" of a task without classes.
      values: what is predicted of the slide, by name: `{"probability tumour": 0.93}`.
      facts: of the whole file, such as the hash of the model.
    """

    slide_id: str
    path: Path | None = None
    xy: Int[np.ndarray, "N 2"]
    side: int
    layers: Mapping[str, Float[np.ndarray, " N"]]
    mpp: float
    dimensions: tuple[int, int] | None = None
    bounds: tuple[int, int, int, int] | None = None
    predicted: str = ""
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def origin(self) -> tuple[int, int]:
        """Level-0 corner from which viewers count that crop to the scanned area."""
        return (0, 0) if self.bounds is None else self.bounds[:2]

    @property
    def extent(self) -> tuple[int, int]:
        """Level-0 corner at the lower right of what viewers show that crop to the scanned area; of
        a slide whose size is not known that of the last patches."""
        if self.bounds is not None:
            x, y, width, height = self.bounds
            return x + width, y + height
        if self.dimensions is not None:
            return self.dimensions
        right, bottom = self.xy.max(0) + self.side
        return int(right), int(bottom)
