"""What the class texts say of each patch, put beside or into its features; nothing is learned.

All is for one slide, in f32, in NumPy where NumPy is given; `jax.vmap` takes it to batches of
slides. z (the patches in the space
of the texts) and the classes may have any length, they are normalised here; features are taken as
they are. tau sharpens: near 0 all classes count alike, the larger the more the nearest alone.
Source: `method.md` part 3.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Shaped

from lrmil_jax.arrays import f32, namespace, softmax
from lrmil_jax.distill.masked import positive
from lrmil_jax.encoders.contrastive import normalise
from lrmil_jax.errors import ConfigError
from lrmil_jax.types import AnyArray, Number


def text_context(
    z: Float[AnyArray, "N d"], classes: Float[AnyArray, "C d"], *, tau: Number
) -> Float[AnyArray, "N d"]:
    """`sum_c softmax_c(tau <z, T_c>) T_c`: the mean of the classes' texts, the nearest first.

    Args:
      z: patches in the space of the texts.
      classes: text embeddings T of the classes.
      tau: above 0; the vision-language model's logit scale is a good one.

    Raises:
      ConfigError: tau is not above 0.
    """
    weights = softmax(_logits(z, classes, tau))
    return _product(weights, normalise(classes))


def concatenate(
    feature: Float[AnyArray, "N D"],
    z: Float[AnyArray, "N d"],
    classes: Float[AnyArray, "C d"],
    *,
    tau: Number,
) -> Float[AnyArray, "N width"]:
    """`[feature ; text_context]`, D + d wide; arguments as for `text_context`."""
    context = text_context(z, classes, tau=tau)
    return namespace(feature, context).concatenate([f32(feature), context], -1)


def residual(
    z: Float[AnyArray, "N d"], classes: Float[AnyArray, "C d"], *, tau: Number
) -> Float[AnyArray, "N d"]:
    """`normalise(z + text_context)`, z of length 1; arguments as for `text_context`."""
    return normalise(normalise(z) + text_context(z, classes, tau=tau))


def cross_attention(
    feature: Float[AnyArray, "N D"],
    z: Float[AnyArray, "N d"],
    classes: Float[AnyArray, "C d"],
    mask: Shaped[AnyArray, "N"],
    *,
    tau: Number,
) -> Float[AnyArray, "N width"]:
    """The classes ask the whole slide, and each patch hears the answers to what it looks like.

    `v_c = sum_j softmax_j(tau <z_j, T_c>) feature_j` over the slide's patches, then
    `[feature_i ; sum_c softmax_c(tau <z_i, T_c>) v_c]`, 2 D wide.

    Args:
      feature: of each patch, of any length.
      z: patches in the space of the texts.
      classes: text embeddings T of the classes.
      mask: True for real patches; the others may hold anything, and get zeros.
      tau: above 0.

    Raises:
      ConfigError: tau is not above 0.
    """
    feature, z = _masked(feature, mask), _masked(z, mask)
    logits = _logits(z, classes, tau)
    xp = namespace(feature, logits)
    patch_weights = softmax(logits.T, xp.asarray(mask).astype(bool)[None])
    class_features = _product(patch_weights, feature)
    context = _product(softmax(logits), class_features)
    return _masked(xp.concatenate([feature, context], -1), mask)


def width(name: str, feature_width: int, text_width: int) -> int:
    """Columns that a fusion of `FUSIONS` gives, from D of the features and d of the texts.

    Raises:
      ConfigError: unknown fusion.
    """
    widths = {
        "concatenate": feature_width + text_width,
        "residual": text_width,
        "cross_attention": 2 * feature_width,
    }
    if name not in widths:
        raise ConfigError(f"Unknown fusion {name!r}: use {', '.join(widths)}.")
    return widths[name]


def _concatenate(feature, z, classes, mask, *, tau):
    return _masked(concatenate(_masked(feature, mask), _masked(z, mask), classes, tau=tau), mask)


def _residual(feature, z, classes, mask, *, tau):
    del feature
    return _masked(residual(_masked(z, mask), classes, tau=tau), mask)


# Each called as (feature [N, D], z [N, d], classes [C, d], mask [N], *, tau), with the result
# [N, width] zero where `mask` is False, whatever the arguments hold there.
FUSIONS: Mapping[str, Callable[..., Float[AnyArray, "N width"]]] = {
    "concatenate": _concatenate,
    "residual": _residual,
    "cross_attention": cross_attention,
}


def _masked(rows: Float[AnyArray, "N D"], mask: Shaped[AnyArray, "N"]) -> Float[AnyArray, "N D"]:
    xp = namespace(rows, mask)
    return xp.where(xp.asarray(mask).astype(bool)[:, None], f32(rows), np.float32(0))


def _logits(
    z: Float[AnyArray, "N d"], classes: Float[AnyArray, "C d"], tau: Number
) -> Float[AnyArray, "N C"]:
    positive("The sharpness of the fusion, tau,", tau)
    return tau * _product(normalise(z), normalise(classes).T)


def _product(a: Float[AnyArray, "n m"], b: Float[AnyArray, "m k"]) -> Float[AnyArray, "n k"]:
    xp = namespace(a, b)
    # Logits of some tens: the rounding that accelerators do by default would show.
    return np.matmul(a, b) if xp is np else xp.matmul(a, b, precision="highest")
