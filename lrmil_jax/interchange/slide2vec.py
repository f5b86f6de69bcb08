"""slide2vec: `tile_embeddings/<id>.pt|.npz` with a sidecar, coordinates in `tiles/`."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from lrmil_jax import files
from lrmil_jax.errors import SlideError
from lrmil_jax.interchange import arrays, hdf5
from lrmil_jax.interchange.bag import Bag, checked_shape, checked_xy
from lrmil_jax.interchange.layout import Layout, by_name

_FOLDER, _REGIONS, _TILES = "tile_embeddings", "hierarchical_embeddings", "tiles"


class Slide2Vec(Layout):
    """Level-0 px, top left, with true um/px; the sidecar is written last, so it means complete."""

    name: ClassVar[str] = "slide2vec"

    def recognises(self, folder: Path, example: Path | None) -> bool:
        """See `Layout`."""
        del example
        inner = (folder / _FOLDER).is_dir() or (folder / _REGIONS).is_dir()
        return inner or any(folder.glob("*.meta.json"))

    def files(self, folder: Path) -> dict[str, Path]:
        """See `Layout`."""
        inner = next(
            (folder / one for one in (_FOLDER, _REGIONS) if (folder / one).is_dir()), folder
        )
        return by_name([*inner.glob("*.pt"), *inner.glob("*.npz")])

    def beside(self, path: Path) -> Sequence[Path]:
        """See `Layout`."""
        return (_sidecar(path), *_coordinates(path))

    def open(self, path: Path, mpp: float | None) -> Bag:
        """See `Layout`."""
        about = _read_json(_sidecar(path), "which is written last: the slide was not finished")
        stored, meta = _coordinates(path)
        sections = _read_json(meta, "so there are no coordinates")
        tiling, slide = sections.get("tiling", {}), sections.get("slide", {})
        values = _features(path)
        with arrays.opened_npz(stored) as places:
            if "x" not in places or "y" not in places:
                raise SlideError(f"{stored} has no x and y; tile the slide again")
            xy = np.stack([places["x"], places["y"]], 1)
        side, px = (
            hdf5.whole(tiling, name) for name in ("tile_size_lv0", "requested_tile_size_px")
        )
        step = hdf5.whole(tiling, "step_px_lv0") or side
        if values.ndim == 3:
            xy, side, px, step = _tiles_of_regions(xy, values.shape[:2], side, px, path)
            values = values.reshape(-1, values.shape[-1])
        shape, size = checked_shape(values.shape, str(path)), slide.get("dimensions")
        return Bag(
            shape=shape,
            features=lambda: values,
            xy=checked_xy(xy, shape[0], str(path)).astype(np.int64),
            side=side,
            step=step,
            px=px,
            mpp=mpp or hdf5.number(slide, "base_spacing_um"),
            encoder=str(about.get("encoder_name", "")),
            dimensions=None if size is None else (int(size[0]), int(size[1])),
        )

    def target(self, folder: Path, slide_id: str, bag: Bag) -> Path:
        """See `Layout`: the sidecar."""
        del bag
        return folder / _FOLDER / f"{slide_id}.meta.json"

    def write(self, folder: Path, slide_id: str, bag: Bag) -> None:
        """See `Layout`; as `.npz`, which needs no PyTorch."""
        if bag.mpp is None:
            raise SlideError(
                f"slide {slide_id} has no um/px, which slide2vec keeps: give it in the column mpp "
                "of the label CSV"
            )
        path = folder / _FOLDER / f"{slide_id}.npz"
        values = np.asarray(bag.features())
        if values.dtype != np.float16:
            values = values.astype(np.float32)
        count = bag.shape[0]
        stored, meta = _coordinates(path)
        index = np.arange(count, dtype=np.int32)
        places = {"x": bag.xy[:, 0].astype(np.int64), "y": bag.xy[:, 1].astype(np.int64)}
        fractions = np.full(count, np.nan, np.float32)  # not kept by whoever encoded them
        arrays.write_npz(stored, {"tile_index": index, **places, "tissue_fractions": fractions})
        files.write_json(meta, _sections(slide_id, bag))
        arrays.write_npz(path, {"features": values, "tile_index": index})
        files.write_json(
            _sidecar(path),
            {
                "sample_id": slide_id,
                "artifact_type": "tile_embeddings",
                "format": "npz",
                "feature_dim": bag.shape[1],
                "feature_dtype": "fp16" if values.dtype == np.float16 else "fp32",
                "num_tiles": count,
                "encoder_name": bag.encoder,
                "encoder_level": "tile",
                "tile_size_lv0": bag.side,
                "requested_tile_size_px": bag.px,
            },
        )


def _sections(slide_id: str, bag: Bag) -> dict[str, Any]:
    """What `<id>.coordinates.meta.json` says, as far as it is known here."""
    spacing = bag.mpp * bag.side / (bag.px or bag.side)
    return {
        "provenance": {"sample_id": slide_id, "backend": "lrmil_jax"},
        "slide": {
            "dimensions": None if bag.dimensions is None else list(bag.dimensions),
            "base_spacing_um": bag.mpp,
        },
        "tiling": {
            "requested_tile_size_px": bag.px,
            "requested_spacing_um": spacing,
            "read_tile_size_px": bag.px,
            "read_spacing_um": spacing,
            "tile_size_lv0": bag.side,
            "step_px_lv0": bag.step,
            "overlap": 0.0,
            "n_tiles": bag.shape[0],
        },
        "artifact": {"coordinate_space": "level0", "output_mode": "single_output"},
    }


def _features(path: Path) -> np.ndarray:
    """[N, D], or of regions [R, T, D]."""
    if path.suffix == ".pt":
        return arrays.read_torch(path)
    with arrays.opened_npz(path) as stored:
        if "features" not in stored:
            raise SlideError(f"{path} has no array features; extract its features again")
        return stored["features"]


def _tiles_of_regions(
    xy: Int[np.ndarray, "n 2"], shape: tuple[int, int], side: int | None, px: int | None, path: Path
) -> tuple[Int[np.ndarray, "m 2"], int | None, int | None, int | None]:
    """Corners, side, px and step of the m x m tiles of each region, row by row."""
    m = math.isqrt(shape[1])
    if m * m != shape[1] or (len(xy) == shape[0] and (side or 1) % m):
        raise SlideError(
            f"{path} has {shape[1]} tiles a region of {side} level-0 px, which is no square of "
            "whole tiles; extract tile embeddings instead"
        )
    if len(xy) != shape[0]:  # of the tiles themselves
        return xy, side, px, side
    tile = None if side is None else side // m
    v, u = np.divmod(np.arange(shape[1]), m)
    corners = xy[:, None] + np.stack([u, v], 1) * (tile or 0)
    return corners.reshape(-1, 2), tile, None if px is None else px // m, tile


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.stem}.meta.json")


def _coordinates(path: Path) -> tuple[Path, Path]:
    folder, stem = path.parent.parent / _TILES, path.stem
    return folder / f"{stem}.coordinates.npz", folder / f"{stem}.coordinates.meta.json"


def _read_json(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SlideError(f"{path} is not there, {otherwise}; run slide2vec again") from error
    except (OSError, ValueError) as error:
        raise SlideError(f"{path} cannot be read ({error}); run slide2vec again") from error
