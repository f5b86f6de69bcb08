"""A publisher's tensors as parameters of our encoder, with every mistake listed."""

import logging
import math
import re
from collections.abc import Callable, Collection
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from lrmil_jax.encoders import checkpoints
from lrmil_jax.encoders.grid import resample_positions
from lrmil_jax.encoders.layouts import (
    ALIASES,
    DINOV2_RESAMPLING,
    LAYOUTS,
    TIMM_RESAMPLING,
    Layout,
)
from lrmil_jax.encoders.tensors import Tensors
from lrmil_jax.errors import WeightsError

log = logging.getLogger(__name__)

_LISTED = 8
_PART = re.compile(r"(.*)\[(\d)/(\d)\]")


def parameter_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """'/'-joined path -> shape of every parameter, without making any."""
    images = jax.ShapeDtypeStruct((1, module.px, module.px, 3), np.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    return {key: value.shape for key, value in flat.items()}


def find_layout(names: Collection[str], preferred: str | None) -> tuple[Layout, str] | None:
    """The layout that a file has, and the prefix of all its names; None if none fits.

    Args:
      names: of the file's tensors.
      preferred: the layout in which the encoder is published, for names that several share.
    """
    order = [ALIASES.get(preferred, preferred), "dinov2", *LAYOUTS]
    for layout in [LAYOUTS[name] for name in dict.fromkeys(order) if name in LAYOUTS]:
        (first,) = layout.sources("patch_embed/kernel", mlp="gelu")
        for prefix in layout.prefixes:
            marked = layout.mark is None or prefix + layout.mark in names
            # The preferred layout needs no mark: a user may have dropped what nobody needs.
            if prefix + first in names and (marked or layout is LAYOUTS.get(order[0])):
                return layout, prefix
    # A checkpoint of somebody's own training may wrap them in anything.
    for name in dict.fromkeys(order[:2]):
        if name in LAYOUTS:
            (first,) = LAYOUTS[name].sources("patch_embed/kernel", mlp="gelu")
            prefix = checkpoints.prefix_of(names, first)
            if prefix is not None:
                return LAYOUTS[name], prefix
    return None


def convert(
    path: Path,
    module: nn.Module,
    tensors: Tensors,
    *,
    layout: Layout,
    prefix: str = "",
    place: Callable[[str, np.ndarray], object] = lambda _, value: value,
) -> dict[str, object]:
    """Our parameters by their '/'-joined paths, each made, placed and let go before the next.

    Args:
      path: of the file, for the messages.
      module: a `VisionTransformer`.
      tensors: name -> how to read it.
      layout: of the file.
      prefix: of all its names.
      place: takes a parameter's path and f32 value; what it gives is kept.

    Raises:
      WeightsError: missing, unexpected or misshapen tensors, all listed.
    """
    unprefixed = _backbone(path, tensors, prefix)
    shapes, params, misshapen = parameter_shapes(module), {}, []
    sources = {param: _sources(layout, param, module) for param in shapes}
    needed = {_PART.sub(r"\1", name) for names in sources.values() for name in names}
    missing = sorted(needed - unprefixed.keys())
    unexpected = sorted(
        name for name in unprefixed.keys() - needed if not name.startswith(layout.ignored or "\0")
    )
    for param, names in sources.items():
        if any(_PART.sub(r"\1", name) in missing for name in names):
            continue
        values = [_read(unprefixed, name) for name in names]
        value = _make(param, values, shapes[param], module, layout)
        if value is None or value.shape != shapes[param]:
            stored_shapes = ", ".join(f"{n} {v.shape}" for n, v in zip(names, values, strict=True))
            misshapen.append(f"{stored_shapes} for {param} {shapes[param]}")
        elif not missing and not unexpected and not misshapen:
            params[param] = place(param, np.ascontiguousarray(value, np.float32))
    refuse(path, missing, unexpected, misshapen)
    return params


def _backbone(path: Path, tensors: Tensors, prefix: str) -> Tensors:
    """The tensors of the backbone by their own names; what is beside it is told."""
    chunks = checkpoints.without_chunks(tensors.keys())
    renamed = {chunks.get(name, name): read for name, read in tensors.items()}
    beside = [
        name
        for name in renamed
        if not name.startswith(prefix) or name[len(prefix) :].startswith(checkpoints.HEADS)
    ]
    if beside:
        log.warning("%s: %s%d tensors are not of the backbone and are left out: %s", path,
                    f"the backbone is {prefix}*; " if prefix else "", len(beside),
                    checkpoints.summary(beside))  # fmt: skip
    return {name[len(prefix) :]: renamed[name] for name in renamed.keys() - set(beside)}


def refuse(path: Path, missing: list[str], unexpected: list[str], misshapen: list[str]) -> None:
    """Says what does not fit, if anything.

    Raises:
      WeightsError: something does not.
    """
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    problems = []
    for kind, keys in kinds.items():
        suffix = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
        if keys:
            problems.append(f"{len(keys)} {kind} ({', '.join(keys[:_LISTED])}{suffix})")
    if problems:
        raise WeightsError(f"Weights {path} do not fit the encoder: {'; '.join(problems)}.")


def _sources(layout: Layout, param: str, module: nn.Module) -> tuple[str, ...]:
    if param in ("cls_position", "grid_position"):
        param = "positions"
    try:
        names = layout.sources(param, mlp=module.mlp)
    except KeyError:
        return (f"({param})",)  # in no file of this layout: it will be told as missing
    folded = param == "registers" or (param == "cls_token" and not module.class_position)
    return (*names, *layout.sources("positions", mlp=module.mlp)) if folded else names


def _read(tensors: Tensors, name: str) -> np.ndarray:
    part = _PART.fullmatch(name)
    if part is None:
        return np.asarray(tensors[name](), np.float32)
    whole_name, index, count = part.group(1), int(part.group(2)), int(part.group(3))
    value = np.asarray(tensors[whole_name](), np.float32)
    size = len(value) // count
    return value[index * size : (index + 1) * size]


def _make(
    param: str,
    values: list[np.ndarray],
    shape: tuple[int, ...],
    module: nn.Module,
    layout: Layout,
) -> np.ndarray | None:
    """One parameter of the given shape, or None if the tensors cannot make it."""
    name = param.rpartition("/")[2]
    if not values:
        return np.zeros(shape, np.float32)
    if param in ("cls_position", "grid_position", "cls_token", "registers"):
        return _make_first(param, values, module, layout)
    if param == "patch_embed/kernel":
        kernel = values[0]
        return kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel)) if kernel.ndim == 4 else None
    if name == "kernel":
        if any(value.ndim != 2 for value in values):
            return None
        joined = np.concatenate(values)
        transposed = param != "projection/kernel" or layout.projection_out_first
        return joined.T if transposed else joined
    joined = np.concatenate(values)
    return joined.reshape(shape) if joined.size == math.prod(shape) else joined


