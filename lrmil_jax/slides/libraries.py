"""Slides as openslide, tiffslide and fastslide read them: each a `readers.Reader`."""

import importlib.metadata
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tifffile import COMPRESSION

from lrmil_jax.errors import SlideError
from lrmil_jax.slides import dicom
from lrmil_jax.slides.levels import StoredLevel, verify
from lrmil_jax.slides.ome import number
from lrmil_jax.slides.tiff_pixels import over_white

_CLEAR = ("finest", "whole number")


class OpenSlideReader:
    """Any format of the openslide library."""

    def __init__(self, path: Path):
        import openslide

        self._path = path
        self._open: Callable = openslide.OpenSlide
        self._slide = openslide.OpenSlide(path)
        self.name = f"openslide-python {openslide.__version__} ({openslide.__library_version__})"
        properties = self._slide.properties
        x, y = (number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
        self.mpp = None if x is None or y is None else (x, y)
        self.mpp_problem, self.notes = "", ()
        self.objective = number(properties.get("openslide.objective-power"))
        box = [properties.get(f"openslide.bounds-{side}") for side in ("x", "y", "width", "height")]
        self.bounds = None if None in box else tuple(int(side) for side in box)
        self.levels = self._levels({})
        clear = [level for level in verify(self.levels)[0] if level.evidence in _CLEAR]
        # Only where sizes do not tell it all: it takes a look at every file in the folder.
        if len(clear) < len(self.levels) and properties.get("openslide.vendor") == "dicom":
            self.levels = self._levels(dicom.spacings(path))

    def _levels(self, spacings: dict[tuple[int, int], float]) -> tuple[StoredLevel, ...]:
        return tuple(self._level(index, spacings) for index in range(self._slide.level_count))

    def _level(self, index: int, spacings: dict[tuple[int, int], float]) -> StoredLevel:
        finest, size = self._slide.level_dimensions[0], self._slide.level_dimensions[index]
        tile = [
            self._slide.properties.get(f"openslide.level[{index}].tile-{side}")
            for side in ("width", "height")
        ]
        scale = self._slide.level_downsamples[index]
        # Where a format states no scale, openslide gives the mean ratio of the sizes.
        if math.isclose(scale, sum(n / m for n, m in zip(finest, size, strict=True)) / 2):
            scale = None
        if size in spacings and finest in spacings:
            scale = spacings[size] / spacings[finest]
        sides = None if None in tile else (int(tile[0]), int(tile[1]))
        return StoredLevel(size, sides, scale if index else None)

    def read_region(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """See `readers.Reader`; openslide latches an error, so its handle is then opened anew."""
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
        self.levels = tuple(StoredLevel(tuple(size)) for size in self._slide.level_dimensions)
        self.bounds, self.mpp_problem, self.notes = None, "", ()
        x, y = (number(v) for v in self._slide.mpp)
        self.mpp = (x, y) if x and y else None  # fastslide says 0 where the file says nothing
        self.objective = number(self._slide.properties.get("objective_magnification")) or None

    def read_region(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """See `readers.Reader`."""
        image = self._slide.read_region((x, y), level, (width, height)).to_interleaved()
        pixels = np.asarray(image.numpy())
        if pixels.dtype != np.uint8 or pixels.shape[:2] != (height, width):
            raise ValueError(f"fastslide gave {pixels.dtype} {pixels.shape}")
        rgb = over_white(pixels) if pixels.shape[2] == 4 else pixels[..., :3]
        return np.array(rgb)  # a copy: the view dies with fastslide's image

    def close(self) -> None:
        """Release the file."""
        self._slide.close()


class TiffSlideReader:
    """TIFF slides as tiffslide reads them, for who compares with its other users.

    Raises:
      SlideError: the file holds tiles of which tiffslide does not give the true pixels.
    """

    def __init__(self, path: Path):
        import tiffslide

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that it reads in part, which are not asked
            self._slide = tiffslide.TiffSlide(path)
        self.name = f"tiffslide {importlib.metadata.version('tiffslide')}"
        self._refuse_odd_tiles(path)
        properties = self._slide.properties
        x, y = (number(properties.get(f"tiffslide.mpp-{axis}")) for axis in "xy")
        self.mpp = None if x is None or y is None else (x, y)
        self.objective = number(properties.get("tiffslide.objective-power"))
        self.levels = tuple(StoredLevel(tuple(size)) for size in self._slide.level_dimensions)
        self.bounds, self.mpp_problem, self.notes = None, "", ()

    def _refuse_odd_tiles(self, path: Path) -> None:
        """Sparse tiles come black from it, and Aperio's YCbCr JPEG 2000 without conversion."""
        tiff = self._slide.ts_tifffile
        for page in (level.keyframe for series in tiff.series for level in series.levels):
            if page.compression == COMPRESSION.APERIO_JP2000_YCBC or 0 in page.databytecounts:
                self._slide.close()
                raise SlideError(
                    f"{path}: holds tiles of which tiffslide does not give the true pixels; set "
                    "prepare.reader to auto or tifffile."
                )

    def read_region(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """See `readers.Reader`; tiffslide asks for places in level-0 pixels."""
        scale = self._slide.level_downsamples[level]
        place = (math.ceil(x * scale), math.ceil(y * scale))
        pixels = self._slide.read_region(place, level, (width, height), as_array=True)
        if pixels.dtype != np.uint8 or pixels.shape[:2] != (height, width):
            raise ValueError(f"tiffslide gave {pixels.dtype} {pixels.shape}")
        rgb = over_white(pixels) if pixels.shape[2] == 4 else pixels[..., :3]
        return np.ascontiguousarray(rgb)

    def close(self) -> None:
        """Release the file."""
        self._slide.close()
