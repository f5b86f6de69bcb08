"""Slide formats behind one small protocol, and the choice among them.

tiffslide is the default; openslide and fastslide are optional extras. A reader serves in-bounds
regions in pixels of one level; everything else (white outside, resampling, um/px rules) is in
`slide.py`, so that all formats behave alike.
"""

import importlib.util
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from lrmil_jax.errors import ConfigError, SlideError
from lrmil_jax.slides.tiff import TiffReader, over_white

READERS = ("tiffslide", "openslide", "fastslide")

# tiffslide reads these in part only (stitching, metadata), so a fuller reader goes first.
_PARTIAL_IN_TIFFSLIDE = {".ndpi", ".bif", ".scn"}


@runtime_checkable
class Reader(Protocol):
    """One open file. Regions asked for lie inside the level."""

    name: str
    mpp: tuple[float, float] | None
    objective: float | None
    level_dimensions: tuple[tuple[int, int], ...]

    def read_region(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels of `level` from (x, y) on; any exception means that they cannot be decoded."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


def open_reader(path: Path, reader: str) -> Reader:
    """Open `path` with the named reader, or with the first that can ("auto").

    Raises:
      ConfigError: the reader is unknown, or its extra is not installed.
      SlideError: no reader opens the file.
    """
    if reader != "auto":
        if reader not in READERS:
            raise ConfigError(f"reader {reader!r} is unknown; use auto, {', '.join(READERS)}.")
        if not _installed(reader):
            raise ConfigError(
                f"reader {reader!r} is not installed; run pip install 'lrmil_jax[{reader}]'."
            )
    names = [reader] if reader != "auto" else _order(path.suffix.lower())
    reasons = []
    for name in names:
        try:
            with warnings.catch_warnings():
                # tiffslide warns about formats that it knows in part; what matters is checked below
                warnings.simplefilter("ignore")
                return _OPENERS[name](path)
        except SlideError:
            raise  # the reader knows this format, and knows what is wrong with the file
        except Exception as error:  # readers raise anything at all on a file that is not theirs
            logging.debug("%s does not open %s", name, path, exc_info=True)
            reasons.append(f"{name}: {_one_line(error)}")
    raise SlideError(f"{path}: not a slide, or cut short ({'; '.join(reasons)}).")


def _order(suffix: str) -> list[str]:
    names = [name for name in READERS if _installed(name)]
    if suffix in _PARTIAL_IN_TIFFSLIDE:
        names = [name for name in names if name != "tiffslide"] + ["tiffslide"]
    return names


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."


class OpenSlideReader:
    """Any format of the openslide library."""

    def __init__(self, path: Path):
        import openslide

        self._path = path
        self._open: Callable = openslide.OpenSlide
        self._slide = openslide.OpenSlide(path)
        self.name = f"openslide-python {openslide.__version__} ({openslide.__library_version__})"
        self.level_dimensions = self._slide.level_dimensions
        x, y = (_number(self._slide.properties.get(f"openslide.mpp-{a}")) for a in "xy")
        self.mpp = None if x is None or y is None else (x, y)
        self.objective = _number(self._slide.properties.get("openslide.objective-power"))

    def read_region(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """See `Reader`; the handle is opened anew after an error, which openslide latches."""
        scale = self._slide.level_downsamples[level]
        location = (round(x * scale), round(y * scale))
        try:
            rgba = np.asarray(self._slide.read_region(location, level, (width, height)))
        except Exception:
            self._slide.close()
            self._slide = self._open(self._path)
            raise
        return np.ascontiguousarray(over_white(rgba))

    def close(self) -> None:
        """Release the file."""
        self._slide.close()


class FastSlideReader:
    """Any format of the fastslide library.

    fastslide 0.8.1 never returns from a region with a damaged tile, so it comes last in "auto".
    """

    def __init__(self, path: Path):
        import fastslide

        self._slide = fastslide.FastSlide.from_file_path(str(path))
        self.name = f"fastslide {fastslide.__version__}"
        self.level_dimensions = tuple(tuple(d) for d in self._slide.level_dimensions)
        x, y = (_number(v) for v in self._slide.mpp)
        self.mpp = (x, y) if x and y else None  # fastslide says 0 where the file says nothing
        self.objective = _number(self._slide.properties.get("objective_magnification")) or None

    def read_region(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """See `Reader`."""
        image = self._slide.read_region((x, y), level, (width, height)).to_interleaved()
        pixels = np.asarray(image.numpy())
        if pixels.dtype != np.uint8 or pixels.shape[:2] != (height, width):
            raise ValueError(f"fastslide gave {pixels.dtype} {pixels.shape}")
        rgb = over_white(pixels) if pixels.shape[2] == 4 else pixels[..., :3]
        return np.array(rgb)  # a copy: the view dies with fastslide's image

    def close(self) -> None:
        """Release the file."""
        self._slide.close()


def _number(value: object) -> float | None:
    """A property as a float; None if it is absent or no number."""
    try:
        number = float(str(value).replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


_OPENERS: dict[str, Callable[[Path], Reader]] = {
    "tiffslide": TiffReader,
    "openslide": OpenSlideReader,
    "fastslide": FastSlideReader,
}
