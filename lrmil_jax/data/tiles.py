"""A folder of labelled tiles, one sub-folder a class, for training a small encoder."""

import dataclasses
from pathlib import Path

import grain
import numpy as np
from PIL import Image, UnidentifiedImageError

from lrmil_jax.errors import DataError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"}


@dataclasses.dataclass(frozen=True)
class TileFolder:
    """Labelled tiles found on disk.

    Attributes:
      paths: image files, sorted by class and name.
      labels: [n] class of each.
      classes: names of the sub-folders, sorted.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path) -> "TileFolder":
        """Lists the tiles.

        Raises:
          DataError: no such folder, or fewer than two classes with two tiles each.
        """
        if not folder.is_dir():
            raise DataError(f"data.tiles is {folder}, which is no folder; give one folder a class")
        folders = (path for path in folder.iterdir() if path.is_dir())
        classes = tuple(sorted(path.name for path in folders if not path.name.startswith(".")))
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in _SUFFIXES)
            if len(found) < 2:
                raise DataError(f"{folder / name} has {len(found)} tiles; a class needs at least 2")
            paths += found
            labels += [label] * len(found)
        if len(classes) < 2:
            raise DataError(f"{folder} has {len(classes)} class folders; at least 2 are needed")
        return cls(tuple(paths), np.array(labels, np.int32), classes)

    def split(self, *, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices for training and validation, the same share of every class."""
        rng = np.random.default_rng(seed)
        held = []
        for label in range(len(self.classes)):
            members = rng.permutation(np.flatnonzero(self.labels == label))
            held.append(members[: max(1, round(share * len(members)))])
        val = np.sort(np.concatenate(held))
        return np.setdiff1d(np.arange(len(self.labels)), val), val


class TileSource:
    """Tiles as a Grain source: `image` uint8 [px, px, 3] (resized if need be) and `label`."""

    def __init__(self, tiles: TileFolder, indices: np.ndarray, *, px: int):
        self._tiles, self._indices, self._px = tiles, indices, px

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        place = int(self._indices[index])
        path = self._tiles.paths[place]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
                if image.size != (self._px, self._px):
                    image = image.resize((self._px, self._px), Image.Resampling.BICUBIC)
                pixels = np.asarray(image)
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"the tile {path} cannot be read ({error}); remove it") from error
        return {"image": pixels, "label": self._tiles.labels[place]}


class Augment(grain.transforms.RandomMap):
    """One of the eight flips and quarter turns, and a small change of brightness and contrast."""

    def random_map(self, element: dict, rng: np.random.Generator) -> dict:
        image = np.rot90(element["image"], rng.integers(4))
        if rng.integers(2):
            image = image[:, ::-1]
        gain, shift = rng.uniform(0.9, 1.1, 3), rng.uniform(-12, 12, 3)
        changed = np.clip(image * gain + shift, 0, 255).astype(np.uint8)
        return element | {"image": np.ascontiguousarray(changed)}
