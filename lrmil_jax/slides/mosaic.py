"""Slides composed of real fields: labelled images of tissue laid out as mosaics."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, UInt8
from PIL import Image

from lrmil_jax.errors import DataError
from lrmil_jax.files import atomic_path, write_json, write_table
from lrmil_jax.slides.fields import POOLS, part_fields
from lrmil_jax.slides.synthetic import write_slide

# What `even_colour` brings every field to: mean and SD of R, G, B, about those of H&E.
_EVEN = np.array([[150.0, 125.0, 165.0], [40.0, 40.0, 32.0]], np.float32)


@dataclasses.dataclass(frozen=True)
class MosaicRecipe:
    """How slides are composed.

    Attributes:
      fields: fields along one side of a slide.
      field_px: side to which a field is resized.
      positive_share: share of a positive slide's fields that show the lesion.
      mpp: um/px written into the files.
      shares: of the fields that go to each of `POOLS`.
      run_length: fields whose numbers follow each other stay in one pool, in runs of about so many:
        cameras number fields as they come, so neighbours are often of one patient, even one place.
      even_colour: bring every field to the same mean and SD of each channel, so that colour alone
        tells nothing of its class.
      turned: fields are turned and mirrored at random.
      whole_fields: `tiles/` holds whole fields, to be cropped at random, instead of HR patches.
      seed: of the pools and of every slide.
    """

    fields: int = 6
    field_px: int = 256
    positive_share: float = 0.1
    mpp: float = 0.5
    shares: tuple[float, float, float, float] = (0.4, 0.3, 0.15, 0.15)
    run_length: int = 1
    even_colour: bool = False
    turned: bool = True
    whole_fields: bool = False
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class PlacedField:
    """A field on a slide.

    Attributes:
      row, column: its place, counted in fields.
      path: its picture.
      lesion: it is of the positive class.
      turns: quarter turns to the left, then `mirrored`, left to right.
    """

    row: int
    column: int
    path: Path
    lesion: bool
    turns: int = 0
    mirrored: bool = False


def place_fields(
    rng: np.random.Generator,
    fields: dict[str, list[Path]],
    *,
    negative: str,
    positive: str | None,
    recipe: MosaicRecipe,
) -> list[PlacedField]:
    """The fields of one slide, drawn at random; `positive=None` makes a negative slide."""
    count = recipe.fields**2
    share = max(1, round(recipe.positive_share * count)) if positive else 0
    chosen = set(rng.choice(count, share, replace=False).tolist())
    placed = []
    for index in range(count):
        name = positive if index in chosen else negative
        path = fields[name][rng.integers(len(fields[name]))]
        turns, mirrored = _turn(rng, recipe)
        place = divmod(index, recipe.fields)
        placed.append(PlacedField(*place, path, index in chosen, turns, mirrored))
    return placed


def _turn(rng: np.random.Generator, recipe: MosaicRecipe) -> tuple[int, bool]:
    return (int(rng.integers(4)), bool(rng.integers(2))) if recipe.turned else (0, False)


def compose(
    placed: Sequence[PlacedField], recipe: MosaicRecipe
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """One mosaic and where its lesion is."""
    side, px = recipe.fields * recipe.field_px, recipe.field_px
    image = np.empty((side, side, 3), np.uint8)
    lesion = np.zeros((side, side), bool)
    for field in placed:
        rows, columns = (slice(at * px, (at + 1) * px) for at in (field.row, field.column))
        image[rows, columns] = read_field(
            field.path, recipe, turns=field.turns, mirrored=field.mirrored
        )
        lesion[rows, columns] = field.lesion
    return image, lesion


def read_field(
    path: Path, recipe: MosaicRecipe, *, turns: int = 0, mirrored: bool = False
) -> UInt8[np.ndarray, "px px 3"]:
    """A field at its size on the slide, turned and mirrored as `PlacedField` says."""
    turned = np.rot90(_read_upright(path, recipe.field_px, recipe.even_colour), turns)
    return turned[:, ::-1] if mirrored else turned


# Slides of a pool share its fields, whose pictures are large: 100 MB where laid out at 256 px.
@functools.lru_cache(maxsize=512)
def _read_upright(path: Path, px: int, even_colour: bool) -> UInt8[np.ndarray, "px px 3"]:
    with Image.open(path) as file:
        field = np.asarray(file.convert("RGB").resize((px, px), Image.Resampling.BICUBIC))
    if even_colour:
        flat = field.reshape(-1, 3).astype(np.float32)
        even = (flat - flat.mean(0)) / np.maximum(flat.std(0), 1) * _EVEN[1] + _EVEN[0]
        field = np.clip(np.rint(even), 0, 255).astype(np.uint8).reshape(field.shape)
    return field


def shrunk(field: UInt8[np.ndarray, "side side 3"], px: int) -> UInt8[np.ndarray, "px px 3"]:
    """The LR patch that a field is, `px` a side."""
    return np.asarray(Image.fromarray(field).resize((px, px), Image.Resampling.BICUBIC))


def write_cohort(
    tiles: Path,
    output: Path,
    *,
    positive: str | None,
    slides: Sequence[int],
    recipe: MosaicRecipe,
    pictures: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes slides, masks, `labels.csv` and the encoder's tiles.

    `labels.csv` has the split as `fold_1`, and as `pool` the fields that a slide is composed of:
    slides of one pool share fields, so they are not independent. `fields.csv` has every
    `PlacedField`, `recipe.json` the recipe.

    Args:
      tiles: one folder of fields a class.
      output: gets `slides/`, `masks/`, `tiles/<class>/` (the pretrain pool) and the tables.
      positive: name of the class that makes a slide positive.
      slides: how many for train, val and test, half of each positive.
      recipe: sizes and shares.
      pictures: write slides, masks and tiles; else the tables alone, which is enough where fields
        are encoded once for all slides.
      progress: called with (done, total) after each slide.

    Returns:
      The path of `labels.csv`.

    Raises:
      DataError: `positive` is no class folder.
    """
    pools = part_fields(tiles, shares=recipe.shares, run_length=recipe.run_length, seed=recipe.seed)
    names = sorted(pools["train"])
    if positive not in names:
        raise DataError(f"--positive {positive} is no folder of {tiles} ({', '.join(names)})")
    names.remove(positive)
    if pictures:
        _read_upright.cache_clear()
        _write_tiles(output / "tiles", pools["pretrain"], recipe)
    rows, fields = [], []
    for split, count in zip(POOLS[1:], slides, strict=True):
        for number in range(count):
            slide_id, label = f"{split}_{number:04d}", positive if number % 2 else names[0]
            placed = place_fields(
                np.random.default_rng([recipe.seed, POOLS.index(split), number]),
                pools[split],
                negative=names[0],
                positive=positive if number % 2 else None,
                recipe=recipe,
            )
            if pictures:
                _write_slide(output, slide_id, placed, recipe)
            rows.append((slide_id, slide_id, label, split, split))
            fields += [(slide_id, *_as_row(field, tiles)) for field in placed]
            if progress is not None:
                progress(len(rows), sum(slides))
    write_json(output / "recipe.json", dataclasses.asdict(recipe))
    columns = ["slide_id", *(field.name for field in dataclasses.fields(PlacedField))]
    write_table(output / "fields.csv", pd.DataFrame(fields, columns=columns))
    columns = ["slide_id", "patient_id", "label", "fold_1", "pool"]
    write_table(output / "labels.csv", pd.DataFrame(rows, columns=columns))
    return output / "labels.csv"


