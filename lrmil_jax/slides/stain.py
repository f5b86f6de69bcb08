"""Amounts of haematoxylin and eosin in an image, and the image with more or less of either.

Source: Ruifrok and Johnston, "Quantification of histochemical staining by color deconvolution",
2001: optical density is a sum of the stains' own, so it is parted by a matrix, whose numbers are
scikit-image's. As augmentation: Tellez et al., Medical Image Analysis 58 (2019).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from skimage.color import hed_from_rgb, rgb_from_hed

_LARGEST = 255.0  # what light passes through where nothing absorbs


def amounts(image: UInt8[np.ndarray, "*size 3"]) -> Float[np.ndarray, "*size 3"]:
    """Optical density of haematoxylin, eosin and what neither explains, float32."""
    density = -np.log((image.astype(np.float32) + 1.0) / (_LARGEST + 1.0))
    return density @ hed_from_rgb.astype(np.float32)


def coloured(density: Float[np.ndarray, "*size 3"]) -> UInt8[np.ndarray, "*size 3"]:
    """The image of which `amounts` gives these; what lies outside of 0 to 255 is cut off."""
    light = np.exp(-density @ rgb_from_hed.astype(np.float32)) * (_LARGEST + 1.0) - 1.0
    return np.clip(np.rint(light), 0, _LARGEST).astype(np.uint8)


def restained(
    image: UInt8[np.ndarray, "*size 3"], factors: Sequence[float | int] | Float[np.ndarray, " 3"]
) -> UInt8[np.ndarray, "*size 3"]:
    """The image as if its stains had been taken up so many times as strongly.

    Args:
      image: RGB.
      factors: of haematoxylin, of eosin, and of the rest; (1, 1, 1) changes nothing but rounding.
    """
    return coloured(amounts(image) * np.asarray(factors, np.float32))
