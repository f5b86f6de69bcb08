"""The standing simulation of the size this software is for: 1,000 slides of 800 patients, 5 folds.

Bags of the real sizes with features made on the fly (`cohort_simulation.py`), and real TIFF slides
of many sizes for all that reads files. Every part runs in a process of its own, so that its peak of
memory and its compilations are its own.

  gradients  what every bag weighs in the gradient, by class and by length, from the real trainer
  noise      heads trained on pure noise: what they say of a rare class, and of longer bags
  teacher    HR bags: training beside an oracle, outputs of every slide, evaluation
  student    LR bags: guidance by a teacher, training, evaluation
  guided     WISE-FUSE's select and fuse, and writing features
  intervals  how often a 95 % interval holds the true AUC
  files      prepare to report on TIFF slides (--quick: LRMIL alone), 5 folds; prediction of all

  python scripts/bench_cohort.py --quick --json before.json    # minutes on two cores
  python scripts/bench_cohort.py --parts gradients,intervals

"waits" is the share of a training's wall time in which the thread that trains gets its next batch:
inside `next` of the loader, or making a batch itself, as validation does. Updates handed over
before may still be running meanwhile, so it bounds the device's idle time from above. "CPU s/slide"
is user and system time of all threads and of children over the slides of the stage; on CPU it holds
XLA's own work too. "compiled" are XLA's compilations in the process itself. Stages that cost much
per slide are measured on a sample of the slides, spread over their sizes.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cohort_parts
import jax
import numpy as np

import lrmil_jax
from lrmil_jax.progress import setup_logging
from lrmil_jax.report.table import aligned

LEVEL = 0.95  # wanted of intervals
# Wanted of the mean probability that a head on noise gives either of two classes.
EVEN = 0.5
_SIZES = ("width", "tiffs", "simulations")  # flags that change `Options`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small width, few epochs and slides")
    parser.add_argument("--parts", default=",".join(cohort_parts.PARTS), help="some of them, a,b")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--width", type=int, help="of features; real ones are 768 to 1,536")
    parser.add_argument("--tiffs", type=int, help="slide files")
    parser.add_argument("--methods", help="that the slide files go through, a,b")
    parser.add_argument("--simulations", type=int, help="of intervals, for each situation")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # run this part here and end
    args = parser.parse_args()
    options = chosen_options(args)
    if args.part is not None:
        setup_logging()
        args.json.write_text(json.dumps(cohort_parts.PARTS[args.part](options)))
        return
    names = args.parts.split(",")
    unknown = [name for name in names if name not in cohort_parts.PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(cohort_parts.PARTS)}")
    print(f"lrmil_jax of {Path(lrmil_jax.__file__).parent}, jax {jax.__version__}; {options}")
    figures: dict = {}
    parts: dict = {}
    for name in names:
        parts[name] = run_part(name, args)
        figures = {**headline(parts), "options": dataclasses.asdict(options), "parts": parts}
        if args.json is not None:  # after every part: a later one that fails loses nothing
            args.json.write_text(json.dumps(figures, indent=2) + "\n")
    print()
    print("\n".join(report(figures)))


def chosen_options(args: argparse.Namespace) -> cohort_parts.Options:
    """The usual sizes or the quick ones, changed by flags."""
    base = cohort_parts.QUICK if args.quick else cohort_parts.Options()
    flags = {name: getattr(args, name) for name in _SIZES}
    flags["methods"] = tuple(args.methods.split(",")) if args.methods else None
    return dataclasses.replace(base, **{name: value for name, value in flags.items() if value})


def run_part(name: str, args: argparse.Namespace) -> dict:
    """Runs one part in a process of its own; its log goes to stderr, its progress is printed."""
    print(f"{name} ...", flush=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.json"
        flags = ["--quick"] if args.quick else []
        for flag in (*_SIZES, "methods"):
            if getattr(args, flag):
                flags += [f"--{flag}", str(getattr(args, flag))]
        command = [sys.executable, __file__, "--part", name, "--json", str(path), *flags]
        subprocess.run(command, check=True)
        result = json.loads(path.read_text())
    seconds = time.perf_counter() - start
    print(f"{name}: {seconds:.0f} s", flush=True)
    return result | {"seconds": seconds}


def headline(parts: dict[str, dict]) -> dict:
    """The figures that are compared from version to version; the worst where there are several."""
    figures: dict = {}
    if "gradients" in parts:
        shares = [parts["gradients"][name] for name in ("teacher", "student")]
        figures["gradient_share_class"] = max(
            (one["class"] for one in shares),
            key=lambda pair: abs(np.log(max(pair[0], 1e-9) / pair[1])),
        )
        figures["gradient_share_length"] = max(
            (one["length"] for one in shares), key=lambda ratio: abs(np.log(max(ratio, 1e-9)))
        )
    if "intervals" in parts:
        held = [one["coverage"] for one in parts["intervals"]["situations"].values()]
        figures["interval_coverage"] = max(held, key=lambda share: abs(share - LEVEL))
    if "files" in parts:
        figures["encodings_per_lr_patch"] = max(parts["files"]["encodings_per_lr_patch"].values())
    return figures


def report(figures: dict) -> list[str]:
    """Lines of the tables: figures against what is wanted, then costs stage by stage."""
    parts = figures["parts"]
    lines = aligned([["figure", "measured", "wanted"], *figure_rows(parts)])
    costs = [
        [
            name, row["stage"], str(row["slides"]), f"{row['wall_s']:.1f}",
            f"{row['cpu_s_per_slide']:.3f}", str(row["compilations"]), f"{row['compile_s']:.1f}",
            f"{row['waits']:.0%}" if "waits" in row else "", f"{row['peak_mib']:.0f}",
        ]
        for name, part in parts.items() for row in part.get("rows", ())
    ]  # fmt: skip
    if costs:
        header = ["part", "stage", "slides", "wall s", "CPU s/slide", "compiled", "compile s",
                  "waits", "peak MiB"]  # fmt: skip
        lines += ["", *aligned([header, *costs])]
    return lines


def figure_rows(parts: dict[str, dict]) -> Iterator[list[str]]:
    """What was measured beside what is wanted."""
    for name in ("teacher", "student") if "gradients" in parts else ():
        share = parts["gradients"][name]
        measured, wanted = share["class"]
        label = f"gradient of a {name}'s bag"
        yield [f"{label}, rare class / common", f"{measured:.2f}", f"{wanted:.2f}"]
        yield [f"{label}, longest tenth / shortest", f"{share['length']:.2f}", "1.00"]
    if "noise" in parts:
        noise = parts["noise"]
        yield ["noise: p(class of a fifth), mean", f"{noise['minority']:.3f}", f"{EVEN}"]
        yield ["noise: p(class of bags 13 x longer)", f"{noise['longer']:.3f}", f"{EVEN}"]
    for name in ("teacher", "student"):
        if name in parts:
            part = parts[name]
            low, high = part["auc_interval"]
            auc = f"{part['auc']:.3f} ({low:.3f} to {high:.3f})"
            oracle = f"oracle {part['oracle_auc']:.3f}, expected {part['expected_oracle_auc']:.3f}"
            yield [f"{name}: AUC on test patients", auc, oracle]
            rhythm = f"{part['validations_per_epoch']:.2f}"
            yield [f"{name}: validations an epoch", rhythm, "1"]
    if "intervals" in parts:
        for situation, one in parts["intervals"]["situations"].items():
            yield [f"coverage, {situation}", f"{one['coverage']:.3f}", f"{LEVEL}"]
    if "files" in parts:
        for method, run in parts["files"]["predicted"].items():
            per_patch = f"{run['encoded'] / run['lr_patches']:.2f}"
            label = f"{method}: encodings an LR patch, {run['folds']} folds"
            yield [label, per_patch, "1" if method == "lrmil" else ""]
        for method, share in parts["files"]["hr_encoded_of_all"].items():
            label = f"{method}: HR patches encoded by all folds, of those that there are"
            yield [label, f"{share:.2f}", "1" if method == "lrmil" else "1.1"]


if __name__ == "__main__":
    main()
