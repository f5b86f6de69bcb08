"""zero_shot: a folder of tiles scored against class descriptions, without any training."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from PIL import Image
from scipy.special import softmax

from lrmil_jax import files
from lrmil_jax.data import source
from lrmil_jax.data.tile_folder import PATIENTS, TileFolder, file_stats, list_tiles
from lrmil_jax.data.tiles import read_tile
from lrmil_jax.encoders import Transform
from lrmil_jax.errors import ConfigError, DataError
from lrmil_jax.evals import intervals, metrics
from lrmil_jax.models import loading, text_towers, trained
from lrmil_jax.progress import progress
from lrmil_jax.report import zero_shot as report
from lrmil_jax.selection import TextBank
from lrmil_jax.slides import synthetic
from lrmil_jax.train.encode import Encoder
from lrmil_jax.workspace import layout

log = logging.getLogger(__name__)

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes `zero_shot/`: predictions.csv, metrics.json, table.txt, table.md, zero_shot.png.

    Raises:
      ConfigError: a key is not set that has no default.
      DataError: no tile, none that can be read, a class folder without description, or
        descriptions that cannot be used; see `TextBank`.
      WeightsError: a tower is missing, broken, or not the other's.
    """
    folder = layout.stage_folder(workdir, "zero_shot")
    bank, found = prepare(config, workdir)
    encoder, tower = trained.hr_encoder(config, workdir), text_towers.load(config)
    tower_hash, cache = text_towers.digest(config), layout.stage_folder(workdir, "text")
    texts = bank.embed(tower, config.text.power, cache=cache, tower_hash=tower_hash)
    embedding, unreadable = embed_tiles(config, encoder, found)
    kept = found.at(np.array([p for p in range(len(found.paths)) if p not in unreadable]))
    cosine = tower.project(embedding) @ texts.embedding.T
    probabilities = softmax(tower.logit_scale * cosine.astype(np.float64), axis=1)
    files.write_table(folder / "predictions.csv", _table(kept, texts.classes, probabilities))
    result = measure(kept, texts.classes, probabilities) | {
        "unreadable": {found.names[place]: reason for place, reason in unreadable.items()},
        "text": _text_facts(config, bank) | {"tower": tower_hash},
        "encoder": encoder.weights_hash,
    }
    files.write_json(folder / "metrics.json", result)
    for line in report.save_table(folder, result):
        log.info("%s", line)
    best = _best(config, encoder.transform, kept, probabilities)
    report.save_picture(folder / "zero_shot.png", result, best)
    log.info("pictures and tables: %s", folder)


def prepare(config: ConfigDict, workdir: Path) -> tuple[TextBank, TileFolder]:
    """The descriptions and the tiles, which fit together.

    Raises:
      ConfigError: a key is not set.
      DataError: see `run`.
      WeightsError: a tower is missing.
    """
    text_towers.digest(config)
    if config.text.descriptions is None:
        raise ConfigError(
            "text.descriptions is not set; give --config.text.descriptions=FILE.toml with a table "
            "a class (python -m lrmil_jax.selection FILE checks it), or shipped:NAME"
        )
    bank = TextBank.load(config.text.descriptions)
    if config.data.classes:
        bank = bank.only(tuple(config.data.classes))
    bank.sentences(config.text.power)
    log.info(
        "%s: %s; reviewed by: %s",
        bank.path.name, ", ".join(bank.classes), bank.about.get("reviewed_by", "nobody named"),
    )  # fmt: skip
    folder = _folder(config, workdir)
    return bank, TileFolder.read(folder, classes=tuple(bank.classes), described_in=bank.path)


def check(config: ConfigDict, workdir: Path, classes: tuple[str, ...]) -> None:
    """Logs what a run would score; the towers are opened too. The classes are those of the
    descriptions, so `classes`, a cohort's, are not asked.

    Raises:
      UserError: whatever `run` would refuse.
    """
    bank, tiles = prepare(config, workdir)
    trained.hr_encoder(config, workdir)
    text_towers.load(config)
    counts = np.bincount(tiles.labels + 1, minlength=len(bank.classes) + 1).tolist()
    for name, count in zip(("unknown class", *bank.classes), counts, strict=True):
        log.info("%d tiles of %s", count, name)


def inputs(config: ConfigDict) -> dict[str, Any]:
    """What the files hold that the stage reads: an edited description or a new tile redoes it.

    Raises:
      DataError, WeightsError: the descriptions or a tower cannot be read.
    """
    found = {}
    if config.data.tiles is not None:
        folder = Path(config.data.tiles)
        found["tiles"] = file_stats([*list_tiles(folder), *folder.glob(PATIENTS)], folder)
    if config.text.descriptions is not None:
        found["descriptions"] = TextBank.load(config.text.descriptions).digest
    if config.encoder.weights is not None:
        found["towers"] = [loading.encoder_hash(config.encoder.weights), text_towers.digest(config)]
    return found


