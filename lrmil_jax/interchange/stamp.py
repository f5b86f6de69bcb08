"""STAMP: `<extractor>-<hash>/<slide>.h5` with coordinates in um, numbered per supertile."""

import math
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from lrmil_jax.errors import SlideError
from lrmil_jax.interchange import grid, hdf5
from lrmil_jax.interchange.bag import Bag, checked_shape, checked_xy
from lrmil_jax.interchange.layout import Layout, by_name

_NEWEST = (2, 5, 0)  # that this module was written after
_GRID = "STAMP numbers the tiles of a supertile in um and lets them drift from their pixels"
_LEGACY_UM, _LEGACY_PX = 256.0, 224
_SUPERTILE_PX = 1024


class Stamp(Layout):
    """Coordinates in um, top left; level-0 px follow from the slide's um/px alone."""

    name: ClassVar[str] = "stamp"
    needs_mpp: ClassVar[bool] = True

    def recognises(self, folder: Path, example: Path | None) -> bool:
        """See `Layout`."""
        del folder
        if example is None:
            return False
        with hdf5.opened(example) as file:
            return "feats" in file or "patch_embeddings" in file

    def files(self, folder: Path) -> dict[str, Path]:
        """See `Layout`."""
        return by_name(folder.rglob("*.h5"))

    def open(self, path: Path, mpp: float | None) -> Bag:
        """See `Layout`."""
        with hdf5.opened(path) as file:
            attrs = hdf5.attributes(file.attrs)
            _refuse(attrs, path)
            name = "feats" if "feats" in file else "patch_embeddings"
            shape = checked_shape(hdf5.dataset(file, name, path).shape, str(path))
            coords = hdf5.dataset(file, "coords", path)
            um = checked_xy(coords[:], shape[0], str(path)).astype(np.float64)
        if mpp is None:
            raise SlideError(
                f"{path} has its coordinates in um and no um/px: give the slide's in the column "
                "mpp of the label CSV, or the slides in data.slides"
            )
        um, tile_um, px = _in_um(um, attrs, path)
        side = math.ceil(tile_um / mpp * (1 - 1e-9))
        return Bag(
            shape=shape,
            features=lambda: hdf5.read(path, name),
            xy=to_pixels(um, tile_um=tile_um, mpp=mpp),
            side=side,
            step=side,
            px=px,
            mpp=mpp,
            encoder=re.sub(r"-[0-9a-f]{6,}$", "", str(attrs.get("extractor", ""))),
            grid=_GRID,
        )

    def target(self, folder: Path, slide_id: str, bag: Bag) -> Path:
        """See `Layout`."""
        encoder = re.sub(r"[^\w.-]", "_", bag.encoder) or "unknown"
        return folder / encoder / f"{slide_id}.h5"

    def write(self, folder: Path, slide_id: str, bag: Bag) -> None:
        """See `Layout`; float16 as STAMP keeps it."""
        if bag.mpp is None:
            raise SlideError(
                f"slide {slide_id} has no um/px, in which STAMP has its coordinates: give it in "
                "the column mpp of the label CSV"
            )
        features = np.asarray(bag.features()).astype(np.float32)
        with np.errstate(over="ignore"):
            half = features.astype(np.float16)
        if not np.isfinite(half).all():
            raise SlideError(
                f"slide {slide_id} has features that float16, STAMP's type, cannot hold; export "
                "another format"
            )
        attrs = {
            "stamp_version": ".".join(map(str, _NEWEST)),
            "extractor": bag.encoder or "unknown",
            "unit": "um",
            "tile_size_um": float(bag.side * bag.mpp),
            "tile_size_px": int(bag.px or bag.side),
            "code_hash": "lrmil_jax",
            "feat_type": "tile",
        }
        coords = (bag.xy * bag.mpp).astype(np.float32)
        path = self.target(folder, slide_id, bag)
        hdf5.write(path, {"feats": half, "coords": coords}, attrs=attrs)


def to_pixels(
    um: Float[np.ndarray, "n 2"], *, tile_um: float, mpp: float
) -> Int[np.ndarray, "n 2"]:
    """Level-0 px of STAMP's tiles.

    A supertile of n x n tiles begins at a true pixel, its tiles are ceil(tile_um / mpp) px wide,
    but they are numbered as if they were tile_um: so each axis is snapped to whole tiles.
    Coordinates further from one than the drift within a supertile (n px) are of another grid and
    stay as they are, to the pixel.
    """
    side = math.ceil(tile_um / mpp * (1 - 1e-9))
    drift = max(1, math.floor(_SUPERTILE_PX * mpp / tile_um))
    pixels = um / mpp
    snapped = np.round(pixels / side) * side
    if np.abs(snapped - pixels).max() > min(drift, side / 2):
        snapped = np.round(pixels)
    return snapped.astype(np.int64)


def _refuse(attrs: dict[str, Any], path: Path) -> None:
    version = str(attrs.get("stamp_version", ""))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers > _NEWEST:
        raise SlideError(
            f"{path} was written by STAMP {version}, this version reads files up to "
            f"{'.'.join(map(str, _NEWEST))}; extract with that one, or use a newer lrmil_jax"
        )
    kind = attrs.get("feat_type", "tile")
    if kind != "tile":
        raise SlideError(
            f"{path} holds an embedding of a whole {kind}, not of its tiles; give the folder of "
            "tile features"
        )


def _in_um(
    coords: np.ndarray, attrs: dict[str, Any], path: Path
) -> tuple[np.ndarray, float, int | None]:
    """Coordinates in um, and the tile's side in um and px, by STAMP's own rules for old files."""
    tile_um, px = hdf5.number(attrs, "tile_size_um"), hdf5.whole(attrs, "tile_size_px")
    if tile_um is None and attrs.get("unit") == "um":
        tile_um = hdf5.number(attrs, "tile_size")
    if tile_um is not None:
        return coords, tile_um, px
    step = grid.infer_step(np.round(coords).astype(np.int64))
    if step is not None and abs(step - _LEGACY_PX) <= 1:
        return coords / _LEGACY_PX * _LEGACY_UM, _LEGACY_UM, _LEGACY_PX
    raise SlideError(
        f"{path} says neither tile_size_um nor in what its coordinates are; extract its features "
        "again with a newer STAMP"
    )
