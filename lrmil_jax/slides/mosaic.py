"""Slides composed of real fields: labelled images of tissue laid out as mosaics.

Fields are parted first, one pool for training an encoder and one for each split of the slides, so
that no field stands on two sides.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, UInt8
from PIL import Image

from lrmil_jax.errors import DataError
from lrmil_jax.files import atomic_path
from lrmil_jax.slides.synthetic import write_slide

POOLS = ("pretrain", "train", "val", "test")


@dataclasses.dataclass(frozen=True)
class MosaicRecipe:
    """How slides are composed.

    Attributes:
      fields: fields along one side of a slide.
      field_px: side to which a field is resized.
      positive_share: share of a positive slide's fields that show the lesion.
      mpp: um/px written into the files.
      shares: of the fields that go to each of `POOLS`.
      seed: of the pools and of every slide.
    """

    fields: int = 6
    field_px: int = 256
    positive_share: float = 0.1
    mpp: float = 0.5
    shares: tuple[float, float, float, float] = (0.4, 0.3, 0.15, 0.15)
    seed: int = 0


def part_fields(folder: Path, recipe: MosaicRecipe) -> dict[str, dict[str, list[Path]]]:
    """{pool: {class: fields}}; a field is in one pool.

    Raises:
      DataError: `folder` has not exactly two class folders, or too few fields.
    """
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if len(classes) != 2:
        raise DataError(f"{folder} has {len(classes)} class folders; a mosaic needs two")
    rng = np.random.default_rng(recipe.seed)
    pools: dict[str, dict[str, list[Path]]] = {pool: {} for pool in POOLS}
    for name in classes:
        images = sorted(
            p for p in (folder / name).iterdir() if p.suffix.lower() in {".jpg", ".png"}
        )
        if len(images) < 20:
            raise DataError(f"{folder / name} has {len(images)} fields; at least 20 are needed")
        order = rng.permutation(len(images))
        ends = np.round(np.cumsum(recipe.shares) * len(images)).astype(int)
        for pool, part in zip(POOLS, np.split(order, ends[:-1]), strict=True):
            pools[pool][name] = [images[index] for index in part]
    return pools


def compose(
    rng: np.random.Generator,
    fields: dict[str, list[Path]],
    *,
    negative: str,
    positive: str | None,
    recipe: MosaicRecipe,
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """One mosaic and where its lesion is; `positive=None` makes a negative slide."""
    side = recipe.fields * recipe.field_px
    image = np.empty((side, side, 3), np.uint8)
    lesion = np.zeros((side, side), bool)
    count = recipe.fields**2
    share = max(1, round(recipe.positive_share * count)) if positive else 0
    chosen = set(rng.choice(count, share, replace=False).tolist())
    for place in range(count):
        name = positive if place in chosen else negative
        path = fields[name][rng.integers(len(fields[name]))]
        row, column = divmod(place, recipe.fields)
        spot = np.s_[row * recipe.field_px : (row + 1) * recipe.field_px,
                     column * recipe.field_px : (column + 1) * recipe.field_px]  # fmt: skip
        image[spot] = _field(path, recipe.field_px, rng)
        lesion[spot] = place in chosen
    return image, lesion


def _field(path: Path, px: int, rng: np.random.Generator) -> np.ndarray:
    with Image.open(path) as file:
        resized = file.convert("RGB").resize((px, px), Image.Resampling.BICUBIC)
    turned = np.rot90(np.asarray(resized), rng.integers(4))
    return turned[:, ::-1] if rng.integers(2) else turned


def write_cohort(
    tiles: Path, output: Path, *, positive: str, slides: Sequence[int], recipe: MosaicRecipe
) -> Path:
    """Writes slides, masks, `labels.csv` with the split as `fold_1`, and the encoder's tiles.

    Args:
      tiles: one folder of fields a class.
      output: gets `slides/`, `masks/`, `tiles/<class>/` (the pretrain pool) and `labels.csv`.
      positive: name of the class that makes a slide positive.
      slides: how many for train, val and test, half of each positive.
      recipe: sizes and shares.

    Returns:
      The path of `labels.csv`.

    Raises:
      DataError: `positive` is no class folder.
    """
    pools = part_fields(tiles, recipe)
    names = sorted(pools["train"])
    if positive not in names:
        raise DataError(f"--positive {positive} is no folder of {tiles} ({', '.join(names)})")
    negative = next(name for name in names if name != positive)
    _write_tiles(output / "tiles", pools["pretrain"], recipe)
    rows = []
    for split, count in zip(POOLS[1:], slides, strict=True):
        for number in range(count):
            label = positive if number % 2 else negative
            rng = np.random.default_rng([recipe.seed, POOLS.index(split), number])
            shown = positive if number % 2 else None
            image, lesion = compose(
                rng, pools[split], negative=negative, positive=shown, recipe=recipe
            )
            slide_id = f"{split}_{number:04d}"
            write_slide(output / "slides" / f"{slide_id}.tif", image, mpp=recipe.mpp)
            with atomic_path(output / "masks" / f"{slide_id}.png") as path:
                Image.fromarray(lesion).save(path, "PNG")
            rows.append((slide_id, slide_id, label, split))
    table = pd.DataFrame(rows, columns=["slide_id", "patient_id", "label", "fold_1"])
    with atomic_path(output / "labels.csv") as path:
        table.to_csv(path, index=False)
    return output / "labels.csv"


def _write_tiles(folder: Path, pool: dict[str, list[Path]], recipe: MosaicRecipe) -> None:
    """Every field of the pool cut into its HR patches, for `pretrain`."""
    px = recipe.field_px // 4
    rng = np.random.default_rng(recipe.seed)
    for name, paths in pool.items():
        for path in paths:
            field = _field(path, recipe.field_px, rng)
            cut = field.reshape(4, px, 4, px, 3).swapaxes(1, 2).reshape(-1, px, px, 3)
            for number, tile in enumerate(cut):
                with atomic_path(folder / name / f"{path.stem}-{number:02d}.png") as target:
                    Image.fromarray(tile).save(target, "PNG")
