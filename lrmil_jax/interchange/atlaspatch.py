"""AtlasPatch: `patches/<stem>.h5` with every encoder's features in one file."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np

from lrmil_jax.errors import SlideError
from lrmil_jax.interchange import hdf5
from lrmil_jax.interchange.bag import Bag, checked_shape, checked_xy
from lrmil_jax.interchange.layout import Layout, as_float32, by_name, magnification

_GRID = "AtlasPatch before March 2026 began its grid anew at each contour"


@dataclasses.dataclass(frozen=True)
class AtlasPatch(Layout):
    """Level-0 px, top left; the attributes are of the file.

    Attributes:
      encoder: whose features are read; "" if every file has those of one.
    """

    encoder: str = ""

    name: ClassVar[str] = "atlaspatch"

    def recognises(self, folder: Path, example: Path | None) -> bool:
        """See `Layout`: a group `features`."""
        del folder
        if example is None:
            return False
        with hdf5.opened(example) as file:
            return isinstance(file.get("features"), h5py.Group)

    def files(self, folder: Path) -> dict[str, Path]:
        """See `Layout`."""
        inner = folder / "patches" if (folder / "patches").is_dir() else folder
        return by_name(inner.glob("*.h5"))

    def open(self, path: Path, mpp: float | None) -> Bag:
        """See `Layout`."""
        with hdf5.opened(path) as file:
            encoder = self._encoder(file, path)
            name = f"features/{encoder}"
            shape = checked_shape(hdf5.dataset(file, name, path).shape, str(path))
            xy = checked_xy(hdf5.dataset(file, "coords", path)[:], shape[0], str(path))
            attrs = hdf5.attributes(file.attrs)
        side, px = hdf5.whole(attrs, "patch_size_level0"), hdf5.whole(attrs, "patch_size")
        overlap = (hdf5.number(attrs, "overlap") or 0.0) * (side or 0) / (px or 1)
        width, height = (hdf5.whole(attrs, f"level0_{axis}") for axis in ("width", "height"))
        return Bag(
            shape=shape,
            features=lambda: hdf5.read(path, name),
            xy=xy.astype(np.int64),
            side=side,
            step=None if side is None else side - round(overlap),
            px=px,
            mpp=mpp or hdf5.number(attrs, "mpp"),
            encoder=encoder,
            dimensions=(width, height) if width and height else None,
            grid=_GRID,
        )

    def _encoder(self, file: h5py.File, path: Path) -> str:
        names = list(file["features"]) if "features" in file else []
        if self.encoder in names:
            return self.encoder
        if len(names) == 1 and not self.encoder:
            return names[0]
        raise SlideError(
            f"{path} has features of {', '.join(names) or 'no encoder'}; name one of them: "
            "data.features_format=atlaspatch/ENCODER"
        )

    def target(self, folder: Path, slide_id: str, bag: Bag) -> Path:
        """See `Layout`."""
        del bag
        return folder / "patches" / f"{slide_id}.h5"

    def write(self, folder: Path, slide_id: str, bag: Bag) -> None:
        """See `Layout`; without passports, which name each patch's slide anew."""
        power = magnification(bag.mpp * bag.side / bag.px) if bag.mpp else 20
        width, height = bag.dimensions or (0, 0)
        attrs = {
            "patch_size": bag.px,
            "patch_size_level0": bag.side,
            "level0_magnification": magnification(10 * bag.px / (power * bag.side)),
            "target_magnification": power,
            "overlap": 0,
            "level0_width": width,
            "level0_height": height,
            "filename": slide_id,
            "num_patches": bag.shape[0],
        }
        if bag.mpp is not None:
            attrs["mpp"] = bag.mpp
        coords = np.zeros((bag.shape[0], 5), np.int32)
        coords[:, :2], coords[:, 2:4] = bag.xy, bag.side
        encoder = bag.encoder or "unknown"
        hdf5.write(
            self.target(folder, slide_id, bag),
            {"coords": coords, f"features/{encoder}": as_float32(bag.features())},
            attrs=attrs,
        )
