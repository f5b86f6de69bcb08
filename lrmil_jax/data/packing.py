"""Bags side by side in rows of few lengths: no filling but at a row's end.

A row is what a batch holds: bags one after another, whichever fit. It can be split over devices
wherever bags begin, so devices never wait for the longest bag.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from lrmil_jax.data.batching import BATCH_COST, Batch, bucket_lengths

_LENGTHS = 4  # each is compiled
_WASTE = 0.03  # share of filling at which no further length is worth a compilation


def row_lengths(
    updates: Sequence[Int[np.ndarray, "..."]], *, budget: int, multiple: int, longest: int
) -> tuple[int, ...]:
    """Lengths of rows, at most four, that leave the least of them empty.

    Args:
      updates: instances of each bag that is packed together, of some updates.
      budget: instances of a row; a longer bag makes longer rows.
      multiple: lengths are multiples of this.
      longest: instances of the longest bag that there may be.

    Returns:
      Ascending lengths; the last holds every bag.
    """
    whole = int(max(sizes.sum() for sizes in updates))
    # No row is longer than all bags of an update together. Shorter ones leave less of the last row
    # empty, but are more.
    most = max(min(budget, whole), longest)
    tried = [
        _lengths(updates, -(-capacity // multiple) * multiple, multiple)
        for capacity in (most, most // 2, most // 3)
        if capacity >= longest
    ]
    return min(tried)[1]


def _lengths(
    updates: Sequence[np.ndarray], capacity: int, multiple: int
) -> tuple[float, tuple[int, ...]]:
    """What rows of at most this capacity cost, and their lengths."""
    loads = np.array([sizes[row].sum() for sizes in updates for row in _fill(sizes, capacity)])
    chosen = bucket_lengths(
        np.append(loads, capacity), max_lengths=_LENGTHS, multiple=multiple, waste=_WASTE
    )
    places = np.minimum(np.searchsorted(chosen, loads), len(chosen) - 1)
    cost = float(np.asarray(chosen)[places].sum() + BATCH_COST * capacity * len(loads))
    return cost, chosen


def pack_rows(
    sizes: Int[np.ndarray, " n"],
    bags: Int[np.ndarray, "*models n"],
    lengths: tuple[int, ...],
    *,
    slots: int,
) -> list[Batch]:
    """Packs bags into rows, longest first, each into the fullest row that still has room.

    Args:
      sizes: instances of each bag, or of the longest of several that share a place.
      bags: those to pack.
      lengths: from `row_lengths`.
      slots: bags of a row, at most; empty ones are -1.

    Returns:
      A batch a row, each of the shortest length that holds it.
    """
    batches = []
    for row in _fill(sizes, lengths[-1], slots):
        for part, length in _shortened(sizes, row, lengths, slots):
            empty = [(0, 0)] * (bags.ndim - 1) + [(0, slots - len(part))]
            counts = np.pad(sizes[part], (0, slots - len(part)))
            batches.append(
                Batch(
                    bags=np.pad(bags[..., part], empty, constant_values=-1).astype(np.int32),
                    length=length,
                    first=np.minimum(np.cumsum(counts) - counts, length - 1).astype(np.int32),
                )
            )
    return batches


def _fill(sizes: np.ndarray, capacity: int, slots: int | None = None) -> list[np.ndarray]:
    """Places of bags, row by row: best fit, by falling size."""
    rows: list[list[int]] = []
    room: list[int] = []
    for place in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[place])
        fitting = [
            (left, row) for row, left in enumerate(room)
            if left >= size and (slots is None or len(rows[row]) < slots)
        ]  # fmt: skip
        if fitting:
            row = min(fitting)[1]
            rows[row].append(place)
            room[row] -= size
        else:
            rows.append([place])
            room.append(capacity - size)
    return [np.array(row) for row in rows]


def _shortened(
    sizes: np.ndarray, row: np.ndarray, lengths: tuple[int, ...], slots: int
) -> list[tuple[np.ndarray, int]]:
    """A row in the shortest length that holds it, or in several shorter rows where these are
    cheaper: a row far from full is mostly filling."""
    best = _held([row], sizes, lengths)
    for capacity in lengths:
        if capacity >= best[0][1] or sizes[row].max() > capacity:
            continue
        parts = [row[part] for part in _fill(sizes[row], capacity, slots)]
        tried = _held(parts, sizes, lengths)
        if _cost(tried, lengths) < _cost(best, lengths):
            best = tried
    return best


def _held(
    rows: Sequence[np.ndarray], sizes: np.ndarray, lengths: tuple[int, ...]
) -> list[tuple[np.ndarray, int]]:
    """Rows with the shortest length that holds each."""
    loads = [int(sizes[row].sum()) for row in rows]
    return [
        (row, next(length for length in lengths if length >= load))
        for row, load in zip(rows, loads, strict=True)
    ]


def _cost(rows: Sequence[tuple[np.ndarray, int]], lengths: tuple[int, ...]) -> float:
    return sum(length for _, length in rows) + BATCH_COST * lengths[-1] * len(rows)
