"""Encoder weights in files: publishers' own, and our safetensors layout.

In ours, tensors are named by their '/'-joined Flax path; the metadata carry the encoder's name, its
constructor arguments and the layout's version, so that a file says by itself what it is.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from flax import traverse_util

from lrmil_jax.encoders import convert, registry
from lrmil_jax.encoders.convert import parameter_shapes
from lrmil_jax.encoders.spec import EncoderSpec
from lrmil_jax.encoders.tensors import (
    METADATA_KEY,
    Tensors,
    open_tensors,
    read_tensors,
    write_tensors,
)
from lrmil_jax.errors import ConfigError, WeightsError
from lrmil_jax.types import AnyArray

__all__ = [
    "FORMAT",
    "METADATA_KEY",
    "SHIPPED",
    "load",
    "locate",
    "open_tensors",
    "parameter_shapes",
    "read_tensors",
    "save",
    "stored_options",
    "weights_hash",
    "write_tensors",
]

FORMAT = "lrmil_jax.encoder/1"
_DEEPEST, _LARGEST = 512, 1_000_000  # blocks, and any other size, of a file
SHIPPED = "shipped:"  # how `encoder.weights` names what comes with the package
_SHIPPED_FOLDER = Path(__file__).parents[1] / "weights"


def locate(weights: str | Path) -> Path:
    """The file that `encoder.weights` names: a path, or "shipped:NAME" of `lrmil_jax/weights`.

    Its text tower, where there is one, is text.safetensors in the same folder.

    Raises:
      WeightsError: no tower of that name is shipped.
    """
    weights = str(weights)
    if not weights.startswith(SHIPPED):
        return Path(weights)
    name = weights.removeprefix(SHIPPED)
    shipped = sorted(path.parent.name for path in _SHIPPED_FOLDER.glob("*/encoder.safetensors"))
    if name not in shipped:
        choices = " or ".join(SHIPPED + tower for tower in shipped)
        raise WeightsError(f"No encoder {name!r} is shipped: use {choices}, or the path of a file.")
    return _SHIPPED_FOLDER / name / "encoder.safetensors"


def save(
    path: str | Path,
    name: str,
    kwargs: Mapping[str, Any],
    params: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an encoder's weights; the file is there whole or not at all.

    Args:
      path: file to write, `.safetensors` by custom.
      name: registered name of the encoder.
      kwargs: the arguments given to `encoders.create`, plain JSON values.
      params: the module's "params" tree.
      metadata: further strings to keep, such as recipe or licence.

    Raises:
      ConfigError: unknown encoder, or `kwargs` that JSON cannot hold (`dtype` belongs to the
        run, not to the weights).
      WeightsError: `params` do not fit the encoder.
      WorkdirError: the disk is full, read-only or forbidden.
    """
    path = Path(path)
    module = registry.create(name, **kwargs)
    flat = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(params, sep="/").items()}
    _check_fit(path, module, flat)
    about = {**(metadata or {}), "format": FORMAT, "encoder": _stored_name(name)}
    about["kwargs"] = dict(kwargs)
    try:
        write_tensors(path, flat, about)
    except TypeError as error:
        raise ConfigError(f"Arguments of encoder {name!r} cannot be stored: {error}.") from error


