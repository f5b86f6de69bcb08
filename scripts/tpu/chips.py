"""Cloud TPU chips: what the scripts beside this file know of each generation.

Peaks are Google's own, of bfloat16: cloud.google.com/tpu/docs/v5e, /v5p and /v6e.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Generation:
    """One kind of chip.

    Attributes:
      prefix: of its accelerator types, before the number.
      runtime: TPU software version for JAX.
      peak: operations a second and chip in bfloat16.
      cores: of a chip, where an accelerator type counts cores; 1 where it counts chips.
      sizes: numbers that an accelerator type may have; empty: any multiple of 8 up to `most`.
      most: the highest number.
    """

    prefix: str
    runtime: str
    peak: float
    cores: int = 1
    sizes: tuple[int, ...] = ()
    most: int = 256


_SQUARE = (1, 4, 8, 16, 32, 64, 128, 256)
GENERATIONS = {
    "v5e": Generation("v5litepod", "v2-alpha-tpuv5-lite", 197e12, sizes=_SQUARE),
    "v5p": Generation("v5p", "v2-alpha-tpuv5", 459e12, cores=2, most=12_288),
    "v6e": Generation("v6e", "v2-alpha-tpuv6e", 918e12, sizes=_SQUARE),
}


def of_type(accelerator_type: str) -> tuple[Generation, int]:
    """The generation of an accelerator type such as `v6e-16`, and how many chips it has.

    Raises:
      SystemExit: there is no such type.
    """
    prefix, _, number = accelerator_type.partition("-")
    for name, generation in GENERATIONS.items():
        if prefix == name != generation.prefix:
            raise SystemExit(f"--accelerator-type {accelerator_type} is called "
                             f"{generation.prefix}-{number} by gcloud; give that")  # fmt: skip
        if prefix == generation.prefix and number.isdigit() and _fits(generation, int(number)):
            return generation, int(number) // generation.cores
    raise SystemExit(
        f"--accelerator-type {accelerator_type} is none that is known here ({_known()}); look it "
        "up with `gcloud compute tpus accelerator-types list --zone=ZONE`"
    )


def _fits(generation: Generation, number: int) -> bool:
    if generation.sizes:
        return number in generation.sizes
    return 0 < number <= generation.most and number % 8 == 0


def _known() -> str:
    shown = []
    for generation in GENERATIONS.values():
        sizes = ", ".join(map(str, generation.sizes))
        shown.append(f"{generation.prefix}-N with N {sizes or f'8 to {generation.most:,} by 8'}")
    return "; ".join(shown)
