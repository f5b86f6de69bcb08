"""What the descriptions choose on a slide, and what they add to its features."""

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from lrmil_jax.selection import fuse, score, shared_space


def choose(
    config: ConfigDict, space: shared_space.SharedSpace, embedding: np.ndarray, slide_id: str
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N, C] of a slide's LR patches, and the places of those chosen."""
    settings = config.select
    scores = score.class_scores(np.asarray(space.project(embedding)), space.texts.embedding)
    count = settings.count or None
    size = score.budget(len(scores), rho=None if count else settings.rho, count=count)
    if settings.rule == "random":
        return scores, score.select_random(len(scores), size, seed=config.seed, slide_id=slide_id)
    return scores, score.select(scores[:, guides(config, space)], size, rule=settings.rule)


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
