"""pretrain: a small encoder of one's own, trained to tell labelled tiles apart.

The stand-in where no pathology encoder's weights are at hand: `encoder.weights` switches it off.
The tiles must come from other patients than the slides.
"""

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from lrmil_jax import encoders
from lrmil_jax.data import source, tiles
from lrmil_jax.encoders import pretrained
from lrmil_jax.slides import synthetic
from lrmil_jax.stages import layout
from lrmil_jax.train import mil
from lrmil_jax.train.loop import fit
from lrmil_jax.train.step import Evaluator

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes `pretrain/encoder.safetensors`, unless `encoder.weights` is set."""
    if config.encoder.weights is not None:
        log.info("encoder.weights is set: nothing to train")
        return
    settings, folder = config.pretrain, layout.stage_folder(workdir, "pretrain")
    found = tiles.TileFolder.open(_tile_folder(config, folder))
    options = {"px": config.geometry.patch_px}
    module = encoders.create(config.encoder.name, **options)
    transform = encoders.transform(config.encoder.name, **options)
    train, val = found.split(share=settings.val_share, seed=config.seed)
    sources = [tiles.TileSource(found, part, px=config.geometry.patch_px) for part in (train, val)]
    loss_fn = _make_loss(module, transform)
    evaluator = Evaluator(loss_fn)
    held_out = source.held_out_batches(sources[1], range(len(val)), batch=settings.batch)
    result = fit(
        name="pretrain",
        directory=folder / "training",
        params=_initial(module, len(found.classes), config),
        loss_fn=loss_fn,
        batches=source.training_batches(
            sources[0],
            batch=settings.batch,
            seed=config.seed,
            steps=settings.steps * settings.accumulate,
            threads=config.encoder.threads,
            augment=tiles.Augment(),
        ),
        validate=lambda params: evaluator(params, held_out),
        settings=mil.train_settings(settings, steps=settings.steps, select=("loss", "min")),
        seed=config.seed,
    )
    accuracy = result.metrics["accuracy"]
    log.info("tile accuracy on %d held-out tiles: %.3f", len(val), accuracy)
    facts = {"stage": "pretrain", "tile_accuracy": f"{accuracy:.4f}"}
    pretrained.save(
        folder / "encoder.safetensors",
        config.encoder.name,
        options,
        result.params["encoder"],
        facts,
    )


def _tile_folder(config: ConfigDict, folder: Path) -> Path:
    if config.data.tiles is not None:
        return Path(config.data.tiles)
    # Another seed than the slides': the encoder has seen none of their tissue.
    return synthetic.write_tiles(
        folder / "tiles",
        seed=config.seed + 1_000_003,
        per_class=config.synthetic.tiles_per_class,
        tile_px=config.geometry.patch_px,
    )


def _initial(module, num_classes: int, config: ConfigDict) -> dict:
    key = jax.random.key(config.seed)
    px = config.geometry.patch_px
    encoder = module.init(key, jnp.zeros((1, px, px, 3)))["params"]
    kernel = 0.02 * jax.random.normal(key, (module.width, num_classes))
    return {"encoder": encoder, "classifier": {"kernel": kernel, "bias": jnp.zeros(num_classes)}}


def _make_loss(module, transform: encoders.Transform):
    def loss_fn(params, constants, batch, key, train):
        del constants, key, train
        images = transform.normalise(batch["image"])
        embedding = module.apply({"params": params["encoder"]}, images).embedding
        head = params["classifier"]
        logits = embedding @ head["kernel"] + head["bias"][None]
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        correct = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
        return {"loss": cross_entropy, "accuracy": correct}

    return loss_fn
