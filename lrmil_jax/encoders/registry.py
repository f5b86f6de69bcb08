"""Encoders by name, each with the transform bound to it."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from lrmil_jax.encoders.transforms import IMAGENET_MEAN, IMAGENET_STD, Transform
from lrmil_jax.encoders.vit import VisionTransformer
from lrmil_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """An encoder's architecture and input.

    Attributes:
      kwargs: constructor arguments, among them `px`, the native input side.
      mean: per channel, of values in 0 to 1.
      std: per channel, of values in 0 to 1.
      build: makes the module from `kwargs`.
    """

    kwargs: Mapping[str, Any]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    build: Callable[..., nn.Module] = VisionTransformer


ENCODERS: Mapping[str, EncoderSpec] = {
    # Any size: every number may be given.
    "vit": EncoderSpec({"px": 256, "patch": 16, "width": 384, "depth": 12, "heads": 6}),
    # Small enough to train on two cores: quickstart's and the miniature's.
    "vit-tiny": EncoderSpec({"px": 64, "patch": 8, "width": 64, "depth": 3, "heads": 2}),
    "vit-s16": EncoderSpec({"px": 256, "patch": 16, "width": 384, "depth": 12, "heads": 6}),
    "vit-b16": EncoderSpec({"px": 256, "patch": 16, "width": 768, "depth": 12, "heads": 12}),
    "vit-l16": EncoderSpec({"px": 256, "patch": 16, "width": 1024, "depth": 24, "heads": 16}),
}


def spec(name: str) -> EncoderSpec:
    """The registered facts of an encoder.

    Raises:
      ConfigError: unknown name.
    """
    if name not in ENCODERS:
        near = difflib.get_close_matches(name, ENCODERS, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"Unknown encoder {name!r}: did you mean {near!r}? Encoders: {', '.join(ENCODERS)}."
        )
    return ENCODERS[name]


def create(name: str, **kwargs: Any) -> nn.Module:
    """An encoder by its registered name, without weights.

    Args:
      name: one of `ENCODERS`.
      **kwargs: replaces or adds constructor arguments, such as `px`, `depth` or `dtype`.

    Returns:
      A linen module called as `encoder(images [B, px, px, 3], blocks=())`.

    Raises:
      ConfigError: unknown name, unknown argument, or a geometry that cannot be.
    """
    entry = spec(name)
    try:
        return entry.build(**{**entry.kwargs, **kwargs})
    except TypeError as error:
        raise ConfigError(f"Encoder {name!r} does not take these arguments: {error}.") from error


def transform(name: str, **kwargs: Any) -> Transform:
    """The transform bound to an encoder.

    Args:
      name: one of `ENCODERS`.
      **kwargs: the arguments given to `create`; only `px` changes the transform.

    Raises:
      ConfigError: unknown name.
    """
    entry = spec(name)
    return Transform(kwargs.get("px", entry.kwargs["px"]), entry.mean, entry.std)


def default_layers(depth: int) -> tuple[int, ...]:
    """Blocks that stage 1 supervises: first, second and last but one; (0, 1, 10) for 12.

    Blocks that coincide in a shallow encoder are taken once, and the last block never unless it
    is one of the first two: its CLS is what L_attn trains. Depth 3 gives (0, 1), depth 1 (0,).

    Raises:
      ConfigError: no block at all.
    """
    if depth < 1:
        raise ConfigError(f"An encoder needs at least one block, depth is {depth}.")
    return tuple(sorted({0, min(1, depth - 1), max(depth - 2, 0)}))
