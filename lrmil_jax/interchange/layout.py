"""What a tool's layout of files must be able to do; one file a layout beside this one."""

import abc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from lrmil_jax.data import tables
from lrmil_jax.errors import DataError
from lrmil_jax.interchange.bag import Bag


class Layout(abc.ABC):
    """How one tool keeps the features of slides in a folder.

    Attributes:
      name: in `data.features_format` and `export.format`.
      needs_mpp: files name no level-0 px, so um/px must be given.
    """

    name: ClassVar[str]
    needs_mpp: ClassVar[bool] = False

    @abc.abstractmethod
    def recognises(self, folder: Path, example: Path | None) -> bool:
        """Whether the folder is of this layout.

        Args:
          folder: as the user gives it.
          example: an HDF5 file somewhere below it, or None.
        """

    @abc.abstractmethod
    def files(self, folder: Path) -> dict[str, Path]:
        """The feature file of every slide, by the slide's name.

        Raises:
          DataError: two files are of one slide.
        """

    @abc.abstractmethod
    def open(self, path: Path, mpp: float | None) -> Bag:
        """The bag of one file, its features not read yet.

        Args:
          path: of the feature file.
          mpp: um/px of the slide's level 0 as the user gives it, or None.

        Raises:
          SlideError: the file is broken, unfinished, of slides instead of patches, or lacks
            something; one sentence.
        """

    def beside(self, path: Path) -> Sequence[Path]:
        """Further files that the bag is read from: a change of them is a change of the bag."""
        del path
        return ()

    @abc.abstractmethod
    def target(self, folder: Path, slide_id: str, bag: Bag) -> Path:
        """The file that `write` makes complete last: where it is, the slide is exported."""

    @abc.abstractmethod
    def write(self, folder: Path, slide_id: str, bag: Bag) -> None:
        """Writes one slide below `folder`, every file whole or not at all.

        Raises:
          SlideError: the layout needs a fact that the bag has not.
        """

    def check_export(self) -> None:
        """Refuses before anything is written what no slide could be written without.

        Raises:
          DataError: a library is missing.
        """
        return


def by_name(paths: Iterable[Path], *, suffix: str | None = None) -> dict[str, Path]:
    """Files by their names without suffix.

    Args:
      paths: of the files.
      suffix: what is cut off the name, if it is more than the last suffix.

    Raises:
      DataError: two have one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(paths):
        name = path.stem if suffix is None else path.name.removesuffix(suffix)
        name = tables.one_form(name)
        if name in found:
            raise DataError(
                f"two feature files are called {name} ({found[name]} and {path}); name the folder "
                "of one encoder and magnification in data.features"
            )
        found[name] = path
    return found


def as_float32(features: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n D"]:
    """For layouts that keep float32: every stored value is exact in it."""
    return np.asarray(features).astype(np.float32)


def magnification(mpp: float) -> int:
    """The nominal magnification that tools name a resolution by: 10 um/px over um/px, to the
    nearest of the usual ones."""
    usual = (80, 60, 40, 20, 10, 5, 2, 1)
    return min(usual, key=lambda value: abs(np.log(value * mpp / 10)))
