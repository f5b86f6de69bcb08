"""TRIDENT: `<mag>x_<px>px_<overlap>px_overlap/features_<encoder>/<slide>.h5`, and what reads it."""

import re
from pathlib import Path
from typing import ClassVar

import numpy as np

from lrmil_jax.interchange import hdf5
from lrmil_jax.interchange.bag import Bag, checked_shape, checked_xy
from lrmil_jax.interchange.layout import Layout, as_float32, by_name, magnification

# Ours, beside TRIDENT's: its own rule for the distance of patches follows nominal magnifications.
_STEP = "step_level0"


class Trident(Layout):
    """Level-0 px, top left; no um/px. The attributes are of the dataset `coords`."""

    name: ClassVar[str] = "trident"

    def recognises(self, folder: Path, example: Path | None) -> bool:
        """See `Layout`: coordinates that carry `patch_size_level0`, or the magnifications."""
        del folder
        if example is None:
            return False
        with hdf5.opened(example) as file:
            if "features" not in file or "coords" not in file:
                return False
            attrs = file["coords"].attrs
            return "patch_size_level0" in attrs or "target_magnification" in attrs

    def files(self, folder: Path) -> dict[str, Path]:
        """See `Layout`; patches and slide embeddings of a whole job folder are passed over."""
        paths = folder.rglob("*.h5")
        return by_name(path for path in paths if not _is_other(path.parent.name))

    def open(self, path: Path, mpp: float | None) -> Bag:
        """See `Layout`."""
        with hdf5.opened(path) as file:
            features = hdf5.dataset(file, "features", path)
            coords = hdf5.dataset(file, "coords", path)
            shape = checked_shape(features.shape, str(path))
            xy = checked_xy(coords[:], shape[0], str(path)).astype(np.int64)
            attrs, about = hdf5.attributes(coords.attrs), hdf5.attributes(features.attrs)
        side, step = _sizes(attrs, xy)
        width, height = (hdf5.whole(attrs, f"level0_{name}") for name in ("width", "height"))
        return Bag(
            shape=shape,
            features=lambda: hdf5.read(path, "features"),
            xy=xy,
            side=side,
            step=step,
            px=hdf5.whole(attrs, "patch_size"),
            mpp=mpp,
            encoder=str(about.get("encoder", "")),
            dimensions=(width, height) if width and height else None,
        )

    def target(self, folder: Path, slide_id: str, bag: Bag) -> Path:
        """See `Layout`: the names of the folders are part of the layout."""
        side, px = bag.side, bag.px
        power = magnification(bag.mpp * side / px) if bag.mpp else 20
        encoder = re.sub(r"[^\w.-]", "_", bag.encoder) or "unknown"
        return folder / f"{power}x_{px}px_0px_overlap" / f"features_{encoder}" / f"{slide_id}.h5"

    def write(self, folder: Path, slide_id: str, bag: Bag) -> None:
        """See `Layout`; all that Patho-Bench, torchmil and MIL_BASELINE ask for too."""
        path = self.target(folder, slide_id, bag)
        power = int(path.parent.parent.name.partition("x")[0])
        width, height = bag.dimensions or ("None", "None")
        coords = {
            "patch_size": bag.px,
            "patch_size_level0": bag.side,
            # From the sides, so that the two agree where um/px are not those of the nominal power.
            "level0_magnification": magnification(10 * bag.px / (power * bag.side)),
            "target_magnification": power,
            "overlap": 0,
            "name": slide_id,
            "savetodir": str(path.parent),
            "level0_width": width,
            "level0_height": height,
            _STEP: bag.step,
        }
        features = {"name": slide_id, "savetodir": str(path.parent), "encoder": bag.encoder}
        hdf5.write(
            path,
            {"features": as_float32(bag.features()), "coords": bag.xy.astype(np.int64)},
            of={"features": features, "coords": coords},
        )


def _is_other(folder: str) -> bool:
    return folder == "patches" or folder.startswith("slide_features")


def _sizes(attrs: dict, xy: np.ndarray) -> tuple[int | None, int | None]:
    """Side and step of the patches in level-0 px."""
    px, overlap = hdf5.number(attrs, "patch_size"), hdf5.number(attrs, "overlap") or 0.0
    powers = [hdf5.number(attrs, f"{name}_magnification") for name in ("level0", "target")]
    side = hdf5.whole(attrs, "patch_size_level0")
    if side is None and px and None not in powers:
        side = int(px * powers[0] // powers[1])
    if _STEP in attrs:
        return side, hdf5.whole(attrs, _STEP)
    if px is None or None in powers:
        return side, side
    scale = powers[0] / powers[1]
    step = round(px * scale) - round(overlap * scale)
    # The side is cut off to whole px where the step is rounded: the coordinates decide.
    if not overlap and ((xy - xy[0]) % step).any() and not ((xy - xy[0]) % side).any():
        step = side
    return (step if not overlap else side), step
