"""Lesion masks beside the slides: pictures, or what was drawn in QuPath."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool
from ml_collections import ConfigDict
from PIL import Image

from lrmil_jax.data import tables
from lrmil_jax.errors import DataError, SlideError
from lrmil_jax.slides import annotations
from lrmil_jax.slides.annotations import SUFFIX, Annotations
from lrmil_jax.workspace import statuses

_DRAWN_UM = 4.0  # um per pixel of a mask of what was drawn
# Relative difference of aspect ratios that is no mistake: slides are cropped to whole tiles.
_ASPECT = 0.03


def masks_folder(config: ConfigDict, workdir: Path) -> Path | None:
    """Where `<slide_id>.png` or `.geojson` masks lie: `data.masks`, or the synthetic cohort's own;
    else None.

    Raises:
      DataError: `data.masks` is no folder.
    """
    if config.data.masks is not None:
        folder = Path(config.data.masks)
        if not folder.is_dir():
            raise DataError(
                f"data.masks is {folder}, which is no folder; give the folder of the lesion "
                "masks, <slide_id>.png or <slide_id>.geojson, or leave data.masks unset"
            )
        return folder
    return workdir / "synthetic" / "masks" if config.data.labels is None else None


def read_mask(
    path: Path,
    dimensions: tuple[int, int],
    bounds: tuple[int, int, int, int] | None = None,
) -> Bool[np.ndarray, "h w"]:
    """A lesion mask: whatever is not black is lesion, so that 0/1 and 0/255 mean the same.

    Args:
      path: the picture, of any size; it shows the whole slide.
      dimensions: width and height of the slide.
      bounds: (x, y, width, height) of its scanned area: a mask of that area alone, as viewers that
        crop to it save one, is put in its place.

    Raises:
      DataError: it cannot be read, or shows something of another shape than the slide.
    """
    try:
        with Image.open(path) as picture:
            mask = np.asarray(picture.convert("L")) > 0
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"the lesion mask {path} cannot be read ({error}); save it as PNG, at most about "
            "10,000 px a side"
        ) from error
    height, width = mask.shape
    if not _same_shape(mask, dimensions):
        if bounds is not None and _same_shape(mask, bounds[2:]):
            return _placed(mask, dimensions, bounds)
        raise DataError(
            f"the lesion mask {path} has {width} x {height} px, the slide {dimensions[0]} x "
            f"{dimensions[1]}: a mask shows the whole slide, so its sides have the same ratio"
        )
    return mask


def _same_shape(mask: np.ndarray, size: tuple[int, ...]) -> bool:
    """Whether a mask and something of `size` (width, height) have sides of the same ratio."""
    height, width = mask.shape
    off = abs(width * size[1] / (height * size[0]) - 1)
    return off <= _ASPECT + 1 / min(width, height)


def _placed(
    mask: np.ndarray, dimensions: tuple[int, int], bounds: tuple[int, int, int, int]
) -> Bool[np.ndarray, "h w"]:
    """A mask of the scanned area as one of the whole slide, in pixels of the same size."""
    height, width = mask.shape
    scale = width / bounds[2]
    left, top = (round(side * scale) for side in bounds[:2])
    size = [round(side * scale) for side in dimensions]
    whole = np.zeros((max(size[1], top + height), max(size[0], left + width)), bool)
    whole[top : top + height, left : left + width] = mask
    return whole[: size[1], : size[0]]


def slide_mask(
    config: ConfigDict,
    workdir: Path,
    row,
    classes: tuple[str, ...],
    known: Mapping[str, Any] | None = None,
) -> Bool[np.ndarray, "h w"] | None:
    """The mask of a slide (a row of the cohort's table); None without lesion.

    A slide of the first class needs no mask: it has no lesion then. `known` are `dimensions`,
    `bounds` and `mpp` of the slide; None: those of its status.

    Raises:
      DataError: there is none for a slide of another class, or both a picture and a GeoJSON; see
        `read_mask` and `Annotations.polygons`.
    """
    folder = masks_folder(config, workdir)
    if folder is None:
        return None
    path = _mask_file(folder, row.slide_id)
    # Without classes, a slide without a mask is one of which nobody said where its lesion is.
    needed = f"slide {row.slide_id} is of class {classes[row.label]}, but " if (
        classes and row.label != 0) else ""  # fmt: skip
    if path is None:
        if not needed:
            return None
        raise DataError(
            f"{needed}has no lesion mask {folder / row.slide_id}.png or {SUFFIX}; add it (lesion "
            "white on black, or drawn in QuPath), or leave data.masks unset"
        )
    status = statuses.read(workdir, row.slide_id) if known is None else known
    bounds = status.get("bounds")
    size = tuple(status["dimensions"]), None if bounds is None else tuple(bounds)
    if path.suffix != SUFFIX:
        mask = read_mask(path, *size)
    else:
        names = tuple(config.data.mask_classes)
        mask = _drawn(Annotations(path, names, row.slide_id), *size, mpp=status["mpp"])
        if mask is None and needed:
            raise DataError(
                f"{needed}{path} has no region of class {' or '.join(names)}; draw it, or mend "
                "data.mask_classes"
            )
    return mask if mask is not None and mask.any() else None


def _mask_file(folder: Path, slide_id: str) -> Path | None:
    """A slide's mask, picture or GeoJSON; None without any."""
    paths = [tables.existing(folder / f"{slide_id}{suffix}") for suffix in (".png", SUFFIX)]
    there = [path for path in paths if path.is_file()]
    if len(there) == 2:
        raise DataError(
            f"slide {slide_id} has two lesion masks, {there[0]} and {there[1]}; keep one"
        )
    return there[0] if there else None


def problems(
    config: ConfigDict,
    workdir: Path,
    table: pd.DataFrame,
    classes: tuple[str, ...],
    known: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """What is wrong with the masks of slides before anything is made of them, a sentence each.

    Args:
      config, workdir, table, classes: as for `find`.
      known: of the slides that can be used, what `slide_mask` takes.
    """
    found = []
    if config.data.masks is None or not Path(config.data.masks).is_dir():
        return found  # which `masks_folder` tells
    for row in table[table.slide_id.isin(known.keys())].itertuples():
        try:
            slide_mask(config, workdir, row, classes, known[row.slide_id])
        except DataError as error:
            found.append(str(error))
    return found


def _drawn(
    lesion: Annotations,
    dimensions: tuple[int, int],
    bounds: tuple[int, int, int, int] | None,
    *,
    mpp: float | int,
) -> Bool[np.ndarray, "h w"] | None:
    """What was drawn in QuPath as a mask of the whole slide, in pixels of about `_DRAWN_UM`; None
    where nothing of its classes was."""
    try:
        polygons = lesion.polygons(dimensions, bounds)
    except SlideError as error:
        raise DataError(str(error)) from error
    if not polygons:
        return None
    width, height = (math.ceil(side * mpp / _DRAWN_UM) for side in dimensions)
    scale = dimensions[0] / width, dimensions[1] / height
    return annotations.mask(polygons, (width, height), scale)
