"""Patches with attention as GeoJSON that QuPath opens (File > Import objects from file).

QuPath shows of a slide that has `openslide.bounds-*` (MRXS, SCN, some others) the scanned area
alone, and counts from its corner: so do the coordinates here. The tables beside count from the
corner of the file, as OpenSlide and every reader of patches does.
"""

import colorsys
import dataclasses
import json
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from lrmil_jax import files
from lrmil_jax.report import heatmap

KINDS = ("detection", "tile")
# QuPath wants an id per object; derived from the place, so that the same run gives the same file.
_NAMESPACE = uuid.UUID("6f0a3c1e-5d0b-4a55-9c53-0d7b6c3c7a10")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """What the objects of a slide say beside their attention.

    Attributes:
      kind: "detection", which QuPath lists and measures, or "tile", which it only draws.
      predicted: the slide's predicted class, the objects' classification; empty: none.
      values: of the slide, as measurements of every object: `{"probability tumour": 0.93}`.
      scores: of the patches, [N] each, as measurements beside attention and its rank.
      top: objects of so many patches with most attention; None: all. Viewers take long over more
        than 60,000 objects.
    """

    kind: str = "detection"
    predicted: str = ""
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    scores: Mapping[str, Float[np.ndarray, " N"]] = dataclasses.field(default_factory=dict)
    top: int | None = None


def features(
    slide_id: str,
    xy: Int[np.ndarray, "N 2"],
    side: int,
    attention: Float[np.ndarray, " N"],
    *,
    origin: tuple[int, int] = (0, 0),
    style: Style | None = None,
) -> dict:
    """A FeatureCollection with a square per patch in level-0 px; its measurements are attention,
    the rank of that among the slide's patches, from 0 to 1, and what the style adds.

    Args:
      slide_id: the slide's name, told in the collection's properties; part of the objects' ids.
      xy: level-0 corners, in the frame of the file.
      side: level-0 px.
      attention: sums to 1 over the slide.
      origin: level-0 corner of the area that viewers show; told in the collection's properties.
      style: what else the objects say; None: nothing, all patches as detections.
    """
    style = Style() if style is None else style
    left, top = origin
    ranks = heatmap.rank_scaled(attention)
    chosen = np.sort(np.argsort(-attention, kind="stable")[: style.top])
    common: dict = {"objectType": style.kind}
    if style.predicted:
        common["classification"] = {"name": style.predicted, "color": _colour(style.predicted)}
    objects = []
    for place in chosen.tolist():
        x, y = xy[place].tolist()
        u, v = x - left, y - top
        corners = [[u, v], [u + side, v], [u + side, v + side], [u, v + side], [u, v]]
        measured = {"attention": float(attention[place]), "attention rank": float(ranks[place])}
        measured |= {name: float(scores[place]) for name, scores in style.scores.items()}
        objects.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(_NAMESPACE, f"{slide_id}/{x}/{y}/{side}")),
                "geometry": {"type": "Polygon", "coordinates": [corners]},
                "properties": {**common, "measurements": measured | dict(style.values)},
            }
        )
    frame = {
        "slide": slide_id,
        "frame": "level-0 px from the corner of the scanned area",
        "origin": [left, top],
    }
    return {"type": "FeatureCollection", "properties": frame, "features": objects}


def _colour(name: str) -> list[int]:
    """The same of a class in every file, and bright enough on a slide."""
    hue = zlib.crc32(name.encode()) % 360 / 360
    return [round(255 * value) for value in colorsys.hsv_to_rgb(hue, 0.75, 0.9)]


def save(path: Path, collection: dict, *, facts: Mapping[str, str] | None = None) -> None:
    """Writes what `features` gives to a file, with `facts` of the whole beside them."""
    content = json.dumps(collection | dict(facts or {}))
    with files.atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
