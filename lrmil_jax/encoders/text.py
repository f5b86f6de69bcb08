"""The text tower: a tokenizer, a small transformer, and both in one file.

It belongs to one image tower: the projection of that tower's embeddings into the shared space
lies in the same file, with the hash of the image tower's own file.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Bool, Float, Int

from lrmil_jax.encoders import contrastive, pretrained
from lrmil_jax.encoders.blocks import Block, check_heads
from lrmil_jax.encoders.language import embed_sentences
from lrmil_jax.encoders.norm import LayerNorm
from lrmil_jax.encoders.tokenizer import Tokenizer
from lrmil_jax.errors import ConfigError, WeightsError
from lrmil_jax.types import AnyArray

FORMAT = "lrmil_jax.text/1"
_BATCH = 64  # sentences embedded at once, in one shape


class TextTransformer(nn.Module):
    """Pre-norm transformer over tokens, both ways; its output is the mean over the sentence.

    Source: the text tower of Radford et al., ICML 2021, without its causal mask, which a tower
    that generates nothing does not need.

    Attributes:
      vocabulary: tokens in all.
      tokens: longest sentence, for which there are positions.
      width: W of the output.
      depth: number of blocks.
      heads: attention heads; they divide the width.
      mlp_ratio: hidden width of the MLP over `width`.
      norm_eps: epsilon of every layer norm.
    """

    vocabulary: int
    tokens: int = 64
    width: int = 64
    depth: int = 1
    heads: int = 2
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_heads("Text width", self.width, self.heads)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, tokens: Int[AnyArray, "B T"], mask: Bool[AnyArray, "B T"]
    ) -> Float[Array, "B W"]:
        """Encodes sentences.

        Args:
          tokens: token numbers, T at most `self.tokens`; what they are where `mask` is False
            makes no difference, nor does T.
          mask: True where there is a token, at least once a row.
        """
        if tokens.shape[1] > self.tokens:
            raise ConfigError(f"{tokens.shape[1]} tokens are more than {self.tokens} positions.")
        normal = nn.initializers.normal(0.02)
        table = self.param("token_embedding", normal, (self.vocabulary, self.width))
        positions = self.param("position", normal, (self.tokens, self.width))
        x = jnp.asarray(table)[tokens] + positions[None, : tokens.shape[1]]
        for index in range(self.depth):
            block = Block(
                heads=self.heads,
                mlp_ratio=self.mlp_ratio,
                norm_eps=self.norm_eps,
                name=f"block_{index}",
            )
            x = block(x, mask[:, None])
        x = LayerNorm(self.norm_eps, jnp.float32, name="norm")(x)
        weight = jnp.asarray(mask, jnp.float32)[..., None]
        return (weight * x).sum(1) / jnp.maximum(weight.sum(1), 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTower:
    """A trained text tower with what ties it to its image tower.

    Attributes:
      sizes: arguments of `TextTransformer`.
      tokenizer: of the same vocabulary.
      params: "text" (the transformer's), "text_projection" [V, d] and "image_projection" [W, d],
        each as {"kernel"}, and "log_scale".
      encoder_hash: SHA-256 of the image tower's file (`pretrained.weights_hash`).
      facts: further metadata of the file, such as accuracy or licence.
    """

    sizes: dict[str, Any]
    tokenizer: Tokenizer
    params: dict[str, Any]
    encoder_hash: str
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def logit_scale(self) -> float:
        """The learned factor on cosines that makes logits of them."""
        return float(contrastive.logit_scale(self.params["log_scale"]))

    @functools.cached_property
    def _embed(self):
        module = TextTransformer(**self.sizes)
        return jax.jit(lambda params, *batch: embed_tokens(module, params, *batch))

    def embed(self, sentences: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Sentences in the shared space, each of length 1, float32.

        Raises:
          DataError: a sentence is empty or too long.
        """
        return embed_sentences(
            functools.partial(self._embed, self.params),
            self.tokenizer.encode,
            sentences,
            limit=self.sizes["tokens"],
            width=self.params["text_projection"]["kernel"].shape[1],
            batch=_BATCH,
            step=self.sizes["tokens"],
        )

    def project(self, image_embedding: Float[AnyArray, "n W"]) -> Float[np.ndarray, "n d"]:
        """The image tower's embeddings in the shared space, each of length 1, float32."""
        return np.asarray(project(self.params["image_projection"], image_embedding))

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file; its bytes follow from the content alone.

        Raises:
          WorkdirError: the disk is full, read-only or forbidden.
        """
        about = {
            **self.facts,
            "format": FORMAT,
            "sizes": self.sizes,
            "tokenizer": self.tokenizer.to_json(),
            "encoder_hash": self.encoder_hash,
        }
        pretrained.write_tensors(path, traverse_util.flatten_dict(self.params, sep="/"), about)

    @classmethod
    def load(cls, path: str | Path, *, encoder_hash: str | None = None) -> "TextTower":
        """Reads what `save` wrote; params are f32 NumPy arrays.

        Args:
          path: the file, by custom text.safetensors beside encoder.safetensors.
          encoder_hash: of the image tower in use; None asks for no particular one.

        Raises:
          WeightsError: the file is missing, broken, no text tower, or another image tower's.
        """
        flat, about = pretrained.read_tensors(path)
        if about.get("format") != FORMAT:
            raise WeightsError(
                f"{path} is no text tower of this program (format {about.get('format')!r}, "
                f"expected {FORMAT!r}): give a text.safetensors that `pretrain` wrote."
            )
        if encoder_hash is not None and about["encoder_hash"] != encoder_hash:
            raise WeightsError(
                f"{path} belongs to the image tower {about['encoder_hash'][:12]}, not to "
                f"{encoder_hash[:12]}: use the encoder.safetensors that lies beside it."
            )
        flat = {key: np.asarray(value, np.float32) for key, value in flat.items()}
        reserved = {"format", "sizes", "tokenizer", "encoder_hash"}
        return cls(
            sizes=about["sizes"],
            tokenizer=Tokenizer(about["tokenizer"]),
            params=traverse_util.unflatten_dict(flat, sep="/"),
            encoder_hash=about["encoder_hash"],
            facts={key: value for key, value in about.items() if key not in reserved},
        )


def project(projection: dict[str, Any], embedding: Float[AnyArray, "n W"]) -> Float[Array, "n d"]:
    """Embeddings of either tower in the shared space, each of length 1."""
    return contrastive.normalise(
        jnp.asarray(embedding, jnp.float32) @ jnp.asarray(projection["kernel"])
    )


def embed_tokens(
    module: TextTransformer,
    params: dict[str, Any],
    tokens: Int[AnyArray, "n T"],
    mask: Bool[AnyArray, "n T"],
) -> Float[Array, "n d"]:
    """Tokenised sentences in the shared space, each of length 1; params as in `TextTower`."""
    output = module.apply({"params": params["text"]}, tokens, mask)
    return project(params["text_projection"], output)
