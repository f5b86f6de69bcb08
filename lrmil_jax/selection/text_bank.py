"""Class descriptions that a pathologist can edit, and what a text tower makes of them.

A description file is TOML, a table a class, in the order of the classes:

    task = "Oral mucosa: normal or squamous cell carcinoma"
    templates = ["{}", "an H&E image of {}"]   # each holds {} once, the sentence's place
    reviewed_by = "Dr A. Example"              # free text, as are date and note
    [normal]
    low = ["Sentences of what is seen at 5x to 10x."]
    high = ["Sentences of what is seen at 20x to 40x."]
    source = ["Where the facts are from."]

A class has sentences of at least one power; without templates the sentences stand for themselves.
"""

import dataclasses
import difflib
import hashlib
import json
import logging
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from lrmil_jax.encoders import contrastive, pretrained
from lrmil_jax.errors import ConfigError, DataError, WeightsError

log = logging.getLogger(__name__)

FORMAT = "lrmil_jax.text_bank/1"
POWERS = ("low", "high")
SHIPPED = pretrained.SHIPPED  # descriptions are named as weights are: "shipped:NAME"
_SHIPPED_FOLDER = Path(__file__).parent / "descriptions"
_FREE_TEXT = ("task", "reviewed_by", "date", "note")
_TABLE_KEYS = (*POWERS, "source")


