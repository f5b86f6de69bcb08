"""One GPU to its limit: encoders, stage 1 and MIL, each beside PyTorch in the same run.

  check    fused attention and the encoder that has it, forward and backward, beside the plain ones
  encoder  images/s of ViT-S/16, B/16 and L/16 at 256 px in bfloat16, in turns: as the package
           encodes, with plain attention and f32 parameters, timm's model with the same weights
           eager and compiled
  stage1   the trainer's step of stage 1 with ViT-B/16
  mil      gated ABMIL on 1,000 bags of log-normal sizes (median 659, 95th percentile 2,280) of
           width 768 that lie on the device, beside PyTorch's usual loop over single bags there
  memory   what the gradient of stage 1 needs beside parameters and optimiser, with and without
           `distill.remat`; compiled, not run

The share of peak counts the operations of every matrix product, two for each product summed, three
times for a step with its gradient: a block of T tokens and width W takes 2 T (4 W^2 + 2 W 4 W) +
4 T^2 W. Peak is 989 TFLOP/s, dense bfloat16 of an H100 or H200 (--peak). Needs jax, flax, optax and
jaxtyping; without torch and timm their rows are left out, and it says so.

  python scripts/bench_gpu.py --output build/gpu          # gpu.json and gpu.md; under five minutes
  python scripts/bench_gpu.py --tiny                      # on CPU, to see that it runs

Targets on an H100: encoders at least 1.0 of timm compiled, ViT-L/16 at least 40 % of peak, stage 1
at least 35 %.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory too

import bench_mil
import gpu_check
import gpu_encoders
import jax
import numpy as np
from bench_tools import Compilations

from lrmil_jax import heads
from lrmil_jax.data.batching import padding_waste
from lrmil_jax.train.encode import ahead

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is computed."""

    encoders: tuple[tuple[str, dict[str, Any], int], ...] = (
        ("vit-s16", {}, 256),
        ("vit-b16", {}, 256),
        ("vit-l16", {}, 128),
    )
    stage1: tuple[str, dict[str, Any], int] = ("vit-b16", {}, 128)
    memory: tuple[tuple[str, dict[str, Any], int], ...] = (
        ("vit-b16", {}, 128),
        ("vit-l16", {}, 128),
        ("prov-gigapath", {"px": 256}, 64),
    )
    bags: int = 1000
    median: int = 659
    budgets: tuple[int, ...] = (4096, 32_768)
    tokens: tuple[int, ...] = (257, 265)  # of an image, and with 8 prompts
    width: int = 768
    heads: int = 12
    rounds: int = 7


_SMALL = {"px": 32, "patch": 8, "width": 32, "depth": 2, "heads": 2}
TINY = Sizes(
    encoders=(("vit", _SMALL, 4),),
    stage1=("vit", _SMALL, 4),
    memory=(("vit", _SMALL, 4),),
    bags=12,
    median=20,
    budgets=(256,),
    tokens=(17,),
    width=32,
    heads=2,
    rounds=1,
)


def check(sizes: Sizes, peak: float) -> list[Row]:
    """Relative errors beside the plain formulation in f32, and that in bf16 likewise."""
    del peak
    shape = {"width": sizes.width, "heads": sizes.heads}
    rows = [gpu_check.attention_row(tokens=tokens, **shape) for tokens in sizes.tokens]
    name, options, _ = sizes.stage1
    return [*rows, gpu_check.encoder_row(name, options)]


def encoder(sizes: Sizes, peak: float) -> list[Row]:
    """Every model's contestants."""
    options = {"rounds": sizes.rounds, "peak": peak}
    return [row for one in sizes.encoders for row in gpu_encoders.encoder_rows(*one, **options)]


def stage1(sizes: Sizes, peak: float) -> list[Row]:
    """The step of stage 1."""
    return [gpu_encoders.stage1_row(*sizes.stage1, rounds=sizes.rounds, peak=peak)]


def memory(sizes: Sizes, peak: float) -> list[Row]:
    """The gradient of stage 1, with and without remat."""
    del peak
    return [
        gpu_encoders.memory_row(*one, remat=remat)
        for one in sizes.memory
        for remat in (False, True)
    ]


