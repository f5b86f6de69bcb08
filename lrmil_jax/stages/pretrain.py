"""pretrain: a small image tower and a text tower of one's own, from tiles with captions.

The stand-in where no pathology encoder's weights are at hand: `encoder.weights` switches it off.
With `pretrain.init` the image tower starts from weights that are, and is tuned to the tiles whole
or by adapters, or stays as it is, while a text tower learns to go with it.
The tiles must come from other patients than the slides that are tested: where they name their
patients, `pretrain_tiles.preflight` sees to it.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lrmil_jax import cluster
from lrmil_jax.data import source, tiles
from lrmil_jax.data.captions import CaptionedTiles
from lrmil_jax.encoders import adapters, contrastive, pretrained, text
from lrmil_jax.evals import metrics
from lrmil_jax.models import loading
from lrmil_jax.models.tower_pair import Pair
from lrmil_jax.train import mil, sharding
from lrmil_jax.train.checkpoint import FitResult
from lrmil_jax.train.loop import fit
from lrmil_jax.train.step import Evaluator
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
    if config.encoder.weights is not None:
        return {}
    start = config.pretrain.init
    first = {} if start is None else {"init": loading.encoder_hash(start)}
    return pretrain_tiles.digest(config) | first


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
        constants=pair.constants,
        mesh=mesh,
        seed=config.seed,
    )


def _validation(pair: Pair, held_out: list, mesh: Mesh) -> Callable:
    """Loss on held-out tiles, which chooses the checkpoint, and beside it how well the towers tell
    the classes apart, or captions in the batch where there are none, with what chance would give.
    """
    if not pair.tiles.classes:
        captions = Evaluator(pair.loss, constants=pair.constants, mesh=mesh)
        return lambda params: captions(params, held_out)
    kept = ("label", "probabilities")
    evaluator = Evaluator(pair.loss, constants=pair.constants, mesh=mesh, keep=kept)
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
    tower = adapters.tower(result.params, pair.constants)
    pretrained.save(path, pair.name, pair.options, tower, facts)
    text.TextTower(
        sizes=pair.sizes,
        tokenizer=pair.tokenizer,
        params=pair.text_params(result.params),
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
