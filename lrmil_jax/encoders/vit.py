"""The vision transformers of pathology, one family, with CLS and tokens at chosen blocks."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrmil_jax.encoders.blocks import MLPS, AttentionPool, Block, check_heads
from lrmil_jax.encoders.grid import resample_positions, window_tokens
from lrmil_jax.encoders.norm import LayerNorm
from lrmil_jax.errors import ConfigError
from lrmil_jax.types import AnyArray

POOLS = ("cls", "cls+mean", "mean", "attention")


@flax.struct.dataclass
class EncoderOutput:
    """What an encoder says about a batch of images.

    The fields are `Any` because JAX rebuilds the struct with other leaves than arrays.

    Attributes:
      embedding: `[B, D]` f32, the feature for MIL.
      cls: {block: `[B, W]`}, CLS after each chosen block, before the final norm.
      tokens: {block: `[B, g, g, W]`}, patch tokens of the same blocks, [row, column].
        Keys are the blocks as the caller wrote them, so -1 stays -1.
      windows: `[B, r, r, D]` f32, what `embedding` would be of each window of tokens alone; or
        None.
    """

    embedding: Any
    cls: Any
    tokens: Any
    windows: Any = None


class VisionTransformer(nn.Module):
    """Vision transformer with a class token and learned position embeddings.

    Sources: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; registers: Darcet et
    al., ICLR 2024; blocks and pooling: see `blocks`. Numbers are those of timm's
    `VisionTransformer`, to which every publisher's parameters are brought (`layouts`).

    Attributes:
      px: image side that the stored position grid is for, px / patch tokens a side.
      patch: side of a patch in pixels.
      width: W of the tokens.
      depth: number of blocks.
      heads: attention heads; they divide the width.
      mlp_ratio: hidden width of the MLP over `width`; of a SwiGLU both halves count.
      mlp: "gelu" (exact), "quick_gelu" or "swiglu" (packed).
      qkv_bias: biases on query, key and value.
      layer_scale: learned factors on both branches of every block.
      class_position: the class token has a position embedding.
      registers: further tokens, between the class token and the patches, without positions.
      patch_bias: bias of the patch embedding.
      pre_norm: a norm before the first block (CLIP).
      final_norm: a norm after the last one.
      pool: the embedding: "cls"; "cls+mean", CLS beside the mean of the patch tokens; "mean", that
        mean alone; "attention", `blocks.AttentionPool` over all tokens.
      pool_width: of the attentional pooler.
      pool_heads: of the attentional pooler.
      projection: size of a last projection without bias (CLIP), or None.
      norm_eps: epsilon of the layer norms.
      remat: a gradient computes each block anew instead of keeping what is in it: a third more
        work, and memory for the tokens between blocks alone. Of the run, not of the weights.
      dtype: compute type; parameters, statistics, softmax and the embedding are f32.
    """

    px: int = 256
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float | int = 4.0
    mlp: str = "gelu"
    qkv_bias: bool = True
    layer_scale: bool = False
    class_position: bool = True
    registers: int = 0
    patch_bias: bool = True
    pre_norm: bool = False
    final_norm: bool = True
    pool: str = "cls"
    pool_width: int = 0
    pool_heads: int = 8
    projection: int | None = None
    norm_eps: float = 1e-6
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.patch < 1 or self.px % self.patch:
            raise ConfigError(f"{self.px} px are no whole number of patches of {self.patch} px.")
        check_heads("Width", self.width, self.heads)
        for value, choices, kind in ((self.mlp, MLPS, "MLP"), (self.pool, POOLS, "pooling")):
            if value not in choices:
                raise ConfigError(f"Unknown {kind} {value!r}: use {', '.join(choices)}.")
        if self.pool == "attention":
            check_heads("The pooler's width", self.pool_width, self.pool_heads)
            if self.pool_width < 1:
                raise ConfigError("Attentional pooling needs a pool_width.")
        super().__post_init__()

    @property
    def embedding_width(self) -> int:
        """D of the embedding."""
        if self.projection is not None:
            return self.projection
        return {"cls+mean": 2 * self.width, "attention": self.pool_width}.get(self.pool, self.width)

    @nn.compact
    def __call__(
        self,
        images: Float[AnyArray, "B px px 3"],
        blocks: tuple[int, ...] = (),
        prompts: Float[AnyArray, "L P W"] | None = None,
        windows: int = 0,
    ) -> EncoderOutput:
        """Encode images.

        Args:
          images: normalised by the encoder's own transform; any side that is a whole number of
            patches, for which the position embeddings are resampled.
          blocks: blocks whose output is wanted, counted from 0, or from the end if negative.
          prompts: P tokens that the blocks attend to beside the image's own, and that no output
            holds. L = depth: each block has its own, gone after it ("deep"); L = 1: they go in
            before the first block and on through all ("shallow"). Source: Jia et al., "Visual
            Prompt Tuning", ECCV 2022. None or P = 0 is the plain tower.
          windows: r, into how many windows a side the image's tokens are parted, each embedded as
            an image is: the final norm, pooling and projection of its own tokens, their mean in
            place of the class token. 0 is none.

        Returns:
          `EncoderOutput`; `cls` and `tokens` have one entry per distinct item of `blocks`.

        Raises:
          ConfigError: a block that is not there, a side that is no multiple of the patch, prompts
            of another shape, or windows that cannot share the tokens.
        """
        keys = resolve_blocks(blocks, self.depth)
        prompts = self._prompts(prompts)
        x, grid = self._embed(images)
        cls, tokens = {}, {}
        carried = x[:, :0]
        for index in range(self.depth):
            if index < len(prompts):
                carried = jnp.broadcast_to(prompts[index], (len(x), *prompts[index].shape))
            x, carried = run_block(self._block(index), x, carried.astype(x.dtype))
            for key in keys.get(index, ()):
                cls[key] = x[:, 0]
                patches = x[:, 1 + self.registers :]
                tokens[key] = patches.reshape(len(x), grid, grid, self.width)
        pool = self._pooling()
        embedding = pool(x)
        if not windows:
            return EncoderOutput(embedding, cls, tokens)
        parts = pool(window_tokens(x, grid, windows, first=1 + self.registers))
        return EncoderOutput(embedding, cls, tokens, parts.reshape(len(x), windows, windows, -1))

    def _prompts(self, prompts: Float[AnyArray, "L P W"] | None) -> Float[Array, "L P W"]:
        if prompts is None:
            return jnp.zeros((0, 0, self.width))
        layers, count, width = prompts.shape
        if layers not in (1, self.depth) or width != self.width:
            raise ConfigError(
                f"Prompts of shape {(layers, count, width)} do not fit an encoder of depth "
                f"{self.depth} and width {self.width}: they must be [{self.depth} or 1, "
                f"any number, {self.width}]."
            )
        return jnp.asarray(prompts)

    def _block(self, index: int) -> Block:
        block = nn.remat(Block) if self.remat else Block
        return block(
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            mlp=self.mlp,
            qkv_bias=self.qkv_bias,
            layer_scale=self.layer_scale,
            norm_eps=self.norm_eps,
            dtype=self.dtype,
            name=f"block_{index}",
        )

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
        embed = nn.Dense(self.width, use_bias=self.patch_bias, dtype=self.dtype, name="patch_embed")
        x = embed(patches)
        first = self._first_tokens()
        stored = self.px // self.patch
        shape = (stored, stored, self.width)
        positions = self.param("grid_position", nn.initializers.normal(0.02), shape)
        positions = resample_positions(positions, grid).reshape(1, grid**2, self.width)
        first = jnp.broadcast_to(first.astype(x.dtype), (batch, *first.shape))
        x = jnp.concatenate([first, x + positions.astype(x.dtype)], 1)
        return LayerNorm(self.norm_eps, self.dtype, name="norm_pre")(
            x
        ) if self.pre_norm else x, grid

    def _first_tokens(self) -> Float[Array, "first W"]:
        """The class token with its position, and the registers."""
        normal = nn.initializers.normal(0.02)
        first = self.param("cls_token", normal, (self.width,))
        if self.class_position:
            first = first + self.param("cls_position", normal, (self.width,))
        if not self.registers:
            return jnp.asarray(first)[None]
        registers = self.param("registers", normal, (self.registers, self.width))
        return jnp.concatenate([first[None], registers])

    def _pooling(self) -> Callable[[Float[Array, "B T W"]], Float[Array, "B D"]]:
        """The embedding of tokens, the class token and registers first; its layers are made once,
        whatever they are called with."""
        layer_norm = LayerNorm(self.norm_eps, jnp.float32, name="norm")
        norm = layer_norm if self.final_norm else lambda part: part.astype(jnp.float32)
        pooler = project = None
        if self.pool == "attention":
            pooler = AttentionPool(self.pool_width, self.pool_heads, dtype=self.dtype, name="pool")
        if self.projection is not None:
            project = nn.Dense(
                self.projection, use_bias=False, dtype=jnp.float32, name="projection"
            )

        def pool(x: Float[Array, "B T W"]) -> Float[Array, "B D"]:
            if self.pool == "cls":
                pooled = norm(x[:, 0])  # of this token alone: the others are not asked for
            elif pooler is not None:
                pooled = pooler(norm(x))
            else:
                x = norm(x)
                mean = x[:, 1 + self.registers :].mean(1)
                pooled = mean if self.pool == "mean" else jnp.concatenate([x[:, 0], mean], -1)
            return pooled if project is None else project(pooled)

        return pool


def run_block(
    block: Block, x: Float[Array, "B T W"], prompts: Float[Array, "B P W"]
) -> tuple[Float[Array, "B T W"], Float[Array, "B P W"]]:
    """The image's tokens and the prompts after a block that sees both.

    The prompts lie behind the tokens. VPT's lie after the class token, which is the same: attention
    is over a set, and what made places of it, the position embeddings, is added before.
    """
    count = x.shape[1]
    if not prompts.shape[1]:
        return block(x), prompts
    joined = block(jnp.concatenate([x, prompts], 1))
    return joined[:, :count], joined[:, count:]


def resolve_blocks(blocks: tuple[int, ...], depth: int) -> dict[int, list[int]]:
    """Block index from 0 -> the numbers by which the caller asked for it.

    Raises:
      ConfigError: a block outside -depth .. depth - 1.
    """
    keys: dict[int, list[int]] = {}
    for block in dict.fromkeys(blocks):
        if not -depth <= block < depth:
            raise ConfigError(
                f"Block {block} is not there: an encoder of depth {depth} has blocks 0 to "
                f"{depth - 1}, or -1 to {-depth} from the end."
            )
        keys.setdefault(block % depth, []).append(block)
    return keys
