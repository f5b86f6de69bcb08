"""Trains the image and text towers that the package ships, and writes them with their recipe.

  python scripts/train_towers.py [--output DIR] [--towers procedural procedural-both]

The same command on the same machine with as many cores gives the same files, byte by byte; XLA
shares sums out among the cores, so another number of them changes the last digits.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from lrmil_jax import checks, encoders, files
from lrmil_jax import config as configuration
from lrmil_jax.data.captions import CaptionedTiles
from lrmil_jax.data.tiles import TileSource
from lrmil_jax.encoders import contrastive, pretrained
from lrmil_jax.errors import UserError
from lrmil_jax.models import loading
from lrmil_jax.progress import setup_logging
from lrmil_jax.slides import synthetic
from lrmil_jax.stages import pretrain
from lrmil_jax.train.encode import BatchEncoder

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "lrmil_jax" / "weights"
SCALES = (1, 4)  # magnifications at which a tower is measured
SOFTWARE = ("lrmil_jax", "jax", "jaxlib", "flax", "optax", "grain", "numpy", "tokenizers")
LICENCE = (
    "Trained on procedural images alone, which this package makes by itself: no patient's data, "
    "nobody else's images or weights. The weights are free of rights (CC0 1.0); the code that "
    "made them is under Apache-2.0."
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="gets one folder a tower")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "towers.py")
    parser.add_argument("--towers", nargs="+", help="those to train; default all of the config")
    parser.add_argument("--tiles", type=int, default=300, help="fresh tiles a class and scale")
    parser.add_argument("--tiles_seed", type=int, default=9_000_000, help="of the fresh tiles")
    args = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # Grain reads a flag of its own
    setup_logging()
    try:
        recipes = load_config(args.config)
        for name in args.towers or recipes.NAMES:
            folder = args.output / name
            config = recipes.get_config(name)
            train(config, folder)
            accuracy = measure(folder, config, per_class=args.tiles, seed=args.tiles_seed)
            write_recipe(folder, config, accuracy, command="python scripts/train_towers.py")
            print(name, {scale: found["mean"] for scale, found in accuracy["by_scale"].items()})
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def load_config(path: Path):
    """A config file as a module."""
    spec = importlib.util.spec_from_file_location("towers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(config: ConfigDict, folder: Path) -> None:
    """Runs `pretrain` and keeps both towers, in float16: half the size, and loaded as float32."""
    half = functools.partial(jax.tree.map, lambda leaf: np.asarray(leaf, np.float16))
    with tempfile.TemporaryDirectory() as workdir:
        checks.validate(config)
        pretrain.run(config, Path(workdir))
        made = Path(workdir) / "pretrain"
        path, name = folder / "encoder.safetensors", config.encoder.name
        _, params = pretrained.load(name, made / path.name)
        tower = encoders.TextTower.load(made / "text.safetensors")
        pretrained.save(path, name, pretrained.stored_options(made / path.name), half(params),
                        {**tower.facts, "licence": LICENCE})  # fmt: skip
        dataclasses.replace(
            tower,
            params=half(tower.params),
            encoder_hash=pretrained.weights_hash(path),
            facts={**tower.facts, "licence": LICENCE},
        ).save(folder / "text.safetensors")
        shutil.rmtree(made)


def measure(folder: Path, config: ConfigDict, *, per_class: int, seed: int) -> dict:
    """Zero-shot accuracy of the stored towers on fresh tiles, by scale and class."""
    encoder = loading.load_encoder(
        config.encoder.name, folder / "encoder.safetensors", dtype="float32"
    )
    tower = encoders.TextTower.load(folder / "text.safetensors", encoder_hash=encoder.weights_hash)
    encode = BatchEncoder(encoder, batch=64)
    px = config.geometry.patch_px
    by_scale = {}
    for scale in SCALES:
        with tempfile.TemporaryDirectory() as tiles:
            synthetic.write_tiles(
                tiles, seed=seed, per_class=per_class, tile_px=px, scales=(scale,)
            )
            found = CaptionedTiles.from_folder(Path(tiles))
            source = TileSource(found, np.arange(len(found.paths)), px=px)
            images = (source[index]["image"][None] for index in range(len(source)))
            scores = contrastive.zero_shot(
                tower.project(encode(images)["embedding"]),
                tower.embed(found.captions),
                found.groups,
                num_classes=len(found.classes),
            )
        label = np.array([found.groups[chosen[0]] for chosen in found.choices])
        right = np.asarray(scores).argmax(1) == label
        each = {name: right[label == i].mean() for i, name in enumerate(found.classes)}
        by_scale[f"scale_{scale}"] = {
            name: round(float(value), 4) for name, value in {"mean": right.mean(), **each}.items()
        }
    return {"tiles_per_class": per_class, "tiles_seed": seed, "by_scale": by_scale}


def write_recipe(folder: Path, config: ConfigDict, accuracy: dict, *, command: str) -> None:
    """How a tower was made, and what it can, as recipe.json beside it."""
    flat = configuration.flatten(config)
    parts = ("pretrain.", "encoder.", "geometry.", "synthetic.", "seed")
    weights = [folder / name for name in ("encoder.safetensors", "text.safetensors")]
    files.write_json(
        folder / "recipe.json",
        {
            "command": command,
            "config": {key: value for key, value in flat.items() if key.startswith(parts)},
            "software": {name: importlib.metadata.version(name) for name in SOFTWARE},
            "device": jax.devices()[0].device_kind,
            "cores": len(os.sched_getaffinity(0)),
            "zero_shot_accuracy": accuracy,
            "held_out_accuracy": pretrained.read_tensors(weights[0])[1]["tile_accuracy"],
            "sha256": {path.name: pretrained.weights_hash(path) for path in weights},
            "licence": LICENCE,
        },
    )


if __name__ == "__main__":
    sys.exit(main())
