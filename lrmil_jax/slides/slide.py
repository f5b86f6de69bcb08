"""An open slide: um/px, pyramid levels, and regions resampled to any resolution."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from lrmil_jax.errors import SlideError, TileError
from lrmil_jax.slides.readers import Reader, open_reader
from lrmil_jax.slides.resolution import resolve_mpp

# A level this much coarser than wanted still counts as "at" the wanted resolution: a 20x slide of
# 0.5015 um/px must give its 2.0 um/px patches from the 4x level (2.006) and not from level 0.
_LEVEL_TOLERANCE = 1.05

_BLOCK_PX = 2048  # side of the raw blocks from which a thumbnail is made: 12 MiB each
_SMALLEST_BLOCK_PX = 256  # an undecodable block is given up at this raw side
_MAX_RAW_PX = 12288 * 12288  # one read's raw pixels: 450 MB; 8 x 256 px of 0.5 from 0.1 um/px fit


@dataclass(frozen=True)
class Thumbnail:
    """A slide at low power.

    Attributes:
      image: [h, w, 3] pixels; white where the slide could not be decoded.
      downsample: level-0 pixels per thumbnail pixel, the same in x and y.
      unreadable: (x, y, side) in level-0 pixels of blocks that could not be decoded.
    """

    image: UInt8[np.ndarray, "h w 3"]
    downsample: float
    unreadable: list[tuple[int, int, int]]


def open_slide(
    path: str | Path, mpp: float | int | None = None, *, reader: str = "auto"
) -> "Slide":
    """Open a slide file and settle its um/px.

    Args:
      path: the slide.
      mpp: um/px of the finest level; overrides what the file says.
      reader: "auto", "tiffslide", "openslide" or "fastslide".

    Raises:
      SlideError: missing, empty, truncated or no slide; um/px missing, outside 0.1 to 10 or
        against the objective power.
      ConfigError: the reader is unknown or not installed.
    """
    path = Path(path)
    if not path.exists():
        raise SlideError(f"{path}: no such slide file; check the slide folder and the CSV.")
    if not path.is_file():
        raise SlideError(f"{path}: a folder and not a slide file.")
    try:
        if path.stat().st_size == 0:
            raise SlideError(f"{path}: the slide file is empty; copy it again.")
        with path.open("rb"):
            pass
    except OSError as error:
        raise SlideError(f"{path}: cannot be read ({error.strerror}).") from error
    slide_reader = open_reader(path, reader)
    try:
        value, source = resolve_mpp(
            path, file_mpp=slide_reader.mpp, objective=slide_reader.objective, override=mpp
        )
        return Slide(path, slide_reader, mpp=value, mpp_source=source)
    except BaseException:
        slide_reader.close()
        raise


class Slide:
    """An open slide; made by `open_slide`. Not safe to share between threads or over a fork.

    Attributes:
      path: the file.
      mpp: um/px of level 0.
      mpp_source: "file" or "override".
      objective: objective power, None if the file does not say.
      dimensions: (width, height) of level 0 in pixels.
      level_downsamples: level-0 pixels per pixel of each level, finest first.
      reader: name and version of the library that reads the file.
      read_log: level -> raw pixels read from it so far.
    """

    def __init__(self, path: Path, reader: Reader, *, mpp: float, mpp_source: str):
        self.path = path
        self.mpp = mpp
        self.mpp_source = mpp_source
        self.objective = reader.objective
        self.reader = reader.name
        self.dimensions = reader.level_dimensions[0]
        if any(min(level) < 1 for level in reader.level_dimensions):
            raise SlideError(f"{path}: the file has an empty pyramid level; copy or scan it again.")
        self.level_downsamples = tuple(
            _downsample(self.dimensions, d) for d in reader.level_dimensions
        )
        self.read_log: dict[int, int] = {}
        self._reader = reader
        # The last raw region: the LR tile of a cell is cut from the pixels of its HR block when
        # both come from one level, and they are then decoded once.
        self._last: tuple[int, tuple[int, int, int, int], np.ndarray] | None = None

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        width, height = self.dimensions
        return f"Slide({self.path.name!r}, {width} x {height} px, {self.mpp:g} um/px)"

    def close(self) -> None:
        """Release the file; a second call does nothing."""
        self._last = None
        self._reader.close()

    def source_level(self, size: int, level0_side: int) -> int:
        """The level from which `read` takes a region of these sizes.

        The coarsest level that is still finer than the target, or up to 5 % coarser; level 0 if
        the target is finer than the slide.
        """
        limit = level0_side / size * _LEVEL_TOLERANCE
        finer = [i for i, downsample in enumerate(self.level_downsamples) if downsample <= limit]
        return max(finer, key=lambda i: self.level_downsamples[i], default=0)

    def read(
        self, xy: tuple | list | Int[np.ndarray, "2"], size: int, level0_side: int
    ) -> UInt8[np.ndarray, "{size} {size} 3"]:
        """A square region, resampled to `size` pixels a side; white outside the slide.

        The resampling is bicubic with antialiasing over the exact (fractional) box, so that
        neighbouring regions meet at any downsample. The same call gives the same pixels.

        Args:
          xy: top left corner in level-0 pixels; may lie outside the slide.
          size: side of the result in pixels.
          level0_side: side of the region in level-0 pixels.

        Raises:
          TileError: part of the region cannot be decoded; the slide stays usable.
        """
        x, y = int(xy[0]), int(xy[1])
        level = self.source_level(size, level0_side)
        box = (x, y, x + level0_side, y + level0_side)
        try:
            return self._resample(level, box, (size, size), Image.Resampling.BICUBIC)
        except _UndecodableError as error:
            raise TileError(
                f"{self.path}: the region at level-0 xy ({x}, {y}), side {level0_side} px, cannot "
                f"be decoded ({error})."
            ) from error

    def thumbnail(self, mpp: float | int) -> Thumbnail:
        """The whole slide at about `mpp` um/px, in bounded memory.

        Level-0 pixels per thumbnail pixel are rounded to a whole number. Blocks that cannot be
        decoded are retried in quarters, and what remains is left white and listed.
        """
        downsample = max(1, round(mpp / self.mpp))
        level = self.source_level(1, downsample)
        width, height = (math.ceil(n / downsample) for n in self.dimensions)
        image = np.full((height, width, 3), 255, np.uint8)
        unreadable: list[tuple[int, int, int]] = []
        block = max(1, int(_BLOCK_PX * self.level_downsamples[level] / downsample))
        for top in range(0, height, block):
            for left in range(0, width, block):
                box = (left, top, min(left + block, width), min(top + block, height))
                self._fill(image, unreadable, level, downsample, box)
        if unreadable:
            logging.warning("%s: %d blocks cannot be decoded", self.path, len(unreadable))
        return Thumbnail(image, float(downsample), unreadable)

    def _fill(
        self,
        image: np.ndarray,
        unreadable: list[tuple[int, int, int]],
        level: int,
        downsample: int,
        block: tuple[int, int, int, int],
    ) -> None:
        """Read a block (left, top, right, bottom in thumbnail pixels) into `image`, or quarters."""
        left, top, right, bottom = block
        width, height = right - left, bottom - top
        if width <= 0 or height <= 0:
            return
        box = (left * downsample, top * downsample, right * downsample, bottom * downsample)
        try:
            # Area averaging: exact for whole-number factors, and the quickest filter.
            pixels = self._resample(level, box, (width, height), Image.Resampling.BOX)
        except _UndecodableError:
            side = max(width, height)
            if side == 1 or side * downsample / self.level_downsamples[level] <= _SMALLEST_BLOCK_PX:
                unreadable.append((box[0], box[1], side * downsample))
                return
            x, y = left + (side + 1) // 2, top + (side + 1) // 2
            for quarter in (
                (left, top, min(x, right), min(y, bottom)),
                (x, top, right, min(y, bottom)),
                (left, y, min(x, right), bottom),
                (x, y, right, bottom),
            ):
                self._fill(image, unreadable, level, downsample, quarter)
        else:
            image[top:bottom, left:right] = pixels

    def _resample(
        self,
        level: int,
        box: tuple[int, int, int, int],
        size: tuple[int, int],
        resampling: Image.Resampling,
    ) -> np.ndarray:
        """The level-0 box read from `level` and resampled to `size` (width, height)."""
        scale = self.level_downsamples[level]
        x0, y0, x1, y1 = (n / scale for n in box)
        left, top = math.floor(x0 + 1e-6), math.floor(y0 + 1e-6)
        right, bottom = math.ceil(x1 - 1e-6), math.ceil(y1 - 1e-6)
        raw = self._raw(level, (left, top, right, bottom))
        exact = max(abs(x0 - left), abs(y0 - top), abs(x1 - right), abs(y1 - bottom)) < 1e-6
        if exact and (raw.shape[1], raw.shape[0]) == size:
            return raw.copy()
        inner = (
            max(x0 - left, 0.0),
            max(y0 - top, 0.0),
            min(x1 - left, raw.shape[1]),
            min(y1 - top, raw.shape[0]),
        )
        return np.array(Image.fromarray(raw).resize(size, resampling, box=inner))

    def _raw(self, level: int, box: tuple[int, int, int, int]) -> np.ndarray:
        """Pixels of `level` in the box (left, top, right, bottom), white outside."""
        left, top, right, bottom = box
        if self._last is not None and self._last[0] == level:
            l0, t0, r0, b0 = self._last[1]
            if l0 <= left and t0 <= top and right <= r0 and bottom <= b0:
                return np.ascontiguousarray(
                    self._last[2][top - t0 : bottom - t0, left - l0 : right - l0]
                )
        if (right - left) * (bottom - top) > _MAX_RAW_PX:
            raise ValueError(
                f"a region of {right - left} x {bottom - top} raw pixels is too large; use "
                "thumbnail for overviews."
            )
        width, height = self._reader.level_dimensions[level]
        x0, x1 = min(max(left, 0), width), min(max(right, 0), width)
        y0, y1 = min(max(top, 0), height), min(max(bottom, 0), height)
        if (x0, y0, x1, y1) == box:
            raw = self._read_level(level, x0, y0, x1 - x0, y1 - y0)
        else:
            raw = np.full((bottom - top, right - left, 3), 255, np.uint8)
            if x1 > x0 and y1 > y0:
                inside = self._read_level(level, x0, y0, x1 - x0, y1 - y0)
                raw[y0 - top : y1 - top, x0 - left : x1 - left] = inside
        self._last = (level, box, raw)
        return raw

    def _read_level(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        try:
            pixels = self._reader.read_region(level, x, y, width, height)
        except Exception as error:  # codecs raise anything at all on damaged bytes
            raise _UndecodableError(" ".join(str(error).split()) or repr(error)) from error
        self.read_log[level] = self.read_log.get(level, 0) + width * height
        return pixels


class _UndecodableError(Exception):
    """Raw pixels cannot be decoded."""


def _downsample(finest: tuple[int, int], level: tuple[int, int]) -> float:
    """Level-0 pixels per pixel of a level.

    A level's size is rounded, so the ratio of sizes is a little off (2223 / 555 = 4.005) and would
    shift regions far from the origin; a whole number that explains both sizes is the truth.
    """
    ratios = [n / m for n, m in zip(finest, level, strict=True)]
    ratio = sum(ratios) / 2
    whole = round(ratio)
    if whole >= 1 and all(abs(n - m * whole) < whole for n, m in zip(finest, level, strict=True)):
        return float(whole)
    return ratio
