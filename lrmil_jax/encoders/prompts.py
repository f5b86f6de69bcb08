"""Prompt tokens for a frozen tower: visual prompt tuning, and the prompts in files.

Source: Jia et al., "Visual Prompt Tuning" (VPT), ECCV 2022. The tower keeps its weights; what
learns are a few tokens that its blocks attend to beside those of the image.
"""

import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float

from lrmil_jax.encoders import pretrained
from lrmil_jax.encoders.vit import EncoderOutput, VisionTransformer
from lrmil_jax.errors import ConfigError, WeightsError
from lrmil_jax.types import AnyArray

FORMAT = "lrmil_jax.prompts/1"
_TENSOR = "prompts"


class Prompted(nn.Module):
    """A tower with its prompts, called exactly as the tower is.

    Params are {"tower": the tower's own tree, "prompts": [L, P, W]}, so weights of the one and
    prompts of the other are put together as they are.

    Attributes:
      tower: any encoder of the `VisionTransformer` family.
      count: P, prompt tokens a block.
      deep: every block has its own prompts (L = depth), or the first one's go through all (L = 1).
    """

    tower: nn.Module  # so that another family gets our sentence, not a type error
    count: int
    deep: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.tower, VisionTransformer):
            raise ConfigError(
                f"Prompts need an encoder of the VisionTransformer family, this one is a "
                f"{type(self.tower).__name__}: choose another encoder, or tune it without prompts."
            )
        if self.count < 1:
            raise ConfigError(f"A prompted encoder needs at least 1 prompt, not {self.count}.")
        super().__post_init__()

    @property
    def px(self) -> int:
        """Image side of the tower."""
        return self.tower.px

    @property
    def patch(self) -> int:
        """Side of the tower's patches in pixels."""
        return self.tower.patch

    @property
    def width(self) -> int:
        """W of the tokens."""
        return self.tower.width

    @property
    def depth(self) -> int:
        """Number of the tower's blocks."""
        return self.tower.depth

    @property
    def embedding_width(self) -> int:
        """D of the embedding."""
        return self.tower.embedding_width

    @nn.compact
    def __call__(
        self,
        images: Float[AnyArray, "B px px 3"],
        blocks: tuple[int, ...] = (),
        windows: int = 0,
    ) -> EncoderOutput:
        """Encode images; see `VisionTransformer.__call__`."""
        limit = bound(self.tower)

        def uniform(key, size):
            return jax.random.uniform(key, size, minval=-limit, maxval=limit)

        prompts = self.param(
            "prompts", uniform, shape(self.tower, count=self.count, deep=self.deep)
        )
        return self.tower(images, blocks, prompts=prompts, windows=windows)


def shape(tower: VisionTransformer, *, count: int, deep: bool) -> tuple[int, int, int]:
    """[L, P, W] of a tower's prompts."""
    return (tower.depth if deep else 1, count, tower.width)


def bound(tower: VisionTransformer) -> float:
    """How far from 0 prompts begin: Xavier's bound for a layer from a patch's values to the width.

    sqrt(6 / (3 patch^2 + W)): the prompts stand beside the patch embedding's tokens, so they begin
    as that layer's weights would (VPT's own choice).
    """
    return math.sqrt(6 / (3 * tower.patch**2 + tower.width))


def initial(
    tower: VisionTransformer, *, count: int, deep: bool, seed: int
) -> Float[np.ndarray, "L P W"]:
    """Prompts to begin with: uniform within `bound`, the same for the same seed.

    Args:
      tower: the frozen encoder.
      count: P, prompt tokens a block, at least 1.
      deep: see `Prompted`.
      seed: not negative.
    """
    limit = bound(tower)
    values = np.random.default_rng(seed).uniform(
        -limit, limit, shape(tower, count=count, deep=deep)
    )
    return values.astype(np.float32)


def save(
    path: str | Path, prompts: Float[AnyArray, "L P W"], *, encoder_hash: str, deep: bool
) -> None:
    """Write prompts, with the tower that they belong to; the same prompts give the same bytes.

    Args:
      path: file to write, `.safetensors` by custom.
      prompts: as `Prompted` holds them.
      encoder_hash: SHA-256 of the tower's weights (`pretrained.weights_hash`).
      deep: see `Prompted`.

    Raises:
      WorkdirError: the disk is full, read-only or forbidden.
    """
    about = {"format": FORMAT, "encoder": encoder_hash, "deep": deep}
    pretrained.write_tensors(path, {_TENSOR: np.asarray(prompts, np.float32)}, about)


def load(path: str | Path, *, encoder_hash: str) -> tuple[Float[np.ndarray, "L P W"], bool]:
    """Read what `save` wrote.

    Args:
      path: the file.
      encoder_hash: SHA-256 of the weights of the tower that is to have the prompts.

    Returns:
      The prompts and whether they are deep.

    Raises:
      WeightsError: missing, broken or foreign file, or prompts of another tower, where
        they would mean nothing.
    """
    tensors, header = pretrained.read_tensors(path)
    if header.get("format") != FORMAT:
        raise WeightsError(
            f"{path} holds no prompts of this program (format {header.get('format')!r}, expected "
            f"{FORMAT!r}): give a file that its align stage wrote."
        )
    _check(path, tensors, header)
    if header["encoder"] != encoder_hash:
        raise WeightsError(
            f"{path} holds prompts for the encoder weights {header['encoder'][:12]}..., but the "
            f"encoder here has the weights {encoder_hash[:12]}...: use that encoder, or train "
            "prompts for this one."
        )
    return tensors[_TENSOR], header["deep"]


def _check(path: str | Path, tensors: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    shapes = {name: value.shape for name, value in tensors.items()}
    deep, layers = header.get("deep"), shapes.get(_TENSOR, ())[:1]
    valid = (
        list(shapes) == [_TENSOR]
        and len(shapes[_TENSOR]) == 3
        and isinstance(header.get("encoder"), str)
        and isinstance(deep, bool)
        and (deep or layers == (1,))
    )
    if not valid:
        raise WeightsError(
            f"{path} says that it holds prompts, but what it has are tensors {shapes} with deep = "
            f"{deep!r}: copy it again, or train the prompts again."
        )
