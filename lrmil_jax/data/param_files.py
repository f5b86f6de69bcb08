"""Finished parameters, and small arrays with their facts, as safetensors."""

import json
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from lrmil_jax import files
from lrmil_jax.errors import WeightsError
from lrmil_jax.files import atomic_path

# All metadata is one JSON string under one key: safetensors keeps its metadata in a hash map, so
# several keys would come out in another order each time and the files would differ.
_METADATA_KEY = "lrmil_jax"


def save_params(path: Path | str, tree: Any, metadata: dict[str, Any] | None = None) -> None:
    """Writes a nested dict of arrays as safetensors with '/'-joined names, whole or not at all.

    Args:
      path: the file; its folder is made.
      tree: nested dicts with string keys without '/', leaves numpy or fully addressable JAX arrays.
      metadata: anything that JSON can hold.

    Raises:
      WorkdirError: the disk is full, read-only or forbidden.
    """
    flat = flax.traverse_util.flatten_dict(tree)
    for keys in flat:
        if any("/" in key for key in keys):
            raise ValueError(f"the key {keys} contains '/', which joins the names in the file")
    # order="C": safetensors would store the bytes of a transposed view in the wrong order.
    arrays = {"/".join(keys): np.asarray(leaf, order="C") for keys, leaf in flat.items()}
    header = {_METADATA_KEY: json.dumps(metadata or {}, sort_keys=True)}
    with atomic_path(path) as temporary:
        safetensors.numpy.save_file(arrays, temporary, metadata=header)


def load_params(path: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what `save_params` wrote: (nested dict of numpy arrays, metadata).

    Raises:
      WeightsError: the file is missing, empty, truncated or no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"the weights file {path} does not exist.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            metadata = files.parse_json(header.get(_METADATA_KEY, "{}"))
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tree = flax.traverse_util.unflatten_dict(flat, sep="/")
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, IndexError) as error:
        raise WeightsError(
            f"{path} is not a whole safetensors file ({error}): delete it and run again."
        ) from error
    if not isinstance(metadata, dict):
        raise WeightsError(f"the metadata of {path} are no JSON object: delete it and run again.")
    return tree, metadata
