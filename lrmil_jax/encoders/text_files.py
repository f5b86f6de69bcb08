"""Published text towers on disk: tensors as their publishers name them, and their tokenizers."""

import gzip
import html
import json
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Bool, Int

from lrmil_jax.encoders.convert import refuse
from lrmil_jax.encoders.layouts import Layout
from lrmil_jax.encoders.tensors import open_tensors
from lrmil_jax.errors import DataError, WeightsError

_STARTS = ("<|startoftext|>", "<start_of_text>")
_ENDS = ("<|endoftext|>", "<end_of_text>")
_PAD = "<pad>"
OPENAI_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
_OPENAI_MERGES = 49152 - 256 - 2  # of those in the file, which holds more
# Words with their apostrophes, single digits, and runs of anything else.
_CLIP_PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class SentenceTokenizer:
    """A published tokenizer: every sentence between a start and an end token, never cut off."""

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        path: Path,
        clean: Callable[[str], str] | None = None,
    ):
        """Takes what the file says of cutting and filling out of `inner`.

        Args:
          inner: it splits sentences; its own start and end tokens are not asked for.
          path: of its file, for the messages.
          clean: applied to sentences before, where `inner` cannot do it.

        Raises:
          WeightsError: there is no start or end token.
        """
        inner.no_truncation()
        inner.no_padding()
        self._inner, self._clean = inner, clean or str
        self.start, self.end = (
            next((number for number in map(inner.token_to_id, names) if number is not None), None)
            for names in (_STARTS, _ENDS)
        )
        self.pad: int | None = inner.token_to_id(_PAD)
        if self.start is None or self.end is None:
            raise WeightsError(
                f"Tokenizer {path} has no {' or '.join(_STARTS)} or no {' or '.join(_ENDS)}: give "
                "the tokenizer that is published with the text tower."
            )

    @property
    def size(self) -> int:
        """Tokens in all, special ones among them."""
        return self._inner.get_vocab_size()

    def encode(
        self, sentences: Sequence[str], *, limit: int
    ) -> tuple[Int[np.ndarray, "n T"], Bool[np.ndarray, "n T"]]:
        """Token numbers and where they are, filled up with 0 to the longest sentence.

        Args:
          sentences: at least one.
          limit: tokens that a sentence may have, start and end among them.

        Raises:
          DataError: a sentence is empty, longer than `limit`, or contains a special token.
        """
        encoded = self._inner.encode_batch(
            [self._clean(sentence) for sentence in sentences], add_special_tokens=False
        )
        token_ids = [[self.start, *encoding.ids, self.end] for encoding in encoded]
        special = {self.start, self.end, self.pad}
        for index, (sentence, ids) in enumerate(zip(sentences, token_ids, strict=True)):
            if not sentence.strip() or len(ids) == 2:
                raise DataError(
                    f"sentence {index + 1} of {len(token_ids)} is empty ({sentence!r}); write "
                    "one or leave it away"
                )
            if not special.isdisjoint(ids[1:-1]):
                raise DataError(
                    f"the sentence {sentence[:60]!r} contains a special token of the tokenizer, "
                    "at which the text tower would end it; take it out"
                )
            if len(ids) > limit:
                raise DataError(
                    f"the sentence {sentence[:60]!r} has {len(ids)} tokens with its start and "
                    f"end, more than the {limit} that the text tower reads; shorten it"
                )
        lengths = np.array([len(ids) for ids in token_ids])
        mask = np.arange(lengths.max())[None] < lengths[:, None]
        tokens = np.zeros(mask.shape, np.int32)
        tokens[mask] = np.concatenate(token_ids)
        return tokens, mask


def read_tokenizer(path: str | Path) -> SentenceTokenizer:
    """A tokenizer from local files.

    Args:
      path: a tokenizer.json of Hugging Face's (CONCH's conch_byte_level_bpe_uncased.json is one),
        vocab.json with merges.txt beside it, OpenAI's bpe_simple_vocab_16e6.txt.gz, or a folder
        with one of these. Each cleans sentences as its publisher's code does; with OpenAI's,
        text in a wrong encoding is not repaired, which `ftfy` would do.

    Raises:
      WeightsError: there is no such file, or it is no tokenizer.
    """
    path = Path(path)
    file = path
    if path.is_dir():
        names = ("tokenizer.json", "vocab.json", OPENAI_VOCABULARY)
        file = next((path / name for name in names if (path / name).is_file()), None)
        if file is None:
            raise WeightsError(f"Folder {path} has no tokenizer: none of {', '.join(names)}.")
    if not file.is_file():
        raise WeightsError(f"Tokenizer {file} does not exist.")
    try:
        if file.suffix == ".json":
            return _read_json(file)
        return SentenceTokenizer(_openai_tokenizer(file), path=file, clean=clean_as_openai)
    except WeightsError:
        raise
    except Exception as error:  # the library raises nothing more special
        raise WeightsError(
            f"{file} is no tokenizer ({error}): give the one published with the text tower."
        ) from error


