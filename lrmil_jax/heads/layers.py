"""Parts that several MIL heads are made of."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from lrmil_jax.heads.packing import Packing
from lrmil_jax.types import AnyArray

_SMALLEST = 1e-30  # below any weight of attention, above 0 in float32


class Projection(nn.Module):
    """`relu(W t_n + b)` of every instance, in the compute type; 0 wide, the instances as they are.

    Attributes:
      width: of the projection.
      dropout: rate; needs the rng stream "dropout" when `train=True`.
      dtype: compute type.
    """

    width: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, bags: Float[AnyArray, "B N D"], *, train: bool = False
    ) -> Float[Array, "B N W"]:
        """The projected instances."""
        if not self.width:
            return jnp.asarray(bags).astype(self.dtype)
        projected = nn.relu(dense(nn.Dense(self.width, dtype=self.dtype, name="dense"), bags))
        return nn.Dropout(self.dropout, deterministic=not train)(projected)


class AttentionScores(nn.Module):
    """Attention logits of every instance, one for each of K branches on a shared hidden layer.

    `e_nk = w_k . h_n`, `h_n = tanh(V t_n)` or, gated, `tanh(V t_n) * sigmoid(U t_n)`: Ilse et al.
    2018, equations 8 and 9.

    Attributes:
      hidden: width of the hidden layer.
      branches: K.
      gated: multiply by the sigmoid gate.
      dropout: rate on the hidden layer; needs the rng stream "dropout" when `train=True`.
      dtype: compute type of the hidden layer.
    """

    hidden: int
    branches: int = 1
    gated: bool = True
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, instances: Float[AnyArray, "B N W"], *, train: bool = False
    ) -> Float[Array, "B N K"]:
        """The logits, in float32."""
        hidden = jnp.tanh(dense(nn.Dense(self.hidden, dtype=self.dtype, name="v"), instances))
        if self.gated:
            gate = dense(nn.Dense(self.hidden, dtype=self.dtype, name="u"), instances)
            hidden = hidden * nn.sigmoid(gate)
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden.astype(jnp.float32))
        shape = (self.hidden, self.branches)
        weight = self.param("w", nn.initializers.lecun_normal(), shape)
        if self.branches == 1:
            # XLA's CPU backend is slow at a matmul with one column.
            return (hidden * weight.T[None]).sum(-1, keepdims=True)
        batch, count, _ = hidden.shape
        return (hidden.reshape(batch * count, -1) @ weight).reshape(batch, count, -1)


class ClassWiseDense(nn.Module):
    """A linear layer of its own for each of K feature vectors: `[..., K, W] -> [..., K, F]`.

    Attributes:
      features: F.
    """

    features: int

    @nn.compact
    def __call__(self, inputs: Float[AnyArray, "*batch K W"]) -> Float[Array, "*batch K F"]:
        """The outputs, in float32."""
        classes, width = inputs.shape[-2:]
        initial = nn.initializers.lecun_normal(batch_axis=0)
        kernel = self.param("kernel", initial, (classes, width, self.features))
        bias = self.param("bias", nn.initializers.zeros, (classes, self.features))
        outputs = jnp.einsum("...kw,kwf->...kf", inputs, kernel, preferred_element_type=jnp.float32)
        return outputs + bias.reshape((1,) * (outputs.ndim - 2) + bias.shape)


def dense(layer: nn.Module, instances: Float[AnyArray, "B N D"]) -> Float[Array, "B N W"]:
    """A linear layer over all instances as one 2-D matmul: on CPU the batched form is slower."""
    batch, count, width = instances.shape
    return layer(jnp.asarray(instances).reshape(batch * count, width)).reshape(batch, count, -1)


def instance_scores(
    bags: Float[AnyArray, "B N D"],
    num_classes: int,
    *,
    width: int,
    dropout: float,
    dtype: Any,
    train: bool,
) -> Float[Array, "B N C"]:
    """Every instance classified by itself, in float32: modules `projection` and `classifier` of the
    compact head that calls this."""
    projection = Projection(width, name="projection", dropout=dropout, dtype=dtype)
    instances = projection(bags, train=train).astype(jnp.float32)
    return dense(nn.Dense(num_classes, name="classifier"), instances)


def softmax(
    scores: Float[AnyArray, "B N K"], mask: Shaped[AnyArray, "B N"]
) -> Float[Array, "B N K"]:
    """Each branch's softmax over the bag's instances; zeros for an empty bag."""
    return jax.nn.softmax(scores, axis=1, where=mask[..., None])


def by_bag(
    values: Shaped[AnyArray, "..."], mask: Shaped[AnyArray, "B N"], packing: Packing | None
) -> Shaped[Array, "..."]:
    """Numbers of every instance as [B, N, ...], from a row of packed bags or as they are."""
    if packing is None:
        return jnp.asarray(values)
    return packing.by_bag(values, mask.shape[1])


def pool(
    weights: Float[AnyArray, "B N K"],
    instances: Float[AnyArray, "_ _ W"],
    packing: Packing | None = None,
) -> Float[Array, "B K W"]:
    """Weighted sums of the instances, one a branch, in float32."""
    if packing is not None:
        return packing.pool(weights, instances)
    # TPUs and recent GPUs would round the factors, and a bag's sum is all that is known of it.
    return jnp.einsum(
        "bnk,bnw->bkw",
        weights,
        instances,
        precision="highest",
        preferred_element_type=jnp.float32,
    )


def take_rows(
    rows: Shaped[AnyArray, "_ _ W"],
    places: Int[AnyArray, "B *places"],
    packing: Packing | None = None,
) -> Shaped[Array, "B *places W"]:
    """Some rows of every bag."""
    if packing is not None:
        return packing.take(rows, places)
    return jax.vmap(lambda values, chosen: values[chosen])(rows, places)


def log_weights(
    weights: Float[AnyArray, "B N"], mask: Bool[AnyArray, "B N"]
) -> Float[Array, "B N"]:
    """Attention logits whose softmax over the bag is proportional to `weights`; 0 where masked.

    Weights of 0 or below become the smallest that float32 tells from 0, without a gradient.
    """
    positive = mask & (weights > _SMALLEST)
    logits = jnp.log(jnp.where(positive, weights, _SMALLEST))
    return jnp.where(mask, logits, 0.0)


def mean_attention(
    scores: Float[AnyArray, "B N K"], mask: Bool[AnyArray, "B N"]
) -> Float[Array, "B N"]:
    """Attention logits of the mean over K branches of their attention; 0 where masked."""
    peak = jax.lax.stop_gradient(
        jnp.max(scores, 1, keepdims=True, where=mask[..., None], initial=-1e30)
    )
    exponents = jnp.where(mask[..., None], scores - peak, 0.0)
    total = jnp.sum(jnp.exp(exponents), 1, keepdims=True, where=mask[..., None])
    log_attention = exponents - jnp.log(jnp.maximum(total, 1.0))
    return jnp.where(mask, jax.nn.logsumexp(log_attention, axis=-1), 0.0)