@runtime_checkable
class Tower(Protocol):
    """What a text tower must offer here; `encoders.TextTower` is one."""

    def embed(self, sentences: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Sentences in the shared space, each of length 1; DataError for one it cannot read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassDescription:
    """What is said of one class.

    Attributes:
      low: sentences of what is seen at low power.
      high: sentences of what is seen at high power.
      source: where the facts are from; () if the file does not say.
    """

    low: tuple[str, ...] = ()
    high: tuple[str, ...] = ()
    source: tuple[str, ...] = ()

    def sentences(self, power: str) -> tuple[str, ...]:
        """Those of "low", "high" or "both"; one that stands under both counts once."""
        both = tuple(dict.fromkeys(self.low + self.high))
        return {"low": self.low, "high": self.high, "both": both}[power]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassTexts:
    """Classes in the shared space of images and texts.

    Attributes:
      classes: names, C of them.
      sentences: of each class, without templates.
      embedding: of each class, of length 1.
      sentence_embedding: of each class's sentences [M, d], of length 1; M may differ.
    """

    classes: tuple[str, ...]
    sentences: tuple[tuple[str, ...], ...]
    embedding: Float[np.ndarray, "C d"]
    sentence_embedding: tuple[Float[np.ndarray, "_ d"], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextBank:
    """The descriptions of a task's classes, checked.

    Attributes:
      path: the file they were read from.
      classes: descriptions by name, in order.
      templates: each with one "{}", where a sentence goes.
      about: the file's free text: task, reviewed_by, date, note.
    """

    path: Path
    classes: Mapping[str, ClassDescription]
    templates: tuple[str, ...] = ("{}",)
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> "TextBank":
        """Reads a description file, named as in `text.descriptions`.

        Raises:
          DataError: the file is missing or no TOML; a class has no sentence; a sentence is empty,
            twice in its list, or said of two classes; a key or template that cannot be.
        """
        path = locate(path)
        content = _read(path)
        tables = {name: value for name, value in content.items() if isinstance(value, dict)}
        free_text = {name: value for name, value in content.items() if name not in tables}
        templates = _templates(path, free_text.pop("templates", ["{}"]))
        for name, value in free_text.items():
            _check_key(str(path), name, (*_FREE_TEXT, "templates"))
            if not isinstance(value, str | int) and not hasattr(value, "isoformat"):
                raise DataError(f"{path}: {name} must be text in quotes")
        if len(tables) < 2:
            raise DataError(
                f"{path} describes {len(tables)} classes; at least 2 are needed, each a [table]"
            )
        classes = {name: _description(path, name, table) for name, table in tables.items()}
        _check_shared(path, classes)
        about = {name: str(value) for name, value in free_text.items()}
        return cls(path=path, classes=classes, templates=templates, about=about)

    @property
    def digest(self) -> str:
        """SHA-256 of all that the file says, its layout and comments aside."""
        classes = [
            (name, dataclasses.astuple(description)) for name, description in self.classes.items()
        ]
        content = json.dumps([FORMAT, classes, self.templates, dict(self.about)])
        return hashlib.sha256(content.encode()).hexdigest()

    def only(self, names: Sequence[str]) -> "TextBank":
        """The bank of these classes, in this order.

        Raises:
          DataError: a class that the file does not describe.
        """
        missing = [name for name in names if name not in self.classes]
        if missing:
            raise DataError(
                f"{self.path} does not describe the class {', '.join(missing)}; it has "
                f"{', '.join(self.classes)}: add a [table] of that name, or rename the class"
            )
        return dataclasses.replace(self, classes={name: self.classes[name] for name in names})

    def sentences(self, power: str) -> tuple[tuple[str, ...], ...]:
        """Each class's sentences of "low", "high" or "both".

        Raises:
          ConfigError: another power.
          DataError: a class has none of that power.
        """
        if power not in (*POWERS, "both"):
            raise ConfigError(f"text.power is {power!r}, but it must be low, high or both")
        by_class = {
            name: description.sentences(power) for name, description in self.classes.items()
        }
        for name, sentences in by_class.items():
            if not sentences:
                other = next(word for word in POWERS if word != power)
                raise DataError(
                    f"{self.path}, class {name}: there is no sentence at {power} power; write "
                    f"some, or set text.power to {other} or both"
                )
        return tuple(by_class.values())

    def embed(
        self,
        tower: Tower,
        power: str = "both",
        *,
        cache: Path | None = None,
        tower_hash: str | None = None,
    ) -> ClassTexts:
        """Every class, and every sentence, as the text tower sees it.

        A sentence is the normalised mean over templates, a class that over templates and sentences
        (Radford et al., ICML 2021, section 3.1.4), each part being of length 1.

        Args:
          tower: see `Tower`.
          power: "low", "high" or "both".
          cache: folder in which embeddings are kept, as <SHA-256>.safetensors.
          tower_hash: SHA-256 of the text tower's weights; a cache needs it.

        Raises:
          ConfigError: unknown power, or a cache without a hash.
          DataError: a class has no sentence of this power, or one the tower cannot read.
          WorkdirError: the cache cannot be written.
        """
        if cache is not None and not tower_hash:
            raise ConfigError("A cache of text embeddings needs the hash of the tower's weights.")
        sentences = self.sentences(power)
        path = None if cache is None else cache / f"{self._key(sentences, tower_hash)}.safetensors"
        tensors = None if path is None else _cached(path)
        if tensors is None:
            tensors = self._embed(tower, sentences)
            if path is not None:
                about = {"format": FORMAT, "templates": self.templates, "sentences": sentences}
                pretrained.write_tensors(path, tensors, {**about, "tower": tower_hash})
        ends = np.cumsum([len(of_class) for of_class in sentences])[:-1]
        return ClassTexts(
            classes=tuple(self.classes),
            sentences=sentences,
            embedding=tensors["embedding"],
            sentence_embedding=tuple(np.split(tensors["sentence_embedding"], ends)),
        )

    def _key(self, sentences: tuple[tuple[str, ...], ...], tower_hash: str | None) -> str:
        """Of all that the embeddings follow from; what the classes are called does not matter."""
        content = json.dumps([FORMAT, self.templates, sentences, tower_hash])
        return hashlib.sha256(content.encode()).hexdigest()

    def _embed(
        self, tower: Tower, sentences: tuple[tuple[str, ...], ...]
    ) -> dict[str, Float[np.ndarray, "_ d"]]:
        parts = [
            self._embed_class(tower, name, of_class)
            for name, of_class in zip(self.classes, sentences, strict=True)
        ]
        counts = [len(of_class) for of_class in sentences]
        label = np.repeat(np.arange(len(counts)), np.multiply(counts, len(self.templates)))
        sentence = np.repeat(np.arange(sum(counts)), len(self.templates))
        embeddings = np.concatenate(parts)
        # The mean over what has the same number: of one class, and of one sentence.
        by_class = contrastive.class_embedding(embeddings, label, num_classes=len(counts))
        by_sentence = contrastive.class_embedding(embeddings, sentence, num_classes=sum(counts))
        return {"embedding": np.asarray(by_class), "sentence_embedding": np.asarray(by_sentence)}

    def _embed_class(
        self, tower: Tower, name: str, sentences: tuple[str, ...]
    ) -> Float[np.ndarray, "n d"]:
        """A class's sentences in every template, sentence by sentence."""
        # Not str.format: a sentence may have braces of its own.
        lines = [
            template.replace("{}", sentence)
            for sentence in sentences
            for template in self.templates
        ]
        try:
            return tower.embed(lines)
        except DataError as error:
            raise DataError(f"{self.path}, class {name}: {error}") from error


def locate(descriptions: str | Path) -> Path:
    """The file that `text.descriptions` names: a path, or "shipped:NAME" of this package.

    Raises:
      DataError: no file of that name is shipped.
    """
    text = str(descriptions)
    if not text.startswith(SHIPPED):
        return Path(text)
    path = _SHIPPED_FOLDER / f"{text.removeprefix(SHIPPED)}.toml"
    shipped = sorted(file.stem for file in _SHIPPED_FOLDER.glob("*.toml"))
    if path.stem not in shipped:
        raise DataError(
            f"no descriptions {path.stem!r} are shipped: use "
            f"{' or '.join(SHIPPED + name for name in shipped)}, or the path of a file"
        )
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        # Editors on Windows put a mark in front of UTF-8, which TOML does not know.
        return tomllib.loads(path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n"))
    except OSError as error:
        raise DataError(
            f"the descriptions {path} cannot be read ({error.strerror}); give a TOML file with a "
            "table a class, or shipped:NAME"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"the descriptions {path} are no UTF-8 text; save them as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"the descriptions {path} are no TOML: {error}; mend that line") from error


def _check_key(where: str, name: str, allowed: Sequence[str]) -> None:
    if name not in allowed:
        close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"it may have {', '.join(allowed)}"
        raise DataError(f"{where} has {name!r}, which means nothing here; {hint}")


def _templates(path: Path, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f'{path}: templates must be a list such as ["{{}}"]')
    for number, template in enumerate(value, 1):
        if not isinstance(template, str) or template.count("{}") != 1:
            raise DataError(
                f"{path}: template {number} is {template!r}; it must hold {{}} once, where the "
                "sentence goes"
            )
    if len(set(value)) < len(value):
        raise DataError(f"{path}: a template stands there twice; take one away")
    return tuple(value)


def _description(path: Path, name: str, table: Mapping[str, Any]) -> ClassDescription:
    where = f"{path}, class {name}"
    for key in table:
        _check_key(where, key, _TABLE_KEYS)
    sentences = {power: _sentences(where, power, table.get(power, [])) for power in POWERS}
    if not any(sentences.values()):
        raise DataError(f"{where}: there is no sentence; write some under low or high")
    source = table.get("source", [])
    source = [source] if isinstance(source, str) else source
    return ClassDescription(**sentences, source=_sentences(where, "source", source))


def _sentences(where: str, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(sentence, str) for sentence in value):
        raise DataError(f'{where}: {key} must be a list of sentences, as in {key} = ["…", "…"]')
    sentences = [" ".join(sentence.split()) for sentence in value]
    for number, sentence in enumerate(sentences, 1):
        if not sentence:
            raise DataError(f"{where}: {key} sentence {number} is empty; write it or take it away")
        if sentence in sentences[: number - 1]:
            raise DataError(f"{where}: {key} has {sentence!r} twice; take one away")
    return tuple(sentences)


def _check_shared(path: Path, classes: Mapping[str, ClassDescription]) -> None:
    """What is said of two classes tells neither from the other."""
    class_of: dict[str, str] = {}
    for name, description in classes.items():
        for sentence in description.sentences("both"):
            first = class_of.setdefault(sentence, name)
            if first != name:
                raise DataError(
                    f"{path}: {sentence!r} is said of {first} and of {name}; say of each what the "
                    "other has not"
                )


def _cached(path: Path) -> dict[str, np.ndarray] | None:
    """What the file holds; None if it is not there or broken, so that it is made anew."""
    if not path.is_file():
        return None
    try:
        return pretrained.read_tensors(path)[0]
    except WeightsError:
        log.warning("the text embeddings %s cannot be read; they are made anew", path)
        return None
