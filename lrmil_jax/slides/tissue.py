"""Tissue from a thumbnail: saturation, Otsu, morphology; pen and black are no tissue."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.segmentation import find_boundaries

from lrmil_jax.errors import SlideError
from lrmil_jax.slides.lattice import Lattice
from lrmil_jax.slides.slide import Slide

# Otsu's threshold is held in this band of HSV saturation (0-255): on a slide that is all tissue
# it would split the tissue, on an empty one the noise.
_SATURATION_BAND = (14, 32)
_MEDIAN_UM = 24.0  # more would eat thin strands and biopsy cores' rims
_OPEN_UM, _CLOSE_UM = 8.0, 16.0  # radii
_SMALL_OBJECT_UM2 = 8e3  # about 90 x 90 um: dust, single cells
_SMALL_HOLE_UM2 = 1.6e4  # one 256 px patch at 20x: smaller lumina belong to the tissue around them
_BLACK = 60  # brightest channel (0-255): marker ink, scanner borders
_PEN_UM2 = 1.0e4
_PEN_MARGIN_UM = 40.0  # strokes fade at their rim


@dataclass(frozen=True)
class Tissue:
    """Where a slide holds tissue.

    Attributes:
      mask: [h, w] over the thumbnail.
      downsample: level-0 pixels per mask pixel.
      thumbnail: the pixels that it was found on.
      unreadable: (x, y, side) in level-0 pixels of blocks that could not be decoded.
    """

    mask: Bool[np.ndarray, "h w"]
    downsample: float
    thumbnail: UInt8[np.ndarray, "h w 3"]
    unreadable: list[tuple[int, int, int]]

    def fraction(self, xy: Int[np.ndarray, "m 2"], side: int) -> Float[np.ndarray, "m"]:
        """Share of tissue in squares of `side` level-0 pixels with top left corners `xy`.

        Exact for any position and size, smaller than a mask pixel too; outside is no tissue.
        """
        low = np.asarray(xy, np.float64) / self.downsample
        high = low + side / self.downsample
        x0, y0, x1, y1 = low[:, 0], low[:, 1], high[:, 0], high[:, 1]
        area = self._sum(x1, y1) - self._sum(x0, y1) - self._sum(x1, y0) + self._sum(x0, y0)
        return np.clip(area / (side / self.downsample) ** 2, 0.0, 1.0)

    @cached_property
    def _integral(self) -> Int[np.ndarray, "h1 w1"]:
        total = np.zeros((self.mask.shape[0] + 1, self.mask.shape[1] + 1), np.int32)
        np.cumsum(self.mask, axis=0, dtype=np.int32, out=total[1:, 1:])
        np.cumsum(total, axis=1, out=total)
        return total

    def _sum(self, x: Float[np.ndarray, "m"], y: Float[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
        """Tissue area left of and above (x, y); bilinear, which is exact inside a mask pixel."""
        height, width = self.mask.shape
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        i = np.minimum(y.astype(np.int64), height - 1)
        j = np.minimum(x.astype(np.int64), width - 1)
        fy, fx = y - i, x - j
        total = self._integral
        upper = total[i, j] * (1 - fx) + total[i, j + 1] * fx
        lower = total[i + 1, j] * (1 - fx) + total[i + 1, j + 1] * fx
        return upper * (1 - fy) + lower * fy


def detect(slide: Slide, *, mpp: float | int = 8.0) -> Tissue:
    """Find the tissue of a slide on a thumbnail of about `mpp` um/px.

    Median-smoothed HSV saturation, thresholded by Otsu within a plausible band; marker ink and
    black removed; small objects dropped and small holes filled, by their size in um2.

    Raises:
      SlideError: there is no tissue.
    """
    thumbnail = slide.thumbnail(mpp)
    mask = tissue_mask(thumbnail.image, mpp=thumbnail.downsample * slide.mpp)
    for x, y, side in thumbnail.unreadable:  # else the filling of holes would fill them
        first, last = (int(n / thumbnail.downsample) for n in (y, y + side))
        mask[first:last, int(x / thumbnail.downsample) : int((x + side) / thumbnail.downsample)] = 0
    if not mask.any():
        raise SlideError(f"{slide.path}: no tissue found; leave the slide out.")
    return Tissue(mask, thumbnail.downsample, thumbnail.image, thumbnail.unreadable)


def tissue_mask(image: UInt8[np.ndarray, "h w 3"], *, mpp: float | int) -> Bool[np.ndarray, "h w"]:
    """The mask behind `detect`, for an image of `mpp` um/px."""
    hue, saturation, value = _hsv(image, median_px=2 * round(_MEDIAN_UM / mpp / 2) + 1)
    ink = _ink(hue, saturation, value, mpp=mpp)
    clean = saturation[~ink]
    low, high = _SATURATION_BAND
    otsu = threshold_otsu(clean) if clean.size and clean.min() < clean.max() else high
    mask = (saturation > np.clip(otsu, low, high)) & ~ink
    mask = _padded(ndimage.binary_opening, mask, _OPEN_UM / mpp)
    mask = _padded(ndimage.binary_closing, mask, _CLOSE_UM / mpp)
    mask = _without_small(mask, _SMALL_OBJECT_UM2 / mpp**2)
    mask = ~_without_small(~mask, _SMALL_HOLE_UM2 / mpp**2)
    return mask & ~ink


def overlay(tissue: Tissue, lattice: Lattice) -> UInt8[np.ndarray, "h w 3"]:
    """The thumbnail with the tissue's outline (green) and the low-resolution cells (blue)."""
    image = Image.fromarray(tissue.thumbnail)
    draw = ImageDraw.Draw(image)
    scale = 1 / tissue.downsample
    for x, y in lattice.lr_xy:
        corners = (x, y, x + lattice.lr_side - 1, y + lattice.lr_side - 1)
        draw.rectangle([n * scale for n in corners], outline=(40, 90, 220))
    pixels = np.array(image)
    pixels[find_boundaries(tissue.mask, mode="inner")] = (0, 160, 60)
    return pixels


