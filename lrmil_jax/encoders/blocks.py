"""The parts that vision and text transformers are built of."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lrmil_jax.encoders import products
from lrmil_jax.encoders.attention import attend, self_attention
from lrmil_jax.encoders.norm import LayerNorm
from lrmil_jax.errors import ConfigError
from lrmil_jax.types import AnyArray


def _gelu(x: Float[Array, "*batch W"]) -> Float[Array, "*batch W"]:
    """The exact GELU."""
    if x.dtype.itemsize > 2:
        return nn.gelu(x, approximate=False)
    # In f32, rounded once; and by erf, of which a GPU has one, while XLA makes erfc of many
    # operations, which took a fifth of an encoder's time.
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1.0 + jax.lax.erf(x32 * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable] = {
    "gelu": _gelu,
    # OpenAI's CLIP was trained with this approximation, and differs by 2e-2 from the exact one.
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}
MLPS = (*ACTIVATIONS, "swiglu")


def _dense(features: int, dtype: Any, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, dot_general=products.dot_general, name=name)


class Attention(nn.Module):
    """Multi-head self-attention with one packed projection, as timm stores it."""

    heads: int
    qkv_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T W"], mask: Bool[AnyArray, "B _ _"] | None = None
    ) -> Float[Array, "B T W"]:
        width = x.shape[-1]
        kernel, bias = _DenseParams(width, 3 * width, self.qkv_bias, name="qkv")()
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        out = self_attention(x, kernel, bias, heads=self.heads, mask=mask)
        return _dense(width, self.dtype, "proj")(out)


class _DenseParams(nn.Module):
    """Kernel and bias of `nn.Dense`, for whoever multiplies by himself."""

    inputs: int
    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self) -> tuple[Float[AnyArray, "V W"], Float[AnyArray, " W"] | None]:
        shape = (self.inputs, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        if not self.use_bias:
            return kernel, None
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


class MLP(nn.Module):
    """Two dense layers with an activation between them, or a packed SwiGLU.

    SwiGLU (Shazeer, "GLU Variants Improve Transformer", 2020): the first half of `fc1` gates the
    second, so `hidden` counts both halves.
    """

    hidden: int
    kind: str = "gelu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T W"]) -> Float[Array, "B T W"]:
        hidden = _dense(self.hidden, self.dtype, "fc1")(x)
        if self.kind == "swiglu":
            gate, value = jnp.split(hidden, 2, axis=-1)
            hidden = nn.silu(gate) * value
        else:
            hidden = ACTIVATIONS[self.kind](hidden)
        return _dense(x.shape[-1], self.dtype, "fc2")(hidden)


class Block(nn.Module):
    """Pre-norm transformer block, with LayerScale if asked for.

    Attributes:
      heads: attention heads; they divide the width.
      mlp_ratio: hidden width of the MLP over the width; of a SwiGLU both halves count.
      mlp: one of `MLPS`.
      qkv_bias: biases on query, key and value.
      layer_scale: a learned factor a dimension on both branches (Touvron et al., ICCV 2021).
      norm_eps: epsilon of the layer norms.
      dtype: compute type; parameters are f32.
    """

    heads: int
    mlp_ratio: float | int = 4.0
    mlp: str = "gelu"
    qkv_bias: bool = True
    layer_scale: bool = False
    norm_eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T W"], mask: Bool[AnyArray, "B _ _"] | None = None
    ) -> Float[Array, "B T W"]:
        width = x.shape[-1]
        attention = Attention(self.heads, self.qkv_bias, self.dtype, name="attn")
        mlp = MLP(hidden_width(width, self.mlp_ratio), self.mlp, self.dtype, name="mlp")
        attended = attention(LayerNorm(self.norm_eps, self.dtype, name="norm1")(x), mask)
        x = x + self._scaled(attended, "scale1")
        return x + self._scaled(
            mlp(LayerNorm(self.norm_eps, self.dtype, name="norm2")(x)), "scale2"
        )

    def _scaled(self, branch: Float[Array, "B T W"], name: str) -> Float[Array, "B T W"]:
        if not self.layer_scale:
            return branch
        factor = self.param(name, nn.initializers.constant(1e-5), (branch.shape[-1],))
        return branch * factor.astype(branch.dtype)[None, None]


def hidden_width(width: int, ratio: float | int) -> int:
    """Units of an MLP's first layer: cut off as PyTorch does, but for rounding of the ratio."""
    return int(round(width * ratio, 6))


class AttentionPool(nn.Module):
    """One learned query that attends to all tokens, with its own width.

    Source: the contrastive attentional pooler of Yu et al., "CoCa", TMLR 2022, with the norms that
    CONCH's has: of query and tokens before, of the result after.

    Attributes:
      width: of the query and of the result.
      heads: attention heads; they divide `width`.
      norm_eps: epsilon of the layer norms, which is not that of the transformer below.
      dtype: compute type of the attention; the result is f32.
    """

    width: int
    heads: int = 8
    norm_eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "B T W"]) -> Float[Array, "B {self.width}"]:
        query = self.param("query", nn.initializers.normal(0.02), (1, self.width))
        query = LayerNorm(self.norm_eps, self.dtype, name="norm_query")(query)
        tokens = LayerNorm(self.norm_eps, self.dtype, name="norm_tokens")(tokens)
        shape = (self.heads, self.width // self.heads)

        def project(x, name):
            x = nn.Dense(self.width, dtype=self.dtype, name=name)(x)
            return x.reshape(*x.shape[:-1], *shape)

        queries = jnp.broadcast_to(project(query, "q")[None], (len(tokens), 1, *shape))
        out = attend(queries, project(tokens, "k"), project(tokens, "v"))
        out = nn.Dense(self.width, dtype=self.dtype, name="proj")(
            out.reshape(len(tokens), self.width)
        )
        return LayerNorm(self.norm_eps, jnp.float32, name="norm")(out)


def check_heads(name: str, width: int, heads: int) -> None:
    """Refuses a width that the heads cannot share.

    Raises:
      ConfigError: it leaves a remainder.
    """
    if heads < 1 or width % heads:
        raise ConfigError(f"{name} {width} cannot be shared out among {heads} heads.")
