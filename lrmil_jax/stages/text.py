"""text: the classes' descriptions through the text tower, once per cohort."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lrmil_jax.encoders import contrastive
from lrmil_jax.errors import ConfigError
from lrmil_jax.selection import ClassTexts, TextBank, score
from lrmil_jax.stages import layout, models, text_towers
from lrmil_jax.train.checkpoint import load_params, save_params


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes `text/classes.safetensors`, and every sentence's embedding beside it."""
    classes = layout.prepared_cohort(config, workdir).classes
    score.guiding(classes, config.select.classes)  # a wrong name is told before `align`
    bank = read_bank(config, classes)
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
    save_params(path(workdir), tree, facts)


def preflight(config: ConfigDict, workdir: Path, classes: tuple[str, ...]) -> None:
    """Finds before slides are read what this stage, or `select`, would find after hours.

    Raises:
      ConfigError, DataError: the descriptions are not set, not usable, or not of these classes; a
        sentence is too long; `select.classes` has a name that is no class.
      WeightsError: the text tower's file is missing, broken, or of another image tower.
    """
    score.guiding(classes, config.select.classes)
    bank = read_bank(config, classes)
    if config.encoder.weights is not None and not path(workdir).is_file():
        bank.embed(text_towers.load(config), config.text.power)


def read_bank(config: ConfigDict, classes: tuple[str, ...]) -> TextBank:
    """The descriptions of the cohort's classes, in their order.

    Raises:
      ConfigError: `text.descriptions` is not set.
      DataError: the file is not usable, or does not describe a class.
    """
    if config.text.descriptions is None:
        raise ConfigError(
            "text.descriptions is not set; WISE-FUSE needs --config.text.descriptions=FILE.toml "
            "with a table a class, or shipped:NAME"
        )
    bank = TextBank.load(config.text.descriptions).only(classes)
    bank.sentences(config.text.power)
    return bank


def path(workdir: Path) -> Path:
    """The file that this stage writes."""
    return layout.stage_folder(workdir, "text") / "classes.safetensors"


def inputs(config: ConfigDict) -> dict[str, Any]:
    """What the files hold that the stage reads: an edited description redoes it.

    Raises:
      DataError, WeightsError: the descriptions or a tower cannot be read.
    """
    found = {}
    if config.text.descriptions is not None:
        found["descriptions"] = TextBank.load(config.text.descriptions).digest
    if config.encoder.weights is not None:
        found["towers"] = [models.encoder_hash(config.encoder.weights), text_towers.digest(config)]
    return found


class SharedSpace:
    """The space of images and texts, as the stages after `text` need it.

    Attributes:
      texts: the classes.
      scale: factor on cosines that makes logits of them.
      kernel: [D, d] from an image embedding into the space, or None if it is there already.
    """

    def __init__(self, file: Path):
        """Reads what `run` wrote.

        Raises:
          WeightsError: the file is missing or broken.
        """
        tree, facts = load_params(file)
        ends = np.cumsum(tree["counts"])[:-1]
        self.texts = ClassTexts(
            classes=tuple(facts["classes"]),
            sentences=tuple(map(tuple, facts["sentences"])),
            embedding=tree["embedding"],
            sentence_embedding=tuple(np.split(tree["sentence_embedding"], ends)),
        )
        self.scale = float(tree["logit_scale"])
        self.kernel = tree.get("projection")

    def project(self, embedding):
        """Image embeddings [..., D] in the space, each of length 1; NumPy or traced."""
        if self.kernel is not None:
            embedding = embedding @ self.kernel
        return contrastive.normalise(embedding)