def _folder(config: ConfigDict, workdir: Path) -> Path:
    """`data.tiles`, or procedural tiles, of a seed apart from slides and pretraining."""
    if config.data.tiles is not None:
        return Path(config.data.tiles)
    folder, made = workdir / "synthetic" / "zero_shot", config.synthetic
    log.info("data.tiles is not set: procedural tiles are made in %s", folder)
    return synthetic.write_tiles(
        folder,
        seed=config.seed + 3_000_017,
        per_class=made.tiles_per_class,
        tile_px=config.geometry.patch_px,
        scales=tuple(made.tile_scales),
    )


def embed_tiles(
    config: ConfigDict, encoder: Encoder, tiles: TileFolder
) -> tuple[Float[np.ndarray, "m W"], dict[int, str]]:
    """Embeddings of the tiles that can be read, in order, and the places of those that cannot.

    Raises:
      DataError: none can be read.
    """
    unreadable: dict[int, str] = {}

    def read(place: int) -> tuple[np.ndarray, str]:
        try:
            return squared(read_tile(tiles.paths[place]), encoder.transform)[None], ""
        except DataError as error:
            return np.zeros((0, 1, 1, 3), np.uint8), str(error)

    def images() -> Iterator[np.ndarray]:
        count, threads = len(tiles.paths), config.encoder.threads
        with progress("zero_shot", count) as bar:
            for place, (image, reason) in enumerate(
                source.stream(range(count), read, threads=threads)
            ):
                if reason:
                    unreadable[place] = reason
                    log.error("left out: %s", reason)
                bar.advance()
                yield image

    encoded = trained.batch_encoder(config, encoder)(images())
    if not encoded:
        raise DataError(f"none of the {len(tiles.paths)} tiles in {tiles.folder} can be read")
    return encoded["embedding"], unreadable


def squared(image: Image.Image, transform: Transform) -> UInt8[np.ndarray, "side side 3"]:
    """A tile of any size as the encoder's own transform takes it: resized, its centre cut out.

    Resized by Pillow, whose arithmetic the transform has on the device too: that way tiles of all
    sizes share one shape. What is not square is resized by its shorter side.
    """
    side = transform.px if transform.resize is None else transform.resize
    if min(image.size) != side:
        size = tuple(max(side, int(side * one / min(image.size))) for one in image.size)
        image = image.resize(size, _FILTERS[transform.interpolation])
    left, top = (round((one - side) / 2) for one in image.size)
    return np.asarray(image.crop((left, top, left + side, top + side)))


def _table(
    tiles: TileFolder, classes: tuple[str, ...], probabilities: Float[np.ndarray, "n C"]
) -> pd.DataFrame:
    frame = pd.DataFrame({"tile": tiles.names})
    if tiles.patients:
        frame["patient_id"] = tiles.patients
    frame["label"] = [classes[label] if label >= 0 else "" for label in tiles.labels]
    frame["predicted"] = [classes[index] for index in probabilities.argmax(1)]
    for index, name in enumerate(classes):
        frame[f"{metrics.PROBABILITY_PREFIX}{name}"] = probabilities[:, index]
    return frame


def measure(
    tiles: TileFolder,
    classes: tuple[str, ...],
    probabilities: Float[np.ndarray, "n C"],
) -> dict[str, Any]:
    """Metrics over the labelled tiles, with intervals; counts alone where there are none.

    Intervals are over patients where they are known, each with all of its tiles, else over tiles.
    """
    known = tiles.labels >= 0
    result = {
        "classes": list(classes),
        "tiles": len(tiles.paths),
        "labelled": int(known.sum()),
        "predicted": np.bincount(probabilities.argmax(1), minlength=len(classes)).tolist(),
    }
    if not known.any():
        return result
    labels, probabilities = tiles.labels[known], probabilities[known]
    drawn = np.array(tiles.patients)[known] if tiles.patients else np.arange(len(labels))
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (labels, probabilities.argmax(1)), 1)
    return result | {
        "metrics": metrics.compute(labels, probabilities),
        "intervals": intervals.of_one(intervals.figures(labels, probabilities, drawn)),
        "interval_over": "patients" if tiles.patients else "tiles",
        "patients": len(np.unique(drawn)) if tiles.patients else None,
        "largest_class": float(np.bincount(labels).max() / len(labels)),
        "confusion": confusion.tolist(),
    }


def _text_facts(config: ConfigDict, bank: TextBank) -> dict[str, Any]:
    return {
        "descriptions": bank.digest,
        "power": config.text.power,
        "templates": list(bank.templates),
        **bank.about,
    }


def _best(
    config: ConfigDict,
    transform: Transform,
    tiles: TileFolder,
    probabilities: Float[np.ndarray, "n C"],
) -> list[list[report.ScoredTile]]:
    """Of each class the tiles that are most probably of it, the best first."""
    rows = []
    for column in probabilities.T:
        order = np.argsort(-column, kind="stable")[: config.report.tiles]
        rows.append(
            [
                report.ScoredTile(
                    image=squared(read_tile(tiles.paths[place]), transform),
                    probability=float(column[place]),
                    label=int(tiles.labels[place]),
                )
                for place in order
            ]
        )
    return rows
