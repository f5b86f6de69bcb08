"""Patches with attention as GeoJSON that QuPath opens (File > Import objects from file).

QuPath shows of a slide that has `openslide.bounds-*` (MRXS, SCN, some others) the scanned area
alone, and counts from its corner: so do the coordinates here. The tables beside count from the
corner of the file, as OpenSlide and every reader of patches does.
"""

import json
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from lrmil_jax import files

# QuPath wants an id per object; derived from the place, so that the same run gives the same file.
_NAMESPACE = uuid.UUID("6f0a3c1e-5d0b-4a55-9c53-0d7b6c3c7a10")


def features(
    slide_id: str,
    xy: Int[np.ndarray, "N 2"],
    side: int,
    attention: Float[np.ndarray, " N"],
    *,
    origin: tuple[int, int] = (0, 0),
) -> dict:
    """A FeatureCollection with a square per patch in level-0 px and its attention as measurement.

    Args:
      slide_id: part of the objects' ids.
      xy: level-0 corners, in the frame of the file.
      side: level-0 px.
      attention: sums to 1 over the slide.
      origin: level-0 corner of the area that viewers show; told in the collection's properties.
    """
    left, top = origin
    objects = []
    for (x, y), value in zip(xy.tolist(), attention.tolist(), strict=True):
        u, v = x - left, y - top
        corners = [[u, v], [u + side, v], [u + side, v + side], [u, v + side], [u, v]]
        objects.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(_NAMESPACE, f"{slide_id}/{x}/{y}/{side}")),
                "geometry": {"type": "Polygon", "coordinates": [corners]},
                "properties": {
                    "objectType": "detection",
                    "measurements": {"attention": value},
                },
            }
        )
    frame = {"frame": "level-0 px from the corner of the scanned area", "origin": [left, top]}
    return {"type": "FeatureCollection", "properties": frame, "features": objects}


def save(
    path: Path,
    slide_id: str,
    xy: Int[np.ndarray, "N 2"],
    side: int,
    attention: Float[np.ndarray, " N"],
    *,
    origin: tuple[int, int] = (0, 0),
    facts: Mapping[str, str] | None = None,
) -> None:
    """Writes `features` to a file, with `facts` of the whole beside them."""
    content = features(slide_id, xy, side, attention, origin=origin) | dict(facts or {})
    content = json.dumps(content)
    with files.atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
