"""Attention scored against lesion masks: does a slide classifier look where the lesion is?

All is per LR patch of one slide. A patch's lesion share is compared with its attention in two
ways: how well attention ranks patches with lesion above those without (AUC), and how much of the
lesion's area the patches above a threshold cover (Dice).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from lrmil_jax.evals import intervals


def lesion_share(
    mask: Bool[np.ndarray, "h w"],
    dimensions: tuple[int, int],
    xy: Int[np.ndarray, "N 2"],
    side: int,
) -> Float[np.ndarray, " N"]:
    """Share of lesion in every patch, exact for a mask of any size.

    A patch that hangs over the slide's edge counts with the part of it that lies on the slide,
    as nothing is known of the rest; one that is all outside has none.

    Args:
      mask: of the whole slide, True where there is lesion.
      dimensions: width and height of the slide in level-0 px.
      xy: level-0 corners of the patches.
      side: of a patch in level-0 px.
    """
    # Patches of a lattice share rows and columns, so that two thin matrix products do.
    (columns, across), (rows, down) = (
        _overlaps(xy[:, axis], side, dimensions[axis], mask.shape[1 - axis]) for axis in (0, 1)
    )
    lesion = (rows @ mask.astype(np.float32) @ columns.T)[down, across]
    inside = rows.sum(1)[down] * columns.sum(1)[across]
    share = np.divide(lesion, inside, out=np.zeros(len(xy)), where=inside > 0)
    # To a millionth: what rounding leaves beside a lesion is none, and a patch inside it is full.
    return np.round(share, 6)


def _overlaps(
    starts: Int[np.ndarray, " N"], side: int, length: int, pixels: int
) -> tuple[Float[np.ndarray, "U pixels"], Int[np.ndarray, " N"]]:
    """How much of each distinct interval lies in each mask pixel, and which interval is whose."""
    distinct, place = np.unique(starts, return_inverse=True)
    edges = np.linspace(0, length, pixels + 1)
    low = np.maximum(distinct[:, None], edges[None, :-1])
    high = np.minimum(distinct[:, None] + side, edges[None, 1:])
    # In mask pixels, so that the sums stay small.
    return (np.clip(high - low, 0, None) * (pixels / length)).astype(np.float32), place


def relative(attention: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Attention x N, so that 1 is what every patch of the slide gets if all get the same."""
    attention = np.asarray(attention, np.float64)
    mean = attention.mean()
    return attention / mean if mean > 0 else attention


def attention_auc(
    attention: Float[np.ndarray, " N"], share: Float[np.ndarray, " N"], *, lesion_share: float | int
) -> float | None:
    """How often a patch with lesion gets more attention than one without, ties counted half.

    Patches with less than `lesion_share` of lesion, but some, are neither and are left out.

    Args:
      attention: of each patch, on any scale.
      share: lesion share of each.
      lesion_share: from which share on a patch counts as lesion, above 0.

    Returns:
      The AUC, or None if the slide lacks patches of one kind.
    """
    lesion, clear = attention[share >= lesion_share], np.sort(attention[share == 0])
    if not len(lesion) or not len(clear):
        return None
    # Below and not above, on both sides of the ties: twice the wins.
    wins = [np.searchsorted(clear, lesion, where).sum() for where in ("left", "right")]
    return float(sum(wins) / (2 * len(lesion) * len(clear)))


def dice(
    attention: Float[np.ndarray, " N"], share: Float[np.ndarray, " N"], threshold: float | int
) -> float:
    """Overlap of the lesion's area and the patches whose `relative` attention is high enough.

    Twice the lesion area in these patches, by their area and the lesion's together. 1 needs patches
    that are all lesion: a patch with a small lesion costs precision.

    Args:
      attention: of each patch of a slide, on any scale.
      share: lesion share of each; the slide has lesion.
      threshold: least attention, 1 being the slide's mean.
    """
    chosen = relative(attention) >= threshold
    return float(2 * share[chosen].sum() / (chosen.sum() + share.sum()))


def highest_dice(share: Float[np.ndarray, " N"]) -> float:
    """What `dice` would be for the best choice of whole patches: no attention can do better."""
    covered = np.cumsum(np.sort(share)[::-1])
    count = np.arange(1, len(share) + 1)
    return float((2 * covered / (count + share.sum())).max())


def best_threshold(
    attentions: Sequence[Float[np.ndarray, "_"]], shares: Sequence[Float[np.ndarray, "_"]]
) -> float | None:
    """The threshold of highest mean Dice over slides with lesion, out of all that differ.

    For validation slides: a threshold chosen on the slides that it is then used on flatters.

    Args:
      attentions, shares: one array a slide, as for `dice`.

    Returns:
      The highest of equally good thresholds; None without slides.
    """
    if not attentions:
        return None
    values = [relative(attention) for attention in attentions]
    candidates = np.unique(np.concatenate(values))[::-1]
    total = np.zeros(len(candidates))
    for attention, share in zip(values, shares, strict=True):
        order = np.argsort(-attention)
        count = np.searchsorted(-attention[order], -candidates, "right")
        covered = np.concatenate([[0.0], np.cumsum(share[order])])[count]
        total += 2 * covered / (count + share.sum())
    return float(candidates[np.argmax(total)])


def summary(folds: Sequence[pd.DataFrame]) -> dict:
    """One model's figures over slides with lesion, the mean over the folds' models.

    Args:
      folds: of each fold one row a slide: `slide_id`, `case_id` (its patient), `auc`, `dice`, empty
        where undefined, and `highest_dice`.

    Returns:
      `slides`, `patients`, each counted once; `auc` and `dice`, means over folds of the mean over
      the slides that define them (None without any), `auc_sd` between slides, 95 % intervals
      `auc_interval` and `dice_interval` as `intervals.summarise` gives them, and the mean
      `highest_dice`.
    """
    slides = pd.concat(folds)
    result = {"slides": slides.slide_id.nunique(), "patients": slides.case_id.nunique()}
    for name in ("auc", "dice", "highest_dice"):
        measured = [
            intervals.over_rows(fold[name].to_numpy(np.float64), fold.case_id.to_numpy(str))
            for fold in folds
        ]
        over_folds = intervals.summarise(measured)
        result[name] = over_folds.mean
        if name != "highest_dice":
            result[f"{name}_interval"] = over_folds.interval
        if name == "auc":
            defined = slides.auc.dropna()
            result["auc_sd"] = float(defined.std()) if len(defined) > 1 else None
    return result
