"""The patches of one slide as another tool's file has them, in the units of this package."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, Num

from lrmil_jax.errors import SlideError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bag:
    """A slide's bag of features; the features themselves are read when they are asked for.

    Attributes:
      shape: (N, D), patches and width.
      features: gives [N, D], in the file's own type.
      xy: [N, 2] top left corners in level-0 px, x to the right; None if the file has none.
      side: of a patch in level-0 px; None if neither file nor coordinates tell.
      step: between neighbours in level-0 px; less than `side` where patches overlap.
      px: side of the image that was encoded, or None.
      mpp: um/px of level 0, or None.
      encoder: its name as the tool has it; "" if the file does not say.
      dimensions: width and height of the slide in level-0 px, or None.
      grid: what is to be known of the tool's grid where patches do not lie on one lattice.
    """

    shape: tuple[int, int]
    features: Callable[[], Float[np.ndarray, "n D"]]
    xy: Int[np.ndarray, "n 2"] | None
    side: int | None = None
    step: int | None = None
    px: int | None = None
    mpp: float | None = None
    encoder: str = ""
    dimensions: tuple[int, int] | None = None
    grid: str = ""


def checked_shape(shape: tuple[int, ...], what: str) -> tuple[int, int]:
    """(N, D) of a bag.

    Args:
      shape: of the array; a leading 1 of a batch of one is dropped.
      what: file and array, for the sentence.

    Raises:
      SlideError: it holds no patch, or is no table of features.
    """
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if shape and shape[0] == 0:
        raise SlideError(f"{what} holds no patch (a slide without tissue); leave the slide out")
    if len(shape) != 2:
        raise SlideError(
            f"{what} has shape {shape}, but a bag of features is [patches, width]; give features "
            "of patches, not of whole slides"
        )
    return int(shape[0]), int(shape[1])


def checked_xy(xy: Num[np.ndarray, "..."], count: int, what: str) -> Num[np.ndarray, "n 2"]:
    """Coordinates that fit the bag; further columns are dropped.

    Raises:
      SlideError: another number of rows, fewer than two columns, or a value that is not finite.
    """
    if xy.ndim != 2 or len(xy) != count or xy.shape[1] < 2:
        raise SlideError(
            f"{what} has coordinates of shape {xy.shape} for {count} patches; it was cut short or "
            "mixed up: extract its features again"
        )
    if not np.isfinite(xy).all():
        raise SlideError(f"{what} has coordinates that are not finite; extract its features again")
    return xy[:, :2]
