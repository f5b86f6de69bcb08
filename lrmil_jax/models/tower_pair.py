"""An image tower and a text tower that learn together: what of them learns, from what it starts,
and their loss.

Sources: both from scratch, or from a pretrained image tower: Radford et al., ICML 2021; the image
tower locked: Zhai et al., "LiT: Zero-Shot Transfer with Locked-image text Tuning", CVPR 2022; with
low-rank adapters: `encoders.adapters`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from lrmil_jax import encoders
from lrmil_jax.data.captions import CaptionedTiles
from lrmil_jax.encoders import adapters, contrastive, pretrained, text
from lrmil_jax.errors import ConfigError
from lrmil_jax.models import loading
from lrmil_jax.types import AnyArray

# What learns of the image tower.
LEARNING = ("whole", "adapters", "frozen")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Both towers before training, and what they are to be trained on.

    Attributes:
      tiles: with their captions.
      name: the image tower's registered name.
      options: its constructor arguments.
      module: the image tower.
      transform: the image tower's.
      params: the image tower's, from which it starts.
      learning: what learns of it, one of LEARNING.
      rank: of its adapters.
      sizes: the text tower's constructor arguments.
      tokenizer: learned from the captions.
      captions: on the device: `tokens` and `mask` [K, T], `group` [K].
    """

    tiles: CaptionedTiles
    name: str
    options: dict[str, Any]
    module: Any
    transform: encoders.Transform
    params: dict[str, Any]
    learning: str
    rank: int
    sizes: dict[str, Any]
    tokenizer: encoders.Tokenizer
    captions: dict[str, np.ndarray]

    @classmethod
    def create(cls, config: ConfigDict, found: CaptionedTiles) -> "Pair":
        """The towers that a config asks for; the tokenizer is learned here.

        Raises:
          ConfigError: sizes that cannot be.
          DataError: a caption is longer than `pretrain.text_tokens`.
          WeightsError: `pretrain.init` cannot be read, or is of another encoder.
        """
        settings = config.pretrain
        tower = image_tower(config)
        tokenizer = encoders.Tokenizer.train(found.captions, vocabulary=settings.vocabulary)
        tokens, mask = tokenizer.encode(found.captions, limit=settings.text_tokens)
        return cls(
            tiles=found,
            name=tower.name,
            options=tower.options,
            module=tower.module,
            transform=tower.transform,
            params=tower.params,
            learning=settings.image,
            rank=settings.rank,
            sizes={
                "vocabulary": tokenizer.size,
                "tokens": settings.text_tokens,
                "width": settings.text_width,
                "depth": settings.text_depth,
                "heads": settings.text_heads,
            },
            tokenizer=tokenizer,
            captions={"tokens": tokens, "mask": mask, "group": found.groups.astype(np.int32)},
        )

    def initial(self, *, projection: int, seed: int) -> dict[str, Any]:
        """What learns: of the image tower "encoder" or "adapters" or nothing, and the parameters of
        `TextTower`."""
        keys = jax.random.split(jax.random.key(seed), 4)
        writer = encoders.TextTransformer(**self.sizes)
        some = {name: self.captions[name][:1] for name in ("tokens", "mask")}

        def kernel(key: jax.Array, width: int) -> dict[str, jax.Array]:
            return {"kernel": width**-0.5 * jax.random.normal(key, (width, projection))}

        image: dict[str, Any] = {}
        if self.learning == "whole":
            image = {adapters.WHOLE: self.params}
        elif self.learning == "adapters":
            image = {adapters.ADAPTERS: adapters.initial(self.params, rank=self.rank, seed=seed)}
        # Compiled: op by op the tower is some hundred programs.
        texts = jax.jit(writer.init)
        return image | {
            "text": texts(keys[1], some["tokens"], some["mask"])["params"],
            "image_projection": kernel(keys[2], self.module.embedding_width),
            "text_projection": kernel(keys[3], self.sizes["width"]),
            "log_scale": jnp.float32(contrastive.FIRST_LOG_SCALE),
        }

    @property
    def constants(self) -> dict[str, Any]:
        """What the loss reads and does not learn: the captions, and the tower if it stays."""
        kept = {} if self.learning == "whole" else {adapters.FROZEN: self.params}
        return {"captions": self.captions} | kept

    def text_params(self, params: dict[str, Any]) -> dict[str, Any]:
        """Those of `TextTower`."""
        image = (adapters.WHOLE, adapters.ADAPTERS)
        return {name: tree for name, tree in params.items() if name not in image}

    def embed_images(
        self, params: dict[str, Any], constants: dict[str, Any], images: UInt8[AnyArray, "n s s 3"]
    ) -> Float[Array, "n d"]:
        """8-bit tiles in the shared space, each of length 1."""
        normal, tower = self.transform.normalise(images), adapters.tower(params, constants)
        embedding = self.module.apply({"params": tower}, normal).embedding
        return text.project(params["image_projection"], embedding)

    def embed_captions(
        self, params: dict[str, Any], captions: dict[str, Any]
    ) -> Float[Array, "n d"]:
        """Tokenised captions in the shared space, each of length 1."""
        writer = encoders.TextTransformer(**self.sizes)
        return text.embed_tokens(writer, params, captions["tokens"], captions["mask"])

    def loss(self, params, constants, batch, key, train) -> dict[str, jax.Array]:
        """The contrastive loss of a batch of tiles; in validation also what is got right.

        With `params["classes"]`, the embedding [C, d] of every class, that is each tile's class
        and the probabilities [B, C] of the classes; without, whether the nearest text of the
        batch could be the tile's own, and how often one text for all tiles would be right.
        """
        del key
        captions = constants["captions"]
        said = {name: values[batch["caption"]] for name, values in captions.items()}
        images = self.embed_images(params, constants, batch["image"])
        texts = self.embed_captions(params, said)
        pairs = (images, texts, said["group"], batch["weight"] > 0)
        scale = contrastive.logit_scale(params["log_scale"])
        terms = {"loss": contrastive.contrastive_loss(*pairs, scale=scale)}
        if "classes" in params:
            terms["label"] = said["group"]
            terms["probabilities"] = jax.nn.softmax(scale * (images @ params["classes"].T))
        elif not train:
            terms["accuracy"] = contrastive.in_batch_accuracy(*pairs)
            terms["chance_accuracy"] = contrastive.in_batch_chance(*pairs[2:])
        return terms


