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
CHOICE = "what the choice goes by, rank"
RANK = "attention, rank among the slide's patches"
SHARE = "attention, times the even share"
COLOURS = matplotlib.colormaps["coolwarm"]
# The absolute scale goes from 1 / 16 to 16 times the even share, for every slide, model and cohort.
OCTAVES = 4.0
_HIGHEST, _LONG = 10.0, 2.0  # inches of a panel; width over height from which panels are stacked


def rank_scaled(attention: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Attention as ranks from 0 to 1, ties sharing their mean: one hot patch hides no other."""
    _, inverse, counts = np.unique(attention, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middle = ends - (counts + 1) / 2
    return (middle / max(len(attention) - 1, 1))[inverse]


def even_shares(attention: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Attention times the number of patches: 1 where a patch has what all would have if the model
    weighed them alike. It means the same on every slide, however large, so that a slide whose
    patches are all alike shows no hot spots, as ranks do."""
    return attention * len(attention)


def absolute_scaled(attention: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """`even_shares` on a logarithmic scale from 0 to 1: 1 / 16 and less, 1 (at 0.5), 16 and
    more."""
    octaves = np.log2(np.maximum(even_shares(attention), 1e-12))
    return np.clip(octaves / OCTAVES, -1, 1) / 2 + 0.5


def blend(
    thumbnail: UInt8[np.ndarray, "h w 3"],
    downsample: float,
    xy: Int[np.ndarray, "N 2"],
    side: int,
    attention: Float[np.ndarray, " N"],
    *,
    alpha: float = 0.5,
    absolute: bool = False,
) -> UInt8[np.ndarray, "h w 3"]:
    """The thumbnail with every patch coloured by its attention.

    Args:
      thumbnail: of the whole slide.
      downsample: level-0 px per thumbnail px.
      xy: level-0 corners of the patches.
      side: their side in level-0 px.
      attention: of each patch.
      alpha: weight of the colour.
      absolute: colours are of `absolute_scaled`, else of the rank.
    """
    picture = thumbnail.astype(np.float32)
    scaled = absolute_scaled(attention) if absolute else rank_scaled(attention)
    colours = COLOURS(scaled)[:, :3] * 255
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
    label: str = RANK,
    outlined: Sequence[int] | Int[np.ndarray, " n"] = (),
    facts: Mapping[str, str] | None = None,
) -> None:
    """Writes thumbnail and heatmaps beside each other (below each other, of a long slide) with
    colour bars, as PNG: by rank and, of attention, on the absolute scale; the thumbnail with the
    `outlined` patches; `facts` go into the file's metadata."""
    scales = [False, True] if label == RANK else [False]
    figure, axes, bars = _frame(*thumbnail.shape[:2], panels=1 + len(scales))
    pictures = [thumbnail, *(blend(thumbnail, downsample, xy, side, attention, absolute=absolute)
                             for absolute in scales)]  # fmt: skip
    for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_axis_off()
    for x, y in xy[np.asarray(outlined, int)] / downsample:
        axes[0].add_patch(
            Rectangle((x, y), side / downsample, side / downsample, fill=False, edgecolor="black")
        )
    for beside, absolute in zip(bars, scales, strict=True):
        _bar(figure, beside, SHARE if absolute else label, absolute=absolute)
    figure.suptitle(title, fontsize=10)
    with files.atomic_path(path) as temporary:
        # A cohort has a picture a slide: twice as fast, for a tenth more bytes.
        figure.savefig(temporary, format="png", dpi=100, pil_kwargs={"compress_level": 1},
                       metadata=dict(facts or {}))  # fmt: skip


def _bar(figure: Figure, axis: Axes, label: str, *, absolute: bool) -> None:
    bar = matplotlib.cm.ScalarMappable(cmap=COLOURS)
    bar.set_clim(0, 1)
    drawn = figure.colorbar(bar, cax=axis)
    drawn.set_label(label, fontsize=8)
    drawn.ax.tick_params(labelsize=8)
    if absolute:
        drawn.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["1/16", "1/4", "1", "4", "16"])


def _frame(height: int, width: int, *, panels: int) -> tuple[Figure, list[Axes], list[Axes]]:
    """A figure with places for so many pictures of this shape, and for the bars beside them.

    Places are given in inches: a layout engine would draw everything once more to find them.
    """
    is_long = width > _LONG * height
    # Thumbnails of small slides are enlarged, those of large ones shown at a bounded size.
    wide = float(np.clip(width / 100, 3.2, 10 if is_long else 5.4))
    wide = min(wide, _HIGHEST * width / height)
    high, gap, top, bar = wide * height / width, 0.1, 0.5, 0.85
    down, across = (panels, 1) if is_long else (1, panels)
    inside = max(down * (high + gap), 2.6)  # the labels of the bars need some height
    size = (across * (wide + gap) + gap + (panels - 1) * bar, inside + gap + top)
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)

    def place(left: float, bottom: float, breadth: float, tall: float) -> Axes:
        return figure.add_axes(
            (left / size[0], bottom / size[1], breadth / size[0], tall / size[1])
        )

    axes = []
    for number in range(panels):
        row, column = divmod(number, across)
        bottom = gap + inside - (row + 1) * (high + gap) + gap
        axes.append(place(gap + column * (wide + gap), bottom, wide, high))
    first = across * (wide + gap) + gap
    bars = [place(first + number * bar, 2 * gap, 0.16, inside - 2 * gap)
            for number in range(panels - 1)]  # fmt: skip
    return figure, axes, bars
