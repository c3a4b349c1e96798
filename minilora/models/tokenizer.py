"""Text to token ids and back: what every tokenizer does, and the one whose ids are bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..data import decode_bytes, encode_bytes


class TextBatch(NamedTuple):
    """Texts as the rows of arrays on the host, padded on the right."""

    ids: np.ndarray  # (B, T) int64
    padding: np.ndarray  # (B, T) bool, True for a real token
    segments: np.ndarray  # (B, T) int64, 1 in the second text of a pair
    truncated: np.ndarray  # (B,) bool, True for a text that was truncated
    lengths: np.ndarray  # (B,) int64, the tokens of each before truncation


class Tokenizer:
    """Text to ids and back.

    `bos`, `eos`, `pad` and `unknown` (for text outside the vocabulary) are ids, or None. `special` are the ids of all
    special tokens, `vocab` is the number of ids.
    """

    vocab: int
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    unknown: int | None = None
    special: frozenset[int] = frozenset()

    def encode(self, text: str, special: bool = True) -> np.ndarray:
        """(N,) int64. `special` adds the special tokens around a text ([CLS] ... [SEP], <s> ...)."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special tokens."""
        raise NotImplementedError

    def batch(self, texts: Sequence[str | tuple[str, str]], length: int | None = None) -> TextBatch:
        """Texts or pairs of texts with their special tokens, each truncated to at most `length` ids (None: not)."""
        raise NotImplementedError

    @cached_property
    def stop(self) -> frozenset[int]:
        """The ids that end a text."""
        return frozenset()

    def chat(self, messages: Sequence[Mapping[str, Any]], reply: bool = True) -> str:
        """The text of a conversation, [{"role": "user", "content": "Hi"}, ...], in the model's chat template.

        `reply` adds the beginning of the model's turn (add_generation_prompt). The text has its special tokens: encode
        it with special=False. Raises ValueError for a model without a chat template, and for messages that the template
        refuses.
        """
        raise ValueError("this model has no chat template: it continues a text, it does not answer messages")

    def generated(self, messages: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
        """(N,) bool: the tokens of chat(messages, reply=False) that the chat template marks with {% generation %}, as
        written by the model; None where it marks nothing. Raises as chat() does."""
        return None

    def files(self) -> dict[str, bytes]:
        """{file name: content} from which read_tokenizer makes this tokenizer again; {} for bytes.

        The files that it was read from, byte for byte, or new ones.
        """
        return {}

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of `ids`, each piece as soon as no later id can change it. Joined they are decode(ids).

        The text of an id depends on its neighbours: a space between words, the bytes of one letter. So each time the
        ids of the last piece are decoded once more, together with the new ones.
        """
        context: list[int] = []  # the ids of the last piece, ...
        waiting: list[int] = []  # ... and those after it
        for i in ids:
            if self.is_skipped(i):
                continue
            waiting.append(i)
            before, now = self.decode(context), self.decode(context + waiting)
            if not (now.endswith("\N{REPLACEMENT CHARACTER}") or self.is_byte(i)):
                if len(now) > len(before):
                    yield now[len(before) :]
                context, waiting = waiting, []
        if waiting:
            yield self.decode(context + waiting)[len(self.decode(context)) :]

    def is_skipped(self, i: int) -> bool:
        """Whether decode skips this id."""
        return False

    def is_byte(self, i: int) -> bool:
        """Whether this id stands for one byte: with the bytes after it, it may become another letter."""
        return False


class ByteTokenizer(Tokenizer):
    """The ids are the bytes, 0..255: nothing to load, and no special tokens."""

    vocab = 256
    pad = 0  # a byte that no text has

    def encode(self, text: str, special: bool = True) -> np.ndarray:
        return encode_bytes(text)

    def decode(self, ids: Iterable[int]) -> str:
        return decode_bytes(np.fromiter(ids, np.int64))

    def batch(self, texts: Sequence[str | tuple[str, str]], length: int | None = None) -> TextBatch:
        if any(not isinstance(text, str) for text in texts):
            raise ValueError("bytes have no token to separate a pair of texts: give one text for each row")
        rows = [self.encode(text) for text in texts if isinstance(text, str)]
        lengths = [len(row) for row in rows]
        return padded([row[:length] for row in rows], [np.zeros(len(row[:length])) for row in rows], lengths, 0)


def padded(ids: Sequence[Any], segments: Sequence[Any], lengths: Sequence[int], pad: int) -> TextBatch:
    """Rows of different lengths as one TextBatch; `lengths` before truncation."""
    shape, before = (len(ids), max(map(len, ids), default=0)), np.array(lengths, np.int64)
    cut = before > np.array([len(row) for row in ids], np.int64)
    batch = TextBatch(np.full(shape, pad), np.zeros(shape, bool), np.zeros(shape, np.int64), cut, before)
    for row, (row_ids, row_segments) in enumerate(zip(ids, segments, strict=True)):
        batch.ids[row, : len(row_ids)] = row_ids
        batch.padding[row, : len(row_ids)] = True
        batch.segments[row, : len(row_ids)] = row_segments
    return batch


def check_matches(tokenizer: Tokenizer, vocab: int) -> None:
    """Raise ValueError if the tokenizer has more ids than the embedding has rows. Many embeddings have spare rows."""
    if tokenizer.vocab > vocab:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab} ids, the model's embedding {vocab} rows: they do not belong together"
        )