def image_tower(config: ConfigDict) -> loading.Encoder:
    """The image tower as it is before training: of `pretrain.init`, or new.

    Raises:
      ConfigError: sizes that cannot be.
      WeightsError: `pretrain.init` cannot be read, or is of another encoder.
    """
    name, given = config.encoder.name, config.pretrain.init
    if given is not None:
        path = pretrained.locate(given)
        return loading.load_encoder(name, path, dtype="float32", px=config.encoder.px)
    options = {"px": config.encoder.px or config.geometry.patch_px}
    module, side = encoders.create(name, **options), options["px"]
    key = jax.random.split(jax.random.key(config.seed), 4)[0]
    params = jax.jit(module.init)(key, jnp.zeros((1, side, side, 3)))["params"]
    return loading.Encoder(
        name, options, module, params, encoders.transform(name, **options), "untrained"
    )


def check(config: ConfigDict) -> None:
    """The image tower starts from weights or is used with them, and one that stays has some.

    Raises:
      ConfigError: naming the keys, and what to do.
    """
    start, image = config.pretrain.init, config.pretrain.image
    if start is not None and config.encoder.weights is not None:
        raise ConfigError(
            "encoder.weights and pretrain.init are both set, but the encoder of encoder.weights is "
            "used as it is; leave encoder.weights away to tune it, or pretrain.init to use it"
        )
    if image != "whole" and start is None:
        raise ConfigError(
            f"pretrain.image is {image}, but pretrain.init names no weights to start from; set it, "
            "or leave pretrain.image at whole"
        )