def _make_first(
    param: str, values: list[np.ndarray], module: nn.Module, layout: Layout
) -> np.ndarray | None:
    """Class token, registers and positions: the table of positions may hold all three's."""
    table = values[-1] if len(values) == 2 or param.endswith("position") else None
    tokens = values[0].reshape(-1, module.width) if values[0].size % module.width == 0 else None
    if tokens is None:
        return None
    first, grid = None, None
    if table is not None:
        table = table.reshape(-1, module.width)
        first, grid = _split_positions(table, module)
        if grid is None:
            return None
    if param == "grid_position":
        return resample(grid, module.px // module.patch, layout.resampling)
    if param == "cls_position":
        return first[0] if len(first) else None
    if param == "cls_token":
        return tokens[0] if first is None or not len(first) else tokens[0] + first[0]
    return tokens + first[1:] if len(first) == 1 + len(tokens) else tokens


def _split_positions(
    table: Float[np.ndarray, "n W"], module: nn.Module
) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions of the tokens before the patches, and the square grid of the patches'."""
    for count in (0, 1, 1 + module.registers):
        side = math.isqrt(len(table) - count)
        if side > 0 and side**2 == len(table) - count:
            return table[:count], table[count:].reshape(side, side, -1)
    return table, None


def resample(
    grid: Float[np.ndarray, "h w W"], target: int, rule: str
) -> Float[np.ndarray, "{target} {target} W"]:
    """A file's position grid at the encoder's own size, as its publisher's code resamples it.

    Args:
      grid: as stored, square.
      target: tokens along one side.
      rule: "antialiased" is timm's; the others are PyTorch's plain bicubic (a = -0.75, nothing
        widened, pixels repeated at the edges), sampling "by size", or "by scale" with DINOv2's 0.1.
    """
    side = len(grid)
    if side == target:
        return grid
    if rule == TIMM_RESAMPLING:
        return np.asarray(resample_positions(grid, target))
    step = side / (target + 0.1) if rule == DINOV2_RESAMPLING else side / target
    weights = np.zeros((target, side))
    for row in range(target):
        centre = (row + 0.5) * step - 0.5
        first = math.floor(centre) - 1
        for tap in range(first, first + 4):
            weights[row, min(max(tap, 0), side - 1)] += _plain_cubic(centre - tap)
    return np.einsum("ty,sx,yxw->tsw", weights, weights, grid, optimize=True).astype(np.float32)


def _plain_cubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return (1.25 * x - 2.25) * x * x + 1.0
    return ((-0.75 * x + 3.75) * x - 6.0) * x + 3.0 if x < 2 else 0.0
