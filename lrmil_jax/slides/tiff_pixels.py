"""What the samples of a TIFF page mean: a function that gives RGB, or the reason why there is none.

Read from PhotometricInterpretation (262), ExtraSamples (338), Compression (259) and, of YCbCr, its
coefficients (529) and reference levels (532); TIFF 6.0, sections 18, 21 and 22.
"""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, PLANARCONFIG, TIFF, TiffPage

Conversion = Callable[[np.ndarray], np.ndarray]

# Their decoders give the samples as they are stored, in whatever colours those are.
_PLAIN = {
    *(COMPRESSION.NONE, COMPRESSION.LZW, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE),
    *(COMPRESSION.PACKBITS, COMPRESSION.ZSTD, COMPRESSION.ZSTD_DEPRECATED, COMPRESSION.LZMA),
}
_JPEG = {COMPRESSION.JPEG, COMPRESSION.OJPEG}  # decoded to RGB by what tag 262 says
_APERIO_RGB = {COMPRESSION.APERIO_JP2000_RGB}
_APERIO_YCBCR = {COMPRESSION.APERIO_JP2000_YCBC}
_BT601 = (Fraction(299, 1000), Fraction(587, 1000), Fraction(114, 1000))
_FULL_RANGE = (0, 255, 128, 255, 128, 255)
_NAMES = {
    PHOTOMETRIC.PALETTE: "palette colours",
    PHOTOMETRIC.SEPARATED: "CMYK colours (tag 262 = 5)",
    PHOTOMETRIC.CIELAB: "CIELAB colours",
    PHOTOMETRIC.ICCLAB: "ICC L*a*b* colours",
    PHOTOMETRIC.ITULAB: "ITU L*a*b* colours",
    PHOTOMETRIC.CFA: "raw sensor colours",
    PHOTOMETRIC.MASK: "a transparency mask",
}


class PixelsError(Exception):
    """The samples are not known to be brightfield RGB; the message says what they are."""


def conversion(page: TiffPage, samples: int, photometric: int | None = None) -> Conversion:
    """Gives a function from decoded samples [h, w, samples] to RGB [h, w, 3].

    Args:
      page: of the level.
      samples: of a pixel, over all planes.
      photometric: to use in place of the page's, of grey pages that are the planes of RGB.

    Raises:
      PixelsError: 16-bit, CMYK, palette and other colours, a volume, more samples than can be
        explained, or a compression that cannot be decoded.
    """
    if page.dtype != np.uint8 or page.bitspersample != 8:
        raise PixelsError(f"{page.bitspersample}-bit samples ({page.dtype}), not 8-bit RGB")
    if page.imagedepth > 1:
        raise PixelsError(f"a volume of {page.imagedepth} planes in one page")
    if page.compression != COMPRESSION.NONE and page.compression not in TIFF.DECOMPRESSORS:
        raise PixelsError(f"tiles of the unknown compression {int(page.compression)} (tag 259)")
    if photometric is None:
        photometric = _photometric(page, samples)
    colours = _colours(page, photometric)
    count = 1 if colours in (_grey, _inverted) else 3
    if samples not in (count, count + 1):
        kind = "grey" if count == 1 else "colour"
        raise PixelsError(f"{samples} samples a pixel in a {kind} image of {count}")
    if samples == count:
        return colours
    return _with_extra(colours, page.extrasamples[:1], count)


def _photometric(page: TiffPage, samples: int) -> int:
    if 262 not in page.tags:  # the specification wants it; the number of samples speaks for itself
        return PHOTOMETRIC.RGB if samples >= 3 else PHOTOMETRIC.MINISBLACK
    return page.photometric


def _colours(page: TiffPage, photometric: int) -> Conversion:
    """The conversion of the colour samples alone."""
    compression = page.compression
    if compression in _APERIO_YCBCR:
        return _ycbcr
    if photometric == PHOTOMETRIC.RGB or compression in _APERIO_RGB:
        return _unchanged
    if photometric == PHOTOMETRIC.MINISBLACK:
        return _grey
    if photometric == PHOTOMETRIC.MINISWHITE:
        return _inverted
    if photometric != PHOTOMETRIC.YCBCR:
        raise PixelsError(_NAMES.get(photometric, f"colours of an unknown kind ({photometric})"))
    if compression in _JPEG and page.planarconfig == PLANARCONFIG.CONTIG:
        if page.extrasamples:
            raise PixelsError("YCbCr colours with a fourth sample under JPEG compression")
        return _unchanged
    if compression not in _PLAIN | _JPEG:
        raise PixelsError(
            f"YCbCr colours under the compression {COMPRESSION(compression).name}, of which some "
            "writers store RGB"
        )
    if page.is_subsampled:
        raise PixelsError("subsampled YCbCr colours without JPEG compression")
    if not _usual_ycbcr(page):
        raise PixelsError("YCbCr colours of other coefficients or levels than BT.601, full range")
    return _ycbcr


def _usual_ycbcr(page: TiffPage) -> bool:
    coefficients, levels = page.tags.valueof(529), page.tags.valueof(532)
    if coefficients is not None:
        values = [Fraction(*pair) for pair in zip(*[iter(coefficients)] * 2, strict=True)]
        if any(abs(a - b) > Fraction(1, 500) for a, b in zip(values, _BT601, strict=True)):
            return False
    if levels is None:
        return True
    values = [Fraction(*pair) for pair in zip(*[iter(levels)] * 2, strict=True)]
    return all(abs(a - b) <= 1 for a, b in zip(values, _FULL_RANGE, strict=True))


def _with_extra(colours: Conversion, extra: tuple[int, ...], first: int) -> Conversion:
    """Colours with one sample more, which is opacity only where ExtraSamples says so."""

    def over(samples: np.ndarray) -> np.ndarray:
        rgb = colours(np.ascontiguousarray(samples[..., :first]))
        if extra == (EXTRASAMPLE.UNASSALPHA,):
            return over_white(np.dstack([rgb, samples[..., first]]))
        if extra == (EXTRASAMPLE.ASSOCALPHA,):  # colours are multiplied by it already
            return np.minimum(rgb.astype(np.uint16) + (255 - samples[..., first:]), 255).astype(
                np.uint8
            )
        return rgb

    return over


def _unchanged(samples: np.ndarray) -> np.ndarray:
    return samples


def _grey(samples: np.ndarray) -> np.ndarray:
    return np.repeat(samples, 3, axis=2)


def _inverted(samples: np.ndarray) -> np.ndarray:
    return np.repeat(255 - samples, 3, axis=2)


def _ycbcr(samples: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(samples, "YCbCr").convert("RGB"))


def over_white(rgba: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """Composite over white: unscanned areas are transparent in some formats."""
    alpha = rgba[..., 3:]
    if alpha.min() == 255:
        return rgba[..., :3]
    weight = alpha.astype(np.float32) / 255
    return np.rint(rgba[..., :3] * weight + 255 * (1 - weight)).astype(np.uint8)
