"""The tiles that `pretrain` learns from: given or made, and none of patients to be tested."""

import dataclasses
import functools
import hashlib
import json
import logging
from pathlib import Path

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from lrmil_jax.data import splits
from lrmil_jax.data.captions import CAPTIONS, CaptionedTiles
from lrmil_jax.data.labels import Cohort
from lrmil_jax.data.tile_folder import PATIENTS, file_stats, list_tiles
from lrmil_jax.errors import ConfigError, DataError
from lrmil_jax.slides import synthetic

log = logging.getLogger(__name__)


def captioned_tiles(config: ConfigDict, folder: Path) -> CaptionedTiles:
    """What the config names, or synthetic tiles made in `folder`.

    Raises:
      ConfigError: `data.tiles` and `data.captions` are both set.
      DataError: the tiles or captions are not usable.
    """
    given, made = _given_tiles(config), config.synthetic
    if given is not None:
        return given
    # Another seed than the slides': the encoder has seen none of their tissue.
    tiles = synthetic.write_tiles(
        folder / "tiles",
        seed=config.seed + 1_000_003,
        per_class=made.tiles_per_class,
        tile_px=config.geometry.patch_px,
        scales=tuple(made.tile_scales),
    )
    # Their sub-folders are scales, and there are no patients.
    return dataclasses.replace(CaptionedTiles.from_folder(tiles), patients=())


def _given_tiles(config: ConfigDict) -> CaptionedTiles | None:
    data = config.data
    if data.captions is not None and data.tiles is not None:
        raise ConfigError("data.captions and data.tiles are both set; leave one of them away")
    if data.captions is not None:
        return CaptionedTiles.from_csv(Path(data.captions))
    return None if data.tiles is None else CaptionedTiles.from_folder(Path(data.tiles))


def preflight(config: ConfigDict, cohort: Cohort) -> None:
    """Refuses before anything is trained tiles that cannot be parted, or of patients to be tested.

    Raises:
      ConfigError: see `captioned_tiles`.
      DataError: see `captioned_tiles`, or a patient of the tiles is in the test split of some fold.
    """
    given = _given_tiles(config) if config.encoder.weights is None else None
    if given is None:
        return
    given.split(share=config.pretrain.val_share, seed=config.seed)
    splits.refuse_test_patients(
        set(given.patients),
        cohort.table,
        tiles=given.patients_from,
        labels=str(config.data.labels),
    )


def digest(config: ConfigDict) -> dict[str, str]:
    """Of the names, sizes and times of all files that were given; {} where none are.

    Raises:
      ConfigError, DataError: see `captioned_tiles`.
    """
    tiles, captions = config.data.tiles, config.data.captions
    return {} if tiles is None and captions is None else {"tiles": _digest(tiles, captions)}


def forget() -> None:
    """The next `digest` lists the files again; a run begins with this."""
    _digest.cache_clear()


@functools.lru_cache(maxsize=8)
def _digest(tiles: str | None, captions: str | None) -> str:
    """Listed once a run: every stage of every fold asks, and folders of tiles are large."""
    if tiles is None:
        path = Path(str(captions))
        stats = file_stats([path, *CaptionedTiles.from_csv(path).paths], path.parent)
    else:
        folder = Path(tiles)
        if not folder.is_dir():
            raise DataError(f"data.tiles is {folder}, which is no folder; give one folder a class")
        texts = (path for name in (PATIENTS, CAPTIONS) for path in folder.glob(name))
        stats = file_stats([*list_tiles(folder), *texts], folder)
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def log_split(
    tiles: CaptionedTiles, parts: tuple[Int[np.ndarray, " t"], Int[np.ndarray, " v"]]
) -> None:
    """Says how many tiles are held out, and whether their patients are held out with them."""
    log.info("%d tiles to learn from, %d held out", *map(len, parts))
    if tiles.patients:
        counts = [len({tiles.patients[index] for index in part}) for part in parts]
        log.info("those are of %d and %d patients, named by %s", *counts, tiles.patients_from)
    else:
        log.info("the tiles name no patients, so tiles of one may stand on both sides")
