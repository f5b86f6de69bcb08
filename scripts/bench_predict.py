"""LR-only prediction against the HR path on the same slide, by phase, in one run.

Writes a slide of 20,480 x 20,480 px at 0.5 um/px with levels 1, 4 and 16 and one block of tissue,
and classifies it from its LR patches, then from their HR children (read in parent-sized blocks),
with encoders of the same architecture and random weights. `--slide` times a slide of your own.

  python scripts/bench_predict.py                      # ViT-B/16, patches of 256 px
  python scripts/bench_predict.py --encoder vit-tiny   # quickstart's small model, patches of 64 px

Targets at r = 4 with ViT-B/16: 14x in encoding, 12x end to end.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np
from bench_memory import write_slide

from lrmil_jax import encoders, heads
from lrmil_jax.data.regions import TilingSettings
from lrmil_jax.data.schema import Geometry
from lrmil_jax.stages.inference import SlideClassifier
from lrmil_jax.train.encode import BatchEncoder, Encoder
from lrmil_jax.train.mil import BagClassifier

PHASES = ("open_tissue", "read", "encode", "mil")


def random_encoder(name: str, *, px: int) -> Encoder:
    """An encoder with random weights."""
    options = {"px": px}
    module = encoders.create(name, **options)
    images = np.zeros((1, px, px, 3), np.float32)
    params = jax.jit(module.init)(jax.random.key(0), images)["params"]
    transform = encoders.transform(name, **options)
    return Encoder(name, options, module, params, transform, "random")


def random_head(width: int) -> BagClassifier:
    """A gated ABMIL head of two classes on features of this width."""
    head = heads.create("gated_abmil", num_classes=2)
    bags, mask = np.zeros((1, 8, width), np.float32), np.ones((1, 8), bool)
    params = head.init(jax.random.key(0), bags, mask)["params"]
    mean, deviation = np.zeros(width, np.float32), np.ones(width, np.float32)
    return BagClassifier("gated_abmil", {}, ("negative", "positive"), params, mean, deviation)


def tissue_block(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """One compact piece of tissue in the middle: 8 x 8 LR patches at the default size."""
    return (np.abs(u - 0.5) < 0.25) & (np.abs(v - 0.5) < 0.25)


def measure(slide: Path, name: str, *, batch: int, runs: int) -> dict[str, list[dict]]:
    """Seconds per phase of both paths, one after the other, `runs` times after a warm-up."""
    px = encoders.transform(name).px
    settings = TilingSettings(Geometry(hr_mpp=0.5, lr_mpp=2.0, patch_px=px), with_hr=False)
    encoder = random_encoder(name, px=px)
    member = BatchEncoder(encoder, batch=batch), random_head(encoder.module.width)
    member[0]([np.zeros((batch, px, px, 3), np.uint8)])  # compiles
    paths = {
        arm: SlideClassifier([member], settings, "float16", batch, high_resolution=arm == "HR")
        for arm in ("LR", "HR")
    }
    paths["LR"](slide)  # warms the head and the file cache up
    measured: dict[str, list[dict]] = {arm: [] for arm in paths}
    for _ in range(runs):
        for arm, classify in paths.items():
            result = classify(slide)
            measured[arm].append(result.seconds | {"patches": result.encoded})
            print(f"{arm}: {measured[arm][-1]}", flush=True)
    return measured


def usual_flags(text: str) -> argparse.ArgumentParser:
    """The encoder, its batch, and the slide, or the size of one that is made."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--encoder", default="vit-b16")
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--size_px", type=int, default=20_480)
    parser.add_argument("--batch", type=int, default=8)
    return parser


def slide_of(args: argparse.Namespace, folder: Path) -> Path:
    """The slide that the flags name, or one made in `folder`."""
    if args.slide is not None:
        return args.slide
    slide = folder / "slide.tif"
    write_slide(slide, size_px=args.size_px, levels=(1, 4, 16), mpp=0.5, island=tissue_block)
    return slide


def main() -> None:
    parser = usual_flags(__doc__)
    parser.add_argument("--runs", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench_predict_") as folder:
        slide = slide_of(args, Path(folder))
        measured = measure(slide, args.encoder, batch=args.batch, runs=args.runs)
    medians = {
        arm: {name: float(np.median([row[name] for row in rows])) for name in (*PHASES, "patches")}
        for arm, rows in measured.items()
    }
    totals = {arm: sum(row[phase] for phase in PHASES) for arm, row in medians.items()}
    print(
        f"\n{args.encoder}, batch {args.batch}, {jax.device_count()} {jax.default_backend()} device"
    )
    print(f"{'':14s}{'LR':>12s}{'HR':>12s}{'HR / LR':>10s}")
    for name in ("patches", *PHASES):
        low, high = medians["LR"][name], medians["HR"][name]
        print(f"{name:14s}{low:12.3f}{high:12.3f}{high / max(low, 1e-9):10.2f}")
    print(f"{'end to end':14s}{totals['LR']:12.3f}{totals['HR']:12.3f}"
          f"{totals['HR'] / totals['LR']:10.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
