"""Tensors in files: safetensors, read one by one, and PyTorch's own, where PyTorch is there."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from lrmil_jax import files, torch_files
from lrmil_jax.encoders import checkpoints
from lrmil_jax.errors import WeightsError
from lrmil_jax.types import AnyArray

METADATA_KEY = "lrmil_jax"
Tensors = Mapping[str, Callable[[], np.ndarray]]
_TORCH_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".torch"}
# What a checkpoint may wrap its weights in.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher", "student")


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
    arrays = {key: np.asarray(value, order="C") for key, value in flat.items()}
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(arrays, metadata=header))


def read_tensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All tensors of a file and its metadata, ours decoded from their one entry.

    Raises:
      WeightsError: see `open_tensors`.
    """
    tensors, header = open_tensors(path)
    return {name: read() for name, read in tensors.items()}, header


def open_tensors(path: str | Path) -> tuple[Tensors, dict[str, Any]]:
    """How to read each tensor of a file, and its metadata, ours decoded from their one entry.

    A large file is never in memory whole: a tensor is read when its function is called.

    Raises:
      WeightsError: the file is missing, empty, a Git LFS pointer, truncated, or neither safetensors
        nor a PyTorch state dict.
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
    if pickled or (path.suffix in _TORCH_SUFFIXES and start[8:9] != b"{"):
        return _open_torch(path), {}
    try:
        opened = safetensors.safe_open(path, framework="numpy")
        header = opened.metadata() or {}
        if METADATA_KEY in header:
            header = files.parse_json(header[METADATA_KEY])
            if not isinstance(header, dict):
                raise ValueError(f"its metadata {METADATA_KEY} are no JSON object")
        names = opened.keys()
        return {name: _Finite(path, name, _LazyTensor(opened, name)) for name in names}, header
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} is no whole safetensors file ({error}): copy or download it again."
        ) from error


class _Finite:
    """Reads a tensor, and refuses one with numbers that a diverged training leaves: they would be
    found hours later, in what was trained with them."""

    def __init__(self, path: Path, name: str, read: Callable[[], np.ndarray]):
        self._path, self._name, self._read = path, name, read

    def __call__(self) -> np.ndarray:
        value = self._read()
        if value.dtype.kind in "iub" or np.isfinite(value).all():
            return value
        wrong = np.count_nonzero(~np.isfinite(value))
        raise WeightsError(
            f"{self._path}: {wrong} of the {value.size} numbers of {self._name} are NaN or "
            "infinite, as a training that diverged leaves them; give an earlier checkpoint"
        )


class _LazyTensor:
    """A tensor of an open safetensors file."""

    def __init__(self, opened: safetensors.safe_open, name: str):
        self._opened, self._name = opened, name

    def __call__(self) -> np.ndarray:
        return self._opened.get_tensor(self._name)


def _open_torch(path: Path) -> Tensors:
    """Tensors of a PyTorch state dict, by PyTorch's loader that runs no code of the file."""
    otherwise = "use the publisher's safetensors file"
    checkpoint = torch_files.load(path, error=WeightsError, what="weights", otherwise=otherwise)
    tensor = torch_files.library(path, error=WeightsError, otherwise=otherwise).Tensor
    for wrapper in _WRAPPERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
    if isinstance(checkpoint, Mapping):
        checkpoint = checkpoints.flatten(checkpoint)
        tensors = {name: value for name, value in checkpoint.items() if isinstance(value, tensor)}
        checkpoint = tensors or checkpoint  # steps and rates are left out
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise WeightsError(
            f"{path} is a PyTorch file, but no state dict (it holds a "
            f"{type(checkpoint).__name__}): give the file with the model's weights."
        )
    non_tensor = next((k for k, v in checkpoint.items() if not isinstance(v, tensor)), None)
    if non_tensor is not None:
        raise WeightsError(
            f"{path} is a PyTorch file, but no state dict: {non_tensor!r} is a "
            f"{type(checkpoint[non_tensor]).__name__}, not a tensor; give the file with "
            "the model's weights."
        )
    return {name: _Finite(path, name, _from_torch(value)) for name, value in checkpoint.items()}


def _from_torch(value: Any) -> Callable[[], np.ndarray]:
    return lambda: value.float().numpy()
