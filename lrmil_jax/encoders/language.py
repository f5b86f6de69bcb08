"""Published text towers: CLIP's and its descendants' (PLIP, QuiltNet), and CONCH's.

Nothing comes with this program: the publisher's weights and tokenizer are read from local files
(`text_files`), and the numbers are those of the publisher's own code.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Bool, Float, Int

from lrmil_jax.encoders import contrastive, pretrained, registry, text_files
from lrmil_jax.encoders.blocks import Block, check_heads
from lrmil_jax.encoders.norm import LayerNorm
from lrmil_jax.encoders.text_files import SentenceTokenizer
from lrmil_jax.errors import ConfigError, DataError, WeightsError
from lrmil_jax.types import AnyArray

_CLIP = {
    "vocabulary": 49408,
    "tokens": 77,
    "width": 512,
    "depth": 12,
    "heads": 8,
    "shared_width": 512,
}
# By the image encoder's name in the catalogue, which also says which GELU the pair has.
TEXT_SIZES: Mapping[str, Mapping[str, Any]] = {
    "clip-vit-b-16": _CLIP,
    "clip-vit-b-32": _CLIP,
    "plip": _CLIP,
    "quiltnet-b-32": _CLIP,
    # 128 positions, the last one of which is the class token's.
    "conch": {
        "vocabulary": 32007,
        "tokens": 127,
        "width": 768,
        "depth": 12,
        "heads": 12,
        "shared_width": 512,
        "class_token": True,
    },
}
_BATCH = 16  # descriptions are few: what is filled up to a batch is computed for nothing
_STEP = 32  # tokens by which sentences are filled up, so that few shapes are compiled


class LanguageTransformer(nn.Module):
    """Pre-norm transformer over tokens, each of which sees itself and those before it.

    Sources: the text tower of Radford et al., ICML 2021; with a class token that of Yu et al.,
    "CoCa", TMLR 2022, as open_clip and CONCH compute it.

    Attributes:
      vocabulary: tokens in all.
      tokens: longest sentence, for which there are positions.
      width: W of the output.
      depth: number of blocks.
      heads: attention heads; they divide the width.
      mlp: one of `blocks.ACTIVATIONS`.
      class_token: a learned token at the last position of all is the output; else the sentence's
        last token is.
      norm_eps: epsilon of every layer norm.
    """

    vocabulary: int
    tokens: int = 77
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp: str = "quick_gelu"
    class_token: bool = False
    norm_eps: float = 1e-5

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
          mask: True where there is a token: the first ones of every row, its end among them.

        Raises:
          ConfigError: more tokens than positions.
        """
        if tokens.shape[1] > self.tokens:
            raise ConfigError(f"{tokens.shape[1]} tokens are more than {self.tokens} positions.")
        normal = nn.initializers.normal(0.02)
        table = self.param("token_embedding", normal, (self.vocabulary, self.width))
        count = self.tokens + self.class_token
        positions = jnp.asarray(self.param("position", normal, (count, self.width)))
        if self.class_token:
            x, visible = self._with_class_token(tokens, mask, jnp.asarray(table), positions)
        else:
            x = jnp.asarray(table)[tokens] + positions[None, : tokens.shape[1]]
            visible = _causal(len(x), x.shape[1])
        for index in range(self.depth):
            block = Block(self.heads, mlp=self.mlp, norm_eps=self.norm_eps, name=f"block_{index}")
            x = block(x, visible)
        last = x.shape[1] - 1 if self.class_token else jnp.maximum(mask.sum(1) - 1, 0)
        return LayerNorm(self.norm_eps, jnp.float32, name="norm")(x[jnp.arange(len(x)), last])

    def _with_class_token(
        self,
        tokens: Int[AnyArray, "B T"],
        mask: Bool[AnyArray, "B T"],
        table: Float[Array, "V W"],
        positions: Float[Array, "P W"],
    ) -> tuple[Float[Array, "B S W"], Bool[Array, "B S S"]]:
        """Embedded sentences with the class token at their end, and who sees whom.

        The published code shifts the class token's mask by one token, and the weights were
        trained so: it sees the sentence and the first filling token after it (number 0), but not
        itself; if nothing is filled, it sees everything.
        """
        extra = min(self.tokens, tokens.shape[1] + 1) - tokens.shape[1]
        mask = jnp.pad(jnp.asarray(mask), ((0, 0), (0, extra)))
        tokens = jnp.where(mask, jnp.pad(jnp.asarray(tokens), ((0, 0), (0, extra))), 0)
        class_embedding = self.param("class_embedding", nn.initializers.normal(0.01), (self.width,))
        x = table[tokens] + positions[None, : tokens.shape[1]]
        last = jnp.broadcast_to(class_embedding + positions[-1], (len(x), 1, self.width))
        class_row = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        visible = _causal(len(x), x.shape[1] + 1).at[:, -1].set(class_row)
        return jnp.concatenate([x, last], 1), visible


