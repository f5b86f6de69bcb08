"""TIFF slides: tiffslide for formats, levels and metadata; tiles decoded one by one.

Tiles are decoded through tifffile's page decoder and not through tiffslide's zarr store, which
costs twice the time, paints sparse tiles black, leaves Aperio's YCbCr JPEG 2000 unconverted, and
passes a tile cut short as grey pixels.
"""

import importlib.metadata
import math
import xml.etree.ElementTree as ElementTree
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import tiffslide
from jaxtyping import UInt8
from PIL import Image
from tifffile import COMPRESSION, PHOTOMETRIC, PLANARCONFIG

from lrmil_jax.errors import SlideError

_CACHE_BYTES = 96 << 20  # about a row of 256 px tiles across a slide 128,000 px wide
_MAX_CHUNK_BYTES = 512 << 20
_UM_PER_UNIT = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "um": 1.0, "nm": 1e-3}

# What may follow 0xFF in a JPEG scan: stuffing, fill, restarts, end, and tables between scans.
_JPEG_AFTER_FF = np.zeros(256, bool)
_JPEG_AFTER_FF[[0x00, 0xFF, 0xC4, 0xD9, 0xDA, 0xDB, 0xDD, 0xFE, *range(0xD0, 0xD8)]] = True


class TiffReader:
    """TIFF-based formats: Aperio SVS, Leica SCN, Philips and OME TIFF, pyramidal and plain TIFF."""

    def __init__(self, path: Path):
        self._slide = tiffslide.TiffSlide(path)
        try:
            properties = self._slide.properties
            self.level_dimensions = self._slide.level_dimensions
            self._pages = self._level_pages(properties)
            self._check_whole(path)
            self.name = f"tiffslide {version_of('tiffslide')}"
            self.mpp = self._ome_mpp() or _pair(properties)
            self.objective = _float(properties.get("tiffslide.objective-power"))
            self._ends = [self._tiles_end_properly(page) for page in self._pages or ()]
        except BaseException:
            self._slide.close()
            raise
        self._cache: OrderedDict[tuple[int, int], UInt8[np.ndarray, "h w 3"] | None] = OrderedDict()
        self._cached_bytes = 0

    def read_region(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """See `readers.Reader`."""
        if self._pages is None:
            return self._read_composed(level, x, y, width, height)
        page = self._pages[level]
        tile_h, tile_w = _chunk_size(page)
        across = math.ceil(page.imagewidth / tile_w)
        out = np.full((height, width, 3), 255, np.uint8)
        for row in range(y // tile_h, (y + height - 1) // tile_h + 1):
            for column in range(x // tile_w, (x + width - 1) // tile_w + 1):
                tile = self._tile(level, row * across + column)
                if tile is not None:
                    _paste(out, tile, column * tile_w - x, row * tile_h - y)
        return out

    def close(self) -> None:
        """Release the file."""
        self._cache.clear()
        self._slide.close()

    def _level_pages(self, properties: dict[str, Any]) -> list[Any] | None:
        """One page a level; None where a level is composed of several images."""
        if "tiffslide.series-composition" in properties:
            return None
        series = self._slide.ts_tifffile.series[properties["tiffslide.series-index"]]
        pages = [level.keyframe for level in series.levels]
        for page in pages:
            if page.dtype != np.uint8 or page.samplesperpixel not in (1, 3, 4):
                raise ValueError(f"{page.samplesperpixel} samples of {page.dtype}, not 8-bit RGB")
            if page.photometric == PHOTOMETRIC.PALETTE:
                raise ValueError("palette colours are not supported")
            chunk = math.prod(_chunk_size(page)) * page.samplesperpixel
            if chunk > _MAX_CHUNK_BYTES:
                raise SlideError(
                    f"{self._slide.ts_tifffile.filename}: stored in strips of {chunk >> 20} MiB "
                    "that cannot be read in parts; convert it to a tiled TIFF."
                )
        separate = any(p.planarconfig == PLANARCONFIG.SEPARATE for p in pages)
        return None if separate else pages

    def _check_whole(self, path: Path) -> None:
        """A file cut short while copied still opens: look where its tiles should end."""
        size = path.stat().st_size
        for page in self._pages or ():
            offsets = np.asarray(page.dataoffsets, np.int64)
            end = int((offsets + np.asarray(page.databytecounts, np.int64)).max(initial=0))
            if end > size:
                raise SlideError(
                    f"{path}: truncated, {size:,} bytes where its tiles need {end:,}; copy it "
                    "again."
                )

    def _tiles_end_properly(self, page: Any) -> bool:
        """Whether this level's JPEG tiles carry end markers, so that a missing one is damage."""
        if page.compression != COMPRESSION.JPEG or page.jpegheader is not None:
            return False
        stored = [i for i, count in enumerate(page.databytecounts) if count]
        sample = stored[:: max(1, len(stored) // 8)]
        with_end = sum(_has_end(self._bytes(page, i)) for i in sample)
        return 2 * with_end > len(sample)

    def _bytes(self, page: Any, index: int) -> bytes:
        handle = self._slide.ts_tifffile.filehandle
        handle.seek(page.dataoffsets[index])
        return handle.read(page.databytecounts[index])

    def _tile(self, level: int, index: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """A decoded tile, or None for one that was never written (white)."""
        key = (level, index)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        page = self._pages[level]
        if not page.databytecounts[index] or not page.dataoffsets[index]:
            return None
        data = self._bytes(page, index)
        if len(data) != page.databytecounts[index]:
            raise ValueError("the file ends inside the tile")
        if page.compression == COMPRESSION.JPEG and page.jpegheader is None:
            _check_jpeg(data, math.prod(_chunk_size(page)), must_end=self._ends[level])
        tables = {k: v for k in ("jpegtables", "jpegheader") if (v := getattr(page, k)) is not None}
        segment, _, _ = page.decode(data, index, **tables)
        tile = _to_rgb(segment[0], page)
        self._cache[key] = tile
        self._cached_bytes += tile.nbytes
        while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return tile

    def _read_composed(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Through tiffslide's own compositing, whose locations are in level-0 pixels."""
        scale = self._slide.level_downsamples[level]
        location = (math.ceil(x * scale), math.ceil(y * scale))
        pixels = self._slide.read_region(location, level, (width, height), as_array=True)
        if pixels.dtype != np.uint8:
            raise ValueError(f"{pixels.dtype} pixels, not 8-bit RGB")
        return _three_channels(pixels)

    def _ome_mpp(self) -> tuple[float, float] | None:
        """PhysicalSize of an OME-TIFF, which tiffslide does not look at."""
        text = self._slide.ts_tifffile.ome_metadata
        if not text:
            return None
        pixels = ElementTree.fromstring(text).find(".//{*}Pixels")
        if pixels is None:
            return None
        sizes = []
        for axis in "XY":
            value = _float(pixels.get(f"PhysicalSize{axis}"))
            unit = _UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
            if value is None or unit is None:
                return None
            sizes.append(value * unit)
        return sizes[0], sizes[1]


def _pair(properties: dict[str, Any]) -> tuple[float, float] | None:
    x, y = (_float(properties.get(f"tiffslide.mpp-{axis}")) for axis in "xy")
    return None if x is None or y is None else (x, y)


def _float(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _chunk_size(page: Any) -> tuple[int, int]:
    """(height, width) of a tile or strip in pixels."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _paste(out: np.ndarray, tile: np.ndarray, left: int, top: int) -> None:
    """Copy the part of `tile` at (left, top) that overlaps `out`."""
    height, width = out.shape[:2]
    y0, y1 = max(top, 0), min(top + tile.shape[0], height)
    x0, x1 = max(left, 0), min(left + tile.shape[1], width)
    out[y0:y1, x0:x1] = tile[y0 - top : y1 - top, x0 - left : x1 - left]


def _to_rgb(pixels: np.ndarray, page: Any) -> UInt8[np.ndarray, "h w 3"]:
    raw = page.compression in (COMPRESSION.NONE, COMPRESSION.LZW, COMPRESSION.ADOBE_DEFLATE)
    ycbcr = page.compression == COMPRESSION.APERIO_JP2000_YCBC or (
        raw and page.photometric == PHOTOMETRIC.YCBCR
    )
    if ycbcr:
        return np.asarray(Image.fromarray(pixels, "YCbCr").convert("RGB"))
    return _three_channels(pixels)


def _three_channels(pixels: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return over_white(pixels) if pixels.shape[2] == 4 else pixels


def _has_end(data: bytes) -> bool:
    return data.rfind(b"\xff\xd9", max(0, len(data) - 64)) >= 0


def _check_jpeg(data: bytes, pixels: int, *, must_end: bool) -> None:
    """Refuse a damaged JPEG stream that libjpeg would decode to grey or coloured noise.

    Raises:
      ValueError: no end marker, bytes that no encoder writes, or a longer run of zero bytes than
        the shortest possible code (2 bits for each 8 x 8 block of 3 channels) can give.
    """
    if must_end and not _has_end(data):
        raise ValueError("the JPEG stream is cut short")
    scan = np.frombuffer(data, np.uint8)[max(data.find(b"\xff\xda"), 0) :]
    after = scan[1:][scan[:-1] == 0xFF]
    if not _JPEG_AFTER_FF[after].all():
        raise ValueError("the JPEG stream holds an impossible marker")
    end = data.rfind(b"\xff\xd9")
    longest = 3 * pixels // 64 // 4 + 64
    if data.find(bytes(longest), 0, end if end >= 0 else len(data)) >= 0:
        raise ValueError("the JPEG stream is blanked with zeros")


def over_white(rgba: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """Composite over white: unscanned areas are transparent in some formats."""
    alpha = rgba[..., 3:]
    if alpha.min() == 255:
        return rgba[..., :3]
    weight = alpha.astype(np.float32) / 255
    return np.rint(rgba[..., :3] * weight + 255 * (1 - weight)).astype(np.uint8)


def version_of(distribution: str) -> str:
    """Installed version, e.g. for `Slide.reader`."""
    return importlib.metadata.version(distribution)
