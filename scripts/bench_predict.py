"""The delivered model against the HR path on the same slides, by phase, in one run.

Writes a model folder as five folds leave it (by default one model of all patients; `--deliver
ensemble` is the folds' five), with random weights, and a slide of 20,480 x 20,480 px at 0.5 um/px
with levels 1, 4 and 16 and one block of tissue; loads the folder as `predict` does and classifies
the slide from its LR patches, then from their HR children (read in parent-sized blocks) with one
encoder of the same architecture. Then a cohort: `predict` on `--cohort` copies of the slide, from
loading the model to the last heatmap. `--slide` times a slide of your own.

  python scripts/bench_predict.py                      # ViT-B/16, patches of 256 px
  python scripts/bench_predict.py --encoder vit-tiny   # quickstart's small model, patches of 64 px

Targets at r = 4 with ViT-B/16 after five folds: 14x in encoding, 12x end to end.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from bench_memory import write_slide

from lrmil_jax import encoders, heads
from lrmil_jax.encoders import pretrained
from lrmil_jax.models import model_folder
from lrmil_jax.models.slide_model import SlideModel
from lrmil_jax.stages import predict
from lrmil_jax.tasks.classification import Classification
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.train.encode import BatchEncoder, Encoder

PHASES = ("open_tissue", "read", "encode", "mil")


def random_encoder(name: str, *, px: int) -> Encoder:
    """An encoder with random weights."""
    options = {"px": px}
    module = encoders.create(name, **options)
    images = np.zeros((1, px, px, 3), np.float32)
    params = jax.jit(module.init)(jax.random.key(0), images)["params"]
    transform = encoders.transform(name, **options)
    return Encoder(name, options, module, params, transform, "random")


def random_head(width: int) -> BagModel:
    """A gated ABMIL head of two classes on features of this width."""
    head = heads.create("gated_abmil", num_classes=2)
    bags, mask = np.zeros((1, 8, width), np.float32), np.ones((1, 8), bool)
    params = head.init(jax.random.key(0), bags, mask)["params"]
    mean, deviation = np.zeros(width, np.float32), np.ones(width, np.float32)
    return BagModel(
        "gated_abmil", {}, Classification(("negative", "positive")), params, mean, deviation
    )


def tissue_block(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """One compact piece of tissue in the middle: 8 x 8 LR patches at the default size."""
    return (np.abs(u - 0.5) < 0.25) & (np.abs(v - 0.5) < 0.25)


FOLDS = 5


def write_model(folder: Path, encoder: Encoder, *, batch: int, deliver: str) -> Path:
    """The model folder that `FOLDS` folds of one encoder leave."""
    weights, head = folder / "encoder.safetensors", folder / "head.safetensors"
    pretrained.save(weights, encoder.name, encoder.options, encoder.params, {})
    classifier = random_head(encoder.module.width)
    classifier.save(head)
    px = encoder.options["px"]
    facts = {
        "method": "lrmil",
        "classes": list(classifier.classes),
        "geometry": {"hr_mpp": 0.5, "lr_mpp": 2.0, "patch_px": px},
        "prepare": {"reader": "auto", "tissue_mpp": 8.0, "min_tissue": 0.25},
        "encoder": {"name": encoder.name, "batch": batch, "dtype": "float32"},
        "features_dtype": "float16",
        "made_by": {},
    }
    names = ["final"] if deliver == "final" else [f"fold_{fold + 1}" for fold in range(FOLDS)]
    own = {weights.name: weights, head.name: head}
    model_folder.write(folder / "model", facts, members=dict.fromkeys(names, own), shared={})
    return folder / "model"


def measure(slide: Path, model: Path, encoder: Encoder, *, batch: int, runs: int) -> dict:
    """Seconds per phase of both paths, one after the other, `runs` times after a warm-up."""
    loaded = model_folder.load(model)
    high = BatchEncoder(encoder, batch=batch)
    member = high, random_head(encoder.module.width)
    paths = {
        "LR": loaded,
        "HR": SlideModel(members=[member], settings=loaded.settings, dtype="float16", high=True),
    }
    paths["LR"].predict(slide)  # compiles, and warms the file cache up
    high([np.zeros((batch, *[encoder.options["px"]] * 2, 3), np.uint8)])
    measured: dict[str, list[dict]] = {arm: [] for arm in paths}
    for _ in range(runs):
        for arm, model in paths.items():
            result = model.predict(slide)
            row = result.seconds | {"patches": len(result.xy), "encodings": result.encoded}
            measured[arm].append(row)
            print(f"{arm}: {row}", flush=True)
    return measured


def cohort_seconds(slide: Path, model: Path, folder: Path, slides: int) -> float:
    """Seconds a slide of the whole of `predict`: loading, compiling, pictures and all."""
    (folder / "slides").mkdir()
    for number in range(slides):
        os.link(slide, folder / "slides" / f"slide_{number}{slide.suffix}")
    start = time.perf_counter()
    failed = predict.run(model, folder / "out", slide=None, slides=folder / "slides")
    assert not failed
    return (time.perf_counter() - start) / slides


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
    parser.add_argument("--cohort", type=int, default=4, help="slides of the cohort; 0 is none")
    parser.add_argument("--deliver", choices=("final", "ensemble"), default="final")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench_predict_") as name:
        folder = Path(name)
        slide = slide_of(args, folder)
        encoder = random_encoder(args.encoder, px=encoders.transform(args.encoder).px)
        model = write_model(folder, encoder, batch=args.batch, deliver=args.deliver)
        measured = measure(slide, model, encoder, batch=args.batch, runs=args.runs)
        cohort = cohort_seconds(slide, model, folder, args.cohort) if args.cohort else None
    names = (*PHASES, "patches", "encodings")
    medians = {
        arm: {name: float(np.median([row[name] for row in rows])) for name in names}
        for arm, rows in measured.items()
    }
    for row in medians.values():
        row["end to end"] = sum(row[phase] for phase in PHASES)
    device = f"{jax.device_count()} {jax.default_backend()} device"
    print(f"\n{args.encoder}, batch {args.batch}, {device}; {FOLDS} folds, deliver={args.deliver}")
    print(f"{'':14s}{'LR':>12s}{'HR':>12s}{'HR / LR':>10s}")
    for name in ("patches", "encodings", *PHASES, "end to end"):
        low, high = medians["LR"][name], medians["HR"][name]
        print(f"{name:14s}{low:12.3f}{high:12.3f}{high / max(low, 1e-9):10.2f}")
    if cohort is not None:
        high = medians["HR"]["end to end"]
        print(f"{'cohort':14s}{cohort:12.3f}{high:12.3f}{high / cohort:10.2f}"
              f"   predict, {args.cohort} slides, loading and pictures included")  # fmt: skip


if __name__ == "__main__":
    main()
