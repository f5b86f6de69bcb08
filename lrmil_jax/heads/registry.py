"""MIL heads by name."""

import difflib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from lrmil_jax.errors import ConfigError
from lrmil_jax.heads.abmil import ABMIL
from lrmil_jax.heads.mean import MeanPool

HEADS: Mapping[str, Callable[..., nn.Module]] = {
    "abmil": ABMIL,
    "gated_abmil": functools.partial(ABMIL, gated=True),
    "mean": MeanPool,
}


def create(name: str, num_classes: int, **kwargs: Any) -> nn.Module:
    """A MIL head by its registered name.

    Args:
      name: one of `HEADS`.
      num_classes: number of logits per bag.
      **kwargs: options of the head, such as `hidden`, `dropout` or `dtype`.

    Returns:
      A linen module called as `head(bags [B, N, D], mask [B, N], *, train=False)`.

    Raises:
      ConfigError: unknown name, unknown option, or no class to tell apart.
    """
    if name not in HEADS:
        near = difflib.get_close_matches(name, HEADS, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"Unknown MIL head {name!r}: did you mean {near!r}? Heads: {', '.join(HEADS)}."
        )
    if num_classes < 1:
        raise ConfigError(f"A MIL head needs at least one class, num_classes is {num_classes}.")
    try:
        return HEADS[name](num_classes=num_classes, **kwargs)
    except TypeError as error:
        raise ConfigError(f"MIL head {name!r} does not take these options: {error}.") from error
