"""pretrain: a small image tower and a text tower of one's own, from tiles with captions.

The stand-in where no pathology encoder's weights are at hand: `encoder.weights` switches it off.
The tiles must come from other patients than the slides that are tested: where they name their
patients, `pretrain_tiles.preflight` sees to it.
"""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from lrmil_jax import cluster, encoders
from lrmil_jax.data import source, tiles
from lrmil_jax.data.captions import CaptionedTiles
from lrmil_jax.encoders import contrastive, pretrained, text
from lrmil_jax.evals import metrics
from lrmil_jax.train import mil, sharding
from lrmil_jax.train.checkpoint import FitResult
from lrmil_jax.train.loop import fit
from lrmil_jax.train.step import Evaluator
from lrmil_jax.types import AnyArray
from lrmil_jax.workspace import layout, pretrain_tiles

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes `pretrain/{encoder,text}.safetensors`, unless `encoder.weights` is set.

    Raises:
      ConfigError: `data.tiles` and `data.captions` are both set, or sizes that cannot be.
      DataError: the tiles or captions are not usable.
    """
    if config.encoder.weights is not None:
        log.info("encoder.weights is set: nothing to train")
        return
    folder = layout.stage_folder(workdir, "pretrain")
    # Synthetic tiles are drawn by one process.
    found = cluster.first_then_rest("tiles", lambda: pretrain_tiles.captioned_tiles(config, folder))
    pair = Pair.create(config, found)
    result = train(pair, config, folder / "training")
    cluster.first_only("towers", save, pair, result, folder)


def inputs(config: ConfigDict) -> dict[str, Any]:
    """What the files are that the stage reads: a tile added or removed trains anew.

    Raises:
      ConfigError, DataError: see `run`.
    """
    return {} if config.encoder.weights is not None else pretrain_tiles.digest(config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Both towers before training, and what they are to be trained on.

    Attributes:
      tiles: with their captions.
      name: the image tower's registered name.
      options: its constructor arguments.
      module: the image tower.
      transform: the image tower's.
      sizes: the text tower's constructor arguments.
      tokenizer: learned from the captions.
      captions: on the device: `tokens` and `mask` [K, T], `group` [K].
    """

    tiles: CaptionedTiles
    name: str
    options: dict[str, Any]
    module: Any
    transform: encoders.Transform
    sizes: dict[str, Any]
    tokenizer: encoders.Tokenizer
    captions: dict[str, np.ndarray]

    @classmethod
    def create(cls, config: ConfigDict, found: CaptionedTiles) -> "Pair":
        """The towers that a config asks for; the tokenizer is learned here.

        Raises:
          ConfigError: sizes that cannot be.
          DataError: a caption is longer than `pretrain.text_tokens`.
        """
        settings, name = config.pretrain, config.encoder.name
        options = {"px": config.geometry.patch_px}
        tokenizer = encoders.Tokenizer.train(found.captions, vocabulary=settings.vocabulary)
        tokens, mask = tokenizer.encode(found.captions, limit=settings.text_tokens)
        return cls(
            tiles=found,
            name=name,
            options=options,
            module=encoders.create(name, **options),
            transform=encoders.transform(name, **options),
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
        """Parameters of both towers: "encoder", and those of `TextTower`."""
        keys = jax.random.split(jax.random.key(seed), 4)
        px, writer = self.options["px"], encoders.TextTransformer(**self.sizes)
        some = {name: self.captions[name][:1] for name in ("tokens", "mask")}

        def kernel(key: jax.Array, width: int) -> dict[str, jax.Array]:
            return {"kernel": width**-0.5 * jax.random.normal(key, (width, projection))}

        # Compiled: op by op each tower is some hundred programs.
        tower, texts = jax.jit(self.module.init), jax.jit(writer.init)
        return {
            "encoder": tower(keys[0], jnp.zeros((1, px, px, 3)))["params"],
            "text": texts(keys[1], some["tokens"], some["mask"])["params"],
            "image_projection": kernel(keys[2], self.module.width),
            "text_projection": kernel(keys[3], self.sizes["width"]),
            "log_scale": jnp.float32(contrastive.FIRST_LOG_SCALE),
        }

    def embed_images(
        self, params: dict[str, Any], images: UInt8[AnyArray, "n px px 3"]
    ) -> Float[Array, "n d"]:
        """8-bit tiles in the shared space, each of length 1."""
        normal = self.transform.normalise(images)
        embedding = self.module.apply({"params": params["encoder"]}, normal).embedding
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
        said = {name: values[batch["caption"]] for name, values in constants.items()}
        images = self.embed_images(params, batch["image"])
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


def train(
    pair: Pair, config: ConfigDict, directory: Path, *, mesh: Mesh | None = None
) -> FitResult:
    """Trains both towers on the tiles of one side of the split, and chooses on the other.

    Args:
      pair: the towers and their tiles.
      config: of the run.
      directory: of this training alone; a call after a kill goes on there.
      mesh: devices to split over; default all. In-batch negatives are those of all devices.
    """
    settings, mesh = config.pretrain, mesh or sharding.make_mesh()
    parts = pair.tiles.split(share=settings.val_share, seed=config.seed)
    pretrain_tiles.log_split(pair.tiles, parts)
    crops = settings.smallest_crop, settings.largest_crop
    px, usual = config.geometry.patch_px, float(np.sqrt(np.prod(crops)))
    if settings.even_classes:
        parts = pair.tiles.balanced(parts[0]), parts[1]
    learned = tiles.TileSource(pair.tiles, parts[0], px=px, native=crops[0] < 1)
    held = tiles.TileSource(pair.tiles, parts[1], px=px, crop=usual)
    batches = source.training_batches(
        learned,
        batch=settings.batch,
        seed=config.seed,
        steps=settings.steps * settings.accumulate,
        threads=config.encoder.threads,
        augment=tiles.Augment(pair.tiles, settings.jitter, *crops, px),
        part=sharding.part(mesh),
    )
    held_out = source.held_out_batches(
        held, range(len(held)), batch=settings.batch, part=sharding.part(mesh)
    )
    return fit(
        name="pretrain",
        directory=directory,
        params=pair.initial(projection=settings.projection, seed=config.seed),
        loss_fn=pair.loss,
        batches=batches,
        validate=_validation(pair, held_out, mesh),
        settings=mil.train_settings(settings, steps=settings.steps, accumulate=settings.accumulate),
        constants=pair.captions,
        mesh=mesh,
        seed=config.seed,
    )


def _validation(pair: Pair, held_out: list, mesh: Mesh) -> Callable:
    """Loss on held-out tiles, which chooses the checkpoint, and beside it how well the towers tell
    the classes apart, or captions in the batch where there are none, with what chance would give.
    """
    if not pair.tiles.classes:
        captions = Evaluator(pair.loss, constants=pair.captions, mesh=mesh)
        return lambda params: captions(params, held_out)
    kept = ("label", "probabilities")
    evaluator = Evaluator(pair.loss, constants=pair.captions, mesh=mesh, keep=kept)
    labels, count = pair.captions["group"], len(pair.tiles.classes)

    def embed_classes(params):
        texts = pair.embed_captions(params, pair.captions)
        return contrastive.class_embedding(texts, labels, num_classes=count)

    classes = jax.jit(embed_classes, out_shardings=sharding.replicated(mesh))

    def validate(params) -> dict[str, float | None]:
        params = {**params, "classes": classes(params)}
        means, examples = evaluator.with_examples(params, held_out)
        measured = metrics.compute(examples["label"], examples["probabilities"])
        shown = {name: measured[name] for name in ("accuracy", "balanced_accuracy", "auc")}
        largest = np.bincount(examples["label"]).max() / len(examples["label"])
        return means | shown | {"majority_share": float(largest)}

    return validate


def save(pair: Pair, result: FitResult, folder: Path) -> None:
    """Writes both towers; the text tower's file says to which image tower it belongs."""
    figures = _summary(pair.tiles, result.metrics)
    facts = {"stage": "pretrain", **figures}
    path = folder / "encoder.safetensors"
    pretrained.save(path, pair.name, pair.options, result.params["encoder"], facts)
    text.TextTower(
        sizes=pair.sizes,
        tokenizer=pair.tokenizer,
        params={name: tree for name, tree in result.params.items() if name != "encoder"},
        encoder_hash=pretrained.weights_hash(path),
        facts=facts,
    ).save(folder / "text.safetensors")


def _summary(tiles: CaptionedTiles, measured: dict[str, float | None]) -> dict[str, str]:
    """Logs the figures of the chosen checkpoint in one line, and gives them as the files keep them.

    An accuracy alone tells little: of tiles that are to 71 % of one class, chance gives .71.
    """
    text = {
        name: "undefined" if value is None else f"{value:.4f}" for name, value in measured.items()
    }
    if not tiles.classes:
        log.info(
            "held-out tiles: the nearest caption of a batch is the tile's own for a share of %s; "
            "the commonest caption, given to every tile, would be right for %s",
            text["accuracy"], text["chance_accuracy"],
        )  # fmt: skip
        return {f"in_batch_{name}": text[name] for name in ("accuracy", "chance_accuracy")}
    log.info(
        "held-out tiles: AUC %s (chance 0.5), balanced accuracy %s (chance %.3g), accuracy %s "
        "(%s is the largest class's share, which needs no look at a tile)",
        text["auc"], text["balanced_accuracy"], 1 / len(tiles.classes), text["accuracy"],
        text["majority_share"],
    )  # fmt: skip
    names = ("accuracy", "balanced_accuracy", "auc", "majority_share")
    return {f"tile_{name}": text[name] for name in names}