def _hsv(image: np.ndarray, *, median_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue, saturation and value (each 0-255), of the median-smoothed image.

    Pillow's 8-bit HSV: a float version of a large thumbnail would take a gigabyte.
    """
    smooth = Image.fromarray(image)
    if median_px > 1:
        smooth = smooth.filter(ImageFilter.MedianFilter(median_px))
    hue, saturation, value = (np.asarray(c) for c in smooth.convert("HSV").split())
    return hue, saturation, value


def _ink(
    hue: np.ndarray, saturation: np.ndarray, value: np.ndarray, *, mpp: float
) -> Bool[np.ndarray, "h w"]:
    """Marker strokes and black areas. Stained tissue lies between 250 (nuclei) and 350 degrees."""
    green = (hue >= _hue(65)) & (hue < _hue(195)) & (saturation > 50)
    blue = (hue >= _hue(195)) & (hue < _hue(238)) & (saturation > 80)
    red = ((hue >= _hue(352)) | (hue < _hue(20))) & (saturation > 165)
    ink = green | blue | red | (value < _BLACK)
    ink = _without_small(ink, _PEN_UM2 / mpp**2)
    margin = _PEN_MARGIN_UM / mpp
    return ndimage.binary_dilation(ink, _disk(margin)) if margin >= 0.5 else ink


def _hue(degrees: int) -> int:
    """Degrees on Pillow's scale of 0-255."""
    return round(degrees * 255 / 360)


def _without_small(mask: np.ndarray, min_px: float) -> np.ndarray:
    """Drop connected objects of fewer than `min_px` pixels."""
    labels, count = ndimage.label(mask)
    keep = np.bincount(labels.ravel(), minlength=count + 1) >= min_px
    keep[0] = False
    return keep[labels]


def _padded(operation, mask: np.ndarray, radius: float) -> np.ndarray:
    """Morphology that treats the image's rim as continuing, so that tissue there is not eaten."""
    if radius < 0.5:
        return mask
    pad = int(np.ceil(radius)) + 1
    grown = operation(np.pad(mask, pad, mode="edge"), _disk(radius))
    return grown[pad:-pad, pad:-pad]


def _disk(radius: float) -> np.ndarray:
    reach = np.arange(-int(np.ceil(radius)), int(np.ceil(radius)) + 1)
    return reach[:, None] ** 2 + reach[None, :] ** 2 <= radius**2 + 0.5
