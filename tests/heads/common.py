"""Small heads with parameters that hide nothing, for the tests of this folder."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrmil_jax import heads

B, N, D, C = 3, 7, 6, 3
LABELS = jnp.array([0, 1, 2])
_PARTS = {"width": 8, "heads": 2}
SMALL = {
    "clam_sb": {"width": 5, "k": 2},
    "clam_mb": {"width": 5, "k": 2, "subtyping": True},
    "dtfd": {"width": 5, "pseudo_bags": 2},
    "acmil": {"width": 5, "branches": 2, "k": 2, "drop": 0.5},
    "transmil": {**_PARTS, "landmarks": 4, "iterations": 2},
    "transformer": {**_PARTS, "mlp": 8},
    "perceiver": {**_PARTS, "latents": 3},
    "topk": {"width": 5, "k": 2},
    "noisy_and": {"width": 5},
    "zoom_mil": {"children": 1, "width": 5, "rho": 0.4, "draws": 20},
    "hdmil": {"children": 1, "width": 5, "rho": 0.4},
}


def create(name, **options):
    """A head as the tests use it."""
    return heads.create(name, num_classes=C, **SMALL.get(name, {}), **options)


def bags_of(seed=0, count=N):
    """Three bags, the last of one instance, their masks and places on a lattice."""
    rng = np.random.default_rng(seed)
    bags = jnp.asarray(rng.normal(size=(B, count, D)), jnp.float32)
    lengths = np.array([count, count - 3, 1])
    xy = jnp.asarray(rng.integers(0, 5, (B, count, 2)), jnp.float32)
    return bags, jnp.arange(count)[None, :] < lengths[:, None], xy


def init(head, bags, mask, xy):
    """Parameters as no start has them: its zeros and ones would hide their own mistakes.

    By NumPy, of the shapes alone: JAX's own start is one more program to compile for every head.
    """
    shapes = jax.eval_shape(head.init, jax.random.key(1), bags, mask, xy=xy)
    rng = np.random.default_rng(2)

    def drawn(path, shape):
        values = rng.normal(scale=0.5, size=shape.shape) + (path[-1].key == "scale")
        return jnp.asarray(values, shape.dtype)

    return jax.tree_util.tree_map_with_path(drawn, shapes)


@functools.cache
def applied(head):
    """The head's `apply`, compiled: op by op takes far longer."""
    return jax.jit(head.apply, static_argnames="train")


class Computed(NamedTuple):
    """What a head makes of a batch."""

    output: heads.HeadOutput
    loss: jax.Array
    gradient: Any


@functools.cache
def computed(head):
    """(params, bags, mask, xy[, share]) -> output, the summed loss and its gradient, in one program
    for each size of a batch; each bag counts by its share."""

    def total(params, bags, mask, xy, labels, share):
        output = head.apply(params, bags, mask, xy=xy)
        each = sum(losses(head, output, labels, mask).values())
        return jnp.vdot(each, share), output

    gradient = jax.jit(jax.value_and_grad(total, has_aux=True))

    def of(params, bags, mask, xy, labels=LABELS, share=None):
        share = jnp.asarray(np.ones(len(bags)) if share is None else share, jnp.float32)
        (loss, output), grads = gradient(params, bags, mask, xy, labels, share)
        return Computed(output, loss, grads)

    return of


def losses(head, output, labels, mask):
    """What each bag costs by the head's own loss, with cross-entropy as the task's."""

    def of_logits(logits):
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]

    return head.label_losses(output, labels, mask, of_logits)


def close(a, b, tol=2e-6):
    """Equal to a tolerance, relative and absolute."""
    np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), tol, tol)


def weights(logits, mask=None):
    """Attention of logits: what is compared, as logits of tiny weights are of no account."""
    mask = jnp.ones(logits.shape, bool) if mask is None else mask
    return jax.nn.softmax(logits, axis=-1, where=mask)
