"""Patches as an image with a pixel a patch, for formats that hold pixels."""

import dataclasses

import numpy as np
from jaxtyping import Float

from lrmil_jax.errors import DataError
from lrmil_jax.report.overlays.overlay import Overlay


@dataclasses.dataclass(frozen=True)
class Raster:
    """An image of a slide's patches.

    Attributes:
      values: [C, h, w] a channel a layer of the overlay; NaN where no patch is: scores may be
        negative, so that no number could say so, and a mean over an area is that of its patches.
      corner: level-0 corner of it in the frame of the file.
    """

    values: Float[np.ndarray, "C h w"]
    corner: tuple[int, int]


def of(overlay: Overlay) -> Raster:
    """The raster of an overlay, over all that viewers show: it begins at their origin, or less
    than a patch before it where the patches' lattice asks for that.

    Raises:
      DataError: the patches overlap, or do not lie on one lattice.
    """
    xy, side = overlay.xy.astype(np.int64), overlay.side
    phase = xy[0] % side
    cells = (xy - phase) // side
    if np.any((xy - phase) % side) or len(np.unique(cells, axis=0)) < len(cells):
        raise DataError(
            f"{overlay.slide_id}: its patches overlap or do not lie on one lattice, so they are no "
            "image of a pixel a patch; write geojson or annotation_store instead"
        )
    first = np.minimum((np.array(overlay.origin) - phase) // side, cells.min(0))
    last = np.maximum(-((phase - np.array(overlay.extent)) // side), cells.max(0) + 1)
    width, height = (last - first).tolist()
    values = np.full((len(overlay.layers), height, width), np.nan, np.float32)
    columns, rows = (cells - first).T
    for channel, layer in zip(values, overlay.layers.values(), strict=True):
        channel[rows, columns] = layer
    x, y = (first * side + phase).tolist()
    return Raster(values, (x, y))


def halved(values: Float[np.ndarray, "C h w"]) -> Float[np.ndarray, "C h2 w2"]:
    """Half as large: each pixel the mean of those of four that have a patch, NaN where none has."""
    _, height, width = values.shape
    even = np.pad(values, ((0, 0), (0, height % 2), (0, width % 2)), constant_values=np.nan)
    fours = np.stack([even[:, i::2, j::2] for i in range(2) for j in range(2)])
    known = ~np.isnan(fours)
    count = known.sum(0)
    total = np.where(known, fours, 0).sum(0, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