def _causal(batch: int, count: int) -> Bool[Array, "{batch} {count} {count}"]:
    return jnp.broadcast_to(jnp.tril(jnp.ones((count, count), bool)), (batch, count, count))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tower:
    """A published text tower, used as `text.TextTower` is.

    Attributes:
      sizes: arguments of `LanguageTransformer`.
      tokenizer: the publisher's.
      params: "text" (the transformer's), "text_projection" {"kernel": [W, d]}, "log_scale" and,
        where the image tower's embeddings are not yet in the shared space, "image_projection"
        {"kernel": [d, d]}; f32.
      weights_hash: SHA-256 of the weights file.
    """

    sizes: dict[str, Any]
    tokenizer: SentenceTokenizer
    params: dict[str, Any]
    weights_hash: str

    @property
    def context(self) -> int:
        """Tokens that a sentence may have, its start and its end among them."""
        return self.sizes["tokens"]

    @property
    def logit_scale(self) -> float:
        """The factor on cosines that makes logits of them, as in the file."""
        return float(np.exp(np.float64(self.params["log_scale"])))

    @functools.cached_property
    def _embed(self):
        module = LanguageTransformer(**self.sizes)

        @jax.jit
        def embed(params, tokens, mask):
            output = module.apply({"params": params["text"]}, tokens, mask)
            return contrastive.normalise(output @ params["text_projection"]["kernel"])

        return embed

    def embed(self, sentences: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Sentences in the shared space, each of length 1, float32.

        Raises:
          DataError: a sentence is empty or too long, or contains a special token.
        """
        # Sentences are few: accelerators need not round their products to be fast.
        with jax.default_matmul_precision("highest"):
            return embed_sentences(
                functools.partial(self._embed, self.params),
                self.tokenizer.encode,
                sentences,
                limit=self.context,
                width=self.params["text_projection"]["kernel"].shape[1],
                batch=_BATCH,
                step=_STEP,
            )

    def project(self, image_embedding: Float[AnyArray, "n W"]) -> Float[np.ndarray, "n d"]:
        """The image tower's embeddings in the shared space, each of length 1, float32.

        Raises:
          DataError: they are of another width than the image tower's.
        """
        projection = self.params.get("image_projection")
        kernel = projection["kernel"] if projection else None
        expected = len(kernel) if projection else self.params["text_projection"]["kernel"].shape[1]
        if image_embedding.shape[1] != expected:
            raise DataError(
                f"Image embeddings of width {image_embedding.shape[1]} are not those of this text "
                f"tower's image tower, which have {expected}: encode the images with it."
            )
        image_embedding = np.asarray(image_embedding, np.float32)
        projected = image_embedding @ kernel if projection else image_embedding
        return np.asarray(contrastive.normalise(projected))


def embed_sentences(
    embed: Callable[..., Float[AnyArray, "B d"]],
    encode: Callable[..., tuple[np.ndarray, np.ndarray]],
    sentences: Sequence[str],
    *,
    limit: int,
    width: int,
    batch: int,
    step: int,
) -> Float[np.ndarray, "n d"]:
    """Embeds any number of sentences in batches of few shapes: each is compiled once.

    Args:
      embed: makes embeddings of tokens and mask.
      encode: makes tokens and mask of sentences and a `limit`.
      sentences: may be none.
      limit: tokens that a sentence may have.
      width: d.
      batch: sentences embedded at once.
      step: the longest sentence's tokens are filled up to a multiple of it, or to the limit.
    """
    if not len(sentences):
        return np.zeros((0, width), np.float32)
    tokens, mask = encode(sentences, limit=limit)
    columns = min(limit, -(-tokens.shape[1] // step) * step)
    filling = ((0, -len(tokens) % batch), (0, columns - tokens.shape[1]))
    tokens, mask = np.pad(tokens, filling), np.pad(mask, filling)
    parts = [
        np.asarray(embed(tokens[at : at + batch], mask[at : at + batch]))
        for at in range(0, len(tokens), batch)
    ]
    return np.concatenate(parts)[: len(sentences)]


def load(name: str, path: str | Path, *, tokenizer: str | Path, **sizes: Any) -> Tower:
    """Reads a published text tower from local files.

    Args:
      name: of the image tower that it belongs to, one of `TEXT_SIZES`.
      path: the publisher's weights, as for the image tower, or a file of the text tower alone.
      tokenizer: a file or folder, see `text_files.read_tokenizer`.
      **sizes: replace those of `TEXT_SIZES`, for a tower of one's own in the same layout.

    Raises:
      ConfigError: no published text tower of that name, or sizes that cannot be.
      WeightsError: a file is missing, broken or foreign; missing, unexpected or misshapen
        tensors, all listed; a tokenizer that is not this tower's.
    """
    if name not in TEXT_SIZES:
        raise ConfigError(
            f"No text tower is known for encoder {name!r}, only for {', '.join(TEXT_SIZES)}."
        )
    sizes = {"mlp": registry.spec(name).kwargs.get("mlp", "gelu"), **TEXT_SIZES[name], **sizes}
    shared_width = sizes.pop("shared_width")
    try:
        module = LanguageTransformer(**sizes)
    except TypeError as error:
        raise ConfigError(f"Text tower {name!r} does not take these sizes: {error}.") from error
    shapes = _parameter_shapes(module, shared_width)
    flat = text_files.read_parameters(Path(path), shapes)
    sentence_tokenizer = text_files.read_tokenizer(tokenizer)
    _check_tokenizer(sentence_tokenizer, Path(tokenizer), module)
    return Tower(
        sizes=sizes,
        tokenizer=sentence_tokenizer,
        params=traverse_util.unflatten_dict(flat, sep="/"),
        weights_hash=pretrained.weights_hash(path),
    )


def _parameter_shapes(module: LanguageTransformer, shared_width: int) -> dict[str, tuple]:
    tokens = jax.ShapeDtypeStruct((1, 1), np.int32), jax.ShapeDtypeStruct((1, 1), bool)
    variables = jax.eval_shape(module.init, jax.random.key(0), *tokens)
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    shapes = {f"text/{key}": value.shape for key, value in flat.items()}
    shapes |= {"text_projection/kernel": (module.width, shared_width), "log_scale": ()}
    if module.class_token:
        shapes["image_projection/kernel"] = (shared_width, shared_width)
    return shapes


def _check_tokenizer(tokenizer: SentenceTokenizer, path: Path, module: LanguageTransformer) -> None:
    """Refuses a tokenizer whose numbers this tower's table cannot mean."""
    if tokenizer.size != module.vocabulary:
        raise WeightsError(
            f"Tokenizer {path} has {tokenizer.size} tokens, the text tower {module.vocabulary}: "
            "give the tokenizer that is published with it."
        )
    # What CONCH's class token does not see is 0; CLIP's code finds the end as the highest number.
    last = module.vocabulary - 1
    token, number, expected = (
        ("pad", tokenizer.pad, 0) if module.class_token else ("end", tokenizer.end, last)
    )
    if number != expected:
        raise WeightsError(
            f"Tokenizer {path} has {number} as its {token} token, the text tower {expected}: give "
            "the tokenizer that is published with it."
        )
