"""Vision transformer of any size, returning CLS and tokens at chosen blocks in one pass."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrmil_jax.encoders.attention import attend
from lrmil_jax.errors import ConfigError
from lrmil_jax.types import AnyArray


@flax.struct.dataclass
class EncoderOutput:
    """What an encoder says about a batch of images.

    The fields are `Any` because JAX rebuilds the struct with other leaves than arrays.

    Attributes:
      embedding: `[B, D]` f32, the feature for MIL: CLS after the final norm.
      cls: {block: `[B, W]`}, CLS after each chosen block, before the final norm.
      tokens: {block: `[B, g, g, W]`}, patch tokens of the same blocks, [row, column].
        Keys are the blocks as the caller wrote them, so -1 stays -1.
    """

    embedding: Any
    cls: Any
    tokens: Any


class Attention(nn.Module):
    """Multi-head self-attention with one packed projection, as timm stores it."""

    heads: int
    qkv_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T W"]) -> Float[Array, "B T W"]:
        batch, count, width = x.shape
        qkv = nn.Dense(3 * width, use_bias=self.qkv_bias, dtype=self.dtype, name="qkv")(x)
        qkv = qkv.reshape(batch, count, 3, self.heads, width // self.heads)
        out = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return nn.Dense(width, dtype=self.dtype, name="proj")(out.reshape(batch, count, width))


class MLP(nn.Module):
    """Two dense layers with an exact GELU between them."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T W"]) -> Float[Array, "B T W"]:
        hidden = nn.Dense(self.hidden, dtype=self.dtype, name="fc1")(x)
        hidden = nn.gelu(hidden, approximate=False)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(hidden)


class Block(nn.Module):
    """Pre-norm transformer block."""

    heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T W"]) -> Float[Array, "B T W"]:
        attention = Attention(self.heads, self.qkv_bias, self.dtype, name="attn")
        mlp = MLP(round(self.mlp_ratio * x.shape[-1]), self.dtype, name="mlp")
        x = x + attention(layer_norm(self.norm_eps, self.dtype, "norm1")(x))
        return x + mlp(layer_norm(self.norm_eps, self.dtype, "norm2")(x))


class VisionTransformer(nn.Module):
    """Vision transformer with a class token and learned position embeddings.

    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; pre-norm blocks and
    parameter shapes as in timm's `VisionTransformer`.

    Attributes:
      px: image side that the stored position grid is for, px / patch tokens a side.
      patch: side of a patch in pixels.
      width: W, and the embedding's size D.
      depth: number of blocks.
      heads: attention heads; they divide the width.
      mlp_ratio: hidden width of the MLP over `width`.
      qkv_bias: biases on query, key and value.
      norm_eps: epsilon of every layer norm.
      dtype: compute type; parameters, norms, softmax and the embedding are f32.
    """

    px: int = 256
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.patch < 1 or self.px % self.patch:
            raise ConfigError(f"{self.px} px are no whole number of patches of {self.patch} px.")
        if self.heads < 1 or self.width % self.heads:
            raise ConfigError(f"Width {self.width} cannot be shared out among {self.heads} heads.")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[AnyArray, "B px px 3"], blocks: tuple[int, ...] = ()
    ) -> EncoderOutput:
        """Encode images.

        Args:
          images: normalised by the encoder's own transform; any side that is a whole number of
            patches, for which the position embeddings are resampled.
          blocks: blocks whose output is wanted, counted from 0, or from the end if negative.

        Returns:
          `EncoderOutput`; `cls` and `tokens` have one entry per distinct item of `blocks`.

        Raises:
          ConfigError: a block that is not there, or a side that is no multiple of the patch.
        """
        wanted = resolve_blocks(blocks, self.depth)
        x, grid = self._embed(images)
        cls, tokens = {}, {}
        for index in range(self.depth):
            block = Block(
                self.heads,
                self.mlp_ratio,
                self.qkv_bias,
                self.norm_eps,
                self.dtype,
                name=f"block_{index}",
            )
            x = block(x)
            for key in wanted.get(index, ()):
                cls[key] = x[:, 0]
                tokens[key] = x[:, 1:].reshape(len(x), grid, grid, self.width)
        final = layer_norm(self.norm_eps, jnp.float32, "norm")(x[:, 0])
        return EncoderOutput(final, cls, tokens)

    def _embed(self, images: Float[AnyArray, "B px px 3"]) -> tuple[Float[Array, "B T W"], int]:
        batch, side = images.shape[:2]
        if side % self.patch:
            raise ConfigError(
                f"Images of {side} px are no whole number of patches of {self.patch} px."
            )
        grid = side // self.patch
        # Cutting out the patches first makes the embedding one matmul; a strided convolution
        # is the same sum, but slow on CPU.
        patches = jnp.asarray(images, self.dtype).reshape(
            batch, grid, self.patch, grid, self.patch, 3
        )
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid**2, -1)
        x = nn.Dense(self.width, dtype=self.dtype, name="patch_embed")(patches)
        normal = nn.initializers.normal(0.02)
        cls = self.param("cls_token", normal, (self.width,))
        cls_position = self.param("cls_position", normal, (self.width,))
        stored = self.px // self.patch
        positions = self.param("grid_position", normal, (stored, stored, self.width))
        positions = resample_positions(positions, grid).reshape(1, grid**2, self.width)
        first = jnp.broadcast_to((cls + cls_position).astype(x.dtype), (batch, 1, self.width))
        return jnp.concatenate([first, x + positions.astype(x.dtype)], 1), grid


def layer_norm(eps: float, dtype: Any, name: str) -> nn.LayerNorm:
    """Layer norm whose statistics are the two-pass ones of PyTorch."""
    return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


def resolve_blocks(blocks: tuple[int, ...], depth: int) -> dict[int, list[int]]:
    """Block index from 0 -> the names by which the caller asked for it.

    Raises:
      ConfigError: a block outside -depth .. depth - 1.
    """
    wanted: dict[int, list[int]] = {}
    for block in dict.fromkeys(blocks):
        if not -depth <= block < depth:
            raise ConfigError(
                f"Block {block} is not there: an encoder of depth {depth} has blocks 0 to "
                f"{depth - 1}, or -1 to {-depth} from the end."
            )
        wanted.setdefault(block % depth, []).append(block)
    return wanted


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
    return jax.image.resize(jnp.asarray(positions, jnp.float32), shape, "cubic", antialias=True)
