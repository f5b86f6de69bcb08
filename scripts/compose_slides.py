"""Labelled slides with lesion masks, composed of procedural tissue or of your own fields.

  python scripts/compose_slides.py --procedural --slides 100 --output DIR
  python scripts/compose_slides.py --tiles FOLDER --positive CLASS --output DIR
  python -m lrmil_jax.main --config configs/quickstart.py --workdir RUN \
    --config.data.labels=DIR/labels.csv --config.data.slides=DIR/slides \
    --config.data.masks=DIR/masks

FOLDER has one folder of fields (images) a class. DIR gets slides/, masks/ and labels.csv; of fields
also fields.csv, which field lies where, tiles/, the part of them that an encoder may be trained on
(--config.data.tiles=DIR/tiles), and with --captions what is said of each class, so that a text
tower learns the words of a description.
"""

import argparse
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from lrmil_jax import files
from lrmil_jax.errors import UserError
from lrmil_jax.processes import map_jobs
from lrmil_jax.progress import progress, setup_logging
from lrmil_jax.selection import TextBank
from lrmil_jax.slides import mosaic, synthetic


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=within(int, 0), default=0)
    group = parser.add_argument_group("procedural tissue")
    group.add_argument("--procedural", action="store_true")
    group.add_argument("--slides", type=within(int, 1), nargs="+",
                       help="how many; of fields: train val test")  # fmt: skip
    group.add_argument("--size_px", type=within(int, 256), default=1024, help="side of a slide")
    group.add_argument("--background", type=within(float, 0, 0.9), default=0.0,
                       help="share left as glass")  # fmt: skip
    group = parser.add_argument_group("fields")
    group.add_argument("--tiles", type=Path, help="one folder of fields a class")
    group.add_argument("--positive", help="the class that makes a slide positive")
    group.add_argument("--fields", type=within(int, 1), default=6,
                       help="fields along a slide's side")  # fmt: skip
    group.add_argument("--field_px", type=within(int, 64), default=256,
                       help="side to which a field is resized")  # fmt: skip
    group.add_argument("--positive_share", type=within(float, 0, 1), default=0.1)
    group.add_argument("--shares", type=within(float, 0, 1), nargs=4,
                       default=(0.4, 0.3, 0.15, 0.15),
                       help="of the fields to pretrain, train, val and test")  # fmt: skip
    group.add_argument("--run_length", type=within(int, 1), default=1,
                       help="neighbours in number that stay in one pool")  # fmt: skip
    group.add_argument("--even_colour", action="store_true", help="same colours for all fields")
    group.add_argument("--unturned", action="store_true", help="neither turn nor mirror fields")
    group.add_argument("--whole_fields", action="store_true", help="tiles/ gets fields uncut")
    group.add_argument("--tables_only", action="store_true",
                       help="no pictures: scripts/field_features.py needs none")  # fmt: skip
    group.add_argument("--captions",
                       help="of tiles/: FILE.toml of descriptions, or shipped:NAME")  # fmt: skip
    args = parser.parse_args()
    if args.procedural == (args.tiles is not None):
        parser.error("give one of --procedural and --tiles FOLDER")
    if args.captions is not None and args.tiles is None:
        parser.error("--captions needs --tiles: procedural slides come without tiles")
    if args.tiles is not None and args.positive is None:
        parser.error("--tiles needs --positive, the class that makes a slide positive")
    if abs(sum(args.shares) - 1) > 1e-6:
        parser.error(f"--shares add up to {sum(args.shares):g}; they must add up to 1")
    args.slides = args.slides or ([100] if args.procedural else [60, 20, 20])
    if len(args.slides) != (1 if args.procedural else 3):
        parser.error("--slides takes one number of procedural slides, three of slides of fields")
    setup_logging()
    try:
        print(compose(args))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def within(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    """A number for argparse, refused in words outside its range."""

    def read(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return value

    read.__name__ = kind.__name__  # argparse names it where the text is no number
    return read


def compose(args: argparse.Namespace) -> Path:
    """Writes the cohort that the flags ask for and gives its labels.csv."""
    spoken = captions(args)  # a mistake in them is told before the slides are made
    if args.procedural:
        return synthetic.write_cohort(
            args.output,
            seed=args.seed,
            slides=args.slides[0],
            size_px=args.size_px,
            background=args.background,
            run=functools.partial(map_jobs, workers=0, label="slides"),
        )
    names = (
        *("fields", "field_px", "positive_share", "run_length"),
        *("even_colour", "whole_fields", "seed"),
    )
    recipe = mosaic.MosaicRecipe(
        shares=tuple(args.shares),
        turned=not args.unturned,
        **{name: getattr(args, name) for name in names},
    )
    with progress("slides", sum(args.slides)) as bar:
        labels = mosaic.write_cohort(
            args.tiles,
            args.output,
            positive=args.positive,
            slides=args.slides,
            recipe=recipe,
            pictures=not args.tables_only,
            progress=lambda done, total: bar.advance(),
        )
    if spoken is not None and not args.tables_only:
        files.write_table(args.output / "tiles" / "captions.csv", spoken)
    return labels


def captions(args: argparse.Namespace) -> pd.DataFrame | None:
    """Every sentence of each class of fields, as `captions.csv` has them.

    Raises:
      DataError: the descriptions cannot be used, or a class of fields is not described.
    """
    if args.captions is None or not args.tiles.is_dir():
        return None
    names = sorted(path.name for path in args.tiles.iterdir() if path.is_dir())
    described = TextBank.load(args.captions).only(names).classes
    rows = [(name, text) for name in names for text in described[name].sentences("both")]
    return pd.DataFrame(rows, columns=["class", "caption"])


if __name__ == "__main__":
    sys.exit(main())
