"""GeoJSON that QuPath imports: a square per patch."""

from pathlib import Path

from lrmil_jax.report import geojson
from lrmil_jax.report.overlays.overlay import ATTENTION, RANK, Overlay


def collection(overlay: Overlay, *, kind: str = "detection", top: int | None = None) -> dict:
    """A FeatureCollection; `kind` and `top` as `geojson.Style` has them."""
    scores = {name: one for name, one in overlay.layers.items() if name not in (ATTENTION, RANK)}
    style = geojson.Style(
        kind=kind, predicted=overlay.predicted, values=overlay.values, scores=scores, top=top
    )
    places = (overlay.xy, overlay.side, overlay.layers[ATTENTION])
    return geojson.features(overlay.slide_id, *places, origin=overlay.origin, style=style)


def write(path: Path, overlay: Overlay) -> None:
    """Writes all patches as detections."""
    geojson.save(path, collection(overlay), facts=overlay.facts)