def _read_json(file: Path) -> SentenceTokenizer:
    text = file.read_text("utf-8")
    # "model" is also a word, which a vocabulary numbers.
    if isinstance(json.loads(text).get("model"), dict):
        return SentenceTokenizer(tokenizers.Tokenizer.from_str(text), path=file)
    merges = file.with_name("merges.txt")
    if not merges.is_file():
        raise WeightsError(f"Beside {file} there is no merges.txt: copy it there.")
    inner = _clip_tokenizer(*tokenizers.models.BPE.read_file(str(file), str(merges)))
    inner.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.NFC(),
            tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            tokenizers.normalizers.Lowercase(),
        ]
    )
    return SentenceTokenizer(inner, path=file)


def _openai_tokenizer(file: Path) -> tokenizers.Tokenizer:
    """Numbers follow from the order: bytes, bytes that end a word, merges, start and end."""
    open_text = gzip.open if file.suffix == ".gz" else open
    with open_text(file, "rt", encoding="utf-8") as lines:
        merges = [tuple(line.split()) for line in lines.read().split("\n")[1:] if line.strip()]
    merges = merges[:_OPENAI_MERGES]
    if not merges or any(len(merge) != 2 for merge in merges):
        raise WeightsError(f"{file} does not list pairs to merge: give {OPENAI_VOCABULARY}.")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    tokens += [_STARTS[0], _ENDS[0]]
    return _clip_tokenizer({token: number for number, token in enumerate(tokens)}, merges)


def _clip_tokenizer(
    vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]]
) -> tokenizers.Tokenizer:
    """CLIP's byte pairs, without the cleaning before them."""
    model = tokenizers.models.BPE(dict(vocabulary), list(merges), end_of_word_suffix="</w>")
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(
                tokenizers.Regex(_CLIP_PIECES), behavior="removed", invert=True
            ),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    # Only those that there are: adding another would make the vocabulary larger.
    special = [name for name in (_STARTS[0], _ENDS[0]) if name in vocabulary]
    inner.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in special])
    return inner


def clean_as_openai(text: str) -> str:
    """A sentence as OpenAI's and open_clip's tokenizers see it: plain, in small letters.

    They clean by `ftfy`; here are its rules for quotes, ligatures, full-width and control
    characters, and HTML entities, but not those that guess wrong encodings.
    """
    previous = None
    while text != previous:
        previous = text
        text = html.unescape(text) if "<" not in text else text
        text = unicodedata.normalize("NFC", text.translate(_PLAIN))
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def _plain_characters() -> dict[int, str | None]:
    plain: dict[int, str | None] = {}
    for code in map(ord, "ĲĳŉǱǲǳǄǅǆǇǈǉǊǋǌﬀﬁﬂﬃﬄﬅﬆ"):  # ligatures: one step of decomposition
        parts = unicodedata.decomposition(chr(code)).split()[1:]
        plain[code] = "".join(chr(int(part, 16)) for part in parts)
    for code in (0x3000, *range(0xFF01, 0xFFF0)):  # full and half width
        plain[code] = unicodedata.normalize("NFKC", chr(code))
    plain |= dict.fromkeys((0x02BC, *range(0x2018, 0x201C)), "'")
    plain |= dict.fromkeys(range(0x201C, 0x2020), '"')
    control = (range(9), [11], range(14, 32), [127], range(0x206A, 0x2070), [0xFEFF],
               range(0xFFF9, 0xFFFD))  # fmt: skip
    return plain | dict.fromkeys(code for codes in control for code in codes)


_PLAIN = _plain_characters()


