"""One slide's features of another tool, taken over into this package's files.

This runs in worker processes, one slide each; memory is bounded by one slide's features.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from lrmil_jax.data import features
from lrmil_jax.data.features import SlideFeatures
from lrmil_jax.errors import DataError, SlideError, WorkdirError
from lrmil_jax.interchange import grid
from lrmil_jax.interchange.bag import Bag
from lrmil_jax.interchange.slides import FeatureJob, OpenBags, open_bags, row_major
from lrmil_jax.places import NO_PLACE


@dataclasses.dataclass(frozen=True)
class TakeOver:
    """What is written of a slide's features.

    Attributes:
      job: the slide.
      files: by resolution, the feature file of this package.
      targets: a further file of the HR features, one record an LR patch, for stage 1; or None.
      dtype: "float16" or "bfloat16".
      block: rows a record.
    """

    job: FeatureJob
    files: Mapping[str, Path]
    targets: Path | None
    dtype: str
    block: int


def take_over(task: TakeOver) -> str:
    """Writes a slide's features; never raises for a bad slide.

    Returns:
      Why it could not be done; "" if it was.

    Raises:
      WorkdirError: the disk is full or read-only, which concerns every slide.
    """
    try:
        opened = open_bags(task.job)
        if "lr" in task.files:
            _write(task, "lr", _low_rows(opened, task.job.settings.geometry.ratio))
        if "hr" in task.files:
            _write(task, "hr", _high_rows(task.job, opened))
    except WorkdirError:
        raise
    except SlideError as error:
        return str(error)
    except Exception as error:  # one slide's surprise must not stop the others
        return f"{task.job.slide_id}: {type(error).__name__}: {error}"
    return ""


def _low_rows(opened: OpenBags, ratio: int) -> SlideFeatures:
    bag = opened.bags["lr"]
    count = bag.shape[0]
    order = np.arange(count) if bag.xy is None else row_major(bag.xy)
    mask = np.zeros((count, ratio, ratio), bool)
    return SlideFeatures(
        embedding=_ordered(bag, order),
        xy=_xy(bag, order),
        parent=np.arange(count, dtype=np.int32),
        child=np.full(count, -1, np.int32),
        child_mask=mask if opened.parents is None else opened.parents.child_mask,
    )


def _high_rows(job: FeatureJob, opened: OpenBags) -> SlideFeatures:
    bag, parents, ratio = opened.bags["hr"], opened.parents, job.settings.geometry.ratio
    count = bag.shape[0]
    if parents is None:
        nobody, order = np.full(count, -1, np.int32), np.arange(count)
        mask = np.zeros((count, ratio, ratio), bool)
        return SlideFeatures(_ordered(bag, order), _xy(bag, order), nobody, nobody, mask)
    if job.with_tiles:  # some LR tiles may not have been readable
        from lrmil_jax.patches.shards import stored_places  # late: it brings JAX

        places = stored_places(job.shard, job.settings.geometry)
        parents = grid.from_lr_patches(
            bag.xy, places.xy, side=bag.side, step=bag.step, lr_side=places.side, ratio=ratio
        )
    # By LR patch for who works with them; else as the file has them, so that they come back alike.
    order = np.lexsort((parents.child, parents.parent)) if job.with_parents else np.arange(count)
    if job.with_tiles:
        order = order[parents.parent[order] >= 0]
    parent = parents.parent[order]
    return SlideFeatures(
        embedding=_ordered(bag, order),
        xy=_xy(bag, order),
        parent=parent.astype(np.int32),
        child=np.where(parent < 0, -1, parents.child[order]).astype(np.int32),
        child_mask=parents.child_mask[parent] & (parent >= 0)[:, None, None],
    )


def _ordered(bag: Bag, order: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m D"]:
    values = np.asarray(bag.features())
    if values.shape != bag.shape:
        raise SlideError(f"its features have shape {values.shape}, not {bag.shape}; copy it again")
    same = len(order) == len(values) and bool((np.diff(order) == 1).all())
    return values if same else values[order]


def _xy(bag: Bag, order: Int[np.ndarray, " m"]) -> Int[np.ndarray, "m 2"]:
    if bag.xy is None:
        return np.full((len(order), 2), NO_PLACE, np.int32)
    return bag.xy[order].astype(np.int32)


def _write(task: TakeOver, level: str, rows: SlideFeatures) -> None:
    """Writes what is not there yet; the file that the stage looks for comes last.

    Raises:
      SlideError: a feature is not finite, or does not fit the type.
    """
    name = task.job.slide_id
    try:
        if level == "hr" and task.targets is not None:
            features.write(task.targets, name, rows, dtype=task.dtype, block=None)
        features.write(task.files[level], name, rows, dtype=task.dtype, block=task.block)
    except DataError as error:
        raise SlideError(_not_finite(task.job.bags[level].path, rows) or str(error)) from error


def _not_finite(path: Path | None, rows: SlideFeatures) -> str:
    """The sentence for features that were no numbers already; "" if they only do not fit."""
    bad = ~np.isfinite(np.asarray(rows.embedding, np.float32)).all(1)
    if not bad.any():
        return ""
    return (
        f"{path} has features that are not finite in {bad.sum()} of its {len(bad)} patches; "
        "extract them again (half precision overflows in some encoders)"
    )
