"""Attention over the thumbnail, as a pathologist expects to see it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lrmil_jax import files

LIKENESS = "likeness to the descriptions, rank"


def rank_scaled(attention: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Attention as ranks from 0 to 1, ties sharing their mean: one hot patch hides no other."""
    _, inverse, counts = np.unique(attention, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middle = ends - (counts + 1) / 2
    return (middle / max(len(attention) - 1, 1))[inverse]


def blend(
    thumbnail: UInt8[np.ndarray, "h w 3"],
    downsample: float,
    xy: Int[np.ndarray, "N 2"],
    side: int,
    attention: Float[np.ndarray, " N"],
    *,
    alpha: float = 0.5,
) -> UInt8[np.ndarray, "h w 3"]:
    """The thumbnail with every patch coloured by the rank of its attention.

    Args:
      thumbnail: of the whole slide.
      downsample: level-0 px per thumbnail px.
      xy: level-0 corners of the patches.
      side: their side in level-0 px.
      attention: of each patch.
      alpha: weight of the colour.
    """
    picture = thumbnail.astype(np.float32)
    colours = matplotlib.colormaps["coolwarm"](rank_scaled(attention))[:, :3] * 255
    for (x, y), colour in zip(xy / downsample, colours, strict=True):
        right, bottom = x + side / downsample, y + side / downsample
        place = np.s_[round(y) : max(round(bottom), round(y) + 1),
                      round(x) : max(round(right), round(x) + 1)]  # fmt: skip
        picture[place] = (1 - alpha) * picture[place] + alpha * colour
    return picture.round().astype(np.uint8)


def save(
    path: Path,
    thumbnail: UInt8[np.ndarray, "h w 3"],
    downsample: float,
    xy: Int[np.ndarray, "N 2"],
    side: int,
    attention: Float[np.ndarray, " N"],
    *,
    title: str,
    label: str = "attention, rank among the slide's patches",
    outlined: Sequence[int] | Int[np.ndarray, " n"] = (),
    facts: Mapping[str, str] | None = None,
) -> None:
    """Writes thumbnail and heatmap side by side with a colour bar, as PNG; the thumbnail with the
    `outlined` patches; `facts` go into the file's metadata."""
    figure, axes, beside = _frame(*thumbnail.shape[:2])
    pictures = (thumbnail, blend(thumbnail, downsample, xy, side, attention))
    for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_axis_off()
    for x, y in xy[np.asarray(outlined, int)] / downsample:
        axes[0].add_patch(
            Rectangle((x, y), side / downsample, side / downsample, fill=False, edgecolor="black")
        )
    bar = matplotlib.cm.ScalarMappable(cmap="coolwarm")
    bar.set_clim(0, 1)
    figure.colorbar(bar, cax=beside, label=label)
    figure.suptitle(title)
    with files.atomic_path(path) as temporary:
        # A cohort has a picture a slide: twice as fast, for a tenth more bytes.
        figure.savefig(temporary, format="png", dpi=100, pil_kwargs={"compress_level": 1},
                       metadata=dict(facts or {}))  # fmt: skip


def _frame(height: int, width: int) -> tuple[Figure, list[Axes], Axes]:
    """A figure with places for two pictures of this shape, and for a colour bar.

    Places are given in inches: a layout engine would draw everything once more to find them.
    """
    # Thumbnails of small slides are enlarged, those of large ones shown at most 8 inches wide.
    wide = float(np.clip(width / 100, 4, 8))
    high, gap, top, right = wide * height / width, 0.1, 0.5, 0.9
    size = (2 * wide + 3 * gap + right, high + gap + top)
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)

    def place(left: float, breadth: float) -> Axes:
        return figure.add_axes((left / size[0], gap / size[1], breadth / size[0], high / size[1]))

    axes = [place(gap, wide), place(2 * gap + wide, wide)]
    return figure, axes, place(2 * wide + 3 * gap, 0.2)
