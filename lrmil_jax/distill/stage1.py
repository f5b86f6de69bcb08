"""L_stage1 of a batch: an encoder and its transform with the losses of `patch` on what it says."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrmil_jax.distill import patch
from lrmil_jax.encoders.transforms import Transform
from lrmil_jax.encoders.vit import EncoderOutput
from lrmil_jax.types import AnyArray


def make_loss(
    module: Any,
    transform: Transform,
    blocks: tuple[int, ...],
    *,
    lambda_layer: float,
    lambda_attn: float,
) -> Callable[..., dict[str, Any]]:
    """The loss of a batch of pairs across scales, with its two terms (`method.md` part 2).

    Args:
      module: the LR encoder, of the `VisionTransformer` family.
      transform: of its LR input.
      blocks: of L_layer, in the order of the batch's `child_cls`.
      lambda_layer: weight of L_layer; 0 leaves it out.
      lambda_attn: weight of L_attn, likewise.

    Returns:
      A `train.step.LossFn`. Its batch holds `lr` uint8 [B, px, px, 3], `child_cls` [B, r, r, L, W],
      `child_embedding` [B, r r, D], `child_mask` [B, r, r] and `attention` [B, r r]; its constants
      `scale` [L].
    """

    def loss_fn(params, constants, batch, key, train):
        del key, train  # the encoder has no dropout
        images = transform.normalise(batch["lr"])
        supervised = blocks if lambda_layer else ()
        output = module.apply({"params": params}, images, blocks=supervised)
        terms = {}
        if lambda_layer:
            terms["layer"] = layer_term(output, blocks, batch, constants["scale"])
        if lambda_attn:
            terms["attn"] = patch.attention_loss(
                output.embedding,
                batch["child_embedding"],
                batch["attention"],
                batch["child_mask"].reshape(len(images), -1),
            )
        weights = {"layer": lambda_layer, "attn": lambda_attn}
        total = sum(weights[name] * value for name, value in terms.items())
        return {"loss": total, **terms}

    return loss_fn


def layer_term(
    output: EncoderOutput,
    blocks: tuple[int, ...],
    batch: Mapping[str, AnyArray],
    scale: Float[AnyArray, "L"],
) -> Float[Array, "B"]:
    """L_layer of a batch, from what the LR encoder says of it.

    Args:
      output: with the tokens of `blocks`.
      blocks: in the order of the batch's `child_cls`.
      batch: `child_cls` [B, r, r, L, W] and `child_mask` [B, r, r].
      scale: the variance of each block's targets, as `patch.layer_losses` has it.
    """
    tokens = jnp.stack([output.tokens[block] for block in blocks])
    child_cls = jnp.moveaxis(batch["child_cls"], 3, 0)
    return patch.layer_losses(tokens, child_cls, batch["child_mask"], scale)
