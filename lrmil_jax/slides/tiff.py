"""TIFF slides: Aperio SVS, Philips, OME and QPTIFF, pyramidal and plain TIFF, through tifffile."""

import importlib.metadata
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tifffile import PHOTOMETRIC, TiffFile, TiffPage

from lrmil_jax.errors import SlideError
from lrmil_jax.slides import formats, ome, tiff_pages, tiff_pixels, tiff_scale, tiff_structure
from lrmil_jax.slides.levels import StoredLevel
from lrmil_jax.slides.tiff_pixels import PixelsError
from lrmil_jax.slides.tiff_tiles import Cache, TiledLevel

_ORIENTATION, _UPRIGHT = 274, 1
_WIDE_PX = 16384  # strips of slides wider than this are told of: reading needs a band of them


class TiffReader:
    """One TIFF slide; see `readers.Reader`."""

    def __init__(self, path: Path):
        self.name = f"tifffile {importlib.metadata.version('tifffile')}"
        self.bounds = None
        damaged = tiff_structure.check(path)
        self._tiff = TiffFile(path, is_ndpi=False)  # NDPI is openslide's, whatever its name
        try:
            self._open(path, damaged)
        except PixelsError as error:
            self._tiff.close()
            raise SlideError(f"{path}: holds {error}.") from error
        except BaseException:
            self._tiff.close()
            raise

    def _open(self, path: Path, damaged: dict[int, str]) -> None:
        first = self._tiff.pages.first
        kind = formats.of_page(first)
        described = ome.read(self._tiff.ome_metadata)
        images = tiff_pages.choose(self._tiff, kind, described, damaged)
        _check_upright(images.levels[0][0])
        pages, left_out = self._open_levels(images.levels)
        scale = tiff_scale.read(kind, first, pages, images.ome)
        self.mpp, self.objective, self.mpp_problem = scale.mpp, scale.objective, scale.problem
        self._cache = Cache()
        self._check_whole(path)
        self.levels = tuple(
            StoredLevel(
                level.size,
                tile=None if level.in_strips else level.chunk,
                scale=stated,
                in_strips=level.in_strips,
            )
            for level, stated in zip(
                self._levels, scale.levels or [None] * len(self._levels), strict=True
            )
        )
        wide = [level for level in self._levels if level.in_strips and level.size[0] > _WIDE_PX]
        strips = ("stored in strips as wide as the slide; tiles are read faster",) if wide else ()
        self.notes = (*images.notes, *left_out, *strips)

    def read_region(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """See `readers.Reader`."""
        return self._levels[level].read(self._cache, x, y, width, height)

    def close(self) -> None:
        """Release the file."""
        self._cache.clear()
        self._tiff.close()

    def _open_levels(self, levels: tuple) -> tuple[list[TiffPage], list[str]]:
        """Opens the levels that can be read; their pages, and a sentence for each other.

        Raises:
          PixelsError: the finest level cannot be read.
        """
        self._levels, pages, notes = [], [], []
        for group in levels:
            page, planes = group[0], len(group)
            photometric = PHOTOMETRIC.RGB if planes == 3 else None
            try:
                convert = tiff_pixels.conversion(page, page.samplesperpixel * planes, photometric)
                number = len(self._levels)
                level = TiledLevel(self._tiff.filehandle, group, convert, number=number)
            except PixelsError as error:
                if not pages:
                    raise
                size = f"{page.imagewidth} x {page.imagelength} px"
                notes.append(f"the level of {size} is left out: it holds {error}")
                continue
            # A level of one tile cannot tell whether that is whole.
            level.must_end |= number > 0 and self._levels[0].must_end
            self._levels.append(level)
            pages.append(page)
        return pages, notes

    def _check_whole(self, path: Path) -> None:
        """A file cut short while copied still opens: look where its tiles should end."""
        size, end = path.stat().st_size, max(level.end() for level in self._levels)
        if end > size:
            raise SlideError(
                f"{path}: truncated, {size:,} bytes where its tiles need {end:,}; copy it again."
            )


def _check_upright(page: TiffPage) -> None:
    turned = page.tags.valueof(_ORIENTATION, _UPRIGHT)
    if turned not in (0, _UPRIGHT):
        raise PixelsError(
            f"an image that is turned or mirrored (orientation tag {int(turned)}), which viewers "
            "follow or ignore; store it upright, e.g. with: vips autorot FILE NEW.tif"
        )
