"""Sentences as tokens: byte pairs learned from the captions."""

from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from jaxtyping import Bool, Int

from lrmil_jax.errors import ConfigError, DataError


class Tokenizer:
    """Byte-level BPE: every sentence has tokens, and case makes no difference.

    Source: Sennrich et al., ACL 2016, on bytes as GPT-2 does; by the `tokenizers` library.
    """

    def __init__(self, text: str):
        """Takes what `to_json` gave."""
        self._inner = tokenizers.Tokenizer.from_str(text)

    @classmethod
    def train(cls, captions: Iterable[str], *, vocabulary: int) -> "Tokenizer":
        """Learns at most `vocabulary` tokens; the same captions in any order give the same.

        Raises:
          ConfigError: fewer tokens than there are bytes.
        """
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        if vocabulary < len(alphabet):
            raise ConfigError(
                f"a vocabulary of {vocabulary} cannot hold the {len(alphabet)} bytes; set "
                f"pretrain.vocabulary to {len(alphabet) + 1} or more"
            )
        inner = tokenizers.Tokenizer(tokenizers.models.BPE())
        inner.normalizer = tokenizers.normalizers.Sequence(
            [tokenizers.normalizers.NFKC(), tokenizers.normalizers.Lowercase()]
        )
        inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
        inner.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocabulary,
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        )
        inner.train_from_iterator(sorted(set(captions)), trainer)
        return cls(inner.to_str())

    @property
    def size(self) -> int:
        """Tokens in all."""
        return self._inner.get_vocab_size()

    def to_json(self) -> str:
        """Everything, as text."""
        return self._inner.to_str()

    def encode(
        self, sentences: Sequence[str], *, limit: int
    ) -> tuple[Int[np.ndarray, "n T"], Bool[np.ndarray, "n T"]]:
        """Token numbers and where they are, filled up to the longest sentence.

        Args:
          sentences: at least one.
          limit: tokens that a sentence may have.

        Raises:
          DataError: a sentence is empty, or longer than `limit`.
        """
        token_ids = [
            encoding.ids for encoding in self._inner.encode_batch([*map(str.strip, sentences)])
        ]
        for sentence, ids in zip(sentences, token_ids, strict=True):
            if not sentence.strip():
                raise DataError("a caption is empty; write a sentence or leave it away")
            if len(ids) > limit:
                raise DataError(
                    f"the caption {sentence[:60]!r} has {len(ids)} tokens, more than the {limit} "
                    "that the text tower reads; shorten it, or train with a larger "
                    "pretrain.text_tokens"
                )
        lengths = np.array([len(ids) for ids in token_ids])
        mask = np.arange(lengths.max())[None] < lengths[:, None]
        tokens = np.zeros(mask.shape, np.int32)
        tokens[mask] = np.concatenate(token_ids)
        return tokens, mask
