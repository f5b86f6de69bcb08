"""Does 20x tell more than 5x on your tiles? A linear probe of an encoder at both.

  python scripts/probe_tiles.py --tiles FOLDER --encoder vit-tiny --weights shipped:procedural
  python scripts/probe_tiles.py --tiles FOLDER --encoder uni --weights uni.safetensors --px 224

FOLDER has one folder of fields (images) for each of two classes. A field stands for an LR patch: it
is cut into ratio x ratio HR patches of `--patch_px`, and shrunk to one LR patch of the same side.
Distillation can pay only where HR patches tell more than the LR patch does: prints the AUC of
single HR patches, of fields by the mean of their HR patches, of the LR patch, and of colour alone.
Logistic regressions, five folds; fields whose numbers follow each other stay on one side, in runs
of `--run_length`: neighbours are often of one patient. `--even_colour` takes colour away first.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lrmil_jax.data import regions
from lrmil_jax.encoders import pretrained
from lrmil_jax.errors import UserError
from lrmil_jax.models import loading
from lrmil_jax.progress import setup_logging
from lrmil_jax.slides import fields as tissue_fields
from lrmil_jax.slides import mosaic
from lrmil_jax.train.encode import BatchEncoder


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiles", type=Path, required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--px", type=int, help="side of the encoder's input at HR")
    parser.add_argument("--lr_px", type=int, help="the same at LR; default: as at HR")
    parser.add_argument("--patch_px", type=int, default=64)
    parser.add_argument("--ratio", type=int, default=4, choices=(2, 4, 8))
    parser.add_argument("--run_length", type=int, default=10)
    parser.add_argument("--even_colour", action="store_true")
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    setup_logging()
    try:
        print(probe(args))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def probe(args: argparse.Namespace) -> str:
    """The table.

    Raises:
      UserError: tiles, encoder or weights that cannot be used.
    """
    fields, label, run = read_fields(args)
    ratio, px = args.ratio, args.patch_px
    cut = np.stack([regions.cut_mosaic(one, ratio) for one in fields])
    high = encoded(args, cut.reshape(-1, px, px, 3), args.px)
    low = encoded(args, np.stack([mosaic.shrunk(one, px) for one in fields]), args.lr_px or args.px)
    children = np.repeat(np.arange(len(fields)), ratio**2)
    rows = {
        "HR patch": held_out(high, label, run, children, by_field=False),
        "field by its HR patches": held_out(high, label, run, children, by_field=True),
        "LR patch": held_out(low, label, run, np.arange(len(fields)), by_field=True),
        "colour alone": held_out(
            moments(fields), label, run, np.arange(len(fields)), by_field=True
        ),
    }
    about = f"{len(fields)} fields, {label.mean():.0%} of the second class, {len(set(run))} runs"
    lines = [f"{about}; AUC, mean and SD of five folds", ""]
    return "\n".join([*lines, *(f"{name:24} {np.mean(v):.3f} +- {np.std(v, ddof=1):.3f}"
                                for name, v in rows.items())])  # fmt: skip


def read_fields(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fields uint8 [n, side, side, 3], their class 0 or 1, and their run of neighbours."""
    recipe = mosaic.MosaicRecipe(
        field_px=args.patch_px * args.ratio,
        even_colour=args.even_colour,
    )
    fields, label, run = [], [], []
    for number, series in tissue_fields.runs_of_fields(args.tiles, args.run_length):
        for path in series:
            fields.append(mosaic.read_field(path, recipe))
            label.append(number)
            run.append(f"{number}/{series[0]}")
    return np.stack(fields), np.array(label), np.unique(run, return_inverse=True)[1]


def encoded(args: argparse.Namespace, images: np.ndarray, px: int | None) -> np.ndarray:
    """Embeddings of all images, resampled to `px`."""
    path = pretrained.locate(args.weights)
    encoder = loading.load_encoder(args.encoder, path, dtype="float32", px=px)
    parts = np.array_split(images, -(-len(images) // 1024))
    return BatchEncoder(encoder, batch=args.batch)(parts)["embedding"]


def moments(fields: np.ndarray) -> np.ndarray:
    """Mean and SD of each channel of every field."""
    return np.concatenate([fields.mean((1, 2)), fields.std((1, 2))], 1)


def held_out(
    rows: np.ndarray, label: np.ndarray, run: np.ndarray, field: np.ndarray, *, by_field: bool
) -> list[float]:
    """AUC of each of five folds, parted by runs.

    Args:
      rows: what a logistic regression sees.
      label, run: of every field.
      field: of every row.
      by_field: the mean score of a field's rows is measured, not each of them.
    """
    found = []
    for train, test in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(
        label, label, run
    ):
        learned, asked = np.isin(field, train), np.isin(field, test)
        model = LogisticRegression(C=1e-3, max_iter=2000, class_weight="balanced")
        pipeline = make_pipeline(StandardScaler(), model).fit(rows[learned], label[field[learned]])
        scores, own = pipeline.decision_function(rows[asked]), field[asked]
        if by_field:
            scores = np.array([scores[own == one].mean() for one in test])
            found.append(roc_auc_score(label[test], scores))
        else:
            found.append(roc_auc_score(label[own], scores))
    return found


if __name__ == "__main__":
    sys.exit(main())
