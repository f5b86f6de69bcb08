"""What another laboratory or scanner does to a slide's pixels, at three strengths: to ask how much
of a model's quality is left there.

Each shift is of whole slides: one draw of stain or colour a slide, as one laboratory has, so that
patches of a slide shift together.
"""

import io
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from lrmil_jax.errors import ConfigError
from lrmil_jax.slides import stain

STRENGTHS = (1, 2, 3)
_STAIN = (0.1, 0.2, 0.35)  # how far a stain's amount is from usual, as a share of it
_BLUR_PX = (0.7, 1.2, 2.0)  # SD of the point spread at level 0
_JPEG = (60, 35, 15)  # quality
_GAIN, _GAMMA = (0.04, 0.08, 0.15), (0.08, 0.16, 0.3)  # of the channels, and of all


def _stained(image: UInt8[np.ndarray, "h w 3"], level: int, rng: np.random.Generator) -> np.ndarray:
    # More of one stain goes with less of the other, which no change of brightness undoes.
    sign = rng.choice([-1.0, 1.0])
    return stain.restained(image, (1 + sign * _STAIN[level], 1 - sign * _STAIN[level], 1.0))


def _blurred(image: UInt8[np.ndarray, "h w 3"], level: int, rng: np.random.Generator) -> np.ndarray:
    blur = ImageFilter.GaussianBlur(_BLUR_PX[level])
    return np.asarray(Image.fromarray(image).filter(blur))


def _compressed(
    image: UInt8[np.ndarray, "h w 3"], level: int, rng: np.random.Generator
) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=_JPEG[level])
    return np.asarray(Image.open(file))


def _scanned(image: UInt8[np.ndarray, "h w 3"], level: int, rng: np.random.Generator) -> np.ndarray:
    gain = 1 + _GAIN[level] * rng.choice([-1.0, 1.0], 3)
    gamma = 1 + _GAMMA[level] * rng.choice([-1.0, 1.0])
    table = 255 * np.clip((np.arange(256) / 255)[:, None] ** gamma * gain, 0, 1)
    return np.stack([np.rint(table[:, c]).astype(np.uint8)[image[..., c]] for c in range(3)], -1)


SHIFTS: dict[str, Callable] = {
    "stain": _stained, "blur": _blurred, "jpeg": _compressed, "scanner": _scanned,
}  # fmt: skip


def shifted(
    image: UInt8[np.ndarray, "h w 3"], name: str, *, strength: int, seed: int
) -> UInt8[np.ndarray, "h w 3"]:
    """An image as another laboratory or scanner would give it.

    Args:
      image: level 0 of a slide, or a region of it.
      name: one of SHIFTS: "stain" (one more, the other less), "blur" (out of focus), "jpeg"
        (compressed again), "scanner" (gains of the channels, and gamma).
      strength: one of STRENGTHS, from hardly seen to plain.
      seed: of the slide's draw; not negative.

    Raises:
      ConfigError: there is no such shift or strength.
    """
    if name not in SHIFTS or strength not in STRENGTHS:
        raise ConfigError(
            f"there is no shift {name!r} of strength {strength!r}; take {', '.join(SHIFTS)} and a "
            f"strength of {', '.join(map(str, STRENGTHS))}"
        )
    return SHIFTS[name](image, strength - 1, np.random.default_rng(seed))
