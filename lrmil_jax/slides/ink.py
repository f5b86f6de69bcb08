"""Marker strokes and black areas of a thumbnail, told from stains of the same colours.

Stained tissue lies between 250 (nuclei) and 350 degrees of hue, DAB at 15 to 40, and special
stains anywhere: Masson's collagen is blue, methyl green is green. Strokes are strongly coloured
throughout and never most of what is coloured; a stain is pale somewhere, and everywhere.
"""

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

BLACK = 60  # brightest channel (0-255): marker ink, scanner borders
_BORDER_BLACK = 25  # nothing but what has not been scanned
_STRONG = 110  # saturation (0-255) that a stroke of green or blue reaches
_STRONG_SHARE = 0.1  # of the stroke
_STAIN_SHARE = 0.4  # of what is coloured: more green or blue is no ink
_STAIN_SATURATION = 150  # its median, at most
_PEN_UM2 = 1.0e4
_MARGIN_UM = 40.0  # strokes fade at their rim
_RING_UM = 60.0  # around a black area: brown there says that it is DAB


def ink(
    hue: UInt8[np.ndarray, "h w"],
    saturation: UInt8[np.ndarray, "h w"],
    value: UInt8[np.ndarray, "h w"],
    *,
    mpp: float | int,
) -> Bool[np.ndarray, "h w"]:
    """Where a thumbnail of `mpp` um/px shows ink, or black.

    Args:
      hue, saturation, value: 0-255, of the smoothed thumbnail on even, neutral glass.
      mpp: its um/px.
    """
    smallest = _PEN_UM2 / mpp**2
    mask = _reds(hue, saturation, value) | _blacks(hue, saturation, value, mpp=mpp)
    mask = _components(mask, lambda sizes, _: sizes >= smallest)
    for low, high, weak in ((65, 195, 50), (195, 238, 80)):
        colour = (hue >= degrees(low)) & (hue < degrees(high)) & (saturation > weak)
        if not _is_stain(colour, saturation):
            mask |= _components(
                colour,
                lambda sizes, strong: (sizes >= smallest) & (strong >= _STRONG_SHARE * sizes),
                colour & (saturation > _STRONG),
            )
    margin = _MARGIN_UM / mpp
    return ndimage.binary_dilation(mask, disk(margin)) if margin >= 0.5 else mask


def borders(value: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """What has not been scanned and was left black."""
    return value < _BORDER_BLACK


def _is_stain(colour: np.ndarray, saturation: np.ndarray) -> bool:
    """Whether green or blue is how tissue itself is stained: most of it, and not as ink is."""
    coloured = np.count_nonzero(saturation > 50)
    if np.count_nonzero(colour) <= _STAIN_SHARE * coloured:
        return False
    return float(np.median(saturation[colour])) < _STAIN_SATURATION


def _reds(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Red ink stays bright; what is as red and darker is blood, or DAB."""
    red = (hue >= degrees(352)) | (hue < degrees(20))
    return red & (saturation > 190) & (value >= 170)


def _blacks(
    hue: np.ndarray, saturation: np.ndarray, value: np.ndarray, *, mpp: float
) -> np.ndarray:
    """Black areas, less those that are the densest part of something brown."""
    warm = (hue < degrees(45)) | (hue >= degrees(345))
    black = (value < BLACK) & ~(warm & (saturation > 90))
    if not black.any():
        return black
    brown = warm & (saturation > 60) & (value < 200)
    labels, count = ndimage.label(black)
    reach = 2 * max(1, round(_RING_UM / mpp)) + 1
    ring = ndimage.maximum_filter(labels, reach) * ~black
    around = np.bincount(ring.ravel(), minlength=count + 1)
    browns = np.bincount(ring[brown], minlength=count + 1)
    is_ink = browns <= 0.5 * np.maximum(around, 1)
    is_ink[0] = False
    return is_ink[labels] | (black & borders(value))


def _components(mask: np.ndarray, keep, marked: np.ndarray | None = None) -> np.ndarray:
    """Connected objects that `keep`, of all sizes and numbers of marked pixels, keeps."""
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    marks = sizes if marked is None else np.bincount(labels[marked], minlength=count + 1)
    kept = keep(sizes, marks)
    kept[0] = False
    return kept[labels]


def degrees(angle: int) -> int:
    """An angle of hue on Pillow's scale of 0-255."""
    return round(angle * 255 / 360)


def disk(radius: float | int) -> Bool[np.ndarray, "d d"]:
    """A filled circle, for morphology."""
    reach = np.arange(-int(np.ceil(radius)), int(np.ceil(radius)) + 1)
    return reach[:, None] ** 2 + reach[None, :] ** 2 <= radius**2 + 0.5
