"""Labelled slides composed of real fields (one folder of images a class), and tiles for `pretrain`.

  python scripts/compose_slides.py --tiles FOLDER --positive CLASS --output DIR
  python -m lrmil_jax.main --config configs/quickstart.py --workdir RUN \
    --config.data.labels=DIR/labels.csv --config.data.slides=DIR/slides \
    --config.data.tiles=DIR/tiles
"""

import argparse
import sys
from pathlib import Path

from lrmil_jax.errors import UserError
from lrmil_jax.slides import mosaic


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=Path, required=True, help="one folder of fields a class")
    parser.add_argument("--positive", required=True, help="the class that makes a slide positive")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--slides", type=int, nargs=3, default=(60, 20, 20), help="train val test")
    parser.add_argument("--fields", type=int, default=6, help="fields along a slide's side")
    parser.add_argument("--positive_share", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    recipe = mosaic.MosaicRecipe(
        fields=args.fields, positive_share=args.positive_share, seed=args.seed
    )
    try:
        labels = mosaic.write_cohort(
            args.tiles, args.output, positive=args.positive, slides=args.slides, recipe=recipe
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{sum(args.slides)} slides: {labels}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