def _open_clip(prefix: str) -> Layout:
    part = prefix + "transformer.resblocks.{n}."
    return Layout(
        top={
            "token_embedding": prefix + "token_embedding.weight",
            "position": prefix + "positional_embedding",
            "class_embedding": prefix + "cls_emb",
            "norm": prefix + "ln_final",
            "text_projection/kernel": prefix + "text_projection",
            "image_projection/kernel": "visual.proj_contrast",
            "log_scale": "logit_scale",
        },
        block={
            "norm1": part + "ln_1",
            "attn/qkv/kernel": part + "attn.in_proj_weight",
            "attn/qkv/bias": part + "attn.in_proj_bias",
            "attn/proj": part + "attn.out_proj",
            "norm2": part + "ln_2",
            "mlp/fc1": part + "mlp.c_fc",
            "mlp/fc2": part + "mlp.c_proj",
        },
        ignored=("visual.", "text_decoder.", prefix + "attn_mask", "input_resolution",
                 "context_length", "vocab_size"),
        projection_out_first=False,
    )  # fmt: skip


_HF = "text_model.encoder.layers.{n}."
TEXT_LAYOUTS: Mapping[str, Layout] = {
    "open_clip": _open_clip(""),  # and OpenAI's own
    "coca": _open_clip("text."),  # CONCH's, and open_clip's with the text tower apart
    "hf_clip": Layout(
        top={
            "token_embedding": "text_model.embeddings.token_embedding.weight",
            "position": "text_model.embeddings.position_embedding.weight",
            "norm": "text_model.final_layer_norm",
            "text_projection": "text_projection",
            "log_scale": "logit_scale",
        },
        block={
            "norm1": _HF + "layer_norm1",
            "attn/qkv": tuple(f"{_HF}self_attn.{name}_proj" for name in "qkv"),
            "attn/proj": _HF + "self_attn.out_proj",
            "norm2": _HF + "layer_norm2",
            "mlp/fc1": _HF + "mlp.fc1",
            "mlp/fc2": _HF + "mlp.fc2",
        },
        ignored=("vision_model.", "visual_projection.", "text_model.embeddings.position_ids"),
    ),
}


def read_parameters(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A text tower's parameters from its publisher's file, f32, by our '/'-joined paths.

    Args:
      path: safetensors, or what PyTorch wrote.
      shapes: of our parameters: the transformer's under "text/", "text_projection/kernel",
        "log_scale" and perhaps "image_projection/kernel".

    Raises:
      WeightsError: the file cannot be read or holds no text tower; missing, unexpected or
        misshapen tensors, all listed.
    """
    tensors, _ = open_tensors(path)
    layout, prefix = _find_layout(path, tensors)
    unprefixed = {name.removeprefix(prefix): read for name, read in tensors.items()}
    sources = {param: _sources(layout, param) for param in shapes}
    needed = {name for names in sources.values() for name in names}
    missing = sorted(needed - unprefixed.keys())
    unexpected = sorted(
        name for name in unprefixed.keys() - needed if not name.startswith(layout.ignored)
    )
    params, misshapen = {}, []
    for param, names in sources.items():
        if not unprefixed.keys() >= set(names):
            continue
        values = [np.asarray(unprefixed[name](), np.float32) for name in names]
        value = _as_param(param, values, layout)
        if value is None or value.shape != shapes[param]:
            stored_shapes = ", ".join(f"{n} {v.shape}" for n, v in zip(names, values, strict=True))
            misshapen.append(f"{stored_shapes} for {param} {shapes[param]}")
        else:
            params[param] = value
    refuse(path, missing, unexpected, misshapen)
    return params


def _find_layout(path: Path, names: Collection[str]) -> tuple[Layout, str]:
    for layout in TEXT_LAYOUTS.values():
        first = layout.top["token_embedding"]
        for prefix in layout.prefixes:
            if prefix + first in names:
                return layout, prefix
    raise WeightsError(
        f"{path} holds no text tower: give the publisher's own file of both towers, or one of "
        "its text tower."
    )


def _sources(layout: Layout, param: str) -> tuple[str, ...]:
    try:
        return layout.sources(param.removeprefix("text/"), mlp="gelu")
    except KeyError:
        return (f"({param})",)  # in no file of this layout: it will be told as missing


def _as_param(param: str, values: list[np.ndarray], layout: Layout) -> np.ndarray | None:
    """One parameter, or None if the tensors cannot be joined."""
    if len({(value.ndim, value.shape[1:]) for value in values}) > 1:
        return None
    if param == "log_scale" and values[0].size == 1:
        return values[0].reshape(())
    value = values[0] if len(values) == 1 else np.concatenate(values)
    stored_in_first = "projection" in param and not layout.projection_out_first
    transposed = param.endswith("kernel") and not stored_in_first
    return np.ascontiguousarray(value.T if transposed else value)
