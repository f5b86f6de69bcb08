"""Encoders from weights files, at HR and at LR."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lrmil_jax import encoders
from lrmil_jax.data import schema
from lrmil_jax.encoders import pretrained, prompts
from lrmil_jax.errors import ConfigError
from lrmil_jax.train import sharding
from lrmil_jax.train.encode import Encoder

# What encoders compute in, by name; of 8-bit integers are the products with weights alone.
EIGHT_BITS = "int8"
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, EIGHT_BITS: jnp.float32}


def load_encoder(
    name: str, path: Path, *, dtype: str, fsdp: bool = False, px: int | None = None
) -> Encoder:
    """An encoder from a local weights file, computing in `dtype`; with `fsdp` its large parameters
    go to their devices, split, as they are read; `px` is the side of its input in place of its
    publisher's.

    Raises:
      WeightsError: the file is missing, broken, or of another architecture.
    """
    mesh = sharding.local_mesh() if fsdp else None

    def place(key: str, value: np.ndarray):
        return value if mesh is None else sharding.place_params(value, mesh, fsdp=True)

    side = {} if px is None else {"px": px}
    module, params = pretrained.load(name, path, place=place, dtype=DTYPES[dtype], **side)
    options = side | pretrained.stored_options(path)
    return Encoder(
        name=name,
        options=options,
        module=module,
        params=params,
        transform=encoders.transform(name, **options),
        weights_hash=pretrained.weights_hash(path),
        eight_bits=dtype == EIGHT_BITS,
    )


def low_resolution(
    encoder: Encoder, geometry: schema.Geometry, lr_px: int | None = None
) -> Encoder:
    """The same encoder as it reads LR tiles: resized whole, not cropped, to a side of which every
    child has a whole window of tokens (docs/methods.md), or to `lr_px`.

    Raises:
      ConfigError: tiles, or `lr_px`, do not give every child whole tokens.
    """
    px = lr_side(geometry, encoder.module, lr_px)
    plain = dataclasses.replace(encoder.transform, px=px, resize=None, interpolation="bicubic")
    return dataclasses.replace(encoder, transform=plain)


def rematerialised(encoder: Encoder) -> Encoder:
    """The same encoder, whose gradient takes a third more time and a fraction of the memory.

    Raises:
      ConfigError: it is of a family that cannot.
    """
    if not hasattr(encoder.module, "remat"):
        raise ConfigError(
            f"remat needs an encoder of the VisionTransformer family, {encoder.name} is a "
            f"{type(encoder.module).__name__}: set distill.remat and align.remat to False"
        )
    return dataclasses.replace(encoder, module=encoder.module.clone(remat=True))


def lr_side(geometry: schema.Geometry, module, lr_px: int | None = None) -> int:
    """Side of LR input: the largest number of px within a tile that gives children whole tokens,
    or `lr_px`, to which tiles are then resampled.

    Raises:
      ConfigError: a tile has fewer tokens than children, or they cannot share those of `lr_px`.
    """
    step = module.patch * geometry.ratio
    if lr_px is not None:
        if lr_px % step:
            below = max(lr_px // step, 1) * step
            raise ConfigError(
                f"encoder.lr_px={lr_px} gives {lr_px / module.patch:g} tokens a side with patches "
                f"of {module.patch} px, which {geometry.ratio} children cannot share; use a "
                f"multiple of {step}, such as {below} or {below + step}"
            )
        return lr_px
    if geometry.patch_px < step:
        raise ConfigError(
            f"geometry.patch_px={geometry.patch_px} gives {geometry.patch_px / module.patch:g} "
            f"tokens a side with patches of {module.patch} px, which {geometry.ratio} children "
            f"cannot share; use {step} px or more, or let tiles be resampled to such a side by "
            "encoder.lr_px"
        )
    return geometry.patch_px // step * step


def encoder_hash(weights: str) -> str:
    """SHA-256 of the file that `encoder.weights` names.

    Raises:
      WeightsError: it cannot be read.
    """
    return pretrained.weights_hash(pretrained.locate(weights))


def prompted(tower: Encoder, path: Path) -> Encoder:
    """A tower with the prompts of a file.

    Raises:
      WeightsError: it is missing, broken, or another tower's.
    """
    values, deep = prompts.load(path, encoder_hash=tower.weights_hash)
    return dataclasses.replace(
        tower,
        module=prompts.Prompted(tower.module, values.shape[1], deep),
        params={"tower": tower.params, "prompts": values},
        weights_hash=pretrained.weights_hash(path),
    )
