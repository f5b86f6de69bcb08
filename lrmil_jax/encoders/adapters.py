"""Low-rank adapters: an encoder that keeps its weights and learns a small change of each matrix.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022: beside a kernel
W [in, out] learn A [in, r] and B [r, out], and what is computed is `W + A B`. B begins at zero, so
training begins with the encoder as it came. Merged, the result is a plain encoder of the same
architecture, so nothing after the training knows of adapters.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from lrmil_jax.errors import ConfigError

# Kernels of the transformer blocks' attention and MLP; embedding, norms and biases stay.
_ADAPTED = re.compile(r"(.*/)?block_\d+/.*kernel")
DOWN, UP = "down", "up"
# Parts of what a training learns of a tower, and of the constants that it reads.
WHOLE, ADAPTERS, FROZEN = "encoder", "adapters", "tower"


def initial(params: Mapping[str, Any], *, rank: int, seed: int) -> dict[str, Any]:
    """Adapters of an encoder before training: A uniform as a new layer's kernel would be, B zero.

    Args:
      params: the encoder's "params" tree; shapes are enough.
      rank: r, at least 1.
      seed: not negative; the same seed gives the same adapters.

    Returns:
      A tree with `down` [in, r] and `up` [r, out] in the place of each adapted kernel, and nothing
      else.

    Raises:
      ConfigError: the rank is no rank, or the encoder has no kernels in blocks.
    """
    if rank < 1:
        raise ConfigError(f"Adapters need a rank of at least 1, not {rank}.")
    rng, adapters = np.random.default_rng(seed), {}
    for path, kernel in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        if _ADAPTED.fullmatch(path) and len(kernel.shape) == 2:
            inputs, outputs = kernel.shape
            limit = math.sqrt(3 / inputs)
            down = rng.uniform(-limit, limit, (inputs, rank)).astype(np.float32)
            adapters[f"{path}/{DOWN}"] = down
            adapters[f"{path}/{UP}"] = np.zeros((rank, outputs), np.float32)
    if not adapters:
        raise ConfigError(
            "This encoder has no kernels in transformer blocks, so there is nothing to adapt: tune "
            "it whole."
        )
    return traverse_util.unflatten_dict(adapters, sep="/")


def merged(params: Mapping[str, Any], adapters: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder that adapters make: `W + A B` of each adapted kernel, all else as it is.

    Args:
      params: of the encoder, as `initial` had them.
      adapters: trained from what `initial` gave.

    Returns:
      A "params" tree of the same shapes.
    """
    flat = dict(traverse_util.flatten_dict(params, sep="/"))
    learned = traverse_util.flatten_dict(adapters, sep="/")
    for path in [name.removesuffix(f"/{UP}") for name in learned if name.endswith(f"/{UP}")]:
        kernel = jnp.asarray(flat[path])
        factors = learned[f"{path}/{DOWN}"], learned[f"{path}/{UP}"]
        change = jnp.matmul(*factors, precision="highest")
        flat[path] = (kernel.astype(jnp.float32) + change).astype(kernel.dtype)
    return traverse_util.unflatten_dict(flat, sep="/")


def tower(params: Mapping[str, Any], constants: Mapping[str, Any]) -> Any:
    """A tower's own tree: all of it learned, or its adapters, or nothing of it.

    Args:
      params: what learns, perhaps with WHOLE or ADAPTERS among its parts.
      constants: with the tower that does not learn, FROZEN, unless WHOLE learns.
    """
    if WHOLE in params:
        return params[WHOLE]
    if ADAPTERS in params:
        return merged(constants[FROZEN], params[ADAPTERS])
    return constants[FROZEN]


def of_constants(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    """A loss of an encoder's parameters as one of its adapters, the encoder being
    `constants[FROZEN]`, which does not learn (a `train.step.LossFn` of another)."""

    def adapted(params, constants, batch, key, train):
        return loss_fn(merged(constants[FROZEN], params), constants, batch, key, train)

    return adapted
