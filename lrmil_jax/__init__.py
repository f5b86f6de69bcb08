"""Slide classification from low-resolution patches on JAX: LRMIL and WISE-FUSE."""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from pathlib import Path

    from lrmil_jax.models.slide_model import SlideModel

__version__ = "0.1.0"


def load_model(folder: str | Path) -> SlideModel:
    """A trained slide classifier, ready to predict.

    Args:
      folder: `model` of a finished work directory, or the work directory itself.

    Raises:
      WeightsError: it is no model folder, one of another version, or a part of it is missing or
        broken.
    """
    from lrmil_jax.models import model_folder  # late: whoever only reads slides waits for no JAX

    return model_folder.load(folder)
