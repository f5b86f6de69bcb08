"""Features of slides composed of fields, each field encoded once: for many slides, seeds, heads.

  python scripts/compose_slides.py --tiles FIELDS --positive CLASS --output DIR --unturned ...
  python scripts/field_features.py --tiles FIELDS --cohorts DIR [DIR ...] --encoder uni \
    --weights uni.safetensors --px 224
  python -m lrmil_jax.main --config configs/miniature_tissue.py --config.study.seeds="()" \
    --config.method=mil --config.data.labels=DIR/labels.csv --config.data.features=DIR/features_hr

Writes DIR/features_hr/ and DIR/features_lr/ of every cohort in the layout of TRIDENT: HR patches
are the ratio x ratio parts of a field, its LR patch is the field shrunk to the side of one of them.
They are of the fields as they come; a slide's own pixels have been through its file's compression.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from lrmil_jax.data import regions
from lrmil_jax.encoders import pretrained
from lrmil_jax.errors import DataError, UserError
from lrmil_jax.interchange import registry
from lrmil_jax.interchange.bag import Bag
from lrmil_jax.models import loading
from lrmil_jax.progress import setup_logging
from lrmil_jax.slides import mosaic
from lrmil_jax.train.encode import BatchEncoder

_AT_ONCE = 64  # fields


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiles", type=Path, required=True, help="as given to compose_slides")
    parser.add_argument("--cohorts", type=Path, nargs="+", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--px", type=int, help="side of the encoder's input at HR")
    parser.add_argument("--lr_px", type=int, help="the same at LR; default: as at HR")
    parser.add_argument("--ratio", type=int, default=4, choices=(2, 4, 8))
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    setup_logging()
    try:
        write_features(args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def write_features(args: argparse.Namespace) -> None:
    """Encodes the fields of all cohorts, and writes the slides of each.

    Raises:
      UserError: a folder without what compose_slides writes, cohorts of unlike fields, or an
        encoder or weights that cannot be used.
    """
    cohorts = {folder: read_cohort(folder) for folder in args.cohorts}
    recipes = [recipe for recipe, _ in cohorts.values()]
    if any((one.field_px, one.even_colour) != (recipes[0].field_px, recipes[0].even_colour)
           for one in recipes):  # fmt: skip
        raise DataError("the cohorts have fields of unlike sides or colours; give them one by one")
    distinct = sorted({key for _, table in cohorts.values() for key in keys_of(table)})
    for level, px in (("hr", args.px), ("lr", args.lr_px or args.px)):
        features = encoded_fields(args, recipes[0], distinct, level=level, px=px)
        for folder, (recipe, table) in cohorts.items():
            for slide_id, fields in table.groupby("slide_id"):
                bag = slide_bag(fields, features, recipe, args, level=level)
                registry.create("trident").write(folder / f"features_{level}", str(slide_id), bag)


def read_cohort(folder: Path) -> tuple[mosaic.MosaicRecipe, pd.DataFrame]:
    """How its slides were composed, and its `fields.csv`.

    Raises:
      DataError: it has none.
    """
    paths = [folder / name for name in ("recipe.json", "fields.csv")]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is not there; give folders that compose_slides made of fields")
    facts = json.loads(paths[0].read_text())
    recipe = mosaic.MosaicRecipe(**facts | {"shares": tuple(facts["shares"])})
    return recipe, pd.read_csv(paths[1], dtype={"slide_id": str})


def keys_of(table: pd.DataFrame) -> Iterator[tuple[str, int, bool]]:
    """Picture, turns and mirroring of every row."""
    return table[["path", "turns", "mirrored"]].itertuples(index=False, name=None)


def encoded_fields(
    args: argparse.Namespace,
    recipe: mosaic.MosaicRecipe,
    keys: list[tuple[str, int, bool]],
    *,
    level: str,
    px: int | None,
) -> Mapping[tuple[str, int, bool], np.ndarray]:
    """Embeddings [patches, D] of every field: of its HR patches row by row, or of its LR patch."""
    path = pretrained.locate(args.weights)
    encode = BatchEncoder(
        loading.load_encoder(args.encoder, path, dtype="float32", px=px), batch=args.batch
    )
    side = recipe.field_px // args.ratio

    def images() -> Iterator[np.ndarray]:
        for start in range(0, len(keys), _AT_ONCE):
            fields = [
                mosaic.read_field(args.tiles / name, recipe, turns=turns, mirrored=mirrored)
                for name, turns, mirrored in keys[start : start + _AT_ONCE]
            ]
            if level == "lr":
                yield np.stack([mosaic.shrunk(field, side) for field in fields])
            else:
                parts = np.stack([regions.cut_mosaic(field, args.ratio) for field in fields])
                yield parts.reshape(-1, side, side, 3)

    rows = np.asarray(encode(images())["embedding"])
    return dict(zip(keys, rows.reshape(len(keys), -1, rows.shape[1]), strict=True))


def slide_bag(
    fields: pd.DataFrame,
    features: Mapping[tuple[str, int, bool], np.ndarray],
    recipe: mosaic.MosaicRecipe,
    args: argparse.Namespace,
    *,
    level: str,
) -> Bag:
    """The bag of one slide."""
    across = args.ratio if level == "hr" else 1
    side = recipe.field_px // across
    within = np.stack(np.divmod(np.arange(across**2), across)[::-1], 1) * side
    corners = fields[["column", "row"]].to_numpy() * recipe.field_px
    xy = (corners[:, None] + within).reshape(-1, 2).astype(np.int64)
    rows = np.concatenate([features[key] for key in keys_of(fields)])
    whole = recipe.fields * recipe.field_px
    return Bag(
        shape=rows.shape,
        features=lambda: rows,
        xy=xy,
        side=side,
        step=side,
        px=recipe.field_px // args.ratio,
        mpp=recipe.mpp,
        encoder=Path(args.encoder).stem,
        dimensions=(whole, whole),
    )


if __name__ == "__main__":
    sys.exit(main())
