"""Tiles whose place in the file cannot be right: their bytes are another tile's, or too few.

Decoders of uncompressed pixels take any bytes for pixels, and a tile of no bytes is white, so
damage to TileOffsets and TileByteCounts (TIFF 6.0, section 15; of strips alike) shows in no other
way.
"""

import numpy as np
from jaxtyping import Int

_SLACK = 15  # bytes: writers round counts up
# Scanners leave out single tiles of compressed levels, and their places may be anywhere.
_MANY_EMPTY = 0.1


def faults(
    offsets: Int[np.ndarray, " n"],
    counts: Int[np.ndarray, " n"],
    *,
    needed: Int[np.ndarray, " n"] | None,
) -> dict[int, str]:
    """The tiles that cannot be right, with what is wrong of each.

    Args:
      offsets: where in the file each begins.
      counts: its bytes; a tile of none was never written.
      needed: bytes of each tile's pixels where they are stored as they are; None of compressed
        tiles, whose decoders notice a wrong beginning and do not mind more bytes than they need.
    """
    stored = (counts > 0) & (offsets > 0)
    emptied = ~stored & (offsets > 0)
    if needed is None:
        emptied &= _bytes_behind(offsets, stored) > _SLACK
        emptied &= emptied.mean() > _MANY_EMPTY
    wrong = dict.fromkeys(_ids(emptied), "it has a place and is said to have no bytes")
    if needed is None:
        shared = stored & _shared(offsets, counts, stored)
        return wrong | dict.fromkeys(_ids(shared), "it begins where another tile does")
    odd = stored & ((counts < needed) | (counts > needed + _SLACK))
    wrong |= dict.fromkeys(_ids(odd), "it has not the bytes that its pixels need")
    overlaps = _overlapping(offsets, needed, stored & ~odd)
    return wrong | dict.fromkeys(overlaps, "its bytes are in part another tile's")


def _ids(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


def _bytes_behind(offsets: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Bytes from each tile's beginning to the next stored tile's; 0 behind the last."""
    starts = np.unique(offsets[stored])
    place = np.searchsorted(starts, offsets)
    following = np.append(starts, 0)[place]
    return np.maximum(following - offsets, 0)


def _shared(offsets: np.ndarray, counts: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Tiles that begin where another one of another length does; equal tiles may be stored once."""
    pairs = np.unique(np.stack([offsets[stored], counts[stored]], 1), axis=0)
    starts, number = np.unique(pairs[:, 0], return_counts=True)
    return np.isin(offsets, starts[number > 1])


def _overlapping(offsets: np.ndarray, sizes: np.ndarray, usable: np.ndarray) -> list[int]:
    """Tiles of which another one begins within, and that one; equal tiles may be stored once."""
    ids = np.flatnonzero(usable)
    ids = ids[np.argsort(offsets[ids], kind="stable")]
    step = np.diff(offsets[ids])
    over = np.flatnonzero((step > 0) & (step < sizes[ids[:-1]]))
    return np.union1d(ids[over], ids[over + 1]).tolist()
