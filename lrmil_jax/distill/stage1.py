"""L_stage1 of a batch: an encoder and its transform with the losses of `patch` on what it says."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrmil_jax.distill import patch
from lrmil_jax.encoders import adapters
from lrmil_jax.encoders.transforms import Transform
from lrmil_jax.types import AnyArray


def make_loss(
    module: Any,
    transform: Transform,
    blocks: tuple[int, ...],
    *,
    lambda_layer: float,
    lambda_attn: float,
    projected: bool = False,
    others: Sequence[float] = (),
) -> Callable[..., dict[str, Any]]:
    """The loss of a batch of pairs across scales, with its two terms (`method.md` part 2).

    Args:
      module: the LR encoder, of the `VisionTransformer` family.
      transform: of its LR input.
      blocks: its blocks that answer those of L_layer, in the order of the batch's `child_cls`.
      lambda_layer: weight of L_layer; 0 leaves it out.
      lambda_attn: weight of L_attn, likewise.
      projected: the encoder is of another shape than the one it learns from: its tokens and its
        embedding pass through `projections`.
      others: weights of L_attn of further HR encoders, each through a linear map of its own, see
        `other_maps`.

    With `projected` or `others`, parameters have parts: the encoder, as `adapters.tower` takes it,
    and "projections", the maps, which learn along and are needed no more.

    Returns:
      A `train.step.LossFn`. Its batch holds `lr` uint8 [B, px, px, 3], `child_cls` [B, r, r, L, W],
      `child_embedding` [B, r r, D], `child_mask` [B, r, r] and perhaps `attention` [B, r r]; of
      further encoders `other_<i>` [B, r r, D_i]; its constants `scale` [L].
    """

    def loss_fn(params, constants, batch, key, train):
        del key, train  # the encoder has no dropout
        images = transform.normalise(batch["lr"])
        supervised = blocks if lambda_layer else ()
        tower = adapters.tower(params, constants) if projected or others else params
        output = module.apply({"params": tower}, images, blocks=supervised)
        embedding, terms = output.embedding, {}
        if projected:
            embedding = embedding @ params["projections"]["embedding"]
        if lambda_layer:
            tokens = jnp.stack([output.tokens[block] for block in blocks])
            if projected:
                tokens = jnp.einsum("lbyxw,lwv->lbyxv", tokens, params["projections"]["layers"])
            terms["layer"] = layer_term(tokens, batch, constants["scale"])
        # Without a teacher's word all children count alike.
        attention = batch.get("attention", jnp.zeros(batch["child_embedding"].shape[:2]))
        guide = (attention, batch["child_mask"].reshape(len(images), -1))
        if lambda_attn:
            terms["attn"] = patch.attention_loss(embedding, batch["child_embedding"], *guide)
        for number in range(len(others)):
            mapped = output.embedding @ params["projections"][f"other_{number}"]
            children = batch[f"other_{number}"]
            terms[f"attn_{number}"] = patch.attention_loss(mapped, children, *guide)
        weights = {"layer": lambda_layer, "attn": lambda_attn}
        weights |= {f"attn_{number}": weight for number, weight in enumerate(others)}
        total = sum(weights[name] * value for name, value in terms.items())
        return {"loss": total, **terms}

    return loss_fn


def layer_term(
    tokens: Float[AnyArray, "L B g g W"],
    batch: Mapping[str, AnyArray],
    scale: Float[AnyArray, "L"],
) -> Float[Array, "B"]:
    """L_layer of a batch of pairs.

    Args:
      tokens: of the LR encoder after each block, in the order of the batch's `child_cls`.
      batch: `child_cls` [B, r, r, L, W] and `child_mask` [B, r, r].
      scale: the variance of each block's targets, as `patch.layer_losses` has it.
    """
    child_cls = jnp.moveaxis(batch["child_cls"], 3, 0)
    return patch.layer_losses(tokens, child_cls, batch["child_mask"], scale)


def answering(blocks: Sequence[int], *, depth: int, teacher_depth: int) -> tuple[int, ...]:
    """The block of an encoder of `depth` that stands as deep as each of its teacher's `blocks`, all
    counted from 0: what lies behind a block is the same share of both."""
    return tuple(max(round((block + 1) * depth / teacher_depth) - 1, 0) for block in blocks)


def projections(module: Any, teacher: Any, *, layers: int, seed: int) -> dict[str, np.ndarray]:
    """Linear maps from a smaller encoder's tokens and embedding to its teacher's, before training.

    Args:
      module: the LR encoder, of width V and embedding E.
      teacher: the HR encoder, of width W and embedding D.
      layers: L, blocks of L_layer.
      seed: not negative.

    Returns:
      `layers` [L, V, W] and `embedding` [E, D]: tokens and embeddings of length 1 stay about so.
    """
    rng = np.random.default_rng(seed)
    return {
        "layers": _normal(rng, layers, module.width, teacher.width),
        "embedding": _normal(rng, module.embedding_width, teacher.embedding_width),
    }


def other_maps(module: Any, widths: Sequence[int], *, seed: int) -> dict[str, np.ndarray]:
    """Linear maps from the LR encoder's embedding to those of further HR encoders, before training.

    Args:
      module: the LR encoder, of embedding E.
      widths: D_i, of the embeddings of each.
      seed: not negative.

    Returns:
      `other_<i>` [E, D_i], as those of `projections`.
    """
    rng = np.random.default_rng([seed, 1])  # other numbers than those of `projections`
    return {
        f"other_{number}": _normal(rng, module.embedding_width, width)
        for number, width in enumerate(widths)
    }


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / np.sqrt(shape[-2])).astype(np.float32)
