"""slideflow: `<slide>.pt` beside `<slide>.index.npz`, under one `bags_config.json`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Int, Num

from lrmil_jax import files, torch_files
from lrmil_jax.errors import DataError, SlideError
from lrmil_jax.interchange import arrays, grid
from lrmil_jax.interchange.bag import Bag, checked_shape, checked_xy
from lrmil_jax.interchange.layout import Layout, as_float32, by_name

_CONFIG = "bags_config.json"


class Slideflow(Layout):
    """Level-0 px of tile centres; um and px of a tile stand in the folder's configuration."""

    name: ClassVar[str] = "slideflow"

    def recognises(self, folder: Path, example: Path | None) -> bool:
        """See `Layout`."""
        del example
        return (folder / _CONFIG).is_file()

    def files(self, folder: Path) -> dict[str, Path]:
        """See `Layout`."""
        return by_name(folder.glob("*.pt"))

    def beside(self, path: Path) -> Sequence[Path]:
        """See `Layout`."""
        return (_index(path),)

    def open(self, path: Path, mpp: float | None) -> Bag:
        """See `Layout`."""
        features = arrays.read_torch(path)
        shape = checked_shape(features.shape, str(path))
        if not _index(path).is_file():
            raise SlideError(f"{path} has no {_index(path).name} beside it, so no coordinates")
        with arrays.opened_npz(_index(path)) as stored:
            if "arr_0" not in stored:
                raise SlideError(f"{_index(path)} has no coordinates (arr_0); make the bag again")
            centres = checked_xy(stored["arr_0"], shape[0], str(path))
        about = _read_config(path.parent)
        side, step = _sizes(about, centres, mpp)
        extractor = about.get("extractor") or {}
        return Bag(
            shape=shape,
            features=lambda: features.reshape(shape),
            xy=None if side is None else corners(centres, side),
            side=side,
            step=step,
            px=about.get("tile_px"),
            mpp=mpp,
            encoder=str(extractor.get("class", "")),
        )

    def check_export(self) -> None:
        """See `Layout`."""
        torch_files.library(
            Path("bags"), error=DataError, otherwise="export another format, such as trident"
        )

    def target(self, folder: Path, slide_id: str, bag: Bag) -> Path:
        """See `Layout`."""
        del bag
        return folder / f"{slide_id}.pt"

    def write(self, folder: Path, slide_id: str, bag: Bag) -> None:
        """See `Layout`; the configuration is the same for every slide."""
        torch = torch_files.library(folder, error=DataError, otherwise="export another format")
        path = self.target(folder, slide_id, bag)
        about = {
            "extractor": {"class": bag.encoder or "unknown", "kwargs": {}},
            "normalizer": None,
            "num_features": bag.shape[1],
            "tile_px": int(bag.px or bag.side),
            "tile_um": None if bag.mpp is None else round(bag.side * bag.mpp),
        }
        if not (folder / _CONFIG).is_file():  # um differ by a few between slides: one must do
            files.write_json(folder / _CONFIG, about)
        arrays.write_npz(_index(path), {"arr_0": bag.xy.astype(np.int64) + bag.side // 2})
        with files.atomic_path(path) as temporary:
            torch.save(torch.from_numpy(as_float32(bag.features())), temporary)


def corners(centres: Num[np.ndarray, "n 2"], side: int) -> Int[np.ndarray, "n 2"]:
    """Top left corners, whether centres were rounded down or kept as halves."""
    return np.floor(centres.astype(np.float64) - side / 2 + 0.5).astype(np.int64)


def _index(path: Path) -> Path:
    return path.with_name(f"{path.stem}.index.npz")


def _read_config(folder: Path) -> dict:
    try:
        return json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise SlideError(f"{folder / _CONFIG} is no JSON ({error}); make the bags again") from error


def _sizes(about: dict, centres: np.ndarray, mpp: float | None) -> tuple[int | None, int | None]:
    """Side and step in level-0 px: the coordinates know the step, um/px the side."""
    step = grid.infer_step(np.floor(centres).astype(np.int64))
    um = about.get("tile_um")
    if mpp is None or not isinstance(um, int | float):
        return step, step
    side = int(um / mpp)
    # um are kept whole: a side that is the step but for that is the step.
    if step is None or abs(side - step) * mpp <= 1.0 + mpp:
        return (side if step is None else step), (side if step is None else step)
    return side, step
