"""The text tower that belongs to the run's image tower: one of this program's, or a published."""

import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from lrmil_jax.encoders import TextTower, language, pretrained
from lrmil_jax.encoders.text_files import OPENAI_VOCABULARY
from lrmil_jax.errors import ConfigError, WeightsError
from lrmil_jax.selection import TextBank
from lrmil_jax.workspace import layout

_TOKENIZERS = ("tokenizer.json", "vocab.json", "merges.txt", OPENAI_VOCABULARY)


def load(config: ConfigDict, workdir: Path | None = None) -> TextTower | language.Tower:
    """The text tower of `encoder.name`.

    Args:
      config: of the run.
      workdir: with the towers that `pretrain` trained, where `encoder.weights` is not set.

    Raises:
      ConfigError: `encoder.weights` is not set, and no towers were trained here.
      WeightsError: a file is missing or broken, or the tower belongs to another image tower.
    """
    if config.encoder.weights is None and workdir is not None:
        weights = layout.stage_folder(workdir, "pretrain") / "encoder.safetensors"
        path, tokenizer = weights.with_name("text.safetensors"), None
    else:
        path, tokenizer = _paths(config)
        weights = pretrained.locate(config.encoder.weights)
    if tokenizer is not None:
        return language.load(config.encoder.name, path, tokenizer=tokenizer)
    return TextTower.load(path, encoder_hash=pretrained.weights_hash(weights))


def projection(tower: TextTower | language.Tower) -> Float[np.ndarray, "D d"] | None:
    """What brings image embeddings into the shared space; None if they are there already."""
    layer = tower.params.get("image_projection")
    return None if layer is None else np.asarray(layer["kernel"], np.float32)


def digest(config: ConfigDict) -> str:
    """SHA-256 of all the files that sentences' embeddings follow from.

    Raises:
      ConfigError, WeightsError: see `load`.
    """
    path, tokenizer = _paths(config)
    files = [path]
    if tokenizer is not None:
        folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
        candidates = {folder / name for name in _TOKENIZERS} | {tokenizer}
        files += sorted(file for file in candidates if file.is_file())
    hashes = [pretrained.weights_hash(file) for file in files]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _paths(config: ConfigDict) -> tuple[Path, Path | None]:
    """The file with the text tower, and where a published one's tokenizer is."""
    if config.encoder.weights is None:
        raise ConfigError(
            "encoder.weights is not set; give the file of an image tower that has a text tower, "
            "such as shipped:procedural"
        )
    weights, text = pretrained.locate(config.encoder.weights), config.text
    text_weights = None if text.weights is None else pretrained.locate(text.weights)
    if config.encoder.name in language.TEXT_SIZES:
        return text_weights or weights, Path(text.tokenizer or weights.parent)
    path = text_weights or weights.with_name("text.safetensors")
    if not path.is_file():
        raise WeightsError(
            f"{path} does not exist: sentences need the text tower that was trained with the image "
            f"tower {weights.name}; put it there, set text.weights, or use an encoder that is "
            f"published with one ({', '.join(language.TEXT_SIZES)})"
        )
    return path, None


def read_bank(config: ConfigDict, classes: tuple[str, ...]) -> TextBank:
    """The descriptions of the cohort's classes, in their order; all that there are where the task
    has no classes.

    Raises:
      ConfigError: `text.descriptions` is not set.
      DataError: the file is not usable, or does not describe a class.
    """
    if config.text.descriptions is None:
        raise ConfigError(
            "text.descriptions is not set; WISE-FUSE needs --config.text.descriptions=FILE.toml "
            "with a table a class, or shipped:NAME"
        )
    bank = TextBank.load(config.text.descriptions)
    bank = bank.only(classes) if classes else bank
    bank.sentences(config.text.power)
    return bank