def load(
    name: str,
    path: str | Path,
    *,
    place: Callable[[str, np.ndarray], Any] = lambda _, value: value,
    **kwargs: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Read an encoder's weights from a local file: its publisher's, or one written by `save`.

    Args:
      name: name of the encoder (`registry.spec`), which the file must agree with.
      path: `.safetensors`; or, with PyTorch installed, `.bin`, `.pt` or `.pth`.
      place: takes a parameter's '/'-joined path and value as soon as it is read, and gives what
        is kept: so a large encoder goes to its devices piece by piece.
      **kwargs: arguments for the module beside those in the file, such as `dtype`; for a file of
        ours a `px` other than the file's is refused (the module itself takes other image sizes).

    Returns:
      The module and its params, f32: `module.apply({"params": params}, images)`.

    Raises:
      ConfigError: unknown encoder.
      WeightsError: missing, empty, truncated or foreign file; another encoder's weights;
        missing, unexpected or misshapen tensors, all listed.
    """
    entry, path = registry.spec(name), Path(path)
    tensors, header = open_tensors(path)
    # A publisher's file says "format": "pt", or nothing.
    if header.get("format") in (None, "pt", "np", "flax"):
        module = registry.create(name, **kwargs)
        flat = _published(path, entry, module, tensors, place)
        return module, traverse_util.unflatten_dict(flat, sep="/")
    stored_kwargs = _stored_kwargs(path, header, name)
    module = registry.create(name, **{**kwargs, **stored_kwargs})
    for key in sorted(kwargs.keys() & stored_kwargs.keys()):
        if kwargs[key] != stored_kwargs[key]:
            raise WeightsError(
                f"{path} was written for {key} = {stored_kwargs[key]}, not {kwargs[key]}."
            )
    flat = {key: read() for key, read in tensors.items()}
    _check_fit(path, module, flat)
    # Files may hold 16-bit floats to be small; parameters are f32 in every run.
    flat = {key: place(key, np.asarray(value, np.float32)) for key, value in flat.items()}
    return module, traverse_util.unflatten_dict(flat, sep="/")


def _published(
    path: Path,
    entry: EncoderSpec,
    module: nn.Module,
    tensors: Tensors,
    place: Callable[[str, np.ndarray], Any],
) -> dict[str, Any]:
    if entry.convert is not None:
        flat = dict(entry.convert({name: read() for name, read in tensors.items()}))
        _check_fit(path, module, flat)
        return {key: place(key, np.asarray(value, np.float32)) for key, value in flat.items()}
    match = convert.find_layout(tensors.keys(), entry.layout)
    if match is None or entry.layout is None:
        examples = ", ".join(sorted(tensors)[:3])
        raise WeightsError(
            f"{path} holds no image encoder of a known kind (its tensors begin with {examples}): "
            "give the weights file of the encoder that encoder.name says, as its publisher offers "
            "it."
        )
    layout, prefix = match
    return convert.convert(path, module, tensors, layout=layout, prefix=prefix, place=place)


def stored_options(path: str | Path) -> dict[str, Any]:
    """The arguments of `encoders.create` with which a file of ours was written; {} for others.

    Raises:
      WeightsError: see `tensors.open_tensors`.
    """
    _, header = open_tensors(path)
    return dict(header.get("kwargs", {}))


def weights_hash(path: str | Path) -> str:
    """SHA-256 of a weights file as 64 hex digits, whatever its format.

    Raises:
      WeightsError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"Weights {path} cannot be read: {error.strerror}.") from error


def _stored_name(name: str) -> str:
    return Path(name).name if name.endswith(".py") else name  # a user's file may be moved


def _stored_kwargs(path: Path, header: Mapping[str, Any], name: str) -> dict[str, Any]:
    if header.get("format") != FORMAT:
        raise WeightsError(
            f"{path} is no weights file of this program (format {header.get('format')!r}, "
            f"expected {FORMAT!r}): give one that it wrote."
        )
    if header.get("encoder") != _stored_name(name):
        raise WeightsError(
            f"{path} holds weights of encoder {header.get('encoder')!r}, the config names "
            f"{name!r}: name the one or give a file of the other."
        )
    if not isinstance(header.get("kwargs"), dict):
        raise WeightsError(f"{path} does not say of which size its encoder is.")
    for key, value in header["kwargs"].items():
        if isinstance(value, int) and abs(value) > (_DEEPEST if key == "depth" else _LARGEST):
            raise WeightsError(f"{path} says {key} = {value}, which no encoder has: copy it again.")
    return dict(header["kwargs"])


def _check_fit(path: Path, module: nn.Module, flat: Mapping[str, AnyArray]) -> None:
    expected = parameter_shapes(module)
    misshapen = [
        f"{key} {np.shape(flat[key])} instead of {expected[key]}"
        for key in sorted(expected.keys() & flat.keys())
        if np.shape(flat[key]) != expected[key]
    ]
    missing, unexpected = expected.keys() - flat.keys(), flat.keys() - expected.keys()
    convert.refuse(path, sorted(missing), sorted(unexpected), misshapen)
