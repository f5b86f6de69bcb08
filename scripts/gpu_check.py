"""`bench_gpu`: what is fused is what is plain, forward and backward, within bfloat16."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench_tools import random_params

from lrmil_jax import encoders
from lrmil_jax.encoders import attention

# Of the error that the plain formulation has in bfloat16 beside float32.
_MOST = 2.0


def attention_row(*, tokens: int, width: int, heads: int) -> dict[str, Any]:
    """Attention with its projection: result and gradients."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.bfloat16)

    kernel = 0.05 * draw(width, 3 * width)
    arguments = (draw(2, tokens, width), kernel, draw(3 * width), draw(2, tokens, width))

    def run(dtype):
        def both(x, kernel, bias, grad):
            attend = functools.partial(attention.self_attention, heads=heads)
            out, pull = jax.vjp(attend, x, kernel, bias)
            return out, *pull(grad)

        return jax.jit(both)(*(one.astype(dtype) for one in arguments))

    return _compared(f"attention of {tokens} tokens", run)


def encoder_row(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """An encoder of two blocks: embeddings and the gradient of every parameter."""
    module = encoders.create(name, **{**options, "depth": 2})
    params = random_params(module)
    images = np.random.default_rng(0).integers(0, 256, (8, module.px, module.px, 3))

    def run(dtype):
        tower = module.clone(dtype=dtype)

        def both(params):
            def total(params):
                out = tower.apply(
                    {"params": params}, jnp.asarray(images, jnp.float32) / 255.0 - 0.5
                ).embedding
                return out.sum(), out

            (_, out), grads = jax.value_and_grad(total, has_aux=True)(params)
            return out, jnp.concatenate([grad.ravel() for grad in jax.tree.leaves(grads)])

        return jax.jit(both)(params)

    return _compared(f"{name} of two blocks", run)


def _compared(what: str, run: Callable[[Any], Sequence[jax.Array]]) -> dict[str, Any]:
    with attention.unfused(), jax.default_matmul_precision("highest"):
        wanted = run(jnp.float32)
    with attention.unfused():
        plain = run(jnp.bfloat16)
    errors = {"ours": _errors(run(jnp.bfloat16), wanted), "plain": _errors(plain, wanted)}
    told = ", ".join(f"{who} {max(parts):.1e}" for who, parts in errors.items())
    return {
        "what": f"{what}, forward and backward: largest error beside float32",
        "errors": errors,
        "told": told,
        "ok": bool(max(errors["ours"]) <= _MOST * max(errors["plain"])),
    }


def _errors(found, wanted) -> list[float]:
    """Of every part: the norm of the difference over that of what is wanted."""
    return [
        float(jnp.linalg.norm((a.astype(jnp.float32) - b).ravel()) / jnp.linalg.norm(b.ravel()))
        for a, b in zip(found, wanted, strict=True)
    ]
