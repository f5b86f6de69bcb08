"""The bare glass of a slide as its thumbnail shows it: its colour, and how that fades to the rim.

Lamps, mounting media and scanners tint glass and darken the corners; a fixed idea of white takes
both for stain. Light that glass lets through is estimated place by place, as flat fields are: the
brightest pixels that no stain could have are the first, a smooth surface is laid through them,
and what lies on it joins them, until nothing more does.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

NEUTRAL = 245  # what glass becomes, of 255
_SIDE = 160  # px, of the sample in which glass is sought
_FEWEST = 30  # pixels of that sample
_DARKEST = 140  # brightest channel of glass, at least
_PINK = 9  # of 255: haematoxylin and eosin take green before red and blue, glass does not
_FEW = 0.1  # share of glass that is believed to be pinkish only where there is more of it
_SEEDS = 0.1  # share of the plausible pixels that is begun with, the brightest
_TOLERANCE = 0.02  # log10 of light: a stain of one twentieth
_TEXTURE = 0.012  # log10 of light between neighbours
_ROUNDS = 12
_RIDGE = 1e-3  # keeps the surface level where no glass says otherwise


@dataclass(frozen=True)
class Glass:
    """Light that bare glass lets through.

    Attributes:
      centre: RGB of glass, the median over the slide.
      share: of the thumbnail that is bare glass; 0 where none was recognised, and then `centre`
        is only assumed.
      coefficients: [k, 3] of log10 of the light, of the polynomial `_terms`.
      limits: [2, 3] least and most of it.
    """

    centre: tuple[int, int, int]
    share: float
    coefficients: Float[np.ndarray, "k 3"]
    limits: Float[np.ndarray, "2 3"]

    def evened(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The image as neutral glass of even light would show it."""
        height, width = image.shape[:2]
        result = np.empty_like(image)
        x = _axis(width)
        for top in range(0, height, 256):  # strips: a whole surface would take a gigabyte
            rows = slice(top, min(top + 256, height))
            y = _axis(height)[rows]
            surface = _surface(x[None], y[:, None], self.coefficients, self.limits)
            light = image[rows].astype(np.float32) + 1
            np.multiply(light, (NEUTRAL + 1) / surface, out=light)
            result[rows] = np.clip(np.rint(light - 1), 0, 255)
        return result


def estimate(image: UInt8[np.ndarray, "h w 3"]) -> tuple[Glass, Bool[np.ndarray, "s t"]]:
    """The glass of a thumbnail, and which pixels of its `sample` are glass.

    Args:
      image: the thumbnail, smoothed.
    """
    small = sample(image)
    y, x = (_axis(n) for n in small.shape[:2])
    x, y = np.broadcast_arrays(x[None], y[:, None])
    light = np.log10(small.astype(np.float64) + 1)
    accepted = _seeds(small)
    if accepted.sum() < _FEWEST:
        return _assumed(), np.zeros(small.shape[:2], bool)
    possible = _plausible(small) & _is_smooth(image, accepted)
    coefficients = np.median(light[accepted], axis=0)[None]
    limits = _limits(light[accepted])
    for _ in range(_ROUNDS):
        residual = light - np.log10(_surface(x, y, coefficients, limits))
        grown = possible & (np.abs(residual).max(-1) < _TOLERANCE)
        if grown.sum() < _FEWEST or (grown == accepted).all():
            break
        accepted, limits = grown, _limits(light[grown])
        coefficients = _fit(x[accepted], y[accepted], light[accepted])
    red, green, blue = centre = tuple(int(n) for n in np.median(small[accepted], axis=0))
    share = float(accepted.mean())
    if share < _FEW and (red + blue) // 2 - green > _PINK // 2:
        return _assumed(), np.zeros_like(accepted)  # the palest tissue of a slide without glass
    return Glass(centre, share, coefficients, limits), accepted


def sample(image: UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "s t *c"]:
    """Every so many pixels of an image, about 160 a side."""
    step = max(1, max(image.shape[:2]) // _SIDE)
    return image[::step, ::step]


def _assumed() -> Glass:
    level = np.full((1, 3), np.log10(NEUTRAL + 1))
    return Glass((NEUTRAL,) * 3, 0.0, level, np.concatenate([level, level]))


def _plausible(small: np.ndarray) -> np.ndarray:
    """Pixels that could be glass: bright, and not pink as stained tissue is."""
    red, green, blue = np.moveaxis(small.astype(np.int16), -1, 0)
    return (small.max(-1) >= _DARKEST) & ((red + blue) // 2 - green <= _PINK)


def _seeds(small: np.ndarray) -> np.ndarray:
    """The brightest of them, less what a scanner filled with white where it has not been."""
    plausible = _plausible(small)
    filled = (small == 255).all(-1)
    if (plausible & ~filled).sum() >= max(_FEWEST, 0.05 * plausible.sum()):
        plausible &= ~filled
    if not plausible.any():
        return plausible
    brightness = small.astype(np.float32).mean(-1)
    return plausible & (brightness >= np.quantile(brightness[plausible], 1 - _SEEDS))


def _is_smooth(image: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Where the pixels of the sample have neighbours as bright as they are: of tissue, however
    pale, they have not, so that no surface can follow it."""
    grey = np.log10(image.min(-1).astype(np.float32) + 1)
    height, width = grey.shape
    step = max(1, max(height, width) // _SIDE)
    around = [
        grey[np.clip(np.arange(0, height, step) + dy, 0, height - 1)][
            :, np.clip(np.arange(0, width, step) + dx, 0, width - 1)
        ]
        for dy in (-2, 0, 2)
        for dx in (-2, 0, 2)
    ]
    spread = np.max(around, axis=0) - np.min(around, axis=0)
    return spread < max(_TEXTURE, 3 * float(np.quantile(spread[seeds], 0.25)))


def _limits(light: np.ndarray) -> np.ndarray:
    return np.quantile(light, (0.001, 0.999), axis=0) + np.array([[-0.01], [0.01]])


def _fit(x: np.ndarray, y: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Coefficients of the surface through some pixels, by ridge regression."""
    terms = _terms(x, y).T
    mean = light.mean(0)
    penalty = _RIDGE * len(terms) * np.eye(terms.shape[1])
    penalty[0, 0] = 0
    solution = np.linalg.solve(terms.T @ terms + penalty, terms.T @ (light - mean))
    solution[0] += mean
    return solution


def _terms(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of a quadratic surface, and one of the fourth order for corners; [k, ...]."""
    square = x * x + y * y
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y, square * square])


def _surface(
    x: np.ndarray, y: np.ndarray, coefficients: np.ndarray, limits: np.ndarray
) -> np.ndarray:
    """Light of glass, [..., 3]."""
    x, y = np.broadcast_arrays(x, y)
    terms = _terms(x, y)[: len(coefficients)]
    logs = np.einsum("k...,kc->...c", terms, coefficients.astype(x.dtype))
    return 10 ** np.clip(logs, *limits.astype(x.dtype))


def _axis(count: int) -> np.ndarray:
    """Places along a side, from -1 to 1."""
    return np.linspace(-1, 1, count, dtype=np.float32)
