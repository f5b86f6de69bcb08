"""Patches with attention as GeoJSON that QuPath opens (File > Import objects from file)."""

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
) -> dict:
    """A FeatureCollection with a square per patch in level-0 px and its attention as measurement.

    Args:
      slide_id: part of the objects' ids.
      xy: level-0 corners.
      side: level-0 px.
      attention: sums to 1 over the slide.
    """
    objects = []
    for (x, y), value in zip(xy.tolist(), attention.tolist(), strict=True):
        corners = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
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
    return {"type": "FeatureCollection", "features": objects}


def save(
    path: Path,
    slide_id: str,
    xy: Int[np.ndarray, "N 2"],
    side: int,
    attention: Float[np.ndarray, " N"],
    *,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Writes `features` to a file, with `facts` of the whole beside them."""
    content = json.dumps(features(slide_id, xy, side, attention) | dict(facts or {}))
    with files.atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
