"""Hours and dollars of LRMIL on Cloud TPU, from counted operations and a stated share of peak.

  python scripts/tpu/cost.py [--encoder vit-b16] [--slides 1000] [--chips 8] \\
    [--share-of-peak 0.3] [--dollars-per-chip-hour v5e=PRICE v6e=PRICE]

Operations of an encoder's forward pass are counted by XLA (lrmil_jax.models.cost); a training step
is three forward passes. Reading slides, training MIL heads and waiting are not counted. Prices
change with place and time and are not known here: without --dollars-per-chip-hour the column says
"unknown".
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence

import chips
import rich.console
import rich.table

from lrmil_jax import config
from lrmil_jax.data.schema import Geometry
from lrmil_jax.errors import UserError
from lrmil_jax.models import cost

_TRAINING = 3  # forward passes that a step of training costs: one, and two of the gradient


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations of the stages that encode.

    Attributes:
      encode_hr: every HR patch once.
      distill: stage 1, all folds and the final model.
      encode_lr: every LR patch, by each fold's encoder and the final one.
    """

    encode_hr: float
    distill: float
    encode_lr: float

    @property
    def total(self) -> float:
        """Of all stages."""
        return self.encode_hr + self.distill + self.encode_lr


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the operations and a row a chip.

    Raises:
      SystemExit: a mistake in the arguments.
    """
    args = _parser().parse_args(arguments)
    if not 0 < args.share_of_peak <= 1:
        raise SystemExit(f"--share-of-peak {args.share_of_peak} is none; give one of 0 to 1")
    prices = read_prices(args.dollars_per_chip_hour)
    try:
        per_patch = cost.flops_per_patch(args.encoder, {}, _geometry())
    except UserError as error:
        raise SystemExit(str(error)) from None
    if per_patch is None:
        raise SystemExit("XLA counts no operations on this backend; run it with JAX_PLATFORMS=cpu")
    work = of_cohort(per_patch, args)
    console = rich.console.Console(highlight=False, width=100)
    console.print(_assumed(args, per_patch, work))
    console.print(_table(work, args, prices))


def _parser() -> argparse.ArgumentParser:
    settings = config.default()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="vit-b16", help="as encoder.name")
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--lr-patches", type=int, default=700, help="of a slide")
    parser.add_argument("--hr-patches", type=int, default=11_200, help="of a slide")
    parser.add_argument("--models", type=int, default=settings.folds + 1,
                        help="folds, and one for the final model")  # fmt: skip
    parser.add_argument("--steps", type=int, default=settings.distill.steps, help="of stage 1")
    parser.add_argument("--batch", type=int, default=settings.distill.batch, help="LR patches")
    parser.add_argument("--chips", type=int, default=8)
    parser.add_argument("--share-of-peak", type=float, default=0.3)
    parser.add_argument("--dollars-per-chip-hour", nargs="*", default=[], metavar="CHIP=DOLLARS")
    return parser


def _geometry() -> Geometry:
    geometry = config.default().geometry
    return Geometry(hr_mpp=geometry.hr_mpp, lr_mpp=geometry.lr_mpp, patch_px=geometry.patch_px)


def read_prices(given: Sequence[str]) -> dict[str, float]:
    """Dollars of an hour of each chip, from `v5e=1.2` and the like.

    Raises:
      SystemExit: no such chip, or no number.
    """
    prices = {}
    for one in given:
        name, _, dollars = one.partition("=")
        try:
            prices[name] = float(dollars)
        except ValueError:
            prices[name] = -1.0
        if name not in chips.GENERATIONS or not 0 <= prices[name] < float("inf"):
            raise SystemExit(f"--dollars-per-chip-hour {one} is none; give CHIP=DOLLARS, the chip "
                             f"one of {', '.join(chips.GENERATIONS)}")  # fmt: skip
    return prices


def of_cohort(per_patch: Mapping[str, float], args: argparse.Namespace) -> Work:
    """Operations of a cohort.

    Args:
      per_patch: of a forward pass, at "hr" and "lr".
      args: of the command line.
    """
    steps = args.models * args.steps * args.batch
    return Work(
        encode_hr=args.slides * args.hr_patches * per_patch["hr"],
        distill=_TRAINING * steps * per_patch["lr"],
        encode_lr=args.models * args.slides * args.lr_patches * per_patch["lr"],
    )


def _assumed(args: argparse.Namespace, per_patch: Mapping[str, float], work: Work) -> str:
    parts = {name.name: getattr(work, name.name) for name in dataclasses.fields(work)}
    shown = ", ".join(f"{name} {count / 1e15:,.0f}" for name, count in parts.items())
    return (
        f"{args.encoder}: {per_patch['hr'] / 1e9:.1f} GFLOP an HR patch, "
        f"{per_patch['lr'] / 1e9:.1f} an LR patch.\n{args.slides:,} slides of {args.hr_patches:,} "
        f"HR and {args.lr_patches:,} LR patches, {args.models} models, stage 1 of {args.steps:,} "
        f"steps of {args.batch}.\nPFLOP: {shown}; {100 * args.share_of_peak:g} % of the bfloat16 "
        "peak is assumed."
    )


def _table(work: Work, args: argparse.Namespace, prices: Mapping[str, float]) -> rich.table.Table:
    """A row a kind of chip."""
    table = rich.table.Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    heads = ("chip", "peak TFLOP/s", "encode_hr", "distill", "encode_lr", "chip-hours")
    for name in (*heads, f"hours on {args.chips}", "dollars"):
        table.add_column(name, no_wrap=True)
    for name, generation in chips.GENERATIONS.items():
        an_hour = 3600 * args.share_of_peak * generation.peak
        hours = work.total / an_hour
        parts = (work.encode_hr, work.distill, work.encode_lr, work.total)
        shown = [f"{part / an_hour:.2f}" for part in parts]
        dollars = f"{hours * prices[name]:.2f}" if name in prices else "unknown"
        peak = f"{generation.peak / 1e12:g}"
        table.add_row(name, peak, *shown, f"{hours / args.chips:.2f}", dollars)
    return table


if __name__ == "__main__":
    main()
