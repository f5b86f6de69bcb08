"""Learning-rate schedules and optimisers by name."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from lrmil_jax.encoders.adapters import ADAPTERS, WHOLE
from lrmil_jax.train.state import TrainSettings

# Leaves that weight decay would only shrink for nothing, by a part of their name.
_UNDECAYED = (
    *("bias", "scale", "token", "pos_embed", "position"),
    *("registers", "query", "prompts"),
)
_BLOCK = "block_"
_BEFORE_BLOCKS = (
    *("patch_embed", "cls_token", "cls_position", "grid_position"),
    *("registers", "norm_pre"),
)


def schedule(settings: TrainSettings) -> optax.Schedule:
    """The learning rate as a function of the number of updates done."""
    peak, warmup = settings.learning_rate, settings.warmup_steps
    rest = max(settings.steps - warmup, 1)
    main = (
        optax.cosine_decay_schedule(peak, rest)
        if settings.schedule == "cosine"
        else optax.constant_schedule(peak)
    )
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup])


def decayed(params: Any) -> Any:
    """A tree of bool like `params`: True where weight decay applies (matrices and kernels)."""

    def rule(path, leaf) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True).lower()
        return leaf.ndim >= 2 and not any(part in name for part in _UNDECAYED)

    return jax.tree_util.tree_map_with_path(rule, params)


def create(settings: TrainSettings) -> optax.GradientTransformation:
    """Clipping, then the named optimiser with decoupled weight decay under the schedule."""
    clip = (
        optax.identity()
        if settings.clip_norm is None
        else optax.clip_by_global_norm(settings.clip_norm)
    )
    layered = settings.layer_decay != 1
    direction = {"adamw": optax.scale_by_adam(), "sgd": optax.trace(0.9, nesterov=True)}
    return optax.chain(
        clip,
        direction[settings.optimizer],
        optax.add_decayed_weights(settings.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(schedule(settings)),
        *[optax.stateless(_by_layer(settings.layer_decay))] * layered,
    )


def layer_rates(params: Mapping[str, Any], decay: float | int) -> dict[str, float]:
    """The rate of each top-level part of an encoder's parameters, the last part's being 1.

    Source: Bao et al., "BEiT", ICLR 2022: `decay ** (depth - i)` of block i, counted from 0, one
    power more of what lies before the blocks, 1 of what comes after them.

    Args:
      params: "params" tree of a `VisionTransformer`.
      decay: of a block against the one behind it.
    """
    depth = sum(name.startswith(_BLOCK) for name in params)

    def rate(name: str) -> float:
        if name.startswith(_BLOCK):
            return decay ** (depth - int(name.removeprefix(_BLOCK)))
        return decay ** (depth + 1) if name in _BEFORE_BLOCKS else 1.0

    return {name: rate(name) for name in params}


def _by_layer(decay: float | int) -> Callable[[Any, Any], Any]:
    """Updates of an encoder or of its adapters, alone or, as "encoder" or "adapters", beside
    others, with the rates of its layers."""

    def scaled(updates: Any, params: Any) -> Any:
        del params
        part = next((name for name in (WHOLE, ADAPTERS) if name in updates), None)
        tower = updates if part is None else updates[part]
        rates = layer_rates(tower, decay)
        slower = {
            name: jax.tree.map(lambda update, rate=rates[name]: rate * update, part)
            for name, part in tower.items()
        }
        return slower if part is None else {**updates, part: slower}

    return scaled
