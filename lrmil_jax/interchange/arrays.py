"""NumPy's and PyTorch's files of arrays, read without pickles."""

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrmil_jax import files, torch_files
from lrmil_jax.errors import SlideError, one_line

_OTHERWISE = "export it as npz"


@contextlib.contextmanager
def opened_npz(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of an `.npz`, read one by one.

    Raises:
      SlideError: it is missing, cut short, or holds objects instead of arrays.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            yield stored
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SlideError(_broken(path, error)) from error


def read_npy(path: Path) -> np.ndarray:
    """An `.npy`, mapped into memory.

    Raises:
      SlideError: it is missing, cut short, or holds objects.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SlideError(_broken(path, error)) from error


def _broken(path: Path, error: Exception) -> str:
    reason = one_line(error)
    return f"{path} cannot be read, it was cut short or is no NumPy file ({reason}); copy it again"


def write_npz(path: Path, values: Mapping[str, np.ndarray]) -> None:
    """Writes an `.npz`, not compressed, whole or not at all."""
    with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **values)


def write_npy(path: Path, values: np.ndarray) -> None:
    """Writes an `.npy`, whole or not at all."""
    with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, values)


def read_torch(path: Path) -> np.ndarray:
    """The tensor of a `.pt` that holds one, by itself or as `features` of a dictionary.

    Raises:
      SlideError: PyTorch is not installed, the file is broken, or holds something else.
    """
    found = torch_files.load(path, error=SlideError, what="features", otherwise=_OTHERWISE)
    if isinstance(found, Mapping):
        found = next((found[key] for key in ("features", "feats") if key in found), found)
    torch = torch_files.library(path, error=SlideError, otherwise=_OTHERWISE)
    if not isinstance(found, torch.Tensor):
        raise SlideError(
            f"{path} holds a {type(found).__name__}, no tensor of features; save the tensor itself"
        )
    return _from_torch(found)


def _from_torch(tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    if "bfloat16" in str(tensor.dtype):  # which NumPy has not
        tensor = tensor.float()
    values = tensor.numpy()
    return values[0] if values.ndim == 3 and len(values) == 1 else values
