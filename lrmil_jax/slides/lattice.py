"""One lattice per slide: low-resolution cells and their high-resolution children.

The child's side is rounded first and the cell is exactly r children wide: rounding both on their
own drifts (414 against 415 px), and children would no longer tile their cell.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from lrmil_jax.errors import ConfigError, SlideError

RATIOS = (2, 4, 8)


@runtime_checkable
class SlideLike(Protocol):
    """What the lattice asks of a slide."""

    mpp: float | int
    dimensions: tuple[int, int]


@runtime_checkable
class TissueLike(Protocol):
    """What the lattice asks of a tissue map."""

    def fraction(self, xy: Int[np.ndarray, "m 2"], side: int) -> Float[np.ndarray, "m"]:
        """Share of tissue in squares of `side` level-0 pixels at `xy`."""
        ...


@dataclass(frozen=True)
class Lattice:
    """N low-resolution cells, row by row; coordinates are (x, y) in level-0 pixels.

    Attributes:
      lr_xy: top left corners of the cells.
      lr_side: side of a cell, r * child_side.
      child_xy: top left corners of the children, indexed [cell, v (row), u (column)].
      child_side: side of a child.
      child_mask: whether the child exists: centre inside the slide, and tissue enough.
    """

    lr_xy: Int[np.ndarray, "n 2"]
    lr_side: int
    child_xy: Int[np.ndarray, "n r r 2"]
    child_side: int
    child_mask: Bool[np.ndarray, "n r r"]

    def __len__(self) -> int:
        return len(self.lr_xy)


def ratio(*, hr_mpp: float | int, lr_mpp: float | int) -> int:
    """Children per cell side, r = lr_mpp / hr_mpp.

    Raises:
      ConfigError: r is not 2, 4 or 8.
    """
    value = lr_mpp / hr_mpp if hr_mpp > 0 else float("nan")
    for r in RATIOS:
        if abs(value - r) < 1e-3 * r:
            return r
    raise ConfigError(
        f"geometry.lr_mpp / geometry.hr_mpp must be 2, 4 or 8 and is {value:g} "
        f"({lr_mpp:g} / {hr_mpp:g})."
    )


def side_of_child(mpp: float | int, *, hr_mpp: float | int, patch_px: int) -> int:
    """Side of an HR patch in level-0 pixels; that of an LR patch is r times this, exactly."""
    return max(1, round(patch_px * hr_mpp / mpp))


# Scanners of one magnification differ so much: "20x" is .46 to .55 um/px.
_SAME = 1.1
_COARSEST = 2.0


def is_too_coarse(slide_mpp: float | int, mpp: float | int, *, upsample: bool = False) -> bool:
    """Whether patches at `mpp` would show detail that a slide does not have.

    Args:
      slide_mpp: um/px of its finest level.
      mpp: um/px at which patches are wanted.
      upsample: up to twice as coarse a slide will do, its pixels enlarged.
    """
    return slide_mpp > (_COARSEST if upsample else _SAME) * mpp


def check_resolution(
    slide: SlideLike,
    mpp: float | int,
    name: str,
    *,
    upsample: bool = False,
    of_model: bool = False,
) -> None:
    """Refuse to invent detail: patches at `mpp` from a slide that is coarser (`is_too_coarse`).

    Args:
      slide: an open slide.
      mpp: the um/px at which patches are wanted.
      name: the patches' name in the message, "HR" or "LR".
      upsample: as the config's `prepare.upsample`.
      of_model: `mpp` and `upsample` are a trained model's, which nobody can choose any more.

    Raises:
      SlideError: the slide is coarser than `mpp`, by more than scanners of one magnification
        differ; with `upsample` by more than a factor of 2.
    """
    if not is_too_coarse(slide.mpp, mpp, upsample=upsample):
        return
    can_be_enlarged = not is_too_coarse(slide.mpp, mpp, upsample=True)
    if of_model:
        advice = ": the model was trained for these patches"
        advice += ", without prepare.upsample" * can_be_enlarged
    else:
        advice = ", set prepare.upsample=True to enlarge its pixels" * can_be_enlarged
        advice += f", or choose a geometry that fits it (geometry.{name.lower()}_mpp of "
        advice += f"{_finest(slide.mpp):g} and more)"
    raise SlideError(
        f"{_name(slide)}: {slide.mpp:g} um/px is too coarse for {name} patches at {mpp:g} um/px, "
        f"which would show no more than it has; leave the slide out{advice}."
    )


def _finest(slide_mpp: float | int) -> float:
    """The finest um/px, in hundredths, for which a slide is not too coarse."""
    hundredths = math.ceil(100 * slide_mpp / _SAME)
    return (hundredths + is_too_coarse(slide_mpp, hundredths / 100)) / 100


def build(
    slide: SlideLike,
    *,
    hr_mpp: float | int,
    lr_mpp: float | int,
    patch_px: int,
    tissue: TissueLike | None = None,
    min_tissue: float | int = 0.25,
) -> Lattice:
    """Lay the lattice over a slide, anchored at its origin.

    Cells over the edge are kept; their children whose centre is outside are masked, as are
    children with less than `min_tissue` of their own area on tissue; a cell without children is
    dropped.

    Args:
      slide: anything with `.mpp`, `.dimensions` and, for messages, `.path`.
      hr_mpp: um/px of the children.
      lr_mpp: um/px of the cells.
      patch_px: side in pixels of a child at hr_mpp and of a cell at lr_mpp.
      tissue: None means that all is tissue.
      min_tissue: least share of tissue in a child.

    Raises:
      ConfigError: lr_mpp / hr_mpp is not 2, 4 or 8.
      SlideError: the slide is smaller than one cell, or no child has tissue enough.
    """
    r = ratio(hr_mpp=hr_mpp, lr_mpp=lr_mpp)
    child_side = side_of_child(slide.mpp, hr_mpp=hr_mpp, patch_px=patch_px)
    lr_side = r * child_side
    width, height = slide.dimensions
    if width < lr_side and height < lr_side:
        raise SlideError(
            f"{_name(slide)}: {width} x {height} px is smaller than one low-resolution patch "
            f"({lr_side} px of {slide.mpp:g} um/px); leave the slide out."
        )
    lr_xy = _grid(-(-width // lr_side), -(-height // lr_side)).reshape(-1, 2) * lr_side
    child_xy = lr_xy[:, None, None] + _grid(r, r) * child_side
    # Twice the centre, to stay in integers.
    mask = np.all(2 * child_xy + child_side < 2 * np.array([width, height]), axis=-1)
    if tissue is not None:
        share = tissue.fraction(child_xy.reshape(-1, 2), child_side).reshape(mask.shape)
        mask &= share >= min_tissue
    keep = mask.any(axis=(1, 2))
    if not keep.any():
        raise SlideError(
            f"{_name(slide)}: no tissue fills {min_tissue:.0%} of any {child_side} px patch; lower "
            "prepare.min_tissue, or leave the slide out."
        )
    return from_cells(lr_xy[keep], child_side=child_side, child_mask=mask[keep])


def from_cells(
    lr_xy: Int[np.ndarray, "n 2"], *, child_side: int, child_mask: Bool[np.ndarray, "n r r"]
) -> Lattice:
    """The lattice of some cells: their corners say where their children are."""
    r = child_mask.shape[-1]
    child_xy = lr_xy[:, None, None] + _grid(r, r) * child_side
    return Lattice(lr_xy, r * child_side, child_xy, child_side, child_mask)


def _name(slide: SlideLike) -> str:
    return str(getattr(slide, "path", "slide"))


def _grid(columns: int, rows: int) -> Int[np.ndarray, "{rows} {columns} 2"]:
    """Indices (u, v) of every place, in row-major order."""
    v, u = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return np.stack([u, v], axis=-1)
