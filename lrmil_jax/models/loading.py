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

# What encoders compute in, by name.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def load_encoder(name: str, path: Path, *, dtype: str, fsdp: bool = False) -> Encoder:
    """An encoder from a local weights file, computing in `dtype`; with `fsdp` its large parameters
    go to their devices, split, as they are read.

    Raises:
      WeightsError: the file is missing, broken, or of another architecture.
    """
    mesh = sharding.local_mesh() if fsdp else None

    def place(key: str, value: np.ndarray):
        return value if mesh is None else sharding.place_params(value, mesh, fsdp=True)

    module, params = pretrained.load(name, path, place=place, dtype=DTYPES[dtype])
    options = pretrained.stored_options(path)
    return Encoder(
        name=name,
        options=options,
        module=module,
        params=params,
        transform=encoders.transform(name, **options),
        weights_hash=pretrained.weights_hash(path),
    )


def low_resolution(encoder: Encoder, geometry: schema.Geometry) -> Encoder:
    """The same encoder as it reads LR tiles: resized whole, not cropped, to a side of which every
    child has a whole window of tokens (`method.md` part 1).

    Raises:
      ConfigError: tiles are too small for that.
    """
    px = lr_side(geometry, encoder.module)
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


def lr_side(geometry: schema.Geometry, module) -> int:
    """Side of LR input: the largest number of px within a tile that gives children whole tokens.

    Raises:
      ConfigError: a tile has fewer tokens than children.
    """
    step = module.patch * geometry.ratio
    if geometry.patch_px < step:
        raise ConfigError(
            f"geometry.patch_px={geometry.patch_px} gives {geometry.patch_px / module.patch:g} "
            f"tokens a side with patches of {module.patch} px, which {geometry.ratio} children "
            f"cannot share; use {step} px or more"
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
    return Encoder(
        name=tower.name,
        options=tower.options,
        module=prompts.Prompted(tower.module, values.shape[1], deep),
        params={"tower": tower.params, "prompts": values},
        transform=tower.transform,
        weights_hash=pretrained.weights_hash(path),
    )
