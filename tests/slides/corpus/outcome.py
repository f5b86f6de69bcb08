"""What must come of a slide file, and whether it came.

Pixels are compared over the whole slide and beyond its edges, at both levels and between them.
"""

import contextlib
import dataclasses
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrmil_jax.errors import SlideError, TileError
from lrmil_jax.slides import open_slide
from tests.slides.corpus import sources

_SECONDS = 10
_BYTES = 1 << 30
_SIDE = 256  # of the regions, in level-0 pixels
_CORNERS = [(x, y) for y in range(0, sources.HEIGHT, _SIDE) for x in range(0, sources.WIDTH, _SIDE)]


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The slide opens and gives the pixels of its source.

    Attributes:
      levels: downsamples of the levels that are there.
      mpp: um/px that the file gives; None: it gives none, and 0.5 is given for it.
      white: tiles of level 0 (row, column) that are white.
      tolerance: largest difference of a pixel.
    """

    levels: tuple[int, ...] = sources.DOWNSAMPLES
    mpp: float | None = sources.MPP
    white: tuple[tuple[int, int], ...] = ()
    tolerance: int = 0


@dataclasses.dataclass(frozen=True)
class Refused:
    """One sentence at opening, which names the cause."""

    cause: str


@dataclasses.dataclass(frozen=True)
class Damaged:
    """One sentence for regions with these tiles of level 0 (row, column) and no others."""

    tiles: tuple[tuple[int, int], ...]
    cause: str
    level: int = 1  # the downsample of the level that has the damage


@contextlib.contextmanager
def limits(seconds: int = _SECONDS, size: int = _BYTES) -> Iterator[None]:
    """Ends what hangs, and refuses memory beyond `size` more bytes than there are in use."""

    def stop(*_: object) -> None:
        raise AssertionError(f"not done after {seconds} s")

    with open("/proc/self/statm") as pages:
        used = int(pages.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + size, before[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def check(path: Path, source: str, wanted: Pixels | Refused | Damaged, *, reader: str) -> str:
    """Opens and reads a file; what came, in a few words.

    Raises:
      AssertionError: something else came than was wanted. With "auto" the pixels of another
        reader may come in place of a refusal.
    """
    with limits():
        if isinstance(wanted, Refused):
            try:
                open_slide(path, reader=reader).close()
            except SlideError as error:
                return _sentence(error, path, wanted.cause)
            assert reader == "auto", "it opens"
            wanted = Pixels()  # of another reader, which knows the format
        if isinstance(wanted, Damaged):
            return _check_damaged(path, source, wanted, reader)
        return _check_pixels(path, source, wanted, reader)


def _check_pixels(path: Path, source: str, wanted: Pixels, reader: str) -> str:
    if wanted.mpp is None:
        with pytest.raises(SlideError) as error:
            open_slide(path, reader=reader)
        _sentence(error.value, path, "um/px|MPP|mpp")
    given = None if wanted.mpp is not None else sources.MPP
    expected = {d: p.copy() for d, p in sources.levels(source).items() if d in wanted.levels}
    for row, column in wanted.white:
        _tile(expected[1], row, column)[:] = 255
    with open_slide(path, given, reader=reader) as slide:
        assert slide.mpp == pytest.approx(wanted.mpp or sources.MPP, rel=1e-4)
        assert slide.dimensions == (sources.WIDTH, sources.HEIGHT)
        assert slide.level_downsamples == wanted.levels
        for downsample in (1, 2, 4):
            for corner in _CORNERS:
                region = slide.read(corner, _SIDE // downsample, _SIDE)
                compare(region, _region(expected, corner, downsample), wanted.tolerance)
        thumbnail = slide.thumbnail(4 * slide.mpp)
    assert thumbnail.unreadable == []
    if 4 in expected:
        compare(thumbnail.image, expected[4], wanted.tolerance)
    else:
        compare(thumbnail.image, np.asarray(Image.fromarray(expected[1]).reduce(4)), 1)
    return "pixels equal"


def _region(levels: dict[int, np.ndarray], corner: tuple[int, int], downsample: int) -> np.ndarray:
    """What `Slide.read` must give, by Pillow: white beyond the edges."""
    level = max(d for d in levels if d <= downsample)
    side, (left, top) = _SIDE // level, (n // level for n in corner)
    inside = levels[level][top : top + side, left : left + side]
    raw = np.full((side, side, 3), 255, np.uint8)
    raw[: inside.shape[0], : inside.shape[1]] = inside
    if level == downsample:
        return raw
    size = (_SIDE // downsample,) * 2
    return np.asarray(Image.fromarray(raw).resize(size, Image.Resampling.BICUBIC))


def compare(pixels: np.ndarray, expected: np.ndarray, tolerance: int) -> None:
    assert pixels.shape == expected.shape
    worst = np.abs(pixels.astype(int) - expected).max()
    assert worst <= tolerance, f"pixels are up to {worst} grey values off"


def _tile(level: np.ndarray, row: int, column: int) -> np.ndarray:
    side = sources.TILE
    return level[row * side : (row + 1) * side, column * side : (column + 1) * side]


def _check_damaged(path: Path, source: str, wanted: Damaged, reader: str) -> str:
    level, side = sources.levels(source)[wanted.level], sources.TILE
    sentence = ""
    with open_slide(path, reader=reader) as slide:
        for row in range(-(-level.shape[0] // side)):
            for column in range(-(-level.shape[1] // side)):
                corner = (column * side * wanted.level, row * side * wanted.level)
                if (row, column) in wanted.tiles:
                    with pytest.raises(TileError) as error:
                        slide.read(corner, side, side * wanted.level)
                    sentence = _sentence(error.value, path, wanted.cause)
                    continue
                tile = _tile(level, row, column)
                region = slide.read(corner, side, side * wanted.level)
                compare(region[: tile.shape[0], : tile.shape[1]], tile, 0)
        if len(wanted.tiles) * side**2 >= level.shape[0] * level.shape[1]:
            with pytest.raises(SlideError, match="not one of its pixels can be decoded"):
                slide.thumbnail(wanted.level * slide.mpp)
            return sentence
        thumbnail = slide.thumbnail(wanted.level * slide.mpp)
    _check_thumbnail(thumbnail, level, wanted)
    return sentence


def _check_thumbnail(thumbnail, level: np.ndarray, wanted: Damaged) -> None:
    """Each damaged tile is listed and white; what is not listed is right."""
    listed = np.zeros(level.shape[:2], bool)
    for x, y, side in thumbnail.unreadable:
        x, y, side = (n // wanted.level for n in (x, y, side))
        listed[y : y + side, x : x + side] = True
    for row, column in wanted.tiles:
        assert _tile(listed[..., None], row, column).all(), "a damaged tile is not listed"
    compare(thumbnail.image[~listed], level[~listed], 0)
    assert (thumbnail.image[listed] == 255).all()


def _sentence(error: SlideError, path: Path, cause: str) -> str:
    text = str(error)
    assert str(path) in text, text
    assert "\n" not in text, text
    assert text.endswith("."), text
    assert len(text) < 400, text
    assert re.search(cause, text, re.IGNORECASE), f"names no {cause}: {text}"
    return text.replace(str(path), path.name)
