"""Tiles whose place in a TIFF cannot be right, by the places alone."""

import numpy as np
import pytest

from lrmil_jax.slides.tiff_ranges import faults

NOTHING, ANOTHERS, FEW = "said to have no bytes", "another tile", "not the bytes"


def of(offsets, counts, needed=None):
    needed = None if needed is None else np.full(len(offsets), needed)
    return faults(np.array(offsets), np.array(counts), needed=needed)


@pytest.mark.parametrize(
    ("offsets", "counts", "wrong"),
    [
        ([8, 108, 208], [100, 100, 100], {}),
        ([208, 8, 108], [100, 100, 100], {}),  # in any order
        ([8, 108, 208], [110, 100, 100], {}),  # counts rounded up
        ([8, 8, 8], [100, 100, 100], {}),  # equal tiles stored once
        ([0, 8, 108], [0, 100, 100], {}),  # never written
        ([8, 108, 208], [100, 0, 100], {1: NOTHING}),
        ([8, 108, 208], [100, 100, 0], {2: NOTHING}),
        ([8, 108, 208], [100, 60, 130], {1: FEW, 2: FEW}),
        ([8, 138, 208], [100, 100, 100], {1: ANOTHERS, 2: ANOTHERS}),
        ([8, 108, 98], [100, 100, 100], {0: ANOTHERS, 1: ANOTHERS, 2: ANOTHERS}),
    ],
)
def test_uncompressed_tiles(offsets, counts, wrong):
    found = of(offsets, counts, 100)
    assert found.keys() == wrong.keys()
    assert all(wrong[tile] in reason for tile, reason in found.items())


@pytest.mark.parametrize(
    ("offsets", "counts", "wrong"),
    [
        ([8, 70, 90], [62, 20, 33], []),
        ([8, 70, 90], [1000, 20, 33], []),  # decoders end where the stream does
        ([8, 8, 90], [62, 62, 33], []),  # equal tiles stored once
        ([8, 70, 70], [62, 20, 33], [1, 2]),  # one stream cannot be two tiles
        ([8, 70, 90], [62, 0, 33], [1]),
        ([8, 90, 90], [62, 0, 33], []),  # nothing was written there
        # A count as two: half of the tiles seem empty.
        ([8, 70, 90, 123], [62, 0, 20, 0], [1]),
        # Scanners leave out single tiles of many.
        (list(range(8, 5008, 50)), [50] * 40 + [0] * 9 + [50] * 51, []),
    ],
)
def test_compressed_tiles(offsets, counts, wrong):
    assert sorted(of(offsets, counts)) == wrong
