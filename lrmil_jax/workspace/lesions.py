"""Lesions on the LR patches of slides, and every model's attention scored against them."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from lrmil_jax.data.features import FeatureStore
from lrmil_jax.distill import guidance
from lrmil_jax.evals import localisation
from lrmil_jax.patches.shards import stored_places
from lrmil_jax.workspace import cohorts, layout, lesion_masks, statuses

log = logging.getLogger(__name__)

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
      DataError: see `lesion_masks.slide_mask`.
    """
    if lesion_masks.masks_folder(config, workdir) is None:
        return {}
    found = {}
    for place, row in enumerate(table.itertuples()):
        mask = lesion_masks.slide_mask(config, workdir, row, classes)
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
