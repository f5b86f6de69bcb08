"""What the benchmarks share: turns, timm's models, operations of an encoder, compilations."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from lrmil_jax.encoders.pretrained import parameter_shapes

_compilations: list[float] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: (
        _compilations.append(duration) if event.endswith("backend_compile_duration") else None
    )
)


class Compilations:
    """Programs compiled since it was made, and the seconds that the compiler took for them."""

    def __init__(self):
        self._before = len(_compilations)

    def facts(self) -> dict[str, float]:
        """Their number and their seconds."""
        new = _compilations[self._before :]
        return {"compilations": len(new), "compile_s": round(sum(new), 1)}


def seconds(run: Callable[[], Any], *, repeats: int) -> float:
    """Mean seconds of a call, the device's work done."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def in_turns(
    runs: dict[str, Callable[[], Any]], *, rounds: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of every contestant, round by round, after a warm-up."""
    for run in runs.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(seconds(run, repeats=repeats))
    return found


def timm_model(module, *, px: int):
    """timm's model of the same architecture."""
    import torch

    if torch.library is not None and not _has_operators():
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):  # declared for an import, never called
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm
    from timm.layers import SwiGLUPacked

    extra = {}
    if module.mlp == "swiglu":
        extra = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}
    return timm.models.vision_transformer.VisionTransformer(
        img_size=px, patch_size=module.patch, embed_dim=module.width, depth=module.depth,
        num_heads=module.heads, mlp_ratio=module.mlp_ratio, reg_tokens=module.registers,
        no_embed_class=not module.class_position, num_classes=0, global_pool="token",
        init_values=1e-5 if module.layer_scale else None, **extra,
    ).eval()  # fmt: skip


def _has_operators() -> bool:
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, ImportError):
        return False
    return True


def unflatten(flat: dict) -> dict:
    """Nested parameters."""
    return traverse_util.unflatten_dict(flat, sep="/")


def random_params(module) -> dict[str, Any]:
    """Host parameters; drawing them on a GPU would compile for longer than the encoder does."""
    rng = np.random.default_rng(0)
    flat = {
        key: np.float32("scale" in key) + 0.02 * rng.standard_normal(shape, np.float32)
        for key, shape in parameter_shapes(module).items()
    }
    return unflatten(flat)


def flops(module, px: int) -> float:
    """Floating point operations of one image's forward pass: two for each product summed."""
    tokens = (px // module.patch) ** 2 + 1 + module.registers
    width, hidden = module.width, int(module.width * module.mlp_ratio)
    back = hidden // 2 if module.mlp == "swiglu" else hidden
    dense = 4 * width**2 + width * hidden + back * width
    block = 2 * tokens * dense + 4 * tokens**2 * width
    return module.depth * block + 2 * (px // module.patch) ** 2 * 3 * module.patch**2 * width
