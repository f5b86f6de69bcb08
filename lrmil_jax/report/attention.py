"""Where the models look, side by side, on slides whose lesion is known."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from lrmil_jax import files
from lrmil_jax.report import heatmap, table

_PANEL = 2.5  # inches at 100 dpi: four panels are as wide as a README
_ASPECTS = (0.4, 1.4)  # of a panel; longer slides get empty margins, not a longer page


@dataclasses.dataclass(frozen=True)
class LesionSlide:
    """A slide with lesion and the models' attention on it: one row of the picture.

    Attributes:
      name: shown above the slide.
      thumbnail: of the whole slide; downsample: level-0 px per thumbnail px.
      mask: of the whole slide, of any size.
      xy: level-0 corners of the LR patches; side: theirs in level-0 px.
      attention: of each LR patch, by the model's title; every slide of a picture has the same.
      auc: the attention's AUC, by the same; None where undefined.
    """

    name: str
    thumbnail: UInt8[np.ndarray, "h w 3"]
    downsample: float
    mask: Bool[np.ndarray, "mh mw"]
    xy: Int[np.ndarray, "N 2"]
    side: int
    attention: Mapping[str, Float[np.ndarray, " N"]]
    auc: Mapping[str, float | None]


def save(path: Path, slides: Sequence[LesionSlide]) -> None:
    """Writes a PNG: a row a slide, the slide first and then a heatmap a model.

    The lesion's outline is drawn on all of them, and the view is cut to where patches lie.
    """
    titles = list(slides[0].attention)
    boxes = [_box(slide) for slide in slides]
    aspects = [
        float(np.clip((bottom - top) / (right - left), *_ASPECTS))
        for left, top, right, bottom in boxes
    ]
    columns = 1 + len(titles)
    height = _PANEL * sum(aspects) + 0.3 * len(slides) + 1.1
    figure = Figure(figsize=(_PANEL * columns, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04, wspace=0.0, hspace=0.02)
    axes = figure.subplots(len(slides), columns, squeeze=False, height_ratios=aspects)
    for number, (slide, box, line) in enumerate(zip(slides, boxes, axes, strict=True)):
        _draw(line[0], slide, slide.thumbnail, box)
        _title(line[0], "lesion outlined" if number == 0 else "", slide.name)
        for axis, title in zip(line[1:], titles, strict=True):
            patches = slide.downsample, slide.xy, slide.side, slide.attention[title]
            _draw(axis, slide, heatmap.blend(slide.thumbnail, *patches), box)
            auc = f"AUC {table.number(slide.auc[title], 2)}"
            _title(axis, title if number == 0 else "", auc)
    bar = matplotlib.cm.ScalarMappable(cmap="coolwarm")
    bar.set_clim(0, 1)
    drawn = figure.colorbar(
        bar, ax=axes, orientation="horizontal", shrink=1.6 / columns, aspect=40, ticks=(0, 1)
    )
    drawn.ax.set_xticklabels(("least", "most"))
    drawn.set_label("attention, rank among the slide's patches")
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _box(slide: LesionSlide) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the patches on the thumbnail."""
    height, width = slide.thumbnail.shape[:2]
    left, top = slide.xy.min(0) / slide.downsample
    right, bottom = (slide.xy.max(0) + slide.side) / slide.downsample
    return float(left), float(top), float(min(right, width)), float(min(bottom, height))


def _draw(
    axis: Axes,
    slide: LesionSlide,
    picture: UInt8[np.ndarray, "h w 3"],
    box: tuple[float, float, float, float],
) -> None:
    height, width = picture.shape[:2]
    axis.imshow(picture, extent=(0, width, height, 0))
    resized = Image.fromarray(slide.mask.astype(np.uint8) * 255).resize(
        (width, height), Image.Resampling.BOX
    )
    outline = np.asarray(resized, np.float32)
    if outline.any():
        # A lesion smaller than a pixel of the thumbnail is drawn as well.
        level = min(127.5, float(outline.max()) / 2)
        # With a rim without lesion, so that the outline is closed at the slide's edge; white below
        # black, to be seen on dark nuclei, on red and on blue.
        rimmed, extent = np.pad(outline, 1), (-0.5, width + 0.5, -0.5, height + 0.5)
        for colour, line in (("white", 3.0), ("black", 1.4)):
            axis.contour(rimmed, levels=[level], colors=colour, linewidths=line, extent=extent)
    left, top, right, bottom = box
    axis.set(xlim=(left, right), ylim=(bottom, top), xticks=(), yticks=())
    for spine in axis.spines.values():
        spine.set_visible(False)


def _title(axis: Axes, first: str, second: str) -> None:
    """What the column is, in the first row, and what the panel says."""
    if len(second) > 26:
        second = second[:25] + "…"
    axis.set_title(f"{first}\n{second}" if first else second, fontsize=11)
