"""HDF5 files of other tools: opened, read and written, a mistake being one sentence."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lrmil_jax import files
from lrmil_jax.errors import SlideError, one_line


@contextlib.contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading.

    Raises:
      SlideError: it is missing, cut short or no HDF5 file.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:  # h5py's, also for bytes that are not there
        reason = one_line(error)
        raise SlideError(
            f"{path} cannot be read, it was cut short or is no HDF5 file ({reason}); copy it or "
            "extract its features again"
        ) from error


def dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """A dataset by its name.

    Raises:
      SlideError: the file has none of that name.
    """
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise SlideError(
            f"{path} has no dataset {name} (it has {', '.join(file) or 'none'}); extract its "
            "features again, or set data.features_format to the tool that wrote it"
        )
    return found


def read(path: Path, name: str) -> np.ndarray:
    """A whole dataset.

    Raises:
      SlideError: see `opened` and `dataset`.
    """
    with opened(path) as file:
        found = dataset(file, name, path)
        values = np.empty(found.shape, found.dtype)
        if values.size:
            found.read_direct(values)
        return values[0] if values.ndim == 3 and len(values) == 1 else values


def attributes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as plain values; one that is 'None', as some tools spell nothing, is left out."""
    plain = {}
    for name, value in values.items():
        if isinstance(value, bytes):
            value = value.decode()
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, np.generic):
            value = value.item()
        if value is not None and value != "None":
            plain[name] = value
    return plain


def number(attrs: Mapping[str, Any], name: str) -> float | None:
    """An attribute that is a positive number, or None."""
    try:
        value = float(attrs[name])
    except (KeyError, TypeError, ValueError):
        return None
    return value if value > 0 and np.isfinite(value) else None


def whole(attrs: Mapping[str, Any], name: str) -> int | None:
    """The same, rounded."""
    value = number(attrs, name)
    return None if value is None else round(value)


def write(
    path: Path,
    datasets: Mapping[str, np.ndarray],
    *,
    attrs: Mapping[str, Any] | None = None,
    of: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes a file, whole or not at all; datasets lie in one piece, which reads fastest.

    Args:
      path: the file to be.
      datasets: by name.
      attrs: of the file.
      of: attributes of datasets, by the dataset's name.
    """
    with files.atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(attrs or {})
        for name, values in datasets.items():
            file.create_dataset(name, data=values).attrs.update((of or {}).get(name, {}))
