"""WISE-FUSE at several budgets against exhaustive HR on the same slide, by phase, in one run.

Writes a slide of 20,480 x 20,480 px at 0.5 um/px with levels 1, 4 and 16 and one block of tissue,
and classifies it by all its HR patches (read in parent-sized blocks), then from its LR patches and
the HR children of those that two class descriptions choose; encoders of one architecture, random
weights, prompts at every block on the LR side. `--slide` times a slide of your own.

  python scripts/bench_selection.py                      # ViT-B/16, patches of 256 px
  python scripts/bench_selection.py --encoder vit-tiny   # quickstart's small model

Targets at r = 4 with ViT-B/16: at rho = 0.25 3.0x in encoding (at most 3.2x) and 2.5x end to end,
at 0.125 4.8x (at most 5.3x) and 4x; the choice itself at most 2 % of a slide's time.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
from bench_predict import random_encoder, random_head, slide_of, usual_flags

from lrmil_jax import config as configuration
from lrmil_jax import encoders
from lrmil_jax.data import param_files
from lrmil_jax.data.schema import Geometry
from lrmil_jax.data.slide_jobs import TilingSettings
from lrmil_jax.encoders import prompts
from lrmil_jax.models import loading, text_guidance
from lrmil_jax.models.guided import Guide
from lrmil_jax.models.slide_model import SlideModel
from lrmil_jax.selection import fuse
from lrmil_jax.selection.shared_space import SharedSpace
from lrmil_jax.train.encode import BatchEncoder, Encoder

CLASSES, SENTENCES, SHARED_WIDTH, PROMPTS = ("negative", "positive"), 10, 512, 8


def random_space(folder: Path, width: int) -> SharedSpace:
    """Two classes of ten sentences with embeddings of a usual width."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    tree = {
        "embedding": draw(len(CLASSES), SHARED_WIDTH),
        "sentence_embedding": draw(len(CLASSES) * SENTENCES, SHARED_WIDTH),
        "counts": np.full(len(CLASSES), SENTENCES, np.int32),
        "logit_scale": np.float32(50),
        "projection": draw(width, SHARED_WIDTH),
    }
    sentences = [[f"{name} {number}" for number in range(SENTENCES)] for name in CLASSES]
    path = folder / "classes.safetensors"
    param_files.save_params(path, tree, {"classes": list(CLASSES), "sentences": sentences})
    return SharedSpace(path)


def prompted(encoder: Encoder, folder: Path) -> Encoder:
    """The same tower with prompts at every block, as `align` leaves them."""
    start = prompts.initial(encoder.module, count=PROMPTS, deep=True, seed=0)
    path = folder / "prompts.safetensors"
    prompts.save(path, start, encoder_hash=encoder.weights_hash, deep=True)
    return loading.prompted(encoder, path)


def classifiers(
    name: str, *, batch: int, budgets: list[float], folder: Path
) -> dict[str, SlideModel]:
    """Exhaustive HR, and WISE-FUSE at every budget, all with the same tower."""
    px = encoders.transform(name).px
    settings = TilingSettings(Geometry(hr_mpp=0.5, lr_mpp=2.0, patch_px=px), with_hr=False)
    encoder = random_encoder(name, px=px)
    width = encoder.module.width
    space = random_space(folder, width)
    reader = text_guidance.scoring_encoder(
        configuration.default(), space, prompted(encoder, folder), ratio=settings.geometry.ratio
    )
    high, low = (BatchEncoder(tower, batch=batch) for tower in (encoder, reader))
    for encode in (high, low):
        encode([np.zeros((batch, px, px, 3), np.uint8)])  # compiles
    shared = {"settings": settings, "dtype": "float16"}
    runs = {"HR": SlideModel(members=[(high, random_head(width))], high=True, **shared)}
    for rho in budgets:
        config = configuration.default()
        config.select.rho = rho
        member = (low, random_head(fuse.width(config.fuse.how, width, SHARED_WIDTH)))
        runs[f"{rho:g}"] = SlideModel(members=[member], guide=Guide(high, space, config), **shared)
    return runs


def main() -> None:
    parser = usual_flags(__doc__)
    parser.add_argument("--rho", type=float, nargs="+", default=[0.25, 0.125])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench_selection_") as name:
        folder = Path(name)
        slide = slide_of(args, folder)
        runs = classifiers(args.encoder, batch=args.batch, budgets=args.rho, folder=folder)
        for arm in list(runs)[1:]:
            runs[arm].predict(slide)  # warms heads and the file cache up
        rounds = [measure(slide, runs) for _ in range(args.rounds)]
    device = f"{jax.device_count()} {jax.default_backend()} device"
    print(f"\n{args.encoder}, batch {args.batch}, {device}; medians of {args.rounds} rounds")
    report(rounds)


def measure(slide: Path, runs: dict) -> dict[str, dict[str, float]]:
    """Seconds of every arm, one after the other: reading and encoding LR and HR together."""
    measured = {}
    for arm, model in runs.items():
        result = model.predict(slide)
        seconds = result.seconds
        row = {
            "open + tissue": seconds["open_tissue"],
            "read": seconds["read"] + seconds.get("read_hr", 0.0),
            "encode": seconds["encode"] + seconds.get("encode_hr", 0.0),
            "select": seconds.get("select", 0.0),
            "mil": seconds["mil"],
        }
        measured[arm] = row | {"end to end": sum(row.values()), "patches": result.encoded}
        print(arm, {name: round(value, 3) for name, value in measured[arm].items()}, flush=True)
    return measured


def report(rounds: list[dict[str, dict[str, float]]]) -> None:
    """Seconds, HR's over the others' round by round, and the share of the choice."""
    arms = list(rounds[0])
    print(f"{'':14s}" + "".join(f"{arm:>12s}" for arm in arms)
          + "".join(f"{'HR / ' + arm:>24s}" for arm in arms[1:]))  # fmt: skip
    for phase in rounds[0]["HR"]:
        line = f"{phase:14s}"
        line += "".join(f"{np.median([one[arm][phase] for one in rounds]):12.3f}" for arm in arms)
        for arm in arms[1:]:
            ratios = [one["HR"][phase] / max(one[arm][phase], 1e-9) for one in rounds]
            told = f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            shown = ("read", "encode", "end to end", "patches")
            line += f"{told if phase in shown else '':>24s}"
        print(line)
    for arm in arms[1:]:
        share = [100 * one[arm]["select"] / one[arm]["end to end"] for one in rounds]
        print(f"the choice at {arm}: {np.median(share):.3f} % of a slide's time")


if __name__ == "__main__":
    main()
