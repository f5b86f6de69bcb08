"""Pyramidal OME-TIFF with a pixel a patch: float32, tiled, a channel a layer, NaN between patches.

QuPath, napari, OMERO and whatever reads Bio-Formats open it. Physical size and position (um, from
the corner of the area that viewers show) say where it lies on the slide.
"""

from pathlib import Path

import tifffile

from lrmil_jax import files
from lrmil_jax.report.overlays import raster
from lrmil_jax.report.overlays.overlay import Overlay

TILE = 128  # px; the smallest image of the pyramid fits in one tile


def write(path: Path, overlay: Overlay) -> None:
    """Writes the file.

    Raises:
      DataError: the patches are no image (`raster.of`).
    """
    made = raster.of(overlay)
    levels = [made.values]
    while max(levels[-1].shape[1:]) > TILE:
        levels.append(raster.halved(levels[-1]))
    stored = {"tile": (TILE, TILE), "photometric": "minisblack", "compression": "zlib"}
    with (
        files.atomic_path(path) as temporary,
        tifffile.TiffWriter(temporary, ome=True) as writer,
    ):
        metadata = _metadata(overlay, made)
        writer.write(levels[0], subifds=len(levels) - 1, metadata=metadata, **stored)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, metadata=None, **stored)


def _metadata(overlay: Overlay, made: raster.Raster) -> dict:
    """OME-XML's names, as tifffile takes them."""
    um = overlay.side * overlay.mpp
    position = {}
    for axis, corner, origin in zip("XY", made.corner, overlay.origin, strict=True):
        position[f"Position{axis}"] = [(corner - origin) * overlay.mpp] * len(overlay.layers)
        position[f"Position{axis}Unit"] = ["µm"] * len(overlay.layers)
    said = "; ".join(f"{name} {value:.6g}" for name, value in overlay.values.items())
    facts = "; ".join(f"{name} {value}" for name, value in overlay.facts.items())
    sentences = (
        f"A pixel a patch of {overlay.side} x {overlay.side} level-0 px",
        "NaN where no patch is",
        said,
        facts,
    )
    return {
        "axes": "CYX",
        "Name": overlay.slide_id,
        "Description": ". ".join(one for one in sentences if one) + ".",
        "PhysicalSizeX": um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": um,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": list(overlay.layers)},
        "Plane": position,
    }
