"""TIAToolbox's AnnotationStore: an SQLite file with a square per patch, which TIAViz shows and
whose properties `SQLiteStore` asks for in its queries.

TIAToolbox counts level-0 px from the corner of the file, as OpenSlide does. What is written is its
version 1.0.1, without what its code registers when it opens a store.
"""

import contextlib
import json
import sqlite3
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import shapely

from lrmil_jax import files
from lrmil_jax.report.overlays.overlay import Overlay

_NAMESPACE = uuid.UUID("1f6a1f0c-3a70-4d0c-8a0c-5a6a2b1f4f1e")  # of keys: each run's are the same
_LEVEL = 9  # of zlib
_TABLES = """
CREATE TABLE metadata (key TEXT UNIQUE, value TEXT);
CREATE VIRTUAL TABLE rtree USING rtree(id, min_x, max_x, min_y, max_y);
CREATE TABLE annotations(
    id INTEGER PRIMARY KEY, key TEXT UNIQUE, objtype TEXT, cx FLOAT NOT NULL, cy FLOAT NOT NULL,
    geometry BLOB, properties TEXT, area FLOAT NOT NULL
);
"""


def write(path: Path, overlay: Overlay) -> None:
    """Writes a polygon per patch, with `type`, the slide's class, and every number of the patch and
    of the slide as properties."""
    metadata = {
        "version": "1.0.1",
        "compression": "zlib",
        "compression_level": _LEVEL,
        "slide": overlay.slide_id,
        **overlay.facts,
    }
    with (
        files.atomic_path(path) as temporary,
        contextlib.closing(sqlite3.connect(temporary)) as store,
        store,
    ):
        store.executescript(_TABLES)
        pairs = [(key, json.dumps(value)) for key, value in metadata.items()]
        store.executemany("INSERT INTO metadata VALUES (?, ?)", pairs)
        store.executemany(
            "INSERT INTO annotations VALUES (?, ?, 'Polygon', ?, ?, ?, ?, ?)", _rows(overlay)
        )
        low, high = overlay.xy, overlay.xy + overlay.side
        boxes = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], 1)
        places = [(number, *box) for number, box in enumerate(boxes.tolist(), 1)]
        store.executemany("INSERT INTO rtree VALUES (?, ?, ?, ?, ?)", places)


def _rows(overlay: Overlay) -> Iterator[tuple]:
    """Columns of `annotations`, but `objtype`."""
    low, high = overlay.xy.T, overlay.xy.T + overlay.side
    geometries = shapely.to_wkb(shapely.box(*low, *high))
    common = {"type": overlay.predicted} if overlay.predicted else {}
    common |= overlay.values
    names, columns = list(overlay.layers), [one.tolist() for one in overlay.layers.values()]
    for number, (geometry, *numbers) in enumerate(zip(geometries, *columns, strict=True)):
        x, y = overlay.xy[number].tolist()
        key = uuid.uuid5(_NAMESPACE, f"{overlay.slide_id}/{x}/{y}/{overlay.side}")
        properties = common | dict(zip(names, numbers, strict=True))
        yield (
            number + 1,
            str(key),
            x + overlay.side / 2,
            y + overlay.side / 2,
            zlib.compress(geometry, _LEVEL),
            json.dumps(properties, separators=(",", ":")),
            float(overlay.side**2),
        )
