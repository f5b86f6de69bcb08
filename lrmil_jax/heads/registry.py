"""MIL heads by name."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from lrmil_jax.errors import ConfigError
from lrmil_jax.heads import options
from lrmil_jax.heads.abmil import ABMIL, GatedABMIL
from lrmil_jax.heads.acmil import ACMIL
from lrmil_jax.heads.base import Head
from lrmil_jax.heads.clam import ClamMB, ClamSB
from lrmil_jax.heads.dsmil import DSMIL
from lrmil_jax.heads.dtfd import DTFD
from lrmil_jax.heads.hdmil import HDMIL
from lrmil_jax.heads.max import MaxPool
from lrmil_jax.heads.mean import MeanPool
from lrmil_jax.heads.noisy_and import NoisyAnd
from lrmil_jax.heads.perceiver import Perceiver
from lrmil_jax.heads.topk import TopK
from lrmil_jax.heads.transformer import Transformer
from lrmil_jax.heads.transmil import TransMIL
from lrmil_jax.heads.zoom_mil import ZoomMIL

HEADS: Mapping[str, type[Head]] = {
    "abmil": ABMIL,
    "gated_abmil": GatedABMIL,
    "mean": MeanPool,
    "max": MaxPool,
    "topk": TopK,
    "noisy_and": NoisyAnd,
    "clam_sb": ClamSB,
    "clam_mb": ClamMB,
    "dsmil": DSMIL,
    "dtfd": DTFD,
    "acmil": ACMIL,
    "transmil": TransMIL,
    "transformer": Transformer,
    "perceiver": Perceiver,
    "zoom_mil": ZoomMIL,
    "hdmil": HDMIL,
}


def find(name: str) -> type[Head]:
    """A head's class by its registered name.

    Raises:
      ConfigError: there is no such head.
    """
    if name not in HEADS:
        near = difflib.get_close_matches(name, HEADS, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"Unknown MIL head {name!r}: did you mean {near!r}? Heads: {', '.join(HEADS)}."
        )
    return HEADS[name]


def name_of(head: Head) -> str:
    """The registered name of a head."""
    return next(name for name, kind in HEADS.items() if kind is type(head))


def parse_options(name: str, texts: Iterable[str]) -> dict[str, Any]:
    """Options of a head as a config gives them, `("bag_weight=0.7",)`.

    Raises:
      ConfigError: see `options.parse`.
    """
    return options.parse(name, find(name), texts)


def create(name: str, num_classes: int, **kwargs: Any) -> Head:
    """A MIL head by its registered name.

    Args:
      name: one of `HEADS`.
      num_classes: number of logits per bag.
      **kwargs: options of the head, such as `hidden`, `dropout` or `dtype`.

    Returns:
      A linen module called as `head(bags [B, N, D], mask [B, N], *, xy=None, train=False)`.

    Raises:
      ConfigError: unknown name, unknown option or value of it, or no class to tell apart.
    """
    head = find(name)
    if num_classes < 1:
        raise ConfigError(f"A MIL head needs at least one class, num_classes is {num_classes}.")
    options.check(name, head, kwargs)
    try:
        return head(num_classes=num_classes, **kwargs)
    except TypeError as error:
        raise ConfigError(f"MIL head {name!r} does not take these options: {error}.") from error
