"""Which low-resolution patches are worth reading at high resolution, by their likeness to texts.

Pure NumPy on one slide's patches. Nothing here knows the slide's label (`method.md` part 3).
"""

import hashlib
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from lrmil_jax.errors import ConfigError, DataError
from lrmil_jax.heads import choice

RULES = ("max", "per_class")


def class_scores(
    patch_embedding: Float[np.ndarray, "N d"], classes: Float[np.ndarray, "C d"]
) -> Float[np.ndarray, "N C"]:
    """Cosine of every patch with every class, f32.

    Args:
      patch_embedding: LR patches in the space of the texts, of any length.
      classes: text embeddings of the classes, of any length. A vector of zeros scores 0.
    """
    # In f64 until the end: how a matrix product is blocked depends on N, and patches that look
    # the same must score the same, or ties would not go to the lower index.
    return (_unit(patch_embedding) @ _unit(classes).T).astype(np.float32)


def of_windows(
    cosines: Float[np.ndarray, "N K C"], child_mask: Bool[np.ndarray, "N K"], *, best: int
) -> Float[np.ndarray, "N C"]:
    """A patch's scores by its windows: for each class the mean of the `best` highest.

    A lesion that fills a few windows of a patch is a small part of the patch's own embedding, but
    all of theirs.

    Args:
      cosines: of every window with every class.
      child_mask: True where the window's child exists; other windows may hold anything.
      best: how many windows count, at least 1; all there are where there are fewer.

    Returns:
      Means, f32; -1, the lowest cosine, of a patch without any child.

    Raises:
      ConfigError: `best` is below 1.
    """
    if best < 1:
        raise ConfigError(f"The windows that count, best, are {best}: give at least 1.")
    count = np.minimum(child_mask.sum(1), best)[:, None]
    present = np.where(child_mask[..., None], np.asarray(cosines, np.float64), -np.inf)
    highest = -np.sort(-present, 1)[:, :best]
    counted = np.arange(highest.shape[1])[None] < count
    total = np.where(counted[..., None], highest, 0.0).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), -1.0).astype(np.float32)


def _unit(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    vectors = np.asarray(vectors, np.float64)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length != 0)


def budget(
    count_total: int, *, rho: float | int | np.floating | None = None, count: int | None = None
) -> int:
    """How many LR patches of a slide may be read at high resolution.

    Args:
      count_total: N, the slide's LR patches.
      rho: share of them, above 0 and up to 1, taken as the decimal number that it is written as:
        0.1 of 30 is 3, though the float product is above 3.
      count: their number instead, at least 1.

    Returns:
      ceil(rho N) or `count`, at least 1 and at most N; 0 of none.

    Raises:
      ConfigError: not exactly one of `rho` and `count`, or one out of its range.
    """
    if (rho is None) == (count is None):
        raise ConfigError(
            f"A budget is either a share of the patches or a number of them, not rho = {rho} with "
            f"count = {count}: set one of the two."
        )
    if rho is not None and not 0 < rho <= 1:
        raise ConfigError(f"The share of patches to read, rho, is {rho}: give 0 < rho <= 1.")
    if count is not None and count < 1:
        raise ConfigError(f"The number of patches to read is {count}: give at least 1.")
    return int(choice.size(count_total, rho=rho, count=count))


def guiding(classes: Sequence[str], names: Sequence[str]) -> Int[np.ndarray, " c"]:
    """Columns of `class_scores` by which patches are chosen.

    Args:
      classes: names of all C.
      names: `select.classes`; () is all.

    Raises:
      ConfigError: a name that is no class.
    """
    for name in names:
        if name not in classes:
            raise ConfigError(
                f"config.select.classes has {name!r}, which is no class of the slides: use "
                f"{', '.join(classes)}"
            )
    return np.array([list(classes).index(name) for name in names or classes], np.int64)


def select(
    scores: Float[np.ndarray, "N C"], size: int, *, rule: str = "max"
) -> Int[np.ndarray, "{size}"]:
    """The patches to read at high resolution.

    A larger `size` chooses the same patches and more. Ties go to the lower index.

    Args:
      scores: of each patch for each class (`class_scores`).
      size: how many to choose (`budget`).
      rule: "max", those with the largest maximum over classes; "per_class", the classes in turn
        take their best patch that is not chosen yet, so that each has its share.

    Returns:
      Indices of distinct patches, rising, int32.

    Raises:
      ConfigError: another rule, or more patches wanted than there are.
      DataError: a score is NaN.
    """
    if rule not in RULES:
        raise ConfigError(f"Unknown rule of selection {rule!r}: use {' or '.join(RULES)}.")
    _check_size(size, len(scores))
    if np.isnan(scores).any():
        raise DataError(
            f"{np.isnan(scores).any(1).sum()} of {len(scores)} patches have the score NaN: check "
            "the encoder's weights and features."
        )
    if rule == "max":
        chosen = np.argsort(-scores.max(1), kind="stable")[:size]
    else:
        chosen = _in_turn(scores, size)
    return np.sort(chosen).astype(np.int32)


def _in_turn(scores: Float[np.ndarray, "N C"], size: int) -> Int[np.ndarray, "{size}"]:
    rankings = [iter(indices) for indices in np.argsort(-scores, axis=0, kind="stable").T]
    chosen: dict[int, None] = {}
    for ranking in itertools.cycle(rankings):
        if len(chosen) == size:
            break
        chosen[next(patch for patch in ranking if patch not in chosen)] = None
    return np.fromiter(chosen, np.int64, size)


def select_random(total: int, size: int, *, seed: int, slide_id: str) -> Int[np.ndarray, "{size}"]:
    """As many patches by chance: what selection by text has to beat.

    A slide's draw depends on its name and the seed alone, not on the slides before it. A larger
    `size` draws the same patches and more.

    Args:
      total: N, the slide's LR patches.
      size: how many to draw.
      seed: not negative.
      slide_id: the slide's name.

    Returns:
      Indices of distinct patches, rising, int32.

    Raises:
      ConfigError: more patches wanted than there are.
    """
    _check_size(size, total)
    # Not hash(), which differs between processes.
    name = int.from_bytes(hashlib.sha256(slide_id.encode()).digest(), "little")
    rng = np.random.default_rng([seed, name])
    return np.sort(rng.permutation(total)[:size]).astype(np.int32)


def lesion_recall(
    lesion_share: Float[np.ndarray, " N"], chosen: Int[np.ndarray, " k"]
) -> float | None:
    """Share of the slide's lesion area that lies in the chosen patches.

    Args:
      lesion_share: share of lesion in every LR patch (`evals.localisation.lesion_share`).
      chosen: indices of distinct patches.

    Returns:
      From 0 to 1; None for a slide without lesion.
    """
    total = math.fsum(lesion_share)
    if not total:
        return None
    return math.fsum(lesion_share[chosen]) / total


def _check_size(size: int, total: int) -> None:
    if not 0 <= size <= total:
        raise ConfigError(f"{size} patches cannot be chosen out of {total}: use score.budget.")
