"""Whether two slide files show the same tissue: a fingerprint of the thumbnail, and its comparison.

A fingerprint is the low spatial frequencies of the optical density within the tissue, in a frame
that goes with the tissue's centre and spread, so that it stays under another compression, scanner
level, um/px or margin. Two are compared by their normalised cross-correlation, the highest over
small shifts (Kuglin and Hines, "The phase correlation image alignment method", 1975), upright and
turned by half a circle.
"""

import base64
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Complex64, Float, Float32, Integer, UInt8
from PIL import Image
from scipy import fft

_FRAME = 32  # px, side of the frame
_SPREAD = 2.2  # half of its side, in SD of the tissue's place
_HIGHEST = 7  # cycles a frame
_ROWS = np.r_[0 : _HIGHEST + 1, -_HIGHEST:0]  # frequencies along y
_DENSITY = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)  # of each grey value
_SIDE = 512  # px of a thumbnail, at least, where it has as many
_LEAST = 1.0  # of the strongest frequency; rounding errors reach thousandths
_SHIFT_PX = 5  # of the frame, at most
# From here on two slides are called one: of 300 procedural slides, the likest two different ones
# reach 0.56. docs/protocols.md has what it finds and misses.
ALIKE = 0.68


def fingerprint(thumbnail: UInt8[np.ndarray, "h w 3"], tissue: Bool[np.ndarray, "h w"]) -> str:
    """The fingerprint of a slide, as text.

    Args:
      thumbnail: the slide at low power.
      tissue: where it holds tissue.
    """
    shrink = max(1, max(tissue.shape) // _SIDE)  # the frame has no use for more
    grey = np.asarray(Image.fromarray(thumbnail).reduce(shrink).convert("L"))
    tissue = np.asarray(Image.fromarray(tissue.astype(np.uint8) * 255).reduce(shrink)) > 127
    if not tissue.any():  # scattered so thinly that none is left
        tissue = np.ones_like(tissue)
    density = _DENSITY[grey]
    # Beyond its mean: else all slides of one outline would be alike.
    density = np.where(tissue, density - density[tissue].mean(), 0).astype(np.float32)
    spectrum = fft.rfft2(_framed(density, tissue))
    kept = spectrum[_ROWS, : _HIGHEST + 1]
    # Tissue has most at the lowest frequencies, which differ least from slide to slide.
    kept = kept * _shifted(*[(_FRAME - 1) / 2] * 2)  # as seen from the frame's centre
    kept = kept * np.hypot(_ROWS[:, None], np.arange(_HIGHEST + 1)[None])
    parts = np.stack([kept.real, kept.imag])
    highest = np.abs(parts).max()
    # An even thumbnail has rounding errors alone.
    numbers = np.round(127 * parts / max(highest, _LEAST)).astype(np.int8)
    return base64.b85encode(numbers.tobytes()).decode()


def _framed(density: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """The density in the frame, [_FRAME, _FRAME]."""
    ys, xs = np.nonzero(tissue)
    half = max(_SPREAD * np.sqrt((ys.var() + xs.var()) / 2), 1.0)
    pad = int(np.ceil(half)) + 1
    # Only what the frame can reach.
    top, left = (max(0, int(one.mean() - half)) for one in (ys, xs))
    bottom, right = (int(one.mean() + half) + 2 for one in (ys, xs))
    padded = np.pad(density[top:bottom, left:right], pad)
    centre = xs.mean() + 0.5 - left + pad, ys.mean() + 0.5 - top + pad
    box = (centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half)
    resize = Image.Resampling.BILINEAR  # widened to what it averages, where it makes smaller
    return np.asarray(Image.fromarray(padded).resize((_FRAME, _FRAME), resize, box=box))


def vectors(fingerprints: Sequence[str]) -> Float32[np.ndarray, "S f"]:
    """The fingerprints as vectors of unit length, real parts before imaginary ones; all 0 where a
    thumbnail was even."""
    raw = [np.frombuffer(base64.b85decode(one), np.int8) for one in fingerprints]
    parts = np.stack(raw).astype(np.float32).reshape(-1, _HIGHEST + 1)
    # All columns but the first stand for two of the whole spectrum, of which half is kept.
    parts[:, 1:] *= np.sqrt(2)
    parts = parts.reshape(len(raw), -1)
    return parts / np.maximum(np.linalg.norm(parts, axis=1, keepdims=True), 1e-12)


@functools.cache
def _phases() -> Complex64[np.ndarray, "k f"]:
    """What each shift that is tried multiplies the frequencies with."""
    shifts = range(-_SHIFT_PX, _SHIFT_PX + 1)
    return np.stack([_shifted(y, x).ravel() for y in shifts for x in shifts])


def _shifted(y: float | int, x: float | int) -> np.ndarray:
    """What a shift by px of the frame multiplies the frequencies with, [v, u]."""
    turns = y * _ROWS[:, None] + x * np.arange(_HIGHEST + 1)[None]
    return np.exp(2j * np.pi * turns / _FRAME).astype(np.complex64)


def compare(
    one: Float32[np.ndarray, " f"], others: Float32[np.ndarray, "S f"]
) -> Float32[np.ndarray, " S"]:
    """Likeness of one slide to others, from -1 to 1: 1 is the same picture."""
    half = len(one) // 2
    shifted = (one[:half] + 1j * one[half:]) * _phases()
    real, imaginary = shifted.real @ others[:, :half].T, shifted.imag @ others[:, half:].T
    # A picture turned by half a circle has the conjugate spectrum.
    return np.maximum((real + imaginary).max(0), (real - imaginary).max(0))


def pairs(
    fingerprints: Sequence[str], others: Sequence[str] | None = None
) -> tuple[Integer[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
    """Places of slides that are alike, and how much.

    Args:
      fingerprints: of some slides.
      others: of those that they are compared with; None: among themselves, each pair once.
    """
    if not fingerprints or (others is not None and not others):
        return np.zeros((0, 2), np.int64), np.zeros(0)
    first = vectors(fingerprints)
    second = first if others is None else vectors(others)
    places, values = [], []
    for place, one in enumerate(first):
        start = place + 1 if others is None else 0
        likeness = compare(one, second[start:])
        alike = np.flatnonzero(likeness >= ALIKE)
        places += [(place, start + int(other)) for other in alike]
        values += likeness[alike].tolist()
    return np.array(places, np.int64).reshape(-1, 2), np.array(values)
