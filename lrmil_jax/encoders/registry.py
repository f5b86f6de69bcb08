"""Encoders by name, each with the transform bound to it."""

import ast
import dataclasses
import difflib
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn

from lrmil_jax.encoders.catalogue import CATALOGUE
from lrmil_jax.encoders.spec import EncoderSpec
from lrmil_jax.encoders.transforms import Transform
from lrmil_jax.errors import ConfigError

ENCODERS: Mapping[str, EncoderSpec] = {
    # Any size: every number may be given.
    "vit": EncoderSpec(
        kwargs={"px": 256, "patch": 16, "width": 384, "depth": 12, "heads": 6}, layout="timm"
    ),
    # Small enough to train on two cores: quickstart's and the miniature's.
    "vit-tiny": EncoderSpec(
        kwargs={"px": 64, "patch": 8, "width": 64, "depth": 3, "heads": 2}, layout="timm"
    ),
    "vit-s16": EncoderSpec(
        kwargs={"px": 256, "patch": 16, "width": 384, "depth": 12, "heads": 6}, layout="timm"
    ),
    "vit-b16": EncoderSpec(
        kwargs={"px": 256, "patch": 16, "width": 768, "depth": 12, "heads": 12}, layout="timm"
    ),
    "vit-l16": EncoderSpec(
        kwargs={"px": 256, "patch": 16, "width": 1024, "depth": 24, "heads": 16}, layout="timm"
    ),
    **CATALOGUE,
}


def spec(name: str) -> EncoderSpec:
    """The facts of an encoder.

    Args:
      name: one of `ENCODERS`, or the path of a Python file that sets `ENCODER = EncoderSpec(...)`;
        behind a colon perhaps constructor arguments, "vit:width=192,depth=6".

    Raises:
      ConfigError: unknown name, a file without such a line, or arguments that cannot be read.
    """
    plain, _, options = name.partition(":")
    if "=" in options:
        return _with_options(name, spec(plain), options)
    if name.endswith(".py"):
        return _user_spec(Path(name))
    if name not in ENCODERS:
        closest = difflib.get_close_matches(name, ENCODERS, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"Unknown encoder {name!r}: did you mean {closest!r}? Encoders: {', '.join(ENCODERS)}; "
            "or the path of a Python file with your own."
        )
    return ENCODERS[name]


def _user_spec(path: Path) -> EncoderSpec:
    if not path.is_file():
        raise ConfigError(f"encoder.name is the file {path}, which does not exist.")
    try:
        entry = runpy.run_path(str(path)).get("ENCODER")
    except Exception as error:  # whatever the user's own code runs into
        raise ConfigError(
            f"The encoder file {path} does not run: {type(error).__name__}: {error}."
        ) from error
    if not isinstance(entry, EncoderSpec):
        raise ConfigError(
            f"The encoder file {path} must set ENCODER = EncoderSpec(...), from "
            "lrmil_jax.encoders.spec."
        )
    return entry


def _with_options(name: str, entry: EncoderSpec, options: str) -> EncoderSpec:
    try:
        pairs = [part.split("=") for part in options.split(",")]
        kwargs = {key.strip(): ast.literal_eval(value.strip()) for key, value in pairs}
    except (ValueError, SyntaxError) as error:
        raise ConfigError(
            f"The encoder {name!r} has arguments that cannot be read: give key=value, several with "
            'commas between, as in "vit:width=192,depth=6".'
        ) from error
    resized = kwargs.get("px", entry.kwargs["px"]) != entry.kwargs["px"]
    published = None if entry.transform is None else transform(name.partition(":")[0], **kwargs)
    return dataclasses.replace(
        entry,
        kwargs={**entry.kwargs, **kwargs},
        transform=published if resized else entry.transform,
    )


def create(name: str, **kwargs: Any) -> nn.Module:
    """An encoder by its name, without weights.

    Args:
      name: see `spec`.
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
    """The transform bound to an encoder: its publisher's, for HR patches.

    Args:
      name: see `spec`.
      **kwargs: the arguments given to `create`; only `px` changes the transform: a side other than
        the publisher's means a plain resize to it, with the publisher's mean and SD.

    Raises:
      ConfigError: unknown name, or a transform that is not of the encoder's own side.
    """
    entry = spec(name)
    published, px = entry.transform, kwargs.get("px", entry.kwargs["px"])
    if published is None:
        return Transform(px)
    if published.px != entry.kwargs["px"]:
        raise ConfigError(
            f"Encoder {name!r} takes images of {entry.kwargs['px']} px, but its transform makes "
            f"them {published.px} px: give both the same px."
        )
    return published if px == published.px else dataclasses.replace(published, px=px, resize=None)


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
