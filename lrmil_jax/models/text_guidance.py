"""What the descriptions choose on a slide, and what they add to its features."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from lrmil_jax.selection import fuse, score, shared_space, windows
from lrmil_jax.train.encode import Encoder


def choose(
    config: ConfigDict,
    space: shared_space.SharedSpace,
    rows: Float[np.ndarray, "N E"],
    child_mask: Bool[np.ndarray, "N r r"],
    slide_id: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N, C] of a slide's LR patches, and the places of those chosen.

    Args:
      config: `select` and `seed` of the run.
      space: classes and images in one space.
      rows: LR features, as the `scoring_encoder` gives them.
      child_mask: True where a child exists.
      slide_id: the slide's name, of which a choice by chance depends.
    """
    settings = config.select
    scores = _scores(config, space, rows, child_mask)
    count = settings.count or None
    size = score.budget(len(scores), rho=None if count else settings.rho, count=count)
    if settings.rule == "random":
        return scores, score.select_random(len(scores), size, seed=config.seed, slide_id=slide_id)
    return scores, score.select(scores[:, guides(config, space)], size, rule=settings.rule)


def scoring_encoder(
    config: ConfigDict, space: shared_space.SharedSpace, encoder: Encoder, *, ratio: int
) -> Encoder:
    """The LR encoder as `select.score` needs it: with the cosines of its windows, or as it is.

    Args:
      config: `select` of the run.
      space: classes and images in one space.
      encoder: of LR tiles, of the `VisionTransformer` family.
      ratio: r, children per side.
    """
    if not _columns(config, space, ratio):
        return encoder
    params = {"tower": encoder.params, "texts": space.texts.embedding}
    if space.kernel is not None:
        params["projection"] = space.kernel
    module = windows.Compared(encoder.module, ratio)
    return dataclasses.replace(encoder, module=module, params=params)


def embeddings(
    config: ConfigDict, space: shared_space.SharedSpace, rows: Float[np.ndarray, "N E"], ratio: int
) -> Float[np.ndarray, "N D"]:
    """The patches' own embeddings, of what the `scoring_encoder` gives."""
    return rows[:, : rows.shape[1] - _columns(config, space, ratio)]


def _columns(config: ConfigDict, space: shared_space.SharedSpace, ratio: int) -> int:
    classes = len(space.texts.classes)
    return windows.columns(config.select.score, windows=ratio, classes=classes)


def _scores(
    config: ConfigDict,
    space: shared_space.SharedSpace,
    rows: Float[np.ndarray, "N E"],
    child_mask: Bool[np.ndarray, "N r r"],
) -> Float[np.ndarray, "N C"]:
    added = _columns(config, space, child_mask.shape[-1])
    if not added:
        return score.class_scores(np.asarray(space.project(rows)), space.texts.embedding)
    mask = child_mask.reshape(len(rows), -1)
    cosines = rows[:, -added:].reshape(*mask.shape, -1)
    return score.of_windows(cosines, mask, best=config.select.windows)


def guides(config: ConfigDict, space: shared_space.SharedSpace) -> Int[np.ndarray, " c"]:
    """The classes, as columns of scores, whose descriptions choose.

    Raises:
      ConfigError: `select.classes` has a name that is no class.
    """
    return score.guiding(space.texts.classes, config.select.classes)


def fused_features(
    config: ConfigDict, space: shared_space.SharedSpace, embedding: Float[np.ndarray, "n D"]
) -> Float[np.ndarray, "n E"]:
    """Rows for MIL: each patch's feature with what the descriptions say of it."""
    feature = np.asarray(embedding, np.float32)
    if config.fuse.how == "none":
        return feature
    mask = np.ones(len(feature), bool)
    fusion = fuse.FUSIONS[config.fuse.how]
    projected = np.asarray(space.project(feature))
    return np.asarray(fusion(feature, projected, space.texts.embedding, mask, tau=config.fuse.tau))
