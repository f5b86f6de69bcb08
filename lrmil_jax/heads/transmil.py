"""TransMIL: Nystrom attention, and positions from convolutions over the bag as a square."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from lrmil_jax.heads import layers, nystrom
from lrmil_jax.heads.base import Head
from lrmil_jax.heads.output import HeadOutput
from lrmil_jax.types import AnyArray


class TransMIL(Head):
    """Transformer-based correlated MIL.

    The bag's rows, in their order, fill a square of side `s = ceil(sqrt(n))`, the first ones again
    where it would stay open; a class token, Nystrom attention, convolutions of 7, 5 and 3 over the
    square (PPEG), Nystrom attention again, and a classifier on the token.

    Source: Shao et al., "TransMIL: Transformer based Correlated Multiple Instance Learning for
    Whole Slide Image Classification", NeurIPS 2021, algorithms 2 and 3; `nystrom.Nystrom`. A bag
    gives what it gives alone and without filling: square and landmarks are laid by its own number
    of instances, which the published code, made for one bag at a time, never needs to tell from
    the array's.

    Attributes:
      num_classes: C.
      width: of the tokens.
      heads: of each attention.
      landmarks: of the Nystrom attention.
      iterations: of its pseudo-inverse.
      dropout: rate on what attention adds to the tokens.
      dtype: compute type of the wide matmuls; softmax, pseudo-inverse and logits are always f32.
    """

    order_free = False
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "width": (1, 10**5), "heads": (1, 1000), "landmarks": (1, 10**5), "iterations": (1, 100),
    }  # fmt: skip

    num_classes: int
    width: int = 512
    heads: int = 8
    landmarks: int = 256
    iterations: int = 6
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def instance_floats(self) -> int:
        """See `Head`: tokens of two layers, and their attention to the landmarks and back."""
        return 40 * self.width + 8 * self.heads * self.landmarks

    @nn.compact
    def __call__(
        self,
        bags: Float[AnyArray, "B N D"],
        mask: Shaped[AnyArray, "B N"],
        *,
        xy: Any = None,
        train: bool = False,
    ) -> HeadOutput:
        """Classify bags.

        Args:
          bags: instance features; rows outside the mask may hold any finite number.
          mask: True for real instances; a bag without any gives finite logits.
          xy: ignored: positions are those of the rows.
          train: switch dropout on.

        Returns:
          `HeadOutput`; `attention_logits` are the logarithm of the class token's attention in the
          last layer, the mean over heads, where it is above 0: the approximation can fall below.
        """
        bags, mask = jnp.asarray(bags), jnp.asarray(mask).astype(bool)
        square = _Square(mask)
        embedding = nn.Dense(self.width, dtype=self.dtype, name="embedding")
        tokens = layers.take_rows(nn.relu(layers.dense(embedding, bags)), square.rows)
        tokens = jnp.where(square.real[..., None], tokens, 0.0).astype(jnp.float32)
        token = self.param("token", nn.initializers.normal(1.0), (1, 1, self.width))
        token = jnp.broadcast_to(token, (len(bags), 1, self.width))
        tokens = jnp.concatenate([token, tokens], 1)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        for layer in range(2):
            attention = nystrom.Nystrom(
                heads=self.heads, landmarks=self.landmarks, iterations=self.iterations,
                dtype=self.dtype, name=f"attention_{layer}",
            )  # fmt: skip
            normed = nn.LayerNorm(epsilon=1e-5, name=f"norm_{layer}")(tokens)
            read, weights = attention(normed, square.real.sum(1) + 1)
            tokens = tokens + drop(read)
            if layer == 0:
                placed = PPEG(name="ppeg")(tokens[:, 1:], square.real, square.side)
                tokens = jnp.concatenate([tokens[:, :1], placed], 1)
        first = nn.LayerNorm(epsilon=1e-5, name="norm")(tokens[:, 0])
        logits = nn.Dense(self.num_classes, name="classifier")(first)
        total = square.of_instances(weights.mean(1)[:, 1:])
        return HeadOutput(logits, layers.log_weights(total, mask))


class _Square:
    """Where a bag's instances lie in its square, row by row.

    Attributes:
      side: [B] s, 0 for an empty bag.
      rows: [B, S * S] the bag's row at every place, S the side of the longest possible bag.
      real: [B, S * S] places of the bag's own square.
    """

    def __init__(self, mask: Bool[Array, "B N"]):
        self._mask, count = mask, mask.sum(1)
        root = jnp.ceil(jnp.sqrt(count.astype(jnp.float32))).astype(jnp.int32)
        root = root - ((root - 1) ** 2 >= count) * (root > 0)  # where the root was rounded
        self.side = root + (root**2 < count)
        longest = int((mask.shape[1] - 1) ** 0.5) + 1
        place = jnp.arange(longest**2)[None]
        self.real = place < (self.side**2)[:, None]
        self._count = count[:, None]
        number = jnp.where(place < self._count, place, place - self._count)
        own = jnp.argsort(~mask, axis=1, stable=True)
        number = jnp.where(self.real, number, 0)
        self.rows = jnp.take_along_axis(own, number, axis=1)

    def of_instances(self, weights: Float[Array, "B P"]) -> Float[Array, "B N"]:
        """What all places of an instance hold together; 0 where masked."""
        weights = jnp.where(self.real, weights, 0.0)
        first = jnp.maximum(jnp.cumsum(self._mask, 1) - 1, 0)
        again = first + self._count
        last = weights.shape[1] - 1
        total = jnp.take_along_axis(weights, first, axis=1) + jnp.where(
            again <= last, jnp.take_along_axis(weights, jnp.minimum(again, last), axis=1), 0.0
        )
        return jnp.where(self._mask, total, 0.0)


class PPEG(nn.Module):
    """Pyramid position encoding generator: a square of tokens plus three depth-wise convolutions.

    Source: Shao et al. 2021, algorithm 3.
    """

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B P W"],
        real: Bool[Array, "B P"],
        side: Int[Array, " B"],
    ) -> Float[Array, "B P W"]:
        """Tokens with positions; zeros outside each bag's own square of `side`."""
        batch, places, width = tokens.shape
        longest = int(places**0.5 + 0.5)
        kernel, bias = self._kernel(width)
        line = jnp.arange(longest)
        inside = line[None] < side[:, None]
        inside = inside[:, :, None] & inside[:, None, :]
        index = line[None, :, None] * side[:, None, None] + line[None, None]
        grid = layers.take_rows(tokens, jnp.where(inside, index, 0))
        grid = jnp.where(inside[..., None], grid, 0.0)
        mixed = grid + bias[None, None, None] + convolve(grid, kernel)
        place, step = jnp.arange(places)[None], jnp.maximum(side, 1)[:, None]
        back = jnp.where(real, place // step * longest + place % step, 0)
        placed = layers.take_rows(mixed.reshape(batch, places, width), back)
        return jnp.where(real[..., None], placed, 0.0)

    def _kernel(self, width):
        """The three kernels as one of 7 x 7, and their biases: their sum is one convolution."""
        total, bias = jnp.zeros((7, 7, width)), jnp.zeros(width)
        initial = nn.initializers.variance_scaling(
            1 / 3, "fan_in", "uniform", in_axis=(0, 1), out_axis=()
        )
        for size in (7, 5, 3):
            shape, margin = (size, size, width), (7 - size) // 2
            own = self.param(f"kernel_{size}", initial, shape)
            total = total + jnp.pad(own, ((margin, margin), (margin, margin), (0, 0)))
            bias = bias + self.param(f"bias_{size}", nn.initializers.zeros, (width,))
        return total, bias


def convolve(
    grid: Float[Array, "B R S W"], kernel: Float[AnyArray, "k k W"]
) -> Float[Array, "B R S W"]:
    """Depth-wise convolution of odd size, zeros around.

    Row by row of the kernel: XLA's own takes 15 times as long on CPU, and all shifts at once
    three times as long to compile.
    """
    size, (rows, columns) = len(kernel), grid.shape[1:3]
    margin = size // 2
    padded = jnp.pad(grid, ((0, 0), (margin, margin), (margin, margin), (0, 0)))

    @jax.checkpoint
    def add_row(total, part):
        first, weights = part
        shifted = jax.lax.dynamic_slice_in_dim(padded, first, rows, axis=1)
        parts = [
            shifted[:, :, place : place + columns] * weights[place][None, None, None]
            for place in range(size)
        ]
        return total + sum(parts), None

    return jax.lax.scan(add_row, jnp.zeros_like(grid), (jnp.arange(size), kernel))[0]
