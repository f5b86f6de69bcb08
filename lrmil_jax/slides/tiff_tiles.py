"""Tiles and strips of one TIFF level, decoded one by one and kept while they are likely wanted.

They are decoded through tifffile's page decoder: a whole level may not fit in memory.
"""

import math
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from tifffile import COMPRESSION, PLANARCONFIG, FileHandle, TiffPage

from lrmil_jax.slides import jpeg2000_damage, jpeg_damage, tiff_ranges
from lrmil_jax.slides.tiff_pixels import Conversion, PixelsError

_CACHE_BYTES = 96 << 20  # about a row of 256 px tiles across a slide 128,000 px wide
_STRIP_CACHE_BYTES = 1 << 30
_MAX_CHUNK_BYTES = 512 << 20
_JPEG_2000 = {
    *(COMPRESSION.JPEG2000, COMPRESSION.APERIO_JP2000_YCBC, COMPRESSION.APERIO_JP2000_RGB),
}
_ROWS_READ = 64  # of an uncompressed image, which can be read from any row on


class Cache:
    """Decoded tiles of all levels of a slide, the latest within a budget of bytes."""

    def __init__(self):
        self.budget = _CACHE_BYTES
        self._tiles: OrderedDict[tuple[int, int], UInt8[np.ndarray, "h w 3"] | None] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[int, int], decode: Callable) -> UInt8[np.ndarray, "h w 3"] | None:
        """The tile of this level and number; what `decode` gives, if it is not there."""
        if key in self._tiles:
            self._tiles.move_to_end(key)
            return self._tiles[key]
        tile = decode()
        if tile is None:
            return None
        self._tiles[key] = tile
        self._bytes += tile.nbytes
        while self._bytes > self.budget and len(self._tiles) > 1:
            self._bytes -= self._tiles.popitem(last=False)[1].nbytes
        return tile

    def clear(self) -> None:
        """Forgets all."""
        self._tiles.clear()
        self._bytes = 0


