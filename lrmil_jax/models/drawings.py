"""Single test slides drawn for the report: where a model looked, and why it read there."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict
from scipy.special import softmax

from lrmil_jax.data import slide_files
from lrmil_jax.data.features import FeatureStore
from lrmil_jax.models import text_guidance
from lrmil_jax.models.result import picture
from lrmil_jax.report import heatmap
from lrmil_jax.selection import shared_space
from lrmil_jax.slides import open_slide
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.workspace import cohorts, feature_sets, stage_files, statuses


def thumbnail(config: ConfigDict, workdir: Path, row) -> tuple[np.ndarray, float, int]:
    """What is drawn on, level-0 px per px of it, and the side of an LR patch in level-0 px."""
    mpp = slide_files.given_mpp(row)
    with open_slide(
        row.path, mpp, reader=config.prepare.reader, trust_mpp=config.data.trust_mpp
    ) as slide:
        background, downsample = picture(slide, cohorts.geometry(config))
    status = statuses.read(workdir, row.slide_id)
    return background, downsample, cohorts.patch_side(config, status, "lr")


def save_attention(
    config: ConfigDict,
    workdir: Path,
    folder: Path,
    rows: pd.DataFrame,
    head: BagModel,
    store: FeatureStore,
    cases: Sequence[str],
    *,
    fold: int,
    high: bool,
) -> list[tuple[str, str]]:
    """Attention of a head on some slides, over their thumbnails; names and titles.

    Args:
      config, workdir: of the run.
      folder: the pictures go below it.
      rows: of the cohort's table.
      head, store: of the fold; the store holds these slides, and those in a bag with them.
      cases: of the slides of the store.
      fold: for the pictures' names.
      high: its patches are HR patches.
    """
    pictures, predictions = [], head.on(store, cases)
    for row, truth in zip(rows.itertuples(), head.task.truth_in_words(rows), strict=True):
        index = store.slide_ids.index(row.slide_id)
        logits, scores = predictions.slide(index)
        name = f"heatmaps/fold_{fold}-{row.slide_id}.png"
        sentence = head.task.sentence(head.task.link(logits))
        title = f"{row.slide_id}: {sentence} ({truth})"
        background, downsample, side = thumbnail(config, workdir, row)
        if high:
            side //= cohorts.geometry(config).ratio
        patches = store.places(index)["xy"], side, softmax(scores)
        heatmap.save(folder / name, background, downsample, *patches, title=title)
        pictures.append((name, title))
    return pictures


def save_regions(
    config: ConfigDict, workdir: Path, folder: Path, drawn: pd.DataFrame
) -> list[tuple[str, str]]:
    """The likeness to the descriptions of test slides, `fold` and `slide_id`, and the regions that
    it chose; names and titles."""
    space = shared_space.SharedSpace(stage_files.texts_path(workdir))
    return save_choices(
        config,
        workdir,
        folder,
        drawn,
        functools.partial(feature_sets.selecting_store, config, workdir),
        guides=text_guidance.guides(config, space),
        label=heatmap.LIKENESS,
    )


def save_choices(
    config: ConfigDict,
    workdir: Path,
    folder: Path,
    drawn: pd.DataFrame,
    bags: Callable[[int, Sequence[str]], FeatureStore],
    *,
    stage: str = "select",
    guides: Sequence[int] | np.ndarray = (0,),
    label: str = heatmap.CHOICE,
) -> list[tuple[str, str]]:
    """The scores by which test slides' regions were chosen, and these; names and titles.

    Args:
      config, workdir: of the run.
      folder: the pictures go below it.
      drawn: `fold` and `slide_id` of the slides.
      bags: a fold's LR features of some slides, which know where these lie.
      stage: that left the choice.
      guides: columns of the scores, of which the highest counts.
      label: what they are.
    """
    cohort, pictures = cohorts.prepared(config, workdir), []
    for fold, of_fold in drawn.groupby("fold"):
        fold, names = int(fold), of_fold.slide_id.tolist()
        rows = cohort.slides(fold, "test").set_index("slide_id").loc[names].reset_index()
        store = bags(fold, names)
        for index, row in enumerate(rows.itertuples()):
            scores, chosen = stage_files.read_chosen(workdir, fold, row.slide_id, stage)
            name = f"regions/fold_{fold}-{row.slide_id}.png"
            title = f"{row.slide_id}: {len(chosen)} of {len(scores)} regions read at high power"
            background, downsample, side = thumbnail(config, workdir, row)
            heatmap.save(
                folder / name,
                background,
                downsample,
                store.places(index)["xy"],
                side,
                scores[:, guides].max(1),
                title=title,
                label=label,
                outlined=chosen,
            )
            pictures.append((name, title))
    return pictures
