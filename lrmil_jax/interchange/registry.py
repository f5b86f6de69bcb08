"""The layouts by name, and which one a folder has."""

import difflib
import itertools
from pathlib import Path

from lrmil_jax.errors import ConfigError, DataError, SlideError
from lrmil_jax.interchange import hdf5
from lrmil_jax.interchange.atlaspatch import AtlasPatch
from lrmil_jax.interchange.clam import Clam
from lrmil_jax.interchange.layout import Layout
from lrmil_jax.interchange.plain import Npy, Npz, Pt
from lrmil_jax.interchange.slide2vec import Slide2Vec
from lrmil_jax.interchange.slideflow import Slideflow
from lrmil_jax.interchange.stamp import Stamp
from lrmil_jax.interchange.trident import Trident

# In the order in which a folder is tried.
LAYOUTS: dict[str, type[Layout]] = {
    layout.name: layout
    for layout in (Slideflow, Slide2Vec, Clam, AtlasPatch, Stamp, Trident, Npy, Npz, Pt)
}
AUTO = "auto"
_TRIED = 20  # files that may be broken before none is taken for an example


def create(name: str) -> Layout:
    """A layout by name; `atlaspatch/ENCODER` is that of one encoder.

    Raises:
      ConfigError: there is no such layout.
    """
    stem, _, encoder = name.partition("/")
    if stem not in LAYOUTS or (encoder and stem != AtlasPatch.name):
        near = difflib.get_close_matches(stem, LAYOUTS, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"no layout of features is called {name!r}: did you mean {near}? "
            f"There are {', '.join(LAYOUTS)}"
        )
    return AtlasPatch(encoder) if encoder else LAYOUTS[stem]()


def of_folder(folder: Path, name: str = AUTO, *, key: str = "data.features") -> Layout:
    """The layout of a folder, by what it holds.

    Args:
      folder: with feature files.
      name: of the layout, if the user says so.
      key: the config key of the folder, for messages.

    Raises:
      ConfigError: there is no layout of that name.
      DataError: no folder, or none of the layouts.
    """
    if not folder.is_dir():
        raise DataError(f"{key} is {folder}, which is no folder; give the folder of feature files")
    if name != AUTO:
        return create(name)
    example = _example(folder)
    for layout in LAYOUTS.values():
        made = layout()
        if made.recognises(folder, example):
            return made
    held = "HDF5 files of no known kind" if example else "no feature file that is known"
    raise DataError(
        f"{key} {folder} holds {held}; name its tool with data.features_format: "
        f"{', '.join(LAYOUTS)}"
    )


def _example(folder: Path) -> Path | None:
    """A whole HDF5 file below a folder; None if there are none at all.

    Raises:
      DataError: there are, but none of the first can be read.
    """
    first = list(itertools.islice(_candidates(folder), _TRIED))
    reason = ""
    for path in first:
        try:
            with hdf5.opened(path):
                return path
        except SlideError as error:
            reason = str(error)
    if first:
        raise DataError(f"no feature file below {folder} can be read: {reason}")
    return None


def _candidates(folder: Path):
    # Of a whole job, TRIDENT's patches and slide embeddings look like another tool's features.
    others = ("patches", "slide_features")
    paths = sorted(folder.rglob("*.h5"))
    features = [path for path in paths if not path.parent.name.startswith(others)]
    return iter(features or paths)
