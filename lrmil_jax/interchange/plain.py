"""Arrays by themselves: `<slide>.npy`, `.npz` or `.pt`, one bag a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from lrmil_jax import files, torch_files
from lrmil_jax.errors import DataError
from lrmil_jax.interchange import arrays, grid
from lrmil_jax.interchange.bag import Bag, checked_shape, checked_xy
from lrmil_jax.interchange.layout import Layout, as_float32, by_name

_FEATURES = ("features", "feats", "embeddings")
_COORDS = ("coords", "xy")


class _Plain(Layout):
    """What the three have in common; coordinates, if any, are level-0 px, top left."""

    suffix: ClassVar[str]

    def recognises(self, folder: Path, example: Path | None) -> bool:
        """See `Layout`: files of this suffix and none of HDF5."""
        return example is None and bool(self.files(folder))

    def files(self, folder: Path) -> dict[str, Path]:
        """See `Layout`."""
        paths = folder.glob(f"*{self.suffix}")
        return by_name(path for path in paths if not path.name.endswith(".coords.npy"))

    def beside(self, path: Path) -> Sequence[Path]:
        """See `Layout`."""
        coords = _coords(path)
        return (coords,) if coords.is_file() else ()

    def target(self, folder: Path, slide_id: str, bag: Bag) -> Path:
        """See `Layout`."""
        del bag
        return folder / f"{slide_id}{self.suffix}"

    def _bag(self, path: Path, features: np.ndarray, xy: np.ndarray | None, mpp, side=None) -> Bag:
        shape = checked_shape(features.shape, str(path))
        if xy is None and _coords(path).is_file():
            xy = arrays.read_npy(_coords(path))
        if xy is not None:
            xy = checked_xy(np.asarray(xy), shape[0], str(path)).astype(np.int64)
        step = None if xy is None else grid.infer_step(xy)
        side = step if side is None else side
        return Bag(
            shape=shape,
            features=lambda: np.asarray(features).reshape(shape),
            xy=xy,
            side=side,
            step=side if step is None else step,
            mpp=mpp,
        )


class Npy(_Plain):
    """[N, D], and beside it perhaps `<slide>.coords.npy`."""

    name: ClassVar[str] = "npy"
    suffix: ClassVar[str] = ".npy"

    def open(self, path: Path, mpp: float | None) -> Bag:
        """See `Layout`."""
        return self._bag(path, arrays.read_npy(path), None, mpp)

    def write(self, folder: Path, slide_id: str, bag: Bag) -> None:
        """See `Layout`."""
        path = self.target(folder, slide_id, bag)
        arrays.write_npy(_coords(path), bag.xy.astype(np.int64))
        arrays.write_npy(path, _plain(bag))


class Npz(_Plain):
    """`features` [N, D], perhaps `coords` [N, 2], `side` and `mpp`."""

    name: ClassVar[str] = "npz"
    suffix: ClassVar[str] = ".npz"

    def open(self, path: Path, mpp: float | None) -> Bag:
        """See `Layout`."""
        with arrays.opened_npz(path) as stored:
            names = [name for name in _FEATURES if name in stored] or list(stored)
            features = stored[names[0]]
            coords = next((stored[name] for name in _COORDS if name in stored), None)
            side = int(stored["side"]) if "side" in stored else None
            if mpp is None and "mpp" in stored:
                mpp = float(stored["mpp"])
        return self._bag(path, features, coords, mpp, side)

    def write(self, folder: Path, slide_id: str, bag: Bag) -> None:
        """See `Layout`."""
        values = {"features": _plain(bag), "coords": bag.xy.astype(np.int64)}
        values["side"] = np.int64(bag.side)
        if bag.mpp is not None:
            values["mpp"] = np.float64(bag.mpp)
        arrays.write_npz(self.target(folder, slide_id, bag), values)


class Pt(_Plain):
    """A tensor [N, D], as CLAM's `pt_files` and MIL_BASELINE have it."""

    name: ClassVar[str] = "pt"
    suffix: ClassVar[str] = ".pt"

    def open(self, path: Path, mpp: float | None) -> Bag:
        """See `Layout`."""
        return self._bag(path, arrays.read_torch(path), None, mpp)

    def check_export(self) -> None:
        """See `Layout`."""
        torch_files.library(Path("*.pt"), error=DataError, otherwise="export npy or npz")

    def write(self, folder: Path, slide_id: str, bag: Bag) -> None:
        """See `Layout`."""
        torch = torch_files.library(folder, error=DataError, otherwise="export npy or npz")
        path = self.target(folder, slide_id, bag)
        arrays.write_npy(_coords(path), bag.xy.astype(np.int64))
        with files.atomic_path(path) as temporary:
            torch.save(torch.from_numpy(as_float32(bag.features())), temporary)


def _coords(path: Path) -> Path:
    return path.with_name(f"{path.stem}.coords.npy")


def _plain(bag: Bag) -> np.ndarray:
    """float16 as it is; bfloat16, which NumPy does not know, as float32."""
    values = np.asarray(bag.features())
    return values if values.dtype == np.float16 else values.astype(np.float32)
