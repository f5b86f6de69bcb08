"""The square of tokens of an image: its position embeddings at another size, and its windows."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrmil_jax.errors import ConfigError
from lrmil_jax.types import AnyArray


def resample_positions(
    positions: Float[AnyArray, "stored stored W"], grid: int
) -> Float[Array, "{grid} {grid} W"]:
    """Position embeddings for another grid: 2-D bicubic, antialiased when shrinking.

    Keys' cubic with a = -0.5, half-pixel centres and weights renormalised at the edges: what
    `timm.layers.resample_abs_pos_embed` gets from PyTorch with `antialias=True`.
    """
    if positions.shape[0] == grid:
        return jnp.asarray(positions)
    shape = (grid, grid, positions.shape[-1])
    return jax.image.resize(
        jnp.asarray(positions, jnp.float32),
        shape,
        "cubic",
        antialias=True,
        precision=jax.lax.Precision.HIGHEST,
    )


def window_tokens(
    x: Float[Array, "B T W"], grid: int, windows: int, *, first: int
) -> Float[Array, "windows n W"]:
    """The tokens of every window of every image, `first` times their mean before them, where an
    image has its class token and registers.

    Raises:
      ConfigError: the windows cannot share the tokens of a side.
    """
    if grid % windows:
        raise ConfigError(
            f"{grid} x {grid} tokens cannot be shared out among {windows} x {windows} windows: "
            "choose an input size whose tokens per side are a multiple of the windows'."
        )
    side, width = grid // windows, x.shape[-1]
    parts = x[:, first:].reshape(len(x), windows, side, windows, side, width)
    parts = parts.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side**2, width)
    mean = parts.mean(1, keepdims=True)
    return jnp.concatenate([jnp.repeat(mean, first, 1), parts], 1)
