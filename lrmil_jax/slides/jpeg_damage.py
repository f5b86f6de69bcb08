"""Damage in a JPEG stream that libjpeg would decode to grey or coloured noise without a word."""

import numpy as np

END_WITHIN = 64  # bytes from the end of a tile in which its stream's end marker is looked for
# What may follow 0xFF in a JPEG scan: stuffing, fill, restarts, end, and tables between scans.
_AFTER_FF = np.zeros(256, bool)
_AFTER_FF[[0x00, 0xFF, 0xC4, 0xD9, 0xDA, 0xDB, 0xDD, 0xFE, *range(0xD0, 0xD8)]] = True


def has_end(data: bytes) -> bool:
    """Whether the stream ends with an end marker."""
    return data.rfind(b"\xff\xd9", max(0, len(data) - END_WITHIN)) >= 0


def frame_size(data: bytes) -> tuple[int, int]:
    """(width, height) that the stream states.

    Raises:
      ValueError: it has no frame, or one that is none of 8-bit DCT (ITU-T T.81, table B.1).
    """
    place = 2
    while place + 5 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # fill
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if marker > 0xC2 or data[place + 4] != 8:
                raise ValueError("the JPEG stream is not of 8 bits and DCT")
            height, width = (int.from_bytes(data[place + n : place + n + 2], "big") for n in (5, 7))
            return width, height
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    raise ValueError("the JPEG stream has no frame")


def check(data: bytes, pixels: int, *, must_end: bool) -> None:
    """Refuse a damaged JPEG stream.

    Args:
      data: the stream.
      pixels: of the tile.
      must_end: the other tiles of the level have end markers.

    Raises:
      ValueError: no frame of 8 bits, no end marker, bytes that no encoder writes, or a longer run
        of zero bytes than the shortest possible code (2 bits for each 8 x 8 block of 3 channels)
        can give.
    """
    frame_size(data)
    if must_end and not has_end(data):
        raise ValueError("the JPEG stream is cut short")
    scan = np.frombuffer(data, np.uint8)[max(data.find(b"\xff\xda"), 0) :]
    after = scan[1:][scan[:-1] == 0xFF]
    if not _AFTER_FF[after].all():
        raise ValueError("the JPEG stream holds an impossible marker")
    end = data.rfind(b"\xff\xd9")
    longest = 3 * pixels // 64 // 4 + 64
    if data.find(bytes(longest), 0, end if end >= 0 else len(data)) >= 0:
        raise ValueError("the JPEG stream is blanked with zeros")