def mil(sizes: Sizes, peak: float) -> list[Row]:
    """Bags/s of whole epochs, host and device together."""
    del peak
    rng = np.random.default_rng(0)
    drawn = rng.lognormal(np.log(sizes.median), 0.7546, sizes.bags)
    bags = bench_mil.make_bags(sizes.bags, 0, np.maximum(drawn.astype(int), 1))
    rows = [_mil(bags, budget) for budget in sizes.budgets]
    if not gpu_encoders.has("torch"):
        return rows
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loop = bench_mil.TorchRun("gated_abmil", *bags, threads=os.cpu_count(), device=device)
    loop.epoch()
    rate = sizes.bags / statistics.median(loop.epoch() for _ in range(2))
    rows.append({"what": "gated ABMIL: torch, one bag a step", "rate": rate, "unit": "bags/s"})
    return gpu_encoders.with_ratios(rows, of="torch, one bag a step")


def _mil(bags: tuple, budget: int) -> Row:
    compiled = Compilations()
    run = bench_mil.JaxRun(
        heads.create("gated_abmil", num_classes=bench_mil.CLASSES), *bags, budget=budget, bags=16,
        # Grain's threads in the package; here one, so that Grain need not be there.
        iterate=lambda source: ahead((source[at] for at in itertools.count()), 4),
    )  # fmt: skip
    first = run.epoch()
    facts = compiled.facts() | {"first_s": round(first, 1)}
    rate = len(bags[0]) / statistics.median(run.epoch() for _ in range(3))
    run.iterator.close()
    plan = [batch for update in run.source.plan(0) for batch in update]
    return {
        "what": f"gated ABMIL, {len(bags[0])} bags, {int(bags[0].sum()):,} rows, budget {budget:,}",
        "rate": rate,
        "unit": "bags/s",
        "waste": padding_waste(plan, bags[0]),
        **facts,
    }


PARTS = {"check": check, "encoder": encoder, "stage1": stage1, "mil": mil, "memory": memory}


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    heads = ("what", "rate", "of peak", "ratio", "programs", "compiling", "first call")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        rate = row.get("told", f"{row['rate']:,.0f} {row['unit']}" if "rate" in row else "")
        if not row.get("ok", True):
            rate += ": TOO MUCH"
        share = f"{100 * row['share']:.1f} %" if "share" in row else ""
        ratio = f"{row['ratio']:.2f} of {row['of']}" if "ratio" in row else ""
        compiled = f"{row['compile_s']:.1f} s" if "compile_s" in row else ""
        first = f"{row['first_s']:.1f} s" if "first_s" in row else ""
        count = str(row.get("compilations", ""))
        cells = (row["what"], rate, share, ratio, count, compiled, first)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS)[:4])
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, in seconds")
    parser.add_argument("--peak", type=float, default=989.0, help="of the device, TFLOP/s")
    parser.add_argument("--output", type=Path, help="folder for gpu.json and gpu.md")
    args = parser.parse_args()
    device = jax.devices()[0].device_kind
    if not gpu_encoders.has("torch", "timm"):
        print("torch or timm is not installed: the rows beside them are left out", flush=True)
    rows: list[Row] = []
    start = time.perf_counter()
    for part in args.parts:
        new = PARTS[part](TINY if args.tiny else Sizes(), 1e12 * args.peak)
        rows += [{"part": part, **row} for row in new]
        print(f"{part}, {time.perf_counter() - start:.0f} s:\n{table(new)}\n", flush=True)
        if args.output is not None:
            args.output.mkdir(parents=True, exist_ok=True)
            facts = {"device": device, "jax": jax.__version__, "peak_tflops": args.peak}
            (args.output / "gpu.json").write_text(json.dumps(facts | {"rows": rows}, indent=1))
            title = f"{device}, jax {jax.__version__}"
            (args.output / "gpu.md").write_text(f"{title}\n\n{table(rows)}\n")
    if not all(row.get("ok", True) for row in rows):
        raise SystemExit("what is fused is not what is plain: see above")


if __name__ == "__main__":
    main()
