"""Tissue from a thumbnail: what is coloured on even glass, and is no ink."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.segmentation import find_boundaries

from lrmil_jax.errors import SlideError
from lrmil_jax.slides import glass as bare_glass
from lrmil_jax.slides import ink as marker_ink
from lrmil_jax.slides.glass import Glass
from lrmil_jax.slides.ink import disk
from lrmil_jax.slides.lattice import Lattice
from lrmil_jax.slides.slide import Slide

# HSV saturation (0-255) from which a slide's own threshold is never far: below lies the noise of
# clean glass, above the palest counterstains.
_SATURATION_BAND = (6, 16)
_PALE = 32  # saturation of the palest stains and their rims, at most
_NOISE_SD = 6.0  # above the saturation of bare glass, about: its quantiles lie 0.97 SD apart
_WITHOUT_GLASS = 8.0  # where all is tissue but lumina
_MEDIAN_UM = 24.0  # more would eat thin strands and biopsy cores' rims
_OPEN_UM = 8.0  # radius
_SMALL_OBJECT_UM2 = 8e3  # about 90 x 90 um: dust, single cells
_SMALL_HOLE_UM2 = 1.6e4  # one 256 px patch at 20x: smaller lumina belong to the tissue around them


@dataclass(frozen=True)
class TissueRule:
    """How tissue is told from glass.

    Attributes:
      mpp: um/px of the thumbnail, about.
      threshold: HSV saturation (0-255, on neutral glass) of tissue; 0: each slide's own.
      close_um: radius of the closing of gaps, in um; 0: none.
      ink: leave marker ink and black out.
    """

    mpp: float = 8.0
    threshold: float = 0.0
    close_um: float = 16.0
    ink: bool = True


@dataclass(frozen=True)
class Findings:
    """What a mask comes from, for whoever looks at the slide.

    Attributes:
      glass: of the slide.
      threshold: saturation above which a pixel was tissue.
      weakest: the lowest threshold that the noise of the glass allowed.
      ink: [h, w] what was left out as ink.
    """

    glass: Glass
    threshold: float
    weakest: float
    ink: Bool[np.ndarray, "h w"]

    def ink_share(self, mask: Bool[np.ndarray, "h w"]) -> float:
        """Ink's share of what is ink or tissue."""
        inked = np.count_nonzero(self.ink)
        return inked / max(inked + np.count_nonzero(mask), 1)


class NoTissueError(SlideError):
    """A slide without tissue; `tissue` has its thumbnail and what was found."""

    def __init__(self, message: str, tissue: "Tissue"):
        super().__init__(message)
        self.tissue = tissue


@dataclass(frozen=True)
class Tissue:
    """Where a slide holds tissue.

    Attributes:
      mask: [h, w] over the thumbnail.
      downsample: level-0 pixels per mask pixel.
      thumbnail: the pixels that it was found on.
      unreadable: (x, y, side) in level-0 pixels of blocks that could not be decoded.
      findings: what the mask comes from, if `detect` made it.
    """

    mask: Bool[np.ndarray, "h w"]
    downsample: float
    thumbnail: UInt8[np.ndarray, "h w 3"]
    unreadable: list[tuple[int, int, int]]
    findings: Findings | None = None

    def fraction(self, xy: Int[np.ndarray, "m 2"], side: int) -> Float[np.ndarray, "m"]:
        """Share of tissue in squares of `side` level-0 pixels with top left corners `xy`.

        Exact for any position and size, smaller than a mask pixel too; outside is no tissue.
        """
        low = np.asarray(xy, np.float64) / self.downsample
        high = low + side / self.downsample
        x0, y0, x1, y1 = low[:, 0], low[:, 1], high[:, 0], high[:, 1]
        area = self._sum(x1, y1) - self._sum(x0, y1) - self._sum(x1, y0) + self._sum(x0, y0)
        return np.clip(area / (side / self.downsample) ** 2, 0.0, 1.0)

    def reduced(self, factor: int) -> "Tissue":
        """The same, with a thumbnail `factor` times smaller."""
        if factor == 1:
            return self
        thumbnail = np.asarray(Image.fromarray(self.thumbnail).reduce(factor))
        findings = self.findings
        if findings is not None:
            findings = dataclasses.replace(findings, ink=findings.ink[::factor, ::factor])
        return dataclasses.replace(
            self,
            mask=self.mask[::factor, ::factor],
            downsample=self.downsample * factor,
            thumbnail=thumbnail,
            findings=findings,
        )

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


def detect(slide: Slide, rule: TissueRule = TissueRule()) -> Tissue:
    """`find`, of a slide that must have tissue.

    Raises:
      NoTissueError: there is none.
    """
    found = find(slide, rule)
    if not found.mask.any():
        raise NoTissueError(f"{slide.path}: {_why_none(found.findings)}", found)
    return found


