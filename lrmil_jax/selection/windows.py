"""An LR encoder that also compares each window of a patch, one a child, with the texts."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from lrmil_jax.encoders.contrastive import normalise
from lrmil_jax.encoders.prompts import Prompted
from lrmil_jax.encoders.vit import EncoderOutput, VisionTransformer
from lrmil_jax.errors import ConfigError
from lrmil_jax.types import AnyArray


class Compared(nn.Module):
    """A tower whose embedding is followed by the cosines of its windows with the classes' texts.

    Of every window only C numbers are kept, so features stay about as small as they were. Params
    are {"tower": the tower's own tree, "texts": [C, d]} and, where image embeddings must first be
    brought into the space of the texts, "projection" [D, d].

    Attributes:
      tower: an encoder that embeds windows (`VisionTransformer`, or one with prompts).
      windows: r, per side.
    """

    tower: nn.Module
    windows: int

    def __post_init__(self) -> None:
        check(self.tower)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[AnyArray, "B px px 3"], blocks: tuple[int, ...] = ()
    ) -> EncoderOutput:
        """Encode images; `embedding` is [B, D + r r C], windows row by row, each with C cosines."""
        output = self.tower(images, blocks, windows=self.windows)
        parts = output.windows
        if self.has_variable("params", "projection"):
            # As cosines are compared, what accelerators do by default is too coarse.
            kernel = self.get_variable("params", "projection")
            parts = jnp.matmul(parts, kernel, precision="highest")
        texts = normalise(jnp.asarray(self.get_variable("params", "texts")))
        cosines = jnp.matmul(normalise(parts), texts.T, precision="highest")
        embedding = jnp.concatenate([output.embedding, cosines.reshape(len(images), -1)], -1)
        return output.replace(embedding=embedding)


def check(tower: nn.Module) -> None:
    """Refuses an encoder that cannot embed windows.

    Raises:
      ConfigError: it is not of the `VisionTransformer` family.
    """
    if not isinstance(tower, VisionTransformer | Prompted):
        raise ConfigError(
            f"select.score=window needs an encoder of the VisionTransformer family, this one is a "
            f"{type(tower).__name__}: set select.score to patch, or choose another encoder."
        )


def columns(score: str, *, windows: int, classes: int) -> int:
    """How many columns are beside the embedding where patches are scored so (`select.score`)."""
    return windows**2 * classes if score == "window" else 0
