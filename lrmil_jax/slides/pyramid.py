"""Whether the levels of a slide show the same: one shifted or mirrored puts patches elsewhere.

A tile of each level is sought in the level before it, reduced to the same size, by normalised
cross-correlation (J. P. Lewis, "Fast template matching", 1995) of a band of frequencies: nuclei and
fibres, but not the outline of tissue, which is alike in too many places, nor what filters and
compression change. Of procedural tissue, right levels reach .94 and more, made by any filter,
sharpened or not, at JPEG quality 30 or 90; other places reach .3. Tiles without texture tell
nothing and are passed over.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage
from skimage.feature import match_template

from lrmil_jax.errors import TileError
from lrmil_jax.slides.slide import Slide

_TILE_PX = 96  # of the coarser level
_NEAR_PX, _FAR_PX = 16, 112  # how far a tile is sought, first and where it is not there
_LARGEST_RAW_PX = 2048  # side of what is read of the finer level
_BAND_PX = (1.0, 5.0)  # SD of the two Gaussians whose difference is kept
_CONTRAST = 1.5  # SD of that, of 255, in a tile that tells something
_TILES = 3  # that are compared at each level, of those with contrast
_SAME = 0.5  # correlation at the tile's own place
_ELSEWHERE = 0.55  # of a tile at another place, or mirrored, ...
_MARGIN = 0.15  # ... and so much more than at its own
_AT_PLACE_PX = 2  # sizes of levels are rounded, and filters differ by half a pixel
_MIRRORS = {"left to right": (True, False), "top to bottom": (False, True),
            "both ways, turned by half a circle": (True, True)}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Tile:
    """A tile of a level: grey values, and its centre in level-0 px."""

    grey: Float[np.ndarray, "t t"]
    centre: tuple[float, float]


def faults(slide: Slide, thumbnail: UInt8[np.ndarray, "h w 3"], downsample: float) -> list[str]:
    """What is wrong with the levels, a sentence each; a level is compared with the finer one.

    Args:
      slide: open.
      thumbnail: of it.
      downsample: level-0 px per px of the thumbnail.
    """
    places = _places(slide, thumbnail, downsample)
    order = np.argsort(slide.level_downsamples).tolist()
    sentences = []
    for finer, level in itertools.pairwise(order):
        try:
            sentence = _compare(slide, level, finer, places)
        except TileError as error:
            sentence = f"level {level} or {finer} is damaged: {error}"
        if sentence:
            sentences.append(sentence)
    return sentences


def _places(slide: Slide, thumbnail: np.ndarray, downsample: float) -> list[tuple[float, float]]:
    """Centres in level-0 px of places with most contrast, apart from each other; and, as a level
    may be mirrored, the same places mirrored."""
    grey = np.asarray(Image.fromarray(thumbnail).convert("L"), np.float32)
    side = max(4, min(grey.shape) // 16)
    mean, square = (ndimage.uniform_filter(one, side) for one in (grey, grey**2))
    contrast = square - mean**2
    width, height = slide.dimensions
    chosen = []
    for _ in range(2 * _TILES):
        y, x = np.unravel_index(contrast.argmax(), contrast.shape)
        chosen.append(((x + 0.5) * downsample, (y + 0.5) * downsample))
        contrast[max(0, y - side) : y + side, max(0, x - side) : x + side] = -1
    mirrored = [
        (width - x if flip_x else x, height - y if flip_y else y)
        for x, y in chosen[:_TILES]
        for flip_x, flip_y in _MIRRORS.values()
    ]
    return [*chosen, *mirrored]


def _compare(
    slide: Slide, level: int, finer: int, places: Sequence[tuple[float, float]]
) -> str | None:
    """What is wrong with a level, as most of its tiles say; None if nothing is."""
    verdicts: collections.Counter[str] = collections.Counter()
    for tile in _tiles(slide, level, finer, places):
        verdicts[_verdict(slide, level, finer, tile)] += 1
        if verdicts.total() == _TILES:
            break
    if not verdicts:
        return None
    kind, count = verdicts.most_common(1)[0]
    if not kind or 2 * count <= verdicts.total():
        return None
    return f"level {level} {kind} (against level {finer})"


def _tiles(
    slide: Slide, level: int, finer: int, places: Sequence[tuple[float, float]]
) -> Iterator[_Tile]:
    """Tiles of a level with contrast enough."""
    scale = slide.level_downsamples[level]
    least = min(slide.dimensions) / scale
    size = int(min(_TILE_PX, least / 2, _LARGEST_RAW_PX * slide.level_downsamples[finer] / scale))
    if size < 16:
        return
    for centre in places:
        grey = _grey(slide, level, centre, size, size)
        if grey is not None and grey.std() >= _CONTRAST:
            yield _Tile(grey, centre)


def _grey(
    slide: Slide, level: int, centre: tuple[float, float], size: int, result: int
) -> np.ndarray | None:
    """The band of `size` pixels of a level around a place, made `result` pixels; None where
    `Slide.read` would take another level."""
    side = round(size * slide.level_downsamples[level])
    if slide.source_level(size, side) != level:
        return None
    corner = [round(n - side / 2) for n in centre]
    image = Image.fromarray(slide.read(corner, size, side)).convert("L")
    if result != size:
        image = image.resize((result, result), Image.Resampling.BOX)
    grey = np.asarray(image, np.float32)
    fine, coarse = (ndimage.gaussian_filter(grey, one, mode="nearest") for one in _BAND_PX)
    return fine - coarse


def _verdict(slide: Slide, level: int, finer: int, tile: _Tile) -> str:
    """What a tile says of its level: "" if it is right."""
    scale = slide.level_downsamples[level]
    for reach in (_NEAR_PX, _FAR_PX):
        at_place, best, (x, y) = _search(slide, level, finer, tile.grey, tile.centre, reach)
        if at_place >= max(_SAME, best - _MARGIN):
            return ""
        if best >= max(_ELSEWHERE, at_place + _MARGIN):
            shift = (round(-x * scale, -1), round(-y * scale, -1))  # the tile's own, in tens
            return f"is shifted by about ({shift[0]:.0f}, {shift[1]:.0f}) level-0 px"
    width, height = slide.dimensions
    for name, (flip_x, flip_y) in _MIRRORS.items():
        flipped = tile.grey[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
        x, y = tile.centre
        centre = (width - x if flip_x else x, height - y if flip_y else y)
        if _search(slide, level, finer, flipped, centre, _NEAR_PX)[1] >= _ELSEWHERE:
            return f"is mirrored {name}"
    return "shows something else"


def _search(
    slide: Slide,
    level: int,
    finer: int,
    grey: np.ndarray,
    centre: tuple[float, float],
    reach: int,
) -> tuple[float, float, tuple[int, int]]:
    """Correlation of a tile with the finer level at its place, and the highest within `reach`
    pixels of the tile's level with its shift (x, y)."""
    ratio = slide.level_downsamples[level] / slide.level_downsamples[finer]
    wide = len(grey) + 2 * reach
    around = _grey(slide, finer, centre, round(wide * ratio), wide)
    if around is None:
        return 1.0, 1.0, (0, 0)
    likeness = np.nan_to_num(match_template(around, grey))
    near = slice(reach - _AT_PLACE_PX, reach + _AT_PLACE_PX + 1)
    y, x = np.unravel_index(likeness.argmax(), likeness.shape)
    shift = (int(x) - reach, int(y) - reach)
    return float(likeness[near, near].max()), float(likeness.max()), shift
