"""Checkpoints of a training: the backbone in what wraps it, beside heads, a student, an optimizer.

DINO and DINOv2 keep {teacher: {backbone.*, dino_head.*}, student: ...}, Lightning {state_dict:
model.*}, DistributedDataParallel `module.`, torch.compile `_orig_mod.`, and FSDP blocks in chunks
(`blocks.0.5.`, of which the last number counts). The teacher, or its moving average, is the one
that is evaluated, so it goes before the student.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

# What may stand before a backbone's own names.
_WRAPS = frozenset({
    *("state_dict", "model_state_dict", "model", "module", "_orig_mod", "_fsdp_wrapped_module"),
    *("teacher", "student", "ema", "model_ema", "ema_model", "momentum_encoder", "base_encoder"),
    *("target_encoder", "context_encoder", "backbone", "encoder", "net", "network", "vit"),
    *("image_encoder", "feature_extractor"),
})  # fmt: skip
# Copies of one backbone, the best first.
_COPIES = ("teacher", "ema", "target_encoder", "momentum_encoder")
# Beside a backbone that nothing wraps.
HEADS = ("dino_head.", "ibot_head.", "decoder_", "decoder.", "predictor.", "projector.",
         "projection_head.", "prototypes.", "optimizer.", "loss.")  # fmt: skip
_CHUNK = re.compile(r"(.*\bblocks\.)\d+\.(\d+\..+)")
_LISTED = 4


def prefix_of(names: Iterable[str], first: str) -> str | None:
    """What stands before all names of the backbone; None if there is none.

    Args:
      names: of all tensors of a file.
      first: a name that the backbone has.
    """
    prefixes = [name.removesuffix(first) for name in names if name.endswith(first)]
    known = [one for one in prefixes if all(part in _WRAPS for part in one.split(".")[:-1])]
    return min(known, key=_rank, default=None)


def _rank(prefix: str) -> tuple[int, int]:
    places = [place for place, word in enumerate(_COPIES) if word in prefix]
    return min(places, default=len(_COPIES)), len(prefix)


def without_chunks(names: Collection[str]) -> dict[str, str]:
    """Name in the file -> name without FSDP's chunks of blocks, of those that have them."""
    renamed = {name: match[1] + match[2] for name in names if (match := _CHUNK.fullmatch(name))}
    return renamed if len(set(renamed.values())) == len(renamed) else {}


def flatten(content: Mapping, prefix: str = "") -> dict[str, object]:
    """What is nested in a checkpoint, by dotted names."""
    flat: dict[str, object] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _module(parts: Sequence[str]) -> str:
    """What wraps a tensor, and the first module that is none of that; no further into a
    backbone."""
    end = next((place for place, part in enumerate(parts) if part not in _WRAPS), len(parts) - 1)
    return ".".join(parts[: end if end and parts[end - 1] == "backbone" else end + 1])


def summary(names: Sequence[str]) -> str:
    """Tensors that are left out, in a few words: how many of which module."""
    counts: dict[str, int] = {}
    for name in names:
        module = _module(name.split("."))
        counts[module] = counts.get(module, 0) + 1
    shown = [f"{module} ({count})" for module, count in list(counts.items())[:_LISTED]]
    return ", ".join([*shown, f"{len(counts) - _LISTED} more"] if len(counts) > _LISTED else shown)
