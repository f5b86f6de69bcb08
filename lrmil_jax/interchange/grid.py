"""From the coordinates of HR patches to the LR patches that they are exact children of.

LR patches are r x r blocks of one lattice; where patches lie on several lattices, or overlap, no
exact parents exist, and the sentence says why.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from lrmil_jax.errors import SlideError


class GridError(SlideError):
    """The patches have no exact LR parents; multiple instance learning does without them."""


@dataclasses.dataclass(frozen=True)
class Parents:
    """LR patches, and the place of every HR patch among them.

    Attributes:
      lr_xy: [N, 2] level-0 px; lr_side: in level-0 px.
      child_mask: [N, r, r] which children are there, [row, column].
      parent: [n] of each HR patch, -1 where no LR patch holds it.
      child: [n] its place v * r + u there.
    """

    lr_xy: Int[np.ndarray, "N 2"]
    lr_side: int
    child_mask: Bool[np.ndarray, "N r r"]
    parent: Int[np.ndarray, " n"]
    child: Int[np.ndarray, " n"]


def infer_step(xy: Int[np.ndarray, "n 2"]) -> int | None:
    """The commonest distance between neighbours of one row or column; None if there are none."""
    gaps = []
    for axis in (0, 1):
        other = 1 - axis
        placed = xy[np.lexsort((xy[:, axis], xy[:, other]))]
        gap, same = np.diff(placed[:, axis]), np.diff(placed[:, other]) == 0
        gaps.append(gap[same & (gap > 0)])
    values, counts = np.unique(np.concatenate(gaps), return_counts=True)
    return int(values[counts.argmax()]) if len(values) else None


def from_lattice(
    xy: Int[np.ndarray, "n 2"], *, side: int, step: int, ratio: int, why: str = ""
) -> Parents:
    """Parents that tile the patches' own lattice, which begins at (0, 0) or as much later as the
    lattice does: those that a tiling at r times the side would have.

    Args:
      xy: [n, 2] top left corners of the HR patches.
      side, step: of a patch and between neighbours, level-0 px.
      ratio: r.
      why: what the tool does, joined to the sentence.

    Raises:
      GridError: patches overlap, lie on several lattices, or twice at one place.
    """
    offset = _offset(xy, side=side, step=step, why=why)
    cell, inside = np.divmod((xy - offset) // step, ratio)
    places, parent = np.unique(cell[:, ::-1], axis=0, return_inverse=True)  # row by row
    lr_xy = places[:, ::-1] * (ratio * step) + offset
    return _parents(lr_xy, ratio * step, parent.reshape(-1), inside, ratio)


def from_lr_patches(
    xy: Int[np.ndarray, "n 2"],
    lr_xy: Int[np.ndarray, "N 2"],
    *,
    side: int,
    step: int,
    lr_side: int,
    ratio: int,
    why: str = "",
) -> Parents:
    """The LR patches that are there as parents; an HR patch outside all of them has none.

    Args:
      xy, side, step, ratio, why: as for `from_lattice`.
      lr_xy, lr_side: of the LR patches.

    Raises:
      GridError: see `from_lattice`; or an LR patch is not r x r HR patches, or not at their
        corners.
    """
    if lr_side != ratio * side:
        raise GridError(
            f"its LR patches are {lr_side} level-0 px wide and its HR patches {side}, which is not "
            f"{ratio} times; extract them with sides of exactly that ratio"
        )
    _offset(xy, side=side, step=step, why=why)
    offset = _offset(lr_xy, side=lr_side, step=lr_side, why=why)
    if ((xy - offset) % side).any():
        raise GridError(
            "its HR patches do not begin where its LR patches do, so they are no exact children; "
            f"extract both from one grid{_because(why)}"
        )
    cell, inside = np.divmod((xy - offset) // side, ratio)
    parent = _lookup(cell, (lr_xy - offset) // lr_side)
    if (parent < 0).all():
        raise GridError("none of its HR patches lies in any of its LR patches")
    return _parents(lr_xy, lr_side, parent, inside, ratio)


def _lookup(cells: Int[np.ndarray, "n 2"], among: Int[np.ndarray, "N 2"]) -> np.ndarray:
    """[n] place of each cell among others, -1 where it is not."""
    low = np.minimum(cells.min(0), among.min(0))
    width = int(np.maximum(cells.max(0), among.max(0))[0] - low[0]) + 1
    keys = [(part[:, 1] - low[1]) * width + part[:, 0] - low[0] for part in (cells, among)]
    order = np.argsort(keys[1])
    place = np.minimum(np.searchsorted(keys[1], keys[0], sorter=order), len(order) - 1)
    return np.where(keys[1][order[place]] == keys[0], order[place], -1)


def _offset(xy: Int[np.ndarray, "n 2"], *, side: int, step: int, why: str) -> np.ndarray:
    """Where the lattice begins, [2]."""
    if step != side:
        raise GridError(
            f"its patches are {side} level-0 px wide and {step} px apart, so they overlap or leave "
            "gaps and do not tile LR patches; extract them without overlap"
        )
    offsets = np.unique(xy % step, axis=0)
    if len(offsets) > 1:
        raise GridError(
            f"its patches lie on {len(offsets)} lattices of {step} level-0 px{_because(why)}; "
            "extract them from one lattice a slide"
        )
    if len(np.unique(xy, axis=0)) < len(xy):
        raise GridError("it has several patches at one place; extract its features again")
    return offsets[0]


def _because(why: str) -> str:
    return f" ({why})" if why else ""


def _parents(
    lr_xy: np.ndarray, lr_side: int, parent: np.ndarray, inside: np.ndarray, ratio: int
) -> Parents:
    child = inside[:, 1] * ratio + inside[:, 0]
    mask = np.zeros((len(lr_xy), ratio * ratio), bool)
    held = parent >= 0
    mask[parent[held], child[held]] = True
    shaped = mask.reshape(len(lr_xy), ratio, ratio)
    return Parents(lr_xy, int(lr_side), shaped, parent, child)