def find(slide: Slide, rule: TissueRule) -> Tissue:
    """The tissue of a slide, on a thumbnail of about `rule.mpp` um/px; there may be none."""
    thumbnail = slide.thumbnail(rule.mpp)
    mask, findings = tissue_mask(
        thumbnail.image, dataclasses.replace(rule, mpp=thumbnail.downsample * slide.mpp)
    )
    for x, y, side in thumbnail.unreadable:  # else the filling of holes would fill them
        first, last = (int(n / thumbnail.downsample) for n in (y, y + side))
        mask[first:last, int(x / thumbnail.downsample) : int((x + side) / thumbnail.downsample)] = 0
    return Tissue(mask, thumbnail.downsample, thumbnail.image, thumbnail.unreadable, findings)


def _why_none(findings: Findings) -> str:
    """No tissue, and what shows it if there is some after all."""
    start = (
        f"no tissue found: nothing is {findings.threshold:.0f} of 255 more saturated than the "
        f"glass, RGB {findings.glass.centre}"
    )
    if findings.ink_share(np.zeros_like(findings.ink)) and findings.ink.mean() > 0.01:
        return (
            f"{start}, but {findings.ink.mean():.0%} of the thumbnail was taken for ink; if it is "
            "stain, set prepare.ink=False"
        )
    return (
        f"{start}; look at it with --stages check, and if there is tissue, set "
        f"prepare.tissue_threshold below {findings.threshold:.0f}"
    )


def tissue_mask(
    image: UInt8[np.ndarray, "h w 3"], rule: TissueRule
) -> tuple[Bool[np.ndarray, "h w"], Findings]:
    """The mask behind `detect`, for an image of exactly `rule.mpp` um/px.

    Saturation of the median-smoothed image on even, neutral glass (`glass`), above the threshold
    of the rule or the slide's own; ink left out; small objects dropped and small holes filled, by
    their size in um2.
    """
    mpp = rule.mpp
    smooth = _smoothed(image, median_px=2 * round(_MEDIAN_UM / mpp / 2) + 1)
    glass, is_glass = bare_glass.estimate(smooth)
    hue, saturation, value = _hsv(glass.evened(smooth))
    black = marker_ink.borders(value)
    ink = marker_ink.ink(hue, saturation, value, mpp=mpp) | black if rule.ink else black
    weakest = _weakest(bare_glass.sample(saturation)[is_glass])
    threshold = rule.threshold or (
        _threshold(saturation[~ink], weakest) if glass.share else _WITHOUT_GLASS
    )
    mask = (saturation > threshold) & ~ink
    mask = _padded(ndimage.binary_opening, mask, _OPEN_UM / mpp)
    mask = _padded(ndimage.binary_closing, mask, rule.close_um / mpp)
    mask = _without_small(mask, _SMALL_OBJECT_UM2 / mpp**2)
    mask = ~_without_small(~mask, _SMALL_HOLE_UM2 / mpp**2)
    return mask & ~ink, Findings(glass, float(threshold), float(weakest), ink)


def _weakest(saturation: UInt8[np.ndarray, " n"]) -> float:
    """Saturation that bare glass does not reach by noise; of its lower half, as the palest tissue
    may be among it."""
    if not saturation.size:
        return float(_SATURATION_BAND[0])
    low, middle = np.quantile(saturation, (0.05, 0.25))
    return float(np.clip(middle + _NOISE_SD * (middle - low), *_SATURATION_BAND))


def _threshold(saturation: UInt8[np.ndarray, " n"], weakest: float) -> float:
    """Between glass and what is pale, by Otsu's rule; what is dense has no say in it, or would
    make the threshold as high as it is dense itself."""
    counts = np.bincount(saturation, minlength=256)[:_PALE]
    if np.count_nonzero(counts) < 2:
        return float(_SATURATION_BAND[1])
    otsu = threshold_otsu(hist=(counts, np.arange(len(counts))))
    return float(np.clip(otsu, weakest, _SATURATION_BAND[1]))


def overlay(tissue: Tissue, lattice: Lattice | None) -> UInt8[np.ndarray, "h w 3"]:
    """The thumbnail with the tissue's outline (green), ink (violet) and the low-resolution cells
    (blue), if there are any."""
    pixels = tissue.thumbnail.copy()
    if tissue.findings is not None:
        ink = tissue.findings.ink
        pixels[ink] = pixels[ink] // 2 + np.array([80, 0, 100], np.uint8)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    scale = 1 / tissue.downsample
    for x, y in () if lattice is None else lattice.lr_xy:
        corners = (x, y, x + lattice.lr_side - 1, y + lattice.lr_side - 1)
        draw.rectangle([n * scale for n in corners], outline=(40, 90, 220))
    pixels = np.array(image)
    pixels[find_boundaries(tissue.mask, mode="inner")] = (0, 160, 60)
    return pixels


def _smoothed(image: np.ndarray, *, median_px: int) -> np.ndarray:
    if median_px <= 1:
        return image
    return np.asarray(Image.fromarray(image).filter(ImageFilter.MedianFilter(median_px)))


def _hsv(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue, saturation and value, each 0-255.

    Pillow's 8-bit HSV: a float version of a large thumbnail would take a gigabyte.
    """
    hue, saturation, value = Image.fromarray(image).convert("HSV").split()
    return np.asarray(hue), np.asarray(saturation), np.asarray(value)


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
    grown = operation(np.pad(mask, pad, mode="edge"), disk(radius))
    return grown[pad:-pad, pad:-pad]
