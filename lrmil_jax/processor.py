"""What the CPU is and can do, as its system tells it."""

import functools
import platform
from pathlib import Path

# Of x86 and of ARM: products of bfloat16 in hardware. Without, XLA converts each to float32.
_BFLOAT16 = frozenset({"amx_bf16", "avx512_bf16", "bf16"})

# The same of products of 8-bit integers.
_INT8 = frozenset({"amx_int8", "avx512_vnni", "avx_vnni", "asimddp", "i8mm"})


@functools.cache
def described() -> str:
    """Name and features of the first core, a line each; elsewhere than on Linux its name alone."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = [platform.processor()]
    told = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "\n".join([platform.machine(), *(told or lines[:1])])


def multiplies_bfloat16() -> bool:
    """True if products of bfloat16 take no detour by float32."""
    return not _BFLOAT16.isdisjoint(described().split())


def multiplies_int8() -> bool:
    """True if the CPU has instructions for products of 8-bit integers."""
    return not _INT8.isdisjoint(described().split())
