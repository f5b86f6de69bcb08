"""text: the classes' descriptions through the text tower, once per cohort."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lrmil_jax.data import param_files
from lrmil_jax.models import loading, text_towers
from lrmil_jax.selection import TextBank, score
from lrmil_jax.workspace import cohorts, stage_files


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes `text/classes.safetensors`, and every sentence's embedding beside it."""
    bank = text_towers.read_bank(config, cohorts.prepared(config, workdir).classes)
    score.guiding(tuple(bank.classes), config.select.classes)  # a wrong name before `align`
    tower = text_towers.load(config, workdir)
    texts = bank.embed(tower, config.text.power)
    facts = {
        "classes": list(texts.classes),
        "sentences": [list(of_class) for of_class in texts.sentences],
        "descriptions": bank.digest,
        **bank.about,
    }
    counts = [len(of_class) for of_class in texts.sentences]
    tree = {
        "embedding": texts.embedding,
        "sentence_embedding": np.concatenate(texts.sentence_embedding),
        "counts": np.array(counts, np.int32),
        "logit_scale": np.float32(tower.logit_scale),
    }
    kernel = text_towers.projection(tower)
    if kernel is not None:
        tree["projection"] = kernel
    param_files.save_params(stage_files.texts_path(workdir), tree, facts)


def check(config: ConfigDict, workdir: Path, classes: tuple[str, ...]) -> None:
    """Finds before slides are read what this stage, or `select`, would find after hours.

    Raises:
      ConfigError, DataError: the descriptions are not set, not usable, or not of these classes; a
        sentence is too long; `select.classes` has a name that is no class.
      WeightsError: the text tower's file is missing, broken, or of another image tower.
    """
    bank = text_towers.read_bank(config, classes)
    score.guiding(tuple(bank.classes), config.select.classes)
    if config.encoder.weights is not None and not stage_files.texts_path(workdir).is_file():
        bank.embed(text_towers.load(config), config.text.power)


def inputs(config: ConfigDict) -> dict[str, Any]:
    """What the files hold that the stage reads: an edited description redoes it.

    Raises:
      DataError, WeightsError: the descriptions or a tower cannot be read.
    """
    found = {}
    if config.text.descriptions is not None:
        found["descriptions"] = TextBank.load(config.text.descriptions).digest
    if config.encoder.weights is not None:
        found["towers"] = [loading.encoder_hash(config.encoder.weights), text_towers.digest(config)]
    return found
