"""What a model says of one slide."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8
from PIL import Image

from lrmil_jax.data import schema
from lrmil_jax.report import geojson, heatmap
from lrmil_jax.report.overlays import qupath, registry
from lrmil_jax.report.overlays.overlay import ATTENTION, RANK, Overlay
from lrmil_jax.slides import Slide, Tissue

_PICTURE_PX = 1200  # longest side of the picture under a heatmap


@dataclasses.dataclass(frozen=True)
class Guidance:
    """What led the choice of regions, as the model's first member sees it.

    Attributes:
      classes: C names, as the descriptions have them; of a choice without any, what it goes by.
      xy: [N, 2] level-0 corners of the LR patches; side: theirs in level-0 px.
      scores: [N, C] cosines with the classes' descriptions, or logits of the choice; likeness:
        [N] the best of those that the choice goes by (`select.classes`).
      chosen: [n] the LR patches whose children were read, of all members.
      sentences: of each chosen LR patch, the description that fits it best, or "".
      label: what `likeness` is, on pictures.
    """

    classes: tuple[str, ...]
    xy: Int[np.ndarray, "N 2"]
    side: int
    scores: Float[np.ndarray, "N C"]
    likeness: Float[np.ndarray, " N"]
    chosen: Int[np.ndarray, " n"]
    sentences: list[str]
    label: str = heatmap.LIKENESS


@dataclasses.dataclass(frozen=True, repr=False)
class SlideResult:
    """What a model says of one slide.

    Attributes:
      probabilities: of each class, the mean over the model's members; of another task what it
        predicts, by name (`tasks.Task.parts`).
      prediction: the same as columns of `predictions.csv`, with what follows from it.
      sentence: the same in a few words.
      attention: [N] of each patch, sums to 1, mean over the members.
      xy: [N, 2] level-0 corners of the patches; side: theirs in level-0 px.
      mpp: um/px of level 0.
      seconds: per phase: open_tissue, read, encode, mil; of a guided model also select and those
        of HR. What overlaps the slides before is counted as waited for.
      encoded: images that went through an encoder, of all members.
      read_log: pixels read per pyramid level; finest_allowed: the level of the patches themselves.
      unreadable: level-0 corners of patches left out because they could not be decoded.
      picture, picture_downsample: the slide for a heatmap, and level-0 px per picture px.
      bounds: (x, y, width, height) of the scanned area in level-0 px, where viewers put their
        origin; None where it is the whole slide.
      guidance: what led the choice of regions, of a guided model.
      path: of the slide; dimensions: width and height of its level 0; None where not known.
    """

    probabilities: dict[str, float]
    prediction: dict[str, float | int | str]
    sentence: str
    attention: Float[np.ndarray, " N"]
    xy: Int[np.ndarray, "N 2"]
    side: int
    mpp: float
    seconds: dict[str, float]
    encoded: int
    read_log: dict[int, int]
    finest_allowed: int
    unreadable: list[tuple[int, int]]
    picture: UInt8[np.ndarray, "h w 3"]
    picture_downsample: float
    bounds: tuple[int, int, int, int] | None = None
    guidance: Guidance | None = None
    path: Path | None = None
    dimensions: tuple[int, int] | None = None

    @property
    def predicted(self) -> float | int | str:
        """The predicted class; of a task without classes the first that it predicts."""
        columns = self.prediction
        return columns["predicted"] if "predicted" in columns else next(iter(columns.values()))

    def __repr__(self) -> str:
        return f"SlideResult({self.sentence}; {len(self.xy)} patches of {self.side} px)"

    def to_frame(self) -> pd.DataFrame:
        """A row a patch: its level-0 corner (x, y) and side, attention, and the rank of that."""
        rank = heatmap.rank_scaled(self.attention)
        columns = {"x": self.xy[:, 0], "y": self.xy[:, 1], "side": self.side}
        return pd.DataFrame(columns | {"attention": self.attention, "rank": rank})

    def to_geojson(self, slide_id: str, *, kind: str = "detection", top: int | None = None) -> dict:
        """Patches as QuPath imports them: `json.dump` it to a file `*.geojson`.

        Args:
          slide_id: the slide's name.
          kind: "detection" or "tile".
          top: so many patches with most attention; None: all.
        """
        if kind not in geojson.KINDS or (top is not None and top < 1):
            raise ValueError(f"kind is one of {geojson.KINDS}, top a number above 0 or None")
        return qupath.collection(self.overlay(slide_id), kind=kind, top=top)

    def save(self, path: Path | str, name: str, slide_id: str | None = None) -> None:
        """Writes a file that other programs lay over the slide.

        Args:
          path: of the file.
          name: of the format, of `report.overlays.registry.FORMATS`: "ome_tiff", for one.
          slide_id: the slide's name in it; None: that of the slide's file.

        Raises:
          ConfigError: there is no such format, or what it needs is not installed.
          DataError: the patches cannot be said in it.
        """
        registry.write(name, Path(path), self.overlay(slide_id))

    def overlay(
        self, slide_id: str | None = None, facts: Mapping[str, str] | None = None
    ) -> Overlay:
        """What such files say, with `facts` of the whole."""
        has_classes = "predicted" in self.prediction
        layers = {ATTENTION: self.attention, RANK: heatmap.rank_scaled(self.attention)}
        if self.guidance is not None:
            of_class = zip(self.guidance.classes, self.guidance.scores.T, strict=True)
            layers |= {f"score {name}": scores for name, scores in of_class}
        if slide_id is None:
            slide_id = "slide" if self.path is None else self.path.stem
        return Overlay(
            slide_id=slide_id,
            path=self.path,
            xy=self.xy,
            side=self.side,
            layers=layers,
            mpp=self.mpp,
            dimensions=self.dimensions,
            bounds=self.bounds,
            predicted=str(self.predicted) if has_classes else "",
            values={
                f"probability {name}" if has_classes else name: value
                for name, value in self.probabilities.items()
            },
            facts=facts or {},
        )

    def show(self) -> Image.Image:
        """The slide with every patch coloured by the rank of its attention, from blue to red: a
        picture that notebooks show."""
        places = (self.xy, self.side, self.attention)
        return Image.fromarray(heatmap.blend(self.picture, self.picture_downsample, *places))


def picture(
    slide: Slide, geometry: schema.Geometry, tissue: Tissue | None = None
) -> tuple[UInt8[np.ndarray, "h w 3"], float]:
    """What a heatmap is drawn on, and level-0 px per px of it: never finer than LR.

    The tissue's thumbnail serves where it is fine enough, so that a large slide is not read again.
    """
    mpp = max(geometry.lr_mpp, max(slide.dimensions) * slide.mpp / _PICTURE_PX)
    if tissue is not None and mpp >= tissue.downsample * slide.mpp:
        return tissue.thumbnail, tissue.downsample
    thumbnail = slide.thumbnail(mpp)
    return thumbnail.image, thumbnail.downsample
