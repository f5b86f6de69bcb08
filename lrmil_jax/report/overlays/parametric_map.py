"""DICOM Parametric Map of the attention, a float32 pixel a patch, for slides that came as DICOM.

It lies in the slide's study and frame of reference: position, orientation and spacing are in mm of
the slide's own coordinate system, as the level says from which they are counted. Where no patch is
it has NaN, its Float Pixel Padding Value: readers refuse numbers outside the values' range.
"""

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_jax import files
from lrmil_jax.errors import DataError, one_line
from lrmil_jax.report.overlays import raster
from lrmil_jax.report.overlays.overlay import ATTENTION, Overlay
from lrmil_jax.slides import dicom

_TILE = 128  # px


def write(path: Path, overlay: Overlay) -> None:
    """Writes one instance.

    Raises:
      DataError: the slide is no DICOM file, or lacks what its map must say too.
    """
    finest = None if overlay.path is None else dicom.finest(overlay.path)
    if finest is None:
        raise DataError(
            f"{overlay.path or overlay.slide_id} is no DICOM slide, which a DICOM Parametric Map "
            "must be of; choose another format"
        )
    try:
        made = _map(finest, overlay)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{finest} lacks what its Parametric Map must say too ({one_line(error)}); choose "
            "another format"
        ) from error
    with files.atomic_path(path) as temporary:
        made.save_as(temporary, enforce_file_format=True)


def _map(finest: Path, overlay: Overlay) -> Any:
    """The dataset."""
    # Late: they take seconds to import.
    import pydicom
    from highdicom import VOILUTTransformation
    from highdicom.pm import ParametricMap, RealWorldValueMapping
    from pydicom.sr.codedict import codes

    source = pydicom.dcmread(finest, stop_before_pixels=True)
    drawn = raster.of(overlay)
    values = drawn.values[list(overlay.layers).index(ATTENTION)]
    highest = float(np.nanmax(values))
    mapping = RealWorldValueMapping(
        lut_label=ATTENTION,
        lut_explanation="Attention of a patch; sums to 1 over the slide",
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=codes.DCM.ClassActivation,
    )
    version = importlib.metadata.version("lrmil_jax")
    uids = [_uid(source, overlay, name) for name in ("series", "instance")]
    made = ParametricMap(
        [source],
        values[None],
        *(uids[0], 1, uids[1], 1),
        manufacturer="lrmil_jax",
        manufacturer_model_name=overlay.facts.get("model_sha256", "model")[:64],
        software_versions=version,
        device_serial_number="0",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[VOILUTTransformation(window_center=highest / 2,
                                                      window_width=highest)],
        content_label="ATTENTION",
        content_description=f"Attention of a model that says: {_said(overlay)}"[:64],
        tile_pixel_array=True,
        tile_size=(_TILE, _TILE),
        **_place(source, overlay, drawn),
    )  # fmt: skip
    made.FloatPixelPaddingValue = float("nan")
    made.SeriesDescription = "lrmil_jax attention"
    return made


def _said(overlay: Overlay) -> str:
    return overlay.predicted or ", ".join(f"{name} {x:.3g}" for name, x in overlay.values.items())


def _uid(source: Any, overlay: Overlay, what: str) -> str:
    """The same for the same slide and prediction."""
    from pydicom.uid import generate_uid

    said = [f"{name} {value}" for name, value in (*overlay.facts.items(), *overlay.values.items())]
    return generate_uid(entropy_srcs=[what, str(source.SOPInstanceUID), *said])


def _place(source: Any, overlay: Overlay, drawn: raster.Raster) -> dict:
    """Where the map lies, as DICOM says it: the centre of its first pixel, and mm a pixel."""
    from highdicom import PixelMeasuresSequence, PlanePositionSequence
    from highdicom.spatial import ImageToReferenceTransformer

    measures = source.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    to_slide = ImageToReferenceTransformer.for_image(source, for_total_pixel_matrix=True)
    (position,) = to_slide(np.array([drawn.corner]) + overlay.side / 2)
    return {
        "pixel_measures": PixelMeasuresSequence(
            pixel_spacing=[overlay.side * float(mm) for mm in measures.PixelSpacing],
            slice_thickness=float(measures.get("SliceThickness", 0.001)),
        ),
        "plane_positions": [PlanePositionSequence("SLIDE", position.tolist(), (1, 1))],
    }
