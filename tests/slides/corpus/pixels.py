"""Damage to tiles, and fields that say how their bytes become colours."""

import io
import zlib
from collections.abc import Callable

import imagecodecs
import numpy as np
from PIL import Image

from tests.slides.corpus import editor as tiff
from tests.slides.corpus import sources
from tests.slides.corpus.changes import (
    ALL,
    AT,
    TILE,
    Mutation,
    chunk,
    every_chunk,
    on_page,
    setting,
    without,
)
from tests.slides.corpus.outcome import Damaged, Pixels, Refused

_BAD = Damaged(AT, "cannot be decoded")
_SAME = Pixels()
_TABLES = Damaged(ALL, "cannot be decoded")
_NOISE = np.random.default_rng(0).bytes(4000)


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _noise_within(data: bytes) -> bytes:
    third = len(data) // 3
    return data[:third] + _NOISE[:third] + data[2 * third :]


def _zeros_within(data: bytes) -> bytes:
    third = len(data) // 3
    return data[:third] + bytes(third) + data[2 * third :]


_TORN = {
    "noise": lambda data: _NOISE[: len(data)],
    "zeros": lambda data: bytes(len(data)),
    "ones": lambda data: b"\xff" * len(data),
    "text": lambda data: b"<html>404 Not Found</html>",
    "one_byte": lambda data: data[:1],
}


def _segment(data: bytes, marker: int) -> int:
    """Where a marker segment of a JPEG stream begins."""
    place = 2
    while data[place + 1] != marker:
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return place


def _start_of_frame(offset: int, value: bytes) -> Callable[[bytes], bytes]:
    """Bytes of a JPEG's frame header overwritten: 4 precision, 5 height, 7 width, 9 components."""

    def change(data: bytes) -> bytes:
        place = _segment(data, 0xC0) + offset
        return data[:place] + value + data[place + len(value) :]

    return change


