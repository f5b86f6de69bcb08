"""Multi-head attention: the one place that chooses a formulation.

It is chosen for the platform that a program is compiled for, when it is lowered, so that a program
exported on one machine runs well on another: on CUDA cuDNN's fused kernels, on CPU a loop over
heads, elsewhere what JAX has.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lrmil_jax.encoders import products
from lrmil_jax.types import AnyArray

# From about this many tokens on, XLA's CPU backend runs one small matmul per head, in a loop,
# several times faster than the batched form (ViT-B/16 at 256 px: 18 against 28 ms a block, and
# 73 ms for dot_product_attention); below it the loop's own cost wins.
_CPU_LOOP_TOKENS = 128


def attend(
    query: Float[Array, "B T H E"],
    key: Float[Array, "B S H E"],
    value: Float[Array, "B S H E"],
    *,
    mask: Bool[AnyArray, "B _ S"] | None = None,
) -> Float[Array, "B T H E"]:
    """Scaled dot-product attention, with the softmax in f32.

    Args:
      query: already projected, per head; not yet scaled.
      key: of the tokens that are attended to.
      value: as `key`.
      mask: True where a query may look: [B, T, S], or [B, 1, S] for all queries alike; None is
        anywhere.

    Returns:
      The attended values in the type of `value`.
    """
    if mask is not None:  # sentences: few tokens, nothing to gain
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None])
    if _one_form.get():
        return jax.nn.dot_product_attention(query, key, value)
    return jax.lax.platform_dependent(
        query, key, value, cpu=_by_head, default=jax.nn.dot_product_attention
    )


def self_attention(
    x: Float[Array, "B T W"],
    kernel: Float[Array, "W _"],
    bias: Float[Array, " _"] | None,
    *,
    heads: int,
    mask: Bool[AnyArray, "B _ T"] | None = None,
) -> Float[Array, "B T W"]:
    """Attention of tokens to one another, with the projection to queries, keys and values.

    Args:
      x: tokens, of the type of computation.
      kernel: [W, 3 W], the three projections side by side, each head by head.
      bias: [3 W], or None.
      heads: they divide W.
      mask: as for `attend`.

    Returns:
      The attended values, head by head, in the type of `x`; still to be projected.
    """
    plain = functools.partial(_plain, heads=heads, mask=mask)
    fuses = mask is None and not _unfused.get()
    if not fuses or not _cudnn_has(x.dtype, x.shape[-1] // heads):
        return plain(x, kernel, bias)
    fused = functools.partial(_fused, heads)
    return jax.lax.platform_dependent(x, kernel, bias, cuda=fused, default=plain)


def _plain(x, kernel, bias, *, heads: int, mask=None) -> Float[Array, "B T W"]:
    return attend(*_packed(x, kernel, bias, heads), mask=mask).reshape(x.shape)


def _packed(x, kernel, bias, heads: int) -> tuple[Array, Array, Array]:
    """Queries, keys and values [B, T, H, E] from one matmul."""
    batch, count, width = x.shape
    qkv = _dense(x, kernel, bias).reshape(batch, count, 3, heads, width // heads)
    return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]


def _separate(x, kernel, bias, heads: int) -> tuple[Array, Array, Array]:
    """The same from three matmuls, whose results lie as cuDNN wants them: no copies."""
    batch, count, width = x.shape
    parts = [slice(at, at + width) for at in (0, width, 2 * width)]
    query, key, value = (
        _dense(x, kernel[:, part], None if bias is None else bias[part]).reshape(
            batch, count, heads, width // heads
        )
        for part in parts
    )
    return query, key, value


def _dense(x, kernel, bias) -> Float[Array, "B T V"]:
    out = products.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    return out if bias is None else out + bias[None, None]


_unfused = contextvars.ContextVar("unfused", default=False)
_one_form = contextvars.ContextVar("one_form", default=False)


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """What is traced within attends without cuDNN: for a program that is exported for several
    platforms at once, or for one that JAX must promise to load in later versions."""
    token = _unfused.set(True)
    try:
        yield
    finally:
        _unfused.reset(token)


@contextlib.contextmanager
def one_form() -> Iterator[None]:
    """What is traced within attends in one way on every platform: for other runtimes' programs,
    which know of no choice between platforms."""
    token = _one_form.set(True)
    try:
        with unfused():
            yield
    finally:
        _one_form.reset(token)


_cudnn = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")


@functools.cache
def _cudnn_has(dtype: Any, width: int) -> bool:
    """Whether JAX finds cuDNN here, and cuDNN has attention for heads of this type and width.

    Without cuDNN (a machine without a GPU), JAX cannot even trace the call.
    """
    if dtype not in (jnp.bfloat16, jnp.float16):
        return False
    head = jax.ShapeDtypeStruct((1, 2, 1, width), dtype)
    try:
        jax.eval_shape(lambda *qkv: jax.vjp(_cudnn, *qkv)[0], head, head, head)
    except RuntimeError:  # of which NotImplementedError is a kind
        return False
    # Before Ampere cuDNN has no such kernels, which JAX does not look at.
    capabilities = [getattr(device, "compute_capability", "8.0") for device in jax.local_devices()]
    return all(float(capability) >= 8.0 for capability in capabilities)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(heads: int, x, kernel, bias) -> Float[Array, "B T W"]:
    return _cudnn(*_separate(x, kernel, bias, heads)).reshape(x.shape)


def _fused_forward(heads: int, x, kernel, bias):
    # One matmul here: its gradient is one too, and the padding needs a copy in any case.
    return jax.vjp(lambda *a: _cudnn_even(*_packed(*a, heads)).reshape(x.shape), x, kernel, bias)


def _fused_backward(heads: int, pull, grad):
    del heads
    return pull(grad)


_fused.defvjp(_fused_forward, _fused_backward)


def _cudnn_even(
    query: Float[Array, "B T H E"], key: Float[Array, "B T H E"], value: Float[Array, "B T H E"]
) -> Float[Array, "B T H E"]:
    """The same with an even number of tokens: JAX refuses the gradient of an odd one (257)."""
    batch, count = query.shape[:2]
    if count % 2 == 0:
        return _cudnn(query, key, value)
    query, key, value = (
        jnp.pad(array, ((0, 0), (0, 1), (0, 0), (0, 0))) for array in (query, key, value)
    )
    # Lengths, not a mask: cuDNN adds a mask to the scores as a bias, which costs a third more.
    lengths = jnp.full(batch, count, jnp.int32)
    out = _cudnn(query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths)
    return out[:, :count]


def _by_head(
    query: Float[Array, "B T H E"], key: Float[Array, "B S H E"], value: Float[Array, "B S H E"]
) -> Float[Array, "B T H E"]:
    batch, count, heads, width = query.shape

    def by_head(a):
        return a.transpose(0, 2, 1, 3).reshape(batch * heads, a.shape[1], width)

    query, key, value = by_head(query * width**-0.5), by_head(key), by_head(value)
    if key.shape[1] >= _CPU_LOOP_TOKENS:
        out = jax.lax.map(lambda head: _attend_heads(*head), (query, key, value))
    else:
        out = _attend_heads(query, key, value)
    return out.reshape(batch, heads, count, width).transpose(0, 2, 1, 3)


def _attend_heads(
    query: Float[Array, "*heads T E"],
    key: Float[Array, "*heads S E"],
    value: Float[Array, "*heads S E"],
) -> Float[Array, "*heads T E"]:
    scores = jnp.einsum("...te,...se->...ts", query, key, preferred_element_type=jnp.float32)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = jnp.einsum("...ts,...se->...te", weights.astype(value.dtype), value)
    # Normalising the narrow output instead of the T x T weights saves a pass over them.
    return (out / weights.sum(-1, keepdims=True)).astype(value.dtype)
