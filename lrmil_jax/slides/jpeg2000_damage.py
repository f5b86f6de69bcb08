"""Damage in a JPEG 2000 stream that OpenJPEG would decode to noise without a word.

Codestream syntax of ITU-T T.800, annex A.
"""

import struct
from collections.abc import Iterator

import numpy as np

_START, _COD, _TILE_PART, _DATA, _END = 0xFF4F, 0xFF52, 0xFF90, 0xFF93, 0xFFD9
# Coded data never has more than 0x8F behind 0xFF, but for markers between packets.
_AFTER_FF = np.arange(256) <= 0x8F
_AFTER_FF[[0x91, 0x92]] = True
_SLACK = 64  # zero bytes in a row that coded data may hold by chance, with room to spare


def check(data: bytes) -> None:
    """Refuse a damaged JPEG 2000 stream.

    Raises:
      ValueError: no whole codestream, bytes that no encoder writes, or a longer run of zero bytes
        than its packets can give, each of which is one zero byte if it is empty.
    """
    place = data.find(b"\xff\x4f\xff\x51")
    if place < 0:
        raise ValueError("no JPEG 2000 stream")
    try:
        packets, place = _main_header(data, place)
        for part in _coded_parts(data, place):
            _check_coded(part, packets)
    except struct.error as error:
        raise ValueError("the JPEG 2000 stream is cut short") from error


def _main_header(data: bytes, place: int) -> tuple[int, int]:
    """Packets of a tile at most (0: not to be told), and where the first tile part begins."""
    (components,) = struct.unpack_from(">H", data, place + 40)
    packets, place = 0, place + 2
    while (marker := _marker(data, place)) != _TILE_PART:
        if marker == _COD:
            style, _, layers, _, levels = struct.unpack_from(">BBHBB", data, place + 4)
            packets = 0 if style & 1 else layers * (levels + 1) * components
        place += 2 + struct.unpack_from(">H", data, place + 2)[0]
    return packets, place


def _coded_parts(data: bytes, place: int) -> Iterator[bytes]:
    """The coded data of each tile part."""
    while (marker := _marker(data, place)) == _TILE_PART:
        (length,) = struct.unpack_from(">I", data, place + 6)
        end = place + length if length else data.rfind(b"\xff\xd9")
        if end > len(data):
            raise ValueError("the JPEG 2000 stream is cut short")
        start = place + 12
        while _marker(data, start) != _DATA:
            start += 2 + struct.unpack_from(">H", data, start + 2)[0]
        yield data[start + 2 : end]
        if end <= place:
            raise ValueError("the JPEG 2000 stream has a tile part without an end")
        place = end
    if marker != _END:
        raise ValueError("the JPEG 2000 stream holds an impossible marker")


def _marker(data: bytes, place: int) -> int:
    (marker,) = struct.unpack_from(">H", data, place)
    if marker < _START:
        raise ValueError("the JPEG 2000 stream holds an impossible marker")
    return marker


def _check_coded(data: bytes, packets: int) -> None:
    coded = np.frombuffer(data, np.uint8)
    if not _AFTER_FF[coded[1:][coded[:-1] == 0xFF]].all():
        raise ValueError("the JPEG 2000 stream holds an impossible marker")
    if packets and bytes(packets + _SLACK) in data:
        raise ValueError("the JPEG 2000 stream is blanked with zeros")