def _without_segment(marker: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        place = _segment(data, marker)
        return data[:place] + data[place + 2 + int.from_bytes(data[place + 2 : place + 4], "big") :]

    return change


def _with_comment(data: bytes) -> bytes:
    return data[:2] + b"\xff\xfe\x00\x09damages" + data[2:]


def _anew(**options) -> Callable[[bytes], bytes]:
    """The tile compressed once more, as another encoder does it."""

    def change(data: bytes) -> bytes:
        row, column = AT[0]
        side = sources.TILE
        tile = sources.image()[row * side : (row + 1) * side, column * side : (column + 1) * side]
        out = io.BytesIO()
        # The page is RGB to TIFF's readers when its JPEG streams are.
        Image.fromarray(tile).save(out, "jpeg", quality=95, subsampling=0, **options)
        return out.getvalue()

    return change


_JPEG = {
    "half": _half,
    "no_end": lambda data: data[:-2],
    "last_byte_gone": lambda data: data[:-1],
    "no_start": lambda data: data[2:],
    "noise_within": _noise_within,
    "zeros_within": _zeros_within,
    "half_as_wide": _start_of_frame(7, b"\0\x40"),
    "twice_as_wide": _start_of_frame(7, b"\1\0"),
    "half_as_high": _start_of_frame(5, b"\0\x40"),
    "no_height": _start_of_frame(5, b"\0\0"),
    "huge": _start_of_frame(5, b"\xff\xff\xff\xff"),
    "of_12_bits": _start_of_frame(4, b"\x0c"),
    "no_components": _start_of_frame(9, b"\0"),
    "lossless_frame": _start_of_frame(1, b"\xc3"),
    "no_frame": _without_segment(0xC0),
    "no_scan": lambda data: data[: _segment(data, 0xDA)] + b"\xff\xd9",
    "impossible_marker": lambda data: data[:-40] + b"\xff\x12" + data[-38:],
    "of_jpeg2000": lambda data: tiff.parse(sources.data("jpeg2000")).pages[0].chunks[TILE],
} | _TORN

_QUICK_JPEG = ("half", "no_end", "noise_within", "half_as_wide", "huge", "noise")
TILES = [
    Mutation("JPEG tile", name, "jpeg", chunk(change), _BAD, name in _QUICK_JPEG)
    for name, change in _JPEG.items()
]
TILES += [
    Mutation("JPEG tile", "garbage_behind", "jpeg", chunk(lambda d: d + b"garbage" * 4), _SAME),
    Mutation("JPEG tile", "zeros_behind", "jpeg", chunk(lambda d: d + bytes(50)), _SAME),
    Mutation("JPEG tile", "comment", "jpeg", chunk(_with_comment), _SAME),
    Mutation(
        "JPEG tile", "progressive", "jpeg", chunk(_anew(progressive=True)), Pixels(tolerance=9)
    ),
    Mutation(
        *("JPEG tile", "restarts", "jpeg"),
        chunk(_anew(restart_marker_blocks=4)),
        Pixels(tolerance=9),
        True,
    ),
    Mutation(
        *("JPEG tile", "of_level", "jpeg"),
        chunk(_half, 0, page=1),
        Damaged(((0, 0),), "cannot be decoded", level=4),
        True,
    ),
    Mutation("JPEG tables", "none", "tables", without(tiff.JPEG_TABLES), _TABLES, True),
    Mutation("JPEG tables", "empty", "tables", setting(tiff.JPEG_TABLES, 0), _TABLES),
    Mutation(
        *("JPEG tables", "cut", "tables"),
        on_page(lambda p: p.fields.update({347: tiff.Field(7, p.fields[347].values[:100])})),
        _SAME,  # Huffman tables that are not there are libjpeg's own
    ),
    Mutation(
        *("JPEG tables", "noise", "tables"),
        on_page(lambda p: p.fields.update({347: tiff.Field(7, _NOISE[:300])})),
        _TABLES,
    ),
]


def _short(source: str) -> Callable[[bytes], bytes]:
    """Three quarters of a tile's rows, packed as the source packs whole tiles."""
    rows = 3 * sources.TILE // 4
    row, column = AT[0]
    side = sources.TILE
    part = sources.image()[row * side :, column * side : (column + 1) * side][:rows]
    packed = {
        "lzw": lambda: imagecodecs.lzw_encode(imagecodecs.delta_encode(part, axis=1).tobytes()),
        "deflate": lambda: zlib.compress(part.tobytes()),
        "packbits": lambda: imagecodecs.packbits_encode(part.tobytes()),
        "raw": part.tobytes,
    }
    return lambda data: packed[source]()


def _bomb(data: bytes) -> bytes:
    return zlib.compress(bytes(50 << 20))


def _lossless(kind: str, source: str) -> list[Mutation]:
    """Tiles whose bytes are too few or too many; PackBits takes zeros behind for pixels."""
    behind = _BAD if source == "packbits" else _SAME
    return [
        Mutation(kind, "half", source, chunk(_half), _BAD, source in ("lzw", "raw")),
        Mutation(kind, "partial", source, chunk(_short(source)), _BAD, source == "lzw"),
        Mutation(kind, "one_byte", source, chunk(_TORN["one_byte"]), _BAD),
        Mutation(kind, "zeros_behind", source, chunk(lambda d: d + bytes(9)), behind),
    ]


TILES += [
    *_lossless("LZW tile", "lzw"),
    *_lossless("deflate tile", "deflate"),
    *_lossless("packbits tile", "packbits"),
    *_lossless("raw tile", "raw"),
]
TILES += [
    Mutation(f"{name} tile", kind, source, chunk(_TORN[kind]), _BAD)
    for name, source in (("LZW", "lzw"), ("deflate", "deflate"))
    for kind in ("noise", "zeros", "ones", "text")
]
TILES += [
    Mutation("deflate tile", "bad_checksum", "deflate", chunk(lambda d: d[:-4] + b"1234"), _BAD),
    Mutation("deflate tile", "bomb", "deflate", chunk(_bomb), _BAD, True),
    Mutation(*("sparse", "one", "lzw"), chunk(lambda d: b""), Pixels(white=AT), True),
    Mutation("sparse", "one_jpeg", "jpeg", chunk(lambda d: b""), Pixels(white=AT)),
    Mutation("sparse", "one_jpeg2000", "jpeg2000", chunk(lambda d: b""), Pixels(white=AT)),
    Mutation("sparse", "finest", "jpeg", every_chunk(lambda d: b""), Refused("no tile"), True),
    Mutation("sparse", "level", "jpeg", every_chunk(lambda d: b"", 1), Pixels(levels=(1,)), True),
]


def _codestream(offset: int, value: bytes) -> Callable[[bytes], bytes]:
    """Bytes of a JPEG 2000's SIZ segment overwritten: 8 width, 12 height, 40 components."""

    def change(data: bytes) -> bytes:
        place = data.index(b"\xff\x51") + offset - 2
        return data[:place] + value + data[place + len(value) :]

    return change


_J2K = {
    "half": _half,
    "no_end": lambda data: data[:-2],
    "noise_within": _noise_within,
    "zeros_within": _zeros_within,
    "half_as_wide": _codestream(8, b"\0\0\0\x40"),
    "twice_as_high": _codestream(12, b"\0\0\1\0"),
    "huge": _codestream(8, b"\x7f\xff\xff\xff\x7f\xff\xff\xff"),
    "one_component": _codestream(40, b"\0\1"),
    "of_jpeg": lambda data: tiff.parse(sources.data("jpeg")).pages[0].chunks[TILE],
} | _TORN
TILES += [
    Mutation("JPEG 2000 tile", name, "jpeg2000", chunk(change), _BAD, name in ("half", "huge"))
    for name, change in _J2K.items()
]
TILES += [
    Mutation("JPEG 2000 tile", "sound", "jpeg2000", lambda d: d, _SAME, True),
    Mutation("LZW tile", "sound", "lzw", lambda d: d, _SAME, True),
    Mutation("deflate tile", "sound", "deflate", lambda d: d, _SAME),
    Mutation("packbits tile", "sound", "packbits", lambda d: d, _SAME),
    Mutation("raw tile", "sound", "raw", lambda d: d, _SAME),
    Mutation("strips", "sound", "strips", lambda d: d, _SAME),
    Mutation("strips", "no_rows", "strips", without(tiff.ROWS), Refused("strip|rows")),
    Mutation("strips", "rows_zero", "strips", setting(tiff.ROWS, 0), Refused("strip|rows|tile")),
    Mutation("strips", "rows_double", "strips", setting(tiff.ROWS, 96), Refused("strip|rows|tile")),
    Mutation(
        "strips", "offsets_gone", "strips", without(tiff.STRIP_OFFSETS), Refused("strip|tile")
    ),
]

_FORMAT = Refused("8-bit|bits|samples")
_COLOURS = Refused("photometric|colou?r|samples|mask")
_PACKING = Refused("compression|codec")


def _all(cause: str) -> Damaged:
    return Damaged(ALL, cause)


COLOURS = [
    Mutation("samples", "no_bits", "jpeg", without(tiff.BITS), _FORMAT),
    Mutation("samples", "bits_16", "jpeg", setting(tiff.BITS, 16, 16, 16), _FORMAT, True),
    Mutation("samples", "bits_4", "raw", setting(tiff.BITS, 4, 4, 4), _FORMAT),
    Mutation("samples", "bits_0", "jpeg", setting(tiff.BITS, 0, 0, 0), _FORMAT),
    Mutation("samples", "bits_differ", "raw", setting(tiff.BITS, 8, 8, 16), _FORMAT),
    Mutation("samples", "bits_of_one", "jpeg", setting(tiff.BITS, 8), _SAME),
    Mutation("samples", "none_said", "raw", without(tiff.SAMPLES), _FORMAT),
    Mutation("samples", "zero", "jpeg", setting(tiff.SAMPLES, 0), _FORMAT),
    Mutation("samples", "two", "raw", setting(tiff.SAMPLES, 2), _FORMAT, True),
    Mutation("samples", "one_of_three", "raw", setting(tiff.SAMPLES, 1), _FORMAT),
    Mutation("samples", "four_of_three", "raw", setting(tiff.SAMPLES, 4), _all("decoded")),
    Mutation("samples", "one_of_three_jpeg", "jpeg", setting(tiff.SAMPLES, 1), _FORMAT),
    Mutation("samples", "very_many", "raw", setting(tiff.SAMPLES, 65535), _FORMAT),
    Mutation("samples", "signed", "raw", setting(tiff.SAMPLE_FORMAT, 2, 2, 2), _FORMAT, True),
    Mutation("samples", "floats", "raw", setting(tiff.SAMPLE_FORMAT, 3, 3, 3), _FORMAT),
    Mutation(
        "samples", "level_of_16", "raw", setting(tiff.BITS, 16, 16, 16, page=1), Pixels(levels=(1,))
    ),
    Mutation("samples", "planes_apart", "raw", setting(tiff.PLANAR, 2), Refused("tiles|planar")),
    Mutation("samples", "planes_3", "raw", setting(tiff.PLANAR, 3), Refused("PlanarConf")),
    Mutation("samples", "planes_not_said", "raw", without(tiff.PLANAR), _SAME),
    Mutation("colours", "not_said", "raw", without(tiff.PHOTOMETRIC), _SAME),
    Mutation("colours", "palette", "raw", setting(tiff.PHOTOMETRIC, 3), _COLOURS, True),
    Mutation("colours", "mask", "raw", setting(tiff.PHOTOMETRIC, 4), _COLOURS),
    Mutation("colours", "inks", "raw", setting(tiff.PHOTOMETRIC, 5), _COLOURS),
    Mutation("colours", "lab", "raw", setting(tiff.PHOTOMETRIC, 8), _COLOURS),
    Mutation("colours", "white_is_zero", "raw", setting(tiff.PHOTOMETRIC, 0), _COLOURS),
    Mutation("colours", "unheard_of", "raw", setting(tiff.PHOTOMETRIC, 999), _COLOURS, True),
    Mutation("compression", "not_said", "jpeg", without(tiff.COMPRESSION), _all("decoded")),
    Mutation("compression", "zero", "jpeg", setting(tiff.COMPRESSION, 0), _PACKING, True),
    Mutation("compression", "unheard_of", "jpeg", setting(tiff.COMPRESSION, 65000), _PACKING, True),
    Mutation(
        "compression", "unheard_of_level", "jpeg", setting(259, 60000, page=1), Pixels(levels=(1,))
    ),
    Mutation("compression", "fax", "jpeg", setting(tiff.COMPRESSION, 4), _PACKING),
    Mutation("compression", "old_jpeg", "jpeg", setting(tiff.COMPRESSION, 6), _SAME),
    Mutation("compression", "lzw_of_jpeg", "jpeg", setting(tiff.COMPRESSION, 5), _all("decoded")),
    Mutation("compression", "jpeg_of_lzw", "lzw", setting(tiff.COMPRESSION, 7), _all("decoded")),
    Mutation("compression", "j2k_of_jpeg", "jpeg", setting(tiff.COMPRESSION, 34712), _PACKING),
    Mutation("compression", "as_text", "jpeg", setting(259, 7, kind=tiff.ASCII), _PACKING),
    Mutation("predictor", "unheard_of", "lzw", setting(tiff.PREDICTOR, 99), _all("predictor")),
    Mutation("predictor", "of_floats", "lzw", setting(tiff.PREDICTOR, 3), _all("decoded")),
]