class TiledLevel:
    """A level of one page, or of the three pages that are its planes of colour.

    Attributes:
      size: (width, height) in pixels; chunk: of a tile or strip, the same.
      in_strips: stored in strips as wide as the level.
      must_end: its JPEG tiles carry end markers, so that a missing one is damage.
    """

    def __init__(
        self, file: FileHandle, pages: tuple[TiffPage, ...], convert: Conversion, *, number: int
    ):
        page = pages[0]
        if not all(np.any(one.databytecounts) and np.any(one.dataoffsets) for one in pages):
            raise PixelsError("no tiles, only places where they should be")
        self.size = page.imagewidth, page.imagelength
        self.in_strips = not page.is_tiled
        self._file, self._pages, self._convert, self._number = file, pages, convert, number
        self._raw_rows = _raw_rows(page)
        self.chunk = _chunk(page, self._raw_rows)
        if min(self.chunk) < 1:
            raise PixelsError("tiles without a size: its header is damaged")
        separate = page.planarconfig == PLANARCONFIG.SEPARATE
        self._planes = page.samplesperpixel if separate else 1
        across, down = (math.ceil(n / m) for n, m in zip(self.size, self.chunk, strict=True))
        self._across, self._count = across, across * down
        size = math.prod(self.chunk) * page.samplesperpixel * len(pages)
        if size > _MAX_CHUNK_BYTES:
            raise PixelsError(
                f"{'strips' if self.in_strips else 'tiles'} of {size >> 20} MiB that cannot be "
                "read in parts; make tiles of them, e.g. with: vips tiffsave FILE NEW.tif --tile "
                "--pyramid --compression jpeg --Q 90 --bigtiff"
            )
        self._check_count()
        self._faults = [self._faults_of(one) for one in pages]
        if self._raw_rows and any(self._faults):
            raise PixelsError("strips whose places or sizes do not fit its pixels: it is damaged")
        self.must_end = self._tiles_end_properly()

    def _check_count(self) -> None:
        """Every tile has its place: a damaged size would have us read, and allocate, for hours."""
        for page in self._pages:
            there = min(len(page.dataoffsets), len(page.databytecounts))
            if not self._raw_rows and there < self._count * self._planes:
                width, height = self.size
                raise PixelsError(
                    f"an image of {width:,} x {height:,} px with {there:,} of "
                    f"{self._count * self._planes:,} tiles or strips: its header is damaged"
                )

    def _faults_of(self, page: TiffPage) -> dict[int, str]:
        """Tiles, or strips, whose place in the file cannot be right; see `tiff_ranges`."""
        number = min(len(page.dataoffsets), len(page.databytecounts))
        offsets, counts = (
            np.asarray(one[:number], np.int64) for one in (page.dataoffsets, page.databytecounts)
        )
        needed = None
        if page.compression == COMPRESSION.NONE:
            width, height = _chunk(page, 0)
            rows = np.full(math.ceil(page.imagelength / height), height)
            if page.is_tiled:
                rows = rows.repeat(self._across)
            else:
                rows[-1] = page.imagelength - (len(rows) - 1) * height
            samples = page.samplesperpixel // self._planes
            needed = width * samples * np.resize(rows, number)  # over and over, once a plane
        return tiff_ranges.faults(offsets, counts, needed=needed)

    def end(self) -> int:
        """Where in the file the last of its tiles ends."""
        ends = [0]
        for page in self._pages:
            offsets = np.asarray(page.dataoffsets, np.int64)
            counts = np.asarray(page.databytecounts, np.int64)
            if len(offsets) == len(counts):
                ends.append(int((offsets + counts).max(initial=0)))
        return max(ends)

    def read(
        self, cache: Cache, x: int, y: int, width: int, height: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels from (x, y) on, inside the level; any exception means damage."""
        tile_w, tile_h = self.chunk
        rows = range(y // tile_h, (y + height - 1) // tile_h + 1)
        if self.in_strips:
            # The regions beside this one need the same strips, which are as wide as the slide.
            band = 3 * self.size[0] * tile_h * (len(rows) + 2)
            cache.budget = max(cache.budget, min(band, _STRIP_CACHE_BYTES))
        out = np.full((height, width, 3), 255, np.uint8)
        for row in rows:
            for column in range(x // tile_w, (x + width - 1) // tile_w + 1):
                index = row * self._across + column
                tile = cache.get((self._number, index), lambda index=index: self._tile(index))
                if tile is not None:
                    _paste(out, tile, column * tile_w - x, row * tile_h - y)
        return out

    def _tile(self, index: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """A decoded tile, or None for one that was never written (white)."""
        samples = [
            self._samples(page, index + plane * self._count)
            for page in self._pages
            for plane in range(self._planes)
        ]
        if any(one is None for one in samples):
            return None
        joined = samples[0] if len(samples) == 1 else np.concatenate(samples, axis=-1)
        return self._convert(np.ascontiguousarray(joined))

    def _samples(self, page: TiffPage, index: int) -> np.ndarray | None:
        """Samples [h, w, s] of a tile as they are stored; None where it was never written."""
        if self._raw_rows:
            return self._rows(page, index)
        if reason := self._faults[self._pages.index(page)].get(index):
            raise ValueError(reason)
        if not page.databytecounts[index] or not page.dataoffsets[index]:
            return None
        data = self._bytes(page, index)
        if page.compression == COMPRESSION.JPEG:
            jpeg_damage.check(data, math.prod(self.chunk), must_end=self.must_end)
        if page.compression in _JPEG_2000:
            jpeg2000_damage.check(data)
        tables = {} if page.jpegtables is None else {"jpegtables": page.jpegtables}
        segment, _, _ = page.decode(data, index, **tables)
        return segment[0]

    def _rows(self, page: TiffPage, index: int) -> np.ndarray:
        """Rows of an image that is stored as it is, from any row on."""
        width, height = self.size
        plane, band = divmod(index, self._count)
        first = band * self._raw_rows
        rows, samples = min(self._raw_rows, height - first), page.samplesperpixel // self._planes
        self._file.seek(page.dataoffsets[0] + (plane * height + first) * width * samples)
        data = self._file.read(rows * width * samples)
        return np.frombuffer(data, np.uint8).reshape(rows, width, samples)

    def _bytes(self, page: TiffPage, index: int) -> bytes:
        self._file.seek(page.dataoffsets[index])
        data = self._file.read(page.databytecounts[index])
        if len(data) != page.databytecounts[index]:
            raise ValueError("the file ends inside the tile")
        return data

    def _tiles_end_properly(self) -> bool:
        """Whether this level's JPEG tiles carry end markers, so that a missing one is damage."""
        page = self._pages[0]
        if page.compression != COMPRESSION.JPEG:
            return False
        stored = [i for i, count in enumerate(page.databytecounts) if count]
        sample = stored[:: max(1, len(stored) // 8)]
        with_end = 0
        for index in sample:
            size = min(page.databytecounts[index], jpeg_damage.END_WITHIN)
            self._file.seek(page.dataoffsets[index] + page.databytecounts[index] - size)
            with_end += jpeg_damage.has_end(self._file.read(size))
        return 2 * with_end > len(sample)


def _raw_rows(page: TiffPage) -> int:
    """Rows to read at once of an image that lies in the file as it is; 0 of any other."""
    plain = page.compression == COMPRESSION.NONE and page.predictor == 1 and page.fillorder == 1
    return _ROWS_READ if plain and not page.is_tiled and page.is_contiguous else 0


def _chunk(page: TiffPage, raw_rows: int) -> tuple[int, int]:
    """(width, height) of a tile or strip in pixels."""
    if page.is_tiled:
        return page.tilewidth, page.tilelength
    return page.imagewidth, max(1, min(raw_rows or page.rowsperstrip, page.imagelength))


def _paste(out: np.ndarray, tile: np.ndarray, left: int, top: int) -> None:
    """Copy the part of `tile` at (left, top) that overlaps `out`."""
    height, width = out.shape[:2]
    y0, y1 = max(top, 0), min(top + tile.shape[0], height)
    x0, x1 = max(left, 0), min(left + tile.shape[1], width)
    out[y0:y1, x0:x1] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
