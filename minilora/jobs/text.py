"""The task "text": windows of a text, or of Python's own source."""

from __future__ import annotations

import hashlib
import re
import warnings
from array import array
from pathlib import Path

import numpy as np

from ..data import PIECE as DECODED
from ..data import all_windows, excerpts, python_source, random_windows, split_file
from ..data.conversations import forms_of
from ..data.records import LINES, SEPARATORS, columns_of, shortened
from ..models.tokenizer import ByteTokenizer, Tokenizer
from ..spelling import did_you_mean
from .data import numbers_of_tokens
from .language_model import Dataset, LanguageModelTask

PIECE = 2**18  # bytes of a text that are encoded at a time
NEAR = 256  # bytes on each side of a cut, whose tokens must not change
SPACE = re.compile(rb"(?<=\S) (?=\S)")  # between two words


def read_text(data: str, tokenizer: Tokenizer, batch: int, length: int, seed: int, encoding: str = "utf-8") -> Dataset:
    """Windows of `length` tokens, from a text file or from Python's own source ("builtin").

    Raises OSError for a file that cannot be read, ValueError for a text that is too short.
    """
    if data == "builtin":
        split = python_source()
    elif (meant := did_you_mean(data, ["builtin"])) and not Path(data).exists():
        raise FileNotFoundError(f"{meant}there is no file {data!r}")
    else:
        split = split_file(data, encoding)
        warn_of_table(data, split.train)
    validation = excerpts(split.validation, 8192)
    train, held_out = tokens_of(split.train, tokenizer), tokens_of(validation, tokenizer)
    batches = random_windows(train, batch, length, seed)
    if len(held_out) < 2:
        raise ValueError(f"{data} leaves {len(held_out)} tokens to hold out: give more text")
    return Dataset(
        batches,
        lambda: all_windows(held_out, batch, length),
        tokens_per_byte=len(held_out) / len(validation),
        prompt=(validation.partition(b"\n")[2] or validation)[:100].decode(errors="ignore"),  # the first line is cut
        special=True,
        sha256=hashlib.sha256(b"".join(split)).hexdigest(),
        summary=f"{len(train):,} tokens to learn from, {len(held_out):,} held out",
        parts={
            "to learn from": numbers_of_tokens(train, tokenizer),
            "held out": numbers_of_tokens(held_out, tokenizer),
        },
    )


def warn_of_table(data: str, text: bytes) -> None:
    """Warn where the file `data`, which begins with `text`, looks like one for another task."""
    columns = columns_of(text[:DECODED].decode(errors="ignore"))
    if columns or data.lower().endswith((*SEPARATORS, *LINES)):
        task = "instruct" if forms_of(columns) else "classify"
        of = f" of the columns {shortened(', '.join(map(repr, columns)))}" if columns else ""
        warnings.warn(
            f"{data} looks like a table{of}: was --task {task} meant? As a text, the model learns to write such a file",
            stacklevel=2,
        )


def tokens_of(data: bytes, tokenizer: Tokenizer) -> bytes | np.ndarray:
    """(N,) uint16 or int32, or `data` itself for a tokenizer of bytes. A letter cut at an end of `data` is left out.

    A long text is encoded in pieces: the tokenizers package keeps a hundred bytes for each token while it encodes.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return data
    ids, start = array("H" if tokenizer.vocab <= 2**16 else "i"), 0  # it grows in place
    while start < len(data):
        stop, following = seam(data, start + PIECE, tokenizer)
        piece = data[start:stop].decode(errors="ignore")
        ids.frombytes(tokenizer.encode(piece, special=False).astype(ids.typecode).tobytes())
        start = following
    return np.frombuffer(ids, ids.typecode)


def seam(data: bytes, start: int, tokenizer: Tokenizer) -> tuple[int, int]:
    """(end of one piece, start of the next): the first space from `start` on at which cutting `data` changes no token.
    The next piece starts with the space or after it: some tokenizers add one before a text."""

    def ids(part: bytes) -> list[int]:
        return tokenizer.encode(part.decode(errors="ignore"), special=False).tolist()

    for found in SPACE.finditer(data, start):
        i = found.start()
        before, whole = data[max(0, i - NEAR) : i], ids(data[max(0, i - NEAR) : i + NEAR])
        for following in (i, i + 1):
            if ids(before) + ids(data[following : i + NEAR]) == whole:
                return i, following
    return len(data), len(data)


class Task(LanguageModelTask):
    read = staticmethod(read_text)
    next_command = "generate --prompt 'The '"
