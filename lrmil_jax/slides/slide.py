"""An open slide: um/px, pyramid levels, and regions resampled to any resolution."""

import contextlib
import logging
import math
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from lrmil_jax import storage
from lrmil_jax.errors import SlideError, TileError, one_line
from lrmil_jax.slides import thumbnail
from lrmil_jax.slides.levels import verify
from lrmil_jax.slides.readers import Reader, open_reader
from lrmil_jax.slides.resolution import resolve_mpp
from lrmil_jax.slides.thumbnail import Thumbnail, UndecodableError

# A level this much coarser than wanted still counts as "at" the wanted resolution: a 20x slide of
# 0.5015 um/px must give its 2.0 um/px patches from the 4x level (2.006) and not from level 0.
_LEVEL_TOLERANCE = 1.05

_TOLD: set[tuple[Path, str]] = set()
_MAX_RAW_PX = 12288 * 12288  # one read's raw pixels: 450 MB; 8 x 256 px of 0.5 from 0.1 um/px fit


def open_slide(
    path: str | Path,
    mpp: float | int | None = None,
    *,
    reader: str = "auto",
    trust_mpp: bool = False,
    tell: bool = True,
) -> "Slide":
    """Open a slide file and settle its um/px.

    Args:
      path: the slide.
      mpp: um/px of the finest level; overrides what the file says.
      reader: "auto" (by the file's content), "tifffile", "openslide" or "fastslide".
      trust_mpp: `mpp` wins even where file and objective agree against it.
      tell: log what was chosen or left out (`Slide.notes`), once a process.

    Raises:
      SlideError: missing, empty, truncated or no slide; um/px missing, outside 0.1 to 10 or
        against the objective power; `mpp` far from what file and objective agree on; pixels that
        are no brightfield RGB; or no reader of the format is installed.
      ConfigError: the reader is unknown or not installed.
    """
    path = Path(path)
    with contextlib.ExitStack() as opened:
        staged = opened.enter_context(storage.hold(path))
        slide = _open(path, mpp, reader=reader, trust_mpp=trust_mpp)
        slide._staged = staged
        opened.pop_all()
    if tell:
        _tell(path, slide.notes)
    return slide


def _open(path: Path, mpp: float | int | None, *, reader: str, trust_mpp: bool) -> "Slide":
    if not path.exists():
        raise SlideError(f"{path}: no such slide file; check the slide folder and the CSV.")
    if not path.is_file():
        raise SlideError(f"{path}: a folder and not a slide file; of DICOM name one of its files.")
    try:
        if path.stat().st_size == 0:
            raise SlideError(f"{path}: the slide file is empty; copy it again.")
        with path.open("rb"):
            pass
    except OSError as error:
        raise SlideError(f"{path}: cannot be read ({error.strerror}).") from error
    slide_reader = open_reader(path, reader)
    try:
        value, source, notes = resolve_mpp(
            path,
            file_mpp=slide_reader.mpp,
            objective=slide_reader.objective,
            override=mpp,
            trust=trust_mpp,
            problem=slide_reader.mpp_problem,
        )
        return Slide(path, slide_reader, mpp=value, mpp_source=source, notes=notes)
    except BaseException:
        slide_reader.close()
        raise


def _tell(path: Path, notes: tuple[str, ...]) -> None:
    for note in notes:
        if (path, note) not in _TOLD:
            _TOLD.add((path, note))
            logging.warning("%s: %s", path, note)


class Slide:
    """An open slide; made by `open_slide`. Not safe to share between threads or over a fork.

    Attributes:
      path: the file.
      mpp: um/px of level 0.
      mpp_source: "file" or "override".
      objective: objective power, None if the file does not say.
      dimensions: (width, height) of level 0 in pixels.
      levels: those that can be used, finest first, each with how its scale was verified.
      level_downsamples: level-0 pixels per pixel of each level.
      bounds: (x, y, width, height) of the scanned area in level-0 pixels of the file, which is
        where QuPath and other viewers put their origin; None where it is the whole slide.
      notes: sentences for the user on what was chosen and left out.
      reader: name and version of the library that reads the file.
      read_log: number of the level -> raw pixels read from it so far.
    """

    def __init__(
        self,
        path: Path,
        reader: Reader,
        *,
        mpp: float,
        mpp_source: str,
        notes: tuple[str, ...] = (),
    ):
        self.path = path
        self.mpp = mpp
        self.mpp_source = mpp_source
        self.objective = reader.objective
        self.reader = reader.name
        self.dimensions = reader.levels[0].size
        if any(min(level.size) < 1 for level in reader.levels):
            raise SlideError(f"{path}: the file has an empty pyramid level; copy or scan it again.")
        self.levels, left_out = verify(reader.levels)
        self.level_downsamples = tuple(level.downsample for level in self.levels)
        self.bounds = reader.bounds
        self.notes = (*reader.notes, *left_out, *notes)
        self.read_log: dict[int, int] = {}
        self._reader = reader
        self._staged = contextlib.ExitStack()  # keeps the copy of a slide in object storage
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
        self._staged.close()

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
            return self.resample(level, box, (size, size), Image.Resampling.BICUBIC)
        except UndecodableError as error:
            raise TileError(
                f"{self.path}: the region at level-0 xy ({x}, {y}), side {level0_side} px, cannot "
                f"be decoded ({error})."
            ) from error

    def thumbnail(self, mpp: float | int) -> Thumbnail:
        """The whole slide at about `mpp` um/px; see `thumbnail.read`."""
        return thumbnail.read(self, mpp)

    def resample(
        self,
        level: int,
        box: tuple[int, int, int, int],
        size: tuple[int, int],
        resampling: Image.Resampling,
    ) -> np.ndarray:
        """The level-0 box (left, top, right, bottom) of `level` at `size` (width, height) pixels.

        Raises:
          UndecodableError: pixels of it cannot be decoded.
        """
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
        width, height = self.levels[level].dimensions
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
            pixels = self._reader.read_region(self.levels[level].index, x, y, width, height)
        except Exception as error:  # codecs raise anything at all on damaged bytes
            raise UndecodableError(one_line(error)) from error
        self.read_log[level] = self.read_log.get(level, 0) + width * height
        return pixels
