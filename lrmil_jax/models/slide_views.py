"""Test slides as pages show them, made of what the run keeps: no slide file is read again."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict
from PIL import Image
from scipy.special import softmax

from lrmil_jax.data.features import FeatureStore
from lrmil_jax.data.schema import Geometry
from lrmil_jax.patches.shards import Shards
from lrmil_jax.report import outlines
from lrmil_jax.report.slide_page import ShownPatch, SlidePage
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.workspace import cohorts, layout, lesion_masks, statuses

# Pixels of all patches of a picture, which make about a megabyte of JPEG; and of it all.
_MOST_PX, _MOST_CANVAS = 3_000_000, 48_000_000
_SHOWN = 8  # patches of most, and of least, attention


@dataclasses.dataclass(frozen=True)
class Mosaic:
    """The LR patches of a slide where they lie, small.

    Attributes:
      picture: white where no patch is.
      origin: level-0 corner of it; downsample: level-0 px per px.
      xy: [N, 2] level-0 corners of all LR patches; side: theirs.
    """

    picture: UInt8[np.ndarray, "h w 3"]
    origin: tuple[int, int]
    downsample: float
    xy: Int[np.ndarray, "N 2"]
    side: int


def mosaic(shards: Shards, patch_px: int, *, patches: int) -> Mosaic:
    """Reads every LR patch once; `patches` is how many there are, which decides their size."""
    sizes = [px for px in range(patch_px, 0, -1) if patch_px % px == 0]
    px = next((px for px in sizes if patches * px**2 <= _MOST_PX), 1)
    tiles, corners, side = [], [], 1
    for region in shards.regions(None, high=False):
        tiles.append(np.asarray(Image.fromarray(region.images[0]).reduce(patch_px // px)))
        corners.append(region.xy)
        side = region.side
    xy = np.stack(corners).astype(np.int64)
    low, high = xy.min(0), xy.max(0) + side
    while px > 1 and np.prod((high - low) / side * px) > _MOST_CANVAS:
        px //= 2
        tiles = [np.asarray(Image.fromarray(tile).resize((px, px))) for tile in tiles]
    width, height = np.ceil((high - low) / side * px).astype(int)
    picture = np.full((height, width, 3), 255, np.uint8)
    for tile, (x, y) in zip(tiles, np.round((xy - low) / side * px).astype(int), strict=True):
        place = picture[y : y + px, x : x + px]
        place[:] = tile[: place.shape[0], : place.shape[1]]
    return Mosaic(picture, (int(low[0]), int(low[1])), side / px, xy, side)


def pages(
    config: ConfigDict,
    workdir: Path,
    rows: pd.DataFrame,
    head: BagModel,
    store: FeatureStore,
    cases: Sequence[str],
    *,
    fold: int,
    high: bool,
    chosen: Callable[[str], np.ndarray | None],
) -> Iterator[SlidePage]:
    """What the pages of some slides are made of, one after the other.

    Args:
      config, workdir: of the run.
      rows: of the cohort's table, with `is_wrong`.
      head, store, cases: of the fold, as for `drawings.save_attention`.
      fold: whose test slides they are.
      high: the model's patches are HR patches.
      chosen: the LR patches of a slide whose HR patches were read; None where all were, or none.
    """
    geometry, predictions = cohorts.geometry(config), head.on(store, cases)
    classes = cohorts.prepared(config, workdir).classes
    for row, told in zip(rows.itertuples(), head.task.truth_in_words(rows), strict=True):
        index = store.slide_ids.index(row.slide_id)
        logits, scores = predictions.slide(index)
        values = head.task.link(logits)
        status = statuses.read(workdir, row.slide_id)
        shards = Shards(
            layout.shard(layout.regions_folder(workdir), row.slide_id),
            geometry,
            threads=config.encoder.threads,
        )
        made = mosaic(shards, geometry.patch_px, patches=status["lr_patches"])
        places, attention = store.places(index), softmax(scores)
        order = np.argsort(-attention, kind="stable") if head.has_attention else np.zeros(0, int)
        ranked = order.tolist()
        most, least = ranked[:_SHOWN], ranked[max(_SHOWN, len(ranked) - _SHOWN) :][::-1]
        images = patch_images(
            shards, places, [*most, *least], geometry=geometry, mosaics=high and bool(status["hr"])
        )
        regions = chosen(row.slide_id)
        patches = f"{len(attention)} of {'HR' if high else 'LR'}"
        lesion = lesion_masks.slide_mask(config, workdir, row, classes)
        yield SlidePage(
            name=row.slide_id,
            facts=[
                ("patient", f"{row.patient_id}, tested in fold {fold}"),
                ("truth", told),
                *_predicted(head, values),
                ("patches", f"{patches}, {status['mpp']:.3g} um/px at level 0"),
            ],
            verdict=f"{head.task.sentence(values)} ({told})",
            is_wrong=row.is_wrong,
            picture=made.picture,
            origin=made.origin,
            downsample=made.downsample,
            mpp=status["mpp"],
            xy=np.asarray(places["xy"]),
            side=made.side // geometry.ratio if high else made.side,
            attention=attention,
            regions=None if regions is None else made.xy[regions],
            region_side=made.side,
            lesions=() if lesion is None else _rings(lesion, status),
            most=[ShownPatch(i, image) for i, image in zip(most, images, strict=False)],
            least=[ShownPatch(i, image)
                   for i, image in zip(least, images[len(most) :], strict=True)],
        )  # fmt: skip


def _predicted(head: BagModel, values: np.ndarray) -> list[tuple[str, str]]:
    """What the head predicts, and what it lacks, as facts of a page."""
    facts = [(part, f"{value:.3g}") for part, value in zip(head.task.parts, values, strict=True)]
    if not head.has_attention:
        facts.append(("attention", "none: this head weighs all patches alike"))
    return facts


def _rings(lesion: np.ndarray, status: Mapping[str, Any]) -> list[np.ndarray]:
    width, height = status["dimensions"]
    return outlines.outlines(lesion, (width, height))


def patch_images(
    shards: Shards,
    places: dict[str, np.ndarray],
    indices: Sequence[int],
    *,
    geometry: Geometry,
    mosaics: bool,
) -> list[UInt8[np.ndarray, "h w 3"]]:
    """What patches of a slide look like: LR tiles or, of HR patches, children.

    Args:
      shards: of the slide.
      places: `parent` and `child` of its patches (`FeatureStore.places`).
      indices: of the patches.
      geometry: of the run.
      mosaics: HR patches are stored; without them, an HR patch is what the LR tile has of it.
    """
    parents = [int(places["parent"][index]) for index in indices]
    children = [int(places["child"][index]) for index in indices]
    needed = sorted(set(parents))
    regions = {one.index: one for one in shards.regions(needed, high=mosaics)}
    images = []
    for parent, child in zip(parents, children, strict=True):
        region = regions[parent]
        if child < 0:
            images.append(np.asarray(region.images[0]))
        elif mosaics:
            before = int(region.child_mask.ravel()[:child].sum())
            images.append(np.asarray(region.images[before]))
        else:
            v, u = divmod(child, geometry.ratio)
            px = geometry.patch_px // geometry.ratio
            images.append(region.images[0][v * px : (v + 1) * px, u * px : (u + 1) * px])
    return images
