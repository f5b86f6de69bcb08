"""Encoder weights in files: our own safetensors layout.

Tensors are named by their '/'-joined Flax path; the metadata carry the encoder's name, its
constructor arguments and the layout's version, so that a file says by itself what it is.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from lrmil_jax import files
from lrmil_jax.encoders import registry
from lrmil_jax.errors import ConfigError, WeightsError
from lrmil_jax.types import AnyArray

FORMAT = "lrmil_jax.encoder/1"
METADATA_KEY = "lrmil_jax"
SHIPPED = "shipped:"  # how `encoder.weights` names what comes with the package
_SHIPPED_FOLDER = Path(__file__).parents[1] / "weights"
_LISTED_KEYS = 8


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
    known = sorted(path.parent.name for path in _SHIPPED_FOLDER.glob("*/encoder.safetensors"))
    if name not in known:
        raise WeightsError(
            f"No encoder {name!r} is shipped: use {' or '.join(SHIPPED + one for one in known)}, "
            "or the path of a file."
        )
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
    about = {**(metadata or {}), "format": FORMAT, "encoder": name, "kwargs": dict(kwargs)}
    try:
        write_tensors(path, flat, about)
    except TypeError as error:
        raise ConfigError(f"Arguments of encoder {name!r} cannot be stored: {error}.") from error


def write_tensors(path: str | Path, flat: Mapping[str, AnyArray], about: Mapping[str, Any]) -> None:
    """Write what `read_tensors` reads; the same content gives the same bytes.

    Args:
      path: file to write; it is there whole or not at all.
      flat: tensors by name.
      about: metadata, plain JSON values.

    Raises:
      TypeError: `about` holds something that JSON cannot.
      WorkdirError: the disk is full, read-only or forbidden.
    """
    # One entry: safetensors orders several at random, and the hash would follow.
    header = {METADATA_KEY: json.dumps(about, sort_keys=True)}
    # Not ascontiguousarray, which makes a vector of a scalar.
    whole = {key: np.asarray(value, order="C") for key, value in flat.items()}
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(whole, metadata=header))


def load(name: str, path: str | Path, **kwargs: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Read an encoder's weights from a local file.

    Args:
      name: registered name of the encoder, which the file must agree with.
      path: a file written by `save`.
      **kwargs: arguments for the module beside those in the file, such as `dtype`; a `px` other
        than the file's is refused (the module itself takes other image sizes).

    Returns:
      The module and its params, f32 NumPy arrays: `module.apply({"params": params}, images)`.

    Raises:
      ConfigError: unknown encoder.
      WeightsError: missing, empty, truncated or foreign file; another encoder's weights;
        missing, unexpected or misshapen tensors, all listed.
    """
    registry.spec(name)
    path = Path(path)
    flat, header = read_tensors(path)
    stored_kwargs = _stored_kwargs(path, header, name)
    module = registry.create(name, **{**kwargs, **stored_kwargs})
    for key in sorted(kwargs.keys() & stored_kwargs.keys()):
        if kwargs[key] != stored_kwargs[key]:
            raise WeightsError(
                f"{path} was written for {key} = {stored_kwargs[key]}, not {kwargs[key]}."
            )
    _check_fit(path, module, flat)
    # Files may hold 16-bit floats to be small; parameters are f32 in every run.
    flat = {key: np.asarray(value, np.float32) for key, value in flat.items()}
    return module, traverse_util.unflatten_dict(flat, sep="/")


def stored_options(path: str | Path) -> dict[str, Any]:
    """The arguments of `encoders.create` with which a file of ours was written.

    Raises:
      WeightsError: see `read_tensors`.
    """
    _, header = read_tensors(path)
    return dict(header.get("kwargs", {}))


def read_tensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All tensors of a safetensors file and its metadata, ours decoded from their one entry.

    Raises:
      WeightsError: the file is missing, empty, a Git LFS pointer, truncated or something else.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise WeightsError(f"Weights {path} cannot be read: {error.strerror}.") from error
    if not start:
        raise WeightsError(f"Weights {path} are an empty file: copy or download them again.")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path} is a Git LFS pointer, not the weights themselves: run `git lfs pull`."
        )
    # A safetensors file begins with its header's length, any bytes, and then the header's brace.
    pickled = start.startswith((b"PK", b"\x80")) and start[8:9] != b"{"
    if pickled or path.suffix in {".bin", ".pt", ".pth"}:
        raise WeightsError(f"{path} is a PyTorch file: convert it to safetensors first.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if METADATA_KEY in header:
                header = json.loads(header[METADATA_KEY])
            return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} is no whole safetensors file ({error}): copy or download it again."
        ) from error


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


def parameter_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """'/'-joined path -> shape of every parameter, without making any."""
    images = jax.ShapeDtypeStruct((1, module.px, module.px, 3), np.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    return {key: value.shape for key, value in flat.items()}


def _stored_kwargs(path: Path, header: Mapping[str, Any], name: str) -> dict[str, Any]:
    if header.get("format") != FORMAT:
        raise WeightsError(
            f"{path} is no weights file of this program (format {header.get('format')!r}, "
            f"expected {FORMAT!r}): give one that it wrote."
        )
    if header.get("encoder") != name:
        raise WeightsError(
            f"{path} holds weights of encoder {header.get('encoder')!r}, the config names "
            f"{name!r}: name the one or give a file of the other."
        )
    if not isinstance(header.get("kwargs"), dict):
        raise WeightsError(f"{path} does not say of which size its encoder is.")
    return dict(header["kwargs"])


def _check_fit(path: Path, module: nn.Module, flat: Mapping[str, np.ndarray]) -> None:
    expected = parameter_shapes(module)
    missing = sorted(expected.keys() - flat.keys())
    unexpected = sorted(flat.keys() - expected.keys())
    misshapen = [
        f"{key} {flat[key].shape} instead of {expected[key]}"
        for key in sorted(expected.keys() & flat.keys())
        if flat[key].shape != expected[key]
    ]
    problems = [
        f"{len(keys)} {kind} ({', '.join(keys[:_LISTED_KEYS])}"
        + (f" and {len(keys) - _LISTED_KEYS} more)" if len(keys) > _LISTED_KEYS else ")")
        for kind, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshapen", misshapen),
        )
        if keys
    ]
    if problems:
        raise WeightsError(f"Weights {path} do not fit the encoder: {'; '.join(problems)}.")
