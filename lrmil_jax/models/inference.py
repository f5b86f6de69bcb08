"""From a slide file to probabilities and attention, timed by phase: what `predict` runs, what
`evaluate` times, and, on HR patches, what both are compared with."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.special import softmax

from lrmil_jax.data import regions, schema, source
from lrmil_jax.errors import SlideError, TileError
from lrmil_jax.slides import Tissue
from lrmil_jax.train.encode import BatchEncoder, rebatch
from lrmil_jax.train.mil import BagClassifier

_PICTURE_PX = 1200  # longest side of the picture under a heatmap


@dataclasses.dataclass(frozen=True)
class SlideResult:
    """What a model says of one slide.

    Attributes:
      probabilities: [C], mean over the model's folds.
      attention: [N] of each patch, sums to 1, mean over the folds.
      xy: [N, 2] level-0 corners of the patches; side: theirs in level-0 px.
      seconds: per phase: open_tissue, read, encode, mil.
      encoded: patches that went through an encoder, of all folds.
      read_log: pixels read per pyramid level; finest_allowed: the LR patches' own level.
      unreadable: patches left out because they could not be decoded.
      picture, picture_downsample: the slide for a heatmap, and level-0 px per picture px.
    """

    probabilities: Float[np.ndarray, " C"]
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
    guidance: "Guidance | None" = None


@dataclasses.dataclass(frozen=True)
class Guidance:
    """What led the choice of regions (WISE-FUSE), as the model's first fold sees it.

    Attributes:
      xy: [N, 2] level-0 corners of the LR patches; side: theirs in level-0 px.
      scores: [N, C] cosines with the classes' descriptions; likeness: [N] the best of those that
        the choice goes by (`select.classes`).
      chosen: [n] the LR patches whose children were read, of all folds.
      sentences: of each chosen LR patch, the description that fits it best.
    """

    xy: Int[np.ndarray, "N 2"]
    side: int
    scores: Float[np.ndarray, "N C"]
    likeness: Float[np.ndarray, " N"]
    chosen: Int[np.ndarray, " n"]
    sentences: list[str]


@dataclasses.dataclass
class SlideClassifier:
    """Encoders and heads of one or several folds on one resolution of a slide.

    Attributes:
      members: one encoder and one head per fold.
      settings: how tissue and lattice are found.
      dtype: type in which features were stored in training.
      batch: images per encoder step.
      high_resolution: read the HR children instead of the LR tiles.
    """

    members: list[tuple[BatchEncoder, BagClassifier]]
    settings: regions.TilingSettings
    dtype: str
    batch: int
    high_resolution: bool = False

    def __call__(self, path: Path, mpp: float | None = None) -> SlideResult:
        """Classifies one slide.

        Raises:
          SlideError: it cannot be opened, has no um/px, no tissue or no readable patch.
        """
        plan = regions.plan_slide(
            path, mpp=mpp, settings=self.settings, high_resolution=self.high_resolution
        )
        cells, px = plan.lattice, self.settings.geometry.patch_px
        with plan.slide as slide:
            reader = PatchReader(slide, cells, self.settings.geometry, self.high_resolution)
            features, encode_seconds = encode_patches(
                [encode for encode, _ in self.members], reader, dtype=self.dtype, batch=self.batch
            )
            drawn_on = picture(slide, self.settings.geometry, plan.tissue)
            log = {int(level): int(pixels) for level, pixels in slide.read_log.items()}
            allowed = slide.source_level(px, cells.lr_side)
            mpp = slide.mpp
        if not reader.xy:
            raise SlideError(f"{path}: none of its {len(cells.lr_xy)} patches could be decoded")
        if not self.high_resolution and min(log) < allowed:
            raise SlideError(f"{path}: level {min(log)} was read, finer than LR's level {allowed}")
        start = time.perf_counter()
        said = [head.predict(rows) for (_, head), rows in zip(self.members, features, strict=True)]
        probabilities = np.mean([softmax(logits) for logits, _ in said], axis=0)
        attention = np.mean([softmax(scores) for _, scores in said], axis=0)
        seconds = {
            "open_tissue": plan.seconds,
            "read": reader.seconds,
            "encode": encode_seconds,
            "mil": time.perf_counter() - start,
        }
        return SlideResult(
            probabilities=probabilities,
            attention=attention,
            xy=np.concatenate(reader.xy),
            side=cells.child_side if self.high_resolution else cells.lr_side,
            mpp=mpp,
            seconds=seconds,
            encoded=sum(len(rows) for rows in features),
            read_log=log,
            finest_allowed=allowed,
            unreadable=reader.unreadable,
            picture=drawn_on[0],
            picture_downsample=drawn_on[1],
        )


def encode_patches(
    encoders: Sequence[BatchEncoder], reader: "PatchReader", *, dtype: str, batch: int
) -> tuple[list[Float[np.ndarray, "N D"]], float]:
    """Features per encoder of all that is read, as they are stored in training, and the seconds
    spent in encoding; a batch in memory at once. Nothing read gives no array."""
    parts: list[list[np.ndarray]] = [[] for _ in encoders]
    target = schema.FEATURE_DTYPES[dtype]
    seconds = 0.0
    for images in rebatch(reader, batch):
        start = time.perf_counter()
        for part, encode in zip(parts, encoders, strict=True):
            part.append(encode([images])["embedding"].astype(target))
        seconds += time.perf_counter() - start
    return [np.concatenate(part) for part in parts if part], seconds


def picture(
    slide, geometry: schema.Geometry, tissue: Tissue | None = None
) -> tuple[UInt8[np.ndarray, "h w 3"], float]:
    """What a heatmap is drawn on, and level-0 px per px of it: never finer than LR.

    The tissue's thumbnail serves where it is fine enough, so that a large slide is not read again.
    """
    mpp = max(geometry.lr_mpp, max(slide.dimensions) * slide.mpp / _PICTURE_PX)
    if tissue is not None and mpp >= tissue.downsample * slide.mpp:
        return tissue.thumbnail, tissue.downsample
    thumbnail = slide.thumbnail(mpp)
    return thumbnail.image, thumbnail.downsample


class PatchReader:
    """Iterates over a slide's patches and keeps account of time and of what failed.

    Attributes:
      xy: level-0 corners of the patches read, group by group; read: the LR patches they are of.
      unreadable: corners of those that could not be decoded.
      seconds: spent in reading and decoding.
    """

    def __init__(
        self,
        slide,
        cells,
        geometry: schema.Geometry,
        high_resolution: bool,
        chosen: Sequence[int] | None = None,
    ):
        """All LR patches of `cells`, or the `chosen` ones, or with `high_resolution` their
        children."""
        self._slide, self._cells, self._geometry = slide, cells, geometry
        self._chosen = range(len(cells.lr_xy)) if chosen is None else chosen
        self.read: list[int] = []
        self._read = self._high if high_resolution else self._low
        self.xy: list[np.ndarray] = []
        self.unreadable: list[tuple[int, int]] = []
        self.seconds = 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in self._chosen:
            start = time.perf_counter()
            images, xy = self._read(index)
            self.seconds += time.perf_counter() - start
            if len(images):
                self.xy.append(xy)
                self.read.append(int(index))
                yield images

    def _low(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        xy = self._cells.lr_xy[index]
        corner = (int(xy[0]), int(xy[1]))
        try:
            tile = self._slide.read(corner, self._geometry.patch_px, self._cells.lr_side)
        except TileError:
            self.unreadable.append(corner)
            return np.zeros((0, 1, 1, 3), np.uint8), xy[None]
        return tile[None], xy[None]

    def _high(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        mask = self._cells.child_mask[index].copy()
        lost: list[dict] = []
        mosaic = regions.read_mosaic(
            self._slide,
            lr_xy=self._cells.lr_xy[index],
            lr_side=self._cells.lr_side,
            geometry=self._geometry,
            mask=mask,
            unreadable=lost,
        )
        self.unreadable += [tuple(item["xy"]) for item in lost]
        children = source.cut_mosaic(mosaic, self._geometry.ratio)
        return children[mask], self._cells.child_xy[index][mask]
