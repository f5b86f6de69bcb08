"""SpatialData on Zarr as LazySlide and wsidata keep it beside a slide: `shapes["tiles"]` with a
square per patch, whose columns are the patch's numbers, and `tile_spec` in the attributes.

Places are level-0 px from the corner of the file. Open it with `spatialdata.read_zarr`, or with the
slide by `wsidata.open_wsi(SLIDE, store="attention.zarr")`.
"""

from pathlib import Path

import numpy as np
import shapely

from lrmil_jax import files
from lrmil_jax.report.overlays.overlay import Overlay

TILES = "tiles"


def write(path: Path, overlay: Overlay) -> None:
    """Writes the folder; one that is there is replaced."""
    # Late: it takes seconds to import.
    import geopandas
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel

    low, high = overlay.xy.T, overlay.xy.T + overlay.side
    number = np.arange(len(overlay.xy))
    columns = {"tile_id": number, "x": low[0], "y": low[1], "tissue_id": np.full_like(number, -1)}
    tiles = geopandas.GeoDataFrame(
        columns | {name: np.asarray(one) for name, one in overlay.layers.items()},
        geometry=shapely.box(*low, *high),
    )
    data = SpatialData(shapes={TILES: ShapesModel.parse(tiles)}, attrs=_attributes(overlay))
    with files.atomic_folder(path) as temporary:
        data.write(temporary)


def _attributes(overlay: Overlay) -> dict:
    """wsidata's, of tiles as they lie on level 0, whose side is thereby exact; and what is said of
    the slide."""
    side = overlay.side
    sides = dict.fromkeys(("height", "width", "stride_height", "stride_width"), side)
    levels = {"ops_level": 0, "ops_downsample": 1.0, "base_level": 0, "base_downsample": 1.0}
    spec = {**sides, "mpp": overlay.mpp, **levels, "tissue_name": None}
    said = {"slide": overlay.slide_id, **overlay.values, **overlay.facts}
    if overlay.predicted:
        said["predicted"] = overlay.predicted
    return {"tile_spec": {TILES: spec}, "lrmil_jax": said}
