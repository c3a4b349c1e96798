"""Another text whose loss is reported during training, to see what the model forgets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..data import Batch, all_windows, english, excerpts, python_source, read_whole
from ..models.tokenizer import Tokenizer

CORPORA = {"builtin": python_source, "english": english}  # by name; the built-in model has read the second
MOST = 8192  # bytes of the text that are evaluated, as many as of held-out text


class Watched(NamedTuple):
    batches: Callable[[], Iterable[Batch]]
    tokens_per_byte: float  # turns nats per token into nats per byte
    sha256: str


def read_watched(data: str, tokenizer: Tokenizer, batch: int, length: int, encoding: str = "utf-8") -> Watched:
    """Excerpts of a text file, or of the held-out part of a corpus of CORPORA: evaluated, and not trained on.

    Raises OSError for a file that cannot be read, ValueError for one that is too short, and as read_whole does.
    """
    text = excerpts(CORPORA[data]().validation if data in CORPORA else read_whole(data, encoding), MOST)
    tokens = tokenizer.encode(text.decode(errors="ignore"), special=False)
    if len(tokens) < 2:
        raise ValueError(f"{data} has {len(tokens)} tokens to watch: give more text")
    return Watched(
        lambda: all_windows(tokens, batch, length), len(tokens) / len(text), hashlib.sha256(text).hexdigest()
    )
