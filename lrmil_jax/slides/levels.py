"""Pyramid levels: how many level-0 pixels one of theirs covers, and how we know.

The ratio of sizes alone is not it: sizes are rounded, and some scanners pad every level to whole
tiles (1,250 columns become 1,280), so that 5,000 / 1,280 = 3.9 where the truth is 4, which shifts
regions far from the origin by hundreds of pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Relative difference at which two statements of a scale are the same: spacings are rounded.
_SAME = 0.01


@dataclass(frozen=True)
class StoredLevel:
    """A level as a reader offers it.

    Attributes:
      size: (width, height) in pixels, padding included.
      tile: (width, height) of its tiles; None where it has none, or the reader does not tell.
      scale: level-0 pixels per pixel as the file states it; None where it states nothing.
      in_strips: stored in strips as wide as the level.
    """

    size: tuple[int, int]
    tile: tuple[int, int] | None = None
    scale: float | None = None
    in_strips: bool = False


@dataclass(frozen=True)
class Level:
    """A level whose scale is verified.

    Attributes:
      index: the reader's number of it.
      dimensions: (width, height) in pixels, without padding.
      downsample: level-0 pixels per pixel.
      in_strips: stored in strips as wide as the level.
      evidence: "finest" (level 0), "whole number" (which explains both sizes), "padded" (a whole
        number, once padding to whole tiles is taken off), "stated" (by the file, and no size
        speaks against it), "progression" (the step of the finer levels, and sizes padded to whole
        tiles) or "ratio" (no whole number, but width and height agree to the pixel).
    """

    index: int
    dimensions: tuple[int, int]
    downsample: float
    evidence: str
    in_strips: bool = False


def verify(stored: Sequence[StoredLevel]) -> tuple[tuple[Level, ...], tuple[str, ...]]:
    """The levels that can be used, finest first, and a sentence for each that cannot.

    Args:
      stored: the reader's levels, the finest first.
    """
    finest = stored[0].size
    levels, notes = [Level(0, finest, 1.0, "finest", stored[0].in_strips)], []
    for index, level in enumerate(stored[1:], start=1):
        expected = levels[-1].downsample ** 2 / levels[-2].downsample if len(levels) > 1 else None
        scale, evidence = _scale(finest, level, expected)
        if scale is None:
            width, height = level.size
            notes.append(
                f"the level of {width} x {height} px is left out: its scale cannot be told from "
                f"the slide's {finest[0]} x {finest[1]} px ({finest[0] / width:.3g} across, "
                f"{finest[1] / height:.3g} down)"
            )
            continue
        size = tuple(min(m, math.ceil(n / scale)) for n, m in zip(finest, level.size, strict=True))
        levels.append(Level(index, size, scale, evidence, level.in_strips))
    return tuple(sorted(levels, key=lambda level: level.downsample)), tuple(notes)


def _scale(
    finest: tuple[int, int], level: StoredLevel, expected: float | None
) -> tuple[float | None, str]:
    """A level's scale and its evidence; None where there is none."""
    sizes = tuple(zip(finest, level.size, strict=True))
    n, m = max(sizes)  # the longer side tells more
    exact = _whole_numbers(*_rounded(sizes))
    powers = [k for k in exact if math.log2(k).is_integer()]
    near = min(exact, key=lambda k: abs(k - n / m), default=None)
    in_tiles = level.tile is not None and all(
        m % side == 0 for m, side in zip(level.size, level.tile, strict=True)
    )
    if exact and (powers or not in_tiles):
        return (powers[0] if len(powers) == 1 else near), "whole number"
    low, high = _padded(sizes, level.tile)
    candidates = _whole_numbers(low, high)
    if len(candidates) == 1:
        return candidates[0], "padded"
    stated = level.scale
    if stated is not None and low / (1 + _SAME) <= stated <= high * (1 + _SAME):
        near = [k for k in candidates if abs(stated / k - 1) < _SAME]
        return (near[0] if len(near) == 1 else stated), "stated"
    if candidates:
        return (expected, "progression") if expected in candidates else (None, "")
    low, high = _rounded(sizes)
    return (n / m, "ratio") if low <= high else (None, "")


def _whole_numbers(low: float, high: float) -> list[float]:
    return [float(k) for k in range(max(1, math.ceil(low)), math.floor(high) + 1)]


def _rounded(sizes: tuple[tuple[int, int], ...]) -> tuple[float, float]:
    """The lowest and highest scale that explains sizes which are rounded up or down."""
    low = max(n / (m + 1) for n, m in sizes)
    high = min(n / max(m - 1, 0.5) for n, m in sizes)
    return low, high


def _padded(
    sizes: tuple[tuple[int, int], ...], tile: tuple[int, int] | None
) -> tuple[float, float]:
    """The lowest and highest scale that sizes allow which may be padded to whole tiles.

    A side that is no multiple of its tile is not padded, and allows for rounding only.
    """
    low, high = 0.0, math.inf
    for (n, m), side in zip(sizes, tile or (0, 0), strict=True):
        low = max(low, n / (m + 1))
        if side > 0 and m % side == 0:
            high = min(high, n / max(m - side, 1))  # the last tile holds a pixel at least
        else:
            high = min(high, n / max(m - 1, 1))
    return low, high
