"""CLAM: `h5_files/<slide>.h5` beside `pt_files/<slide>.pt`; its grid begins at each contour."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np

from lrmil_jax import files, torch_files
from lrmil_jax.errors import DataError
from lrmil_jax.interchange import grid, hdf5
from lrmil_jax.interchange.bag import Bag, checked_shape, checked_xy
from lrmil_jax.interchange.layout import Layout, as_float32, by_name

_GRID = "CLAM's grid begins anew at each contour's bounding box"


class Clam(Layout):
    """Level-0 px, top left, without attributes: the side stands in the patch file, if at all."""

    name: ClassVar[str] = "clam"

    def recognises(self, folder: Path, example: Path | None) -> bool:
        """See `Layout`: its folders, or features and coordinates without any attribute."""
        if (folder / "h5_files").is_dir() or (folder / "pt_files").is_dir():
            return True
        if example is None:
            return False
        with hdf5.opened(example) as file:
            held = [file.get(name) for name in ("features", "coords")]
            arrays = all(isinstance(one, h5py.Dataset) for one in held)
            return arrays and not len(held[1].attrs)

    def files(self, folder: Path) -> dict[str, Path]:
        """See `Layout`.

        Raises:
          DataError: there are features without coordinates alone.
        """
        inner = folder / "h5_files"
        if not inner.is_dir() and (folder / "pt_files").is_dir():
            raise DataError(
                f"{folder} has CLAM's pt_files, which know no coordinates, without its h5_files; "
                "add them, or give pt_files itself with data.features_format=pt"
            )
        return by_name((inner if inner.is_dir() else folder).glob("*.h5"))

    def beside(self, path: Path) -> Sequence[Path]:
        """See `Layout`: the patch file."""
        found = _patch_file(path)
        return () if found is None else (found,)

    def open(self, path: Path, mpp: float | None) -> Bag:
        """See `Layout`."""
        with hdf5.opened(path) as file:
            shape = checked_shape(hdf5.dataset(file, "features", path).shape, str(path))
            coords = hdf5.dataset(file, "coords", path)
            xy = checked_xy(coords[:], shape[0], str(path)).astype(np.int64)
        patches = _patch_file(path)
        side, px = (None, None) if patches is None else _sizes(patches)
        step = grid.infer_step(xy)
        return Bag(
            shape=shape,
            features=lambda: hdf5.read(path, "features"),
            xy=xy,
            side=step if side is None else side,
            step=side if step is None else step,
            px=px,
            mpp=mpp,
            grid=_GRID,
        )

    def check_export(self) -> None:
        """See `Layout`: CLAM trains on `.pt`."""
        torch_files.library(
            Path("pt_files"), error=DataError, otherwise="export another format, such as trident"
        )

    def target(self, folder: Path, slide_id: str, bag: Bag) -> Path:
        """See `Layout`."""
        del bag
        return folder / "h5_files" / f"{slide_id}.h5"

    def write(self, folder: Path, slide_id: str, bag: Bag) -> None:
        """See `Layout`; with the patch file, which alone says how large a patch is."""
        torch = torch_files.library(folder, error=DataError, otherwise="export another format")
        features = as_float32(bag.features())
        patches = {
            "patch_size": bag.side,
            "patch_level": 0,
            "downsample": np.array([1.0, 1.0]),
            "name": slide_id,
            "save_path": str(folder / "patches"),
        }
        if bag.dimensions is not None:
            patches |= {
                "downsampled_level_dim": np.array(bag.dimensions),
                "level_dim": np.array(bag.dimensions),
            }
        hdf5.write(
            folder / "patches" / f"{slide_id}.h5",
            {"coords": bag.xy.astype(np.int64)},
            of={"coords": patches},
        )
        with files.atomic_path(folder / "pt_files" / f"{slide_id}.pt") as temporary:
            torch.save(torch.from_numpy(features), temporary)
        hdf5.write(
            self.target(folder, slide_id, bag),
            {"features": features, "coords": bag.xy.astype(np.int32)},
        )


def _patch_file(path: Path) -> Path | None:
    """Where the slide's patch file is, if it lies near: CLAM keeps it in another folder."""
    places = (parent / "patches" / path.name for parent in list(path.parents)[1:3])
    return next((place for place in places if place.is_file()), None)


def _sizes(path: Path) -> tuple[int | None, int | None]:
    """Side in level-0 px and in px of the image that was encoded."""
    with hdf5.opened(path) as file:
        attrs = hdf5.attributes(hdf5.dataset(file, "coords", path).attrs)
    px, downsample = hdf5.number(attrs, "patch_size"), attrs.get("downsample", 1.0)
    factor = downsample[0] if isinstance(downsample, list | tuple) else downsample
    return (None, None) if px is None else (round(px * float(factor)), round(px))