def _write_slide(
    output: Path, slide_id: str, placed: Sequence[PlacedField], recipe: MosaicRecipe
) -> None:
    image, lesion = compose(placed, recipe)
    write_slide(output / "slides" / f"{slide_id}.tif", image, mpp=recipe.mpp)
    with atomic_path(output / "masks" / f"{slide_id}.png") as path:
        Image.fromarray(lesion).save(path, "PNG")


def _as_row(field: PlacedField, tiles: Path) -> tuple:
    """Its attributes, the picture as below `tiles`."""
    attributes = vars(field) | {"path": field.path.relative_to(tiles).as_posix()}
    return tuple(attributes.values())


def _write_tiles(folder: Path, pool: dict[str, list[Path]], recipe: MosaicRecipe) -> None:
    """Every field of the pool, whole or cut into its HR patches, for `pretrain`."""
    px = recipe.field_px if recipe.whole_fields else recipe.field_px // 4
    across = recipe.field_px // px
    rng = np.random.default_rng(recipe.seed)
    for name, paths in pool.items():
        for path in paths:
            turns, mirrored = _turn(rng, recipe)
            field = read_field(path, recipe, turns=turns, mirrored=mirrored)
            tiles = field.reshape(across, px, across, px, 3).swapaxes(1, 2).reshape(-1, px, px, 3)
            for number, tile in enumerate(tiles):
                with atomic_path(folder / name / f"{path.stem}-{number:02d}.png") as target:
                    Image.fromarray(tile).save(target, "PNG")
