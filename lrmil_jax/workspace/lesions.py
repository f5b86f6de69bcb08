"""Lesion masks beside the slides, and every model's attention scored against them."""

import dataclasses
import logging
import math
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict
from PIL import Image

from lrmil_jax.data import tables
from lrmil_jax.data.features import FeatureStore
from lrmil_jax.distill import guidance
from lrmil_jax.errors import DataError, SlideError
from lrmil_jax.evals import localisation
from lrmil_jax.patches.shards import stored_places
from lrmil_jax.slides import annotations
from lrmil_jax.slides.annotations import SUFFIX, Annotations
from lrmil_jax.workspace import cohorts, layout, statuses

log = logging.getLogger(__name__)

_DRAWN_UM = 4.0
# Relative difference of aspect ratios that is no mistake: slides are cropped to whole tiles.
_ASPECT = 0.03
COLUMNS = (
    *("slide_id", "case_id", "model"),
    *("auc", "dice", "highest_dice", "patches", "lesion_patches"),
)


@dataclasses.dataclass(frozen=True)
class Lesion:
    """Where a slide's lesion lies on its LR patches.

    Attributes:
      share: [N] lesion share of each LR patch, not all 0.
      xy: [N, 2] their level-0 corners.
    """

    share: Float[np.ndarray, " N"]
    xy: Int[np.ndarray, "N 2"]


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
    config: ConfigDict, workdir: Path, row, classes: tuple[str, ...]
) -> Bool[np.ndarray, "h w"] | None:
    """The mask of a slide (a row of the cohort's table); None without lesion.

    A slide of the first class needs no mask: it has no lesion then.

    Raises:
      DataError: there is none for a slide of another class, or both a picture and a GeoJSON; see
        `read_mask` and `Annotations.polygons`.
    """
    folder = masks_folder(config, workdir)
    if folder is None:
        return None
    picture, drawn = (
        tables.existing(folder / f"{row.slide_id}{suffix}") for suffix in (".png", SUFFIX)
    )
    if picture.is_file() and drawn.is_file():
        raise DataError(
            f"slide {row.slide_id} has two lesion masks, {picture} and {drawn}; keep one"
        )
    status = statuses.read(workdir, row.slide_id)
    bounds = status.get("bounds")
    size = tuple(status["dimensions"]), None if bounds is None else tuple(bounds)
    # Without classes, a slide without a mask is one of which nobody said where its lesion is.
    needs = bool(classes) and row.label != 0
    if drawn.is_file():
        names = tuple(config.data.mask_classes)
        mask = _drawn(Annotations(drawn, names, row.slide_id), *size, mpp=status["mpp"])
        if mask is None and needs:
            raise DataError(
                f"slide {row.slide_id} is of class {classes[row.label]}, but {drawn} has no region "
                f"of class {' or '.join(names)}; draw it, or mend data.mask_classes"
            )
    elif picture.is_file():
        mask = read_mask(picture, *size)
    elif needs:
        raise DataError(
            f"slide {row.slide_id} is of class {classes[row.label]}, but has no lesion mask "
            f"{picture} (or {SUFFIX}); add it (lesion white on black), or leave data.masks unset"
        )
    else:
        return None
    return mask if mask is not None and mask.any() else None


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


def find(
    config: ConfigDict,
    workdir: Path,
    table: pd.DataFrame,
    classes: tuple[str, ...],
    low: FeatureStore | None,
) -> dict[int, Lesion]:
    """The slides with lesion, by their place in the table.

    Args:
      config, workdir: of the run.
      table: of the cohort, with the slides in question.
      classes: names of the labels.
      low: LR features of the same slides, which know where patches lie; None reads the regions.

    Raises:
      DataError: see `slide_mask`.
    """
    if masks_folder(config, workdir) is None:
        return {}
    found = {}
    for place, row in enumerate(table.itertuples()):
        mask = slide_mask(config, workdir, row, classes)
        if mask is None:
            continue
        status = statuses.read(workdir, row.slide_id)
        xy = _stored_xy(config, workdir, row.slide_id) if low is None else low.places(place)["xy"]
        side = cohorts.patch_side(config, status, "lr")
        width, height = status["dimensions"]
        share = localisation.lesion_share(mask, (width, height), xy, side)
        if share.any():
            found[place] = Lesion(share, xy)
        else:
            log.warning("slide %s: its lesion lies outside all patches", row.slide_id)
    return found


def _stored_xy(config: ConfigDict, workdir: Path, slide_id: str) -> np.ndarray:
    shard = layout.shard(layout.regions_folder(workdir), slide_id)
    return stored_places(shard, cohorts.geometry(config)).xy


def lr_attention(
    scores: Float[np.ndarray, "K"], store: FeatureStore, place: int, patches: int
) -> Float[np.ndarray, " N"]:
    """A model's attention over the LR patches of a slide; it sums to 1.

    Attention on HR patches, the teacher's, is summed within each LR patch.

    Args:
      scores: attention logits of the patches that the model reads, HR or LR.
      store: their features; place: the slide's place in it.
      patches: number of LR patches.
    """
    parent = store.places(place)["parent"]
    return np.asarray(guidance.mass(scores, parent, patches, np.ones(len(parent), bool)))


def attention_table(
    config: ConfigDict,
    table: pd.DataFrame,
    lesions: dict[int, Lesion],
    attentions: dict[str, dict[int, np.ndarray]],
    val: Bool[np.ndarray, " S"],
) -> tuple[pd.DataFrame, dict[str, float | None]]:
    """Every model's attention against every lesion.

    Args:
      config: of the run; `evaluate.lesion_share`.
      table: of the cohort; lesions and attentions name slides by their place in it.
      lesions: of the slides that have one.
      attentions: by model and slide, over LR patches.
      val: [S] True for validation slides, whose Dice chooses the threshold; the rest is tested.

    Returns:
      One row a model and slide with `COLUMNS` and `split`, and each model's threshold.
    """
    least = config.evaluate.lesion_share
    rows, thresholds = [], {}
    for model, maps in attentions.items():
        chosen = [place for place in lesions if val[place]]
        threshold = localisation.best_threshold(
            [maps[place] for place in chosen], [lesions[place].share for place in chosen]
        )
        thresholds[model] = threshold
        if threshold is None:
            log.warning("%s: no validation slide has lesion, so Dice has no threshold", model)
        for place, lesion in lesions.items():
            share, attention = lesion.share, maps[place]
            auc = localisation.attention_auc(attention, share, lesion_share=least)
            overlap = None if threshold is None else localisation.dice(attention, share, threshold)
            slide, case = table.slide_id[place], table.case_id[place]
            counts = len(share), int((share >= least).sum())
            scores = auc, overlap, localisation.highest_dice(share)
            rows.append((slide, case, model, *scores, *counts, "val" if val[place] else "test"))
    frame = pd.DataFrame(rows, columns=[*COLUMNS, "split"])
    return frame.astype({"auc": float, "dice": float}), thresholds
