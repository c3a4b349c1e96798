"""Two corpora that every Python carries, and splits of a text."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import NamedTuple

from .text import (
    read_whole,
)


class Split(NamedTuple):
    train: bytes
    validation: bytes
    test: bytes


def english() -> Split:
    """The documentation of the Python language, from pydoc_data.topics (about half a million characters).

    Topics are dealt by a checksum of their name, so that another Python version deals them alike; paragraphs of
    the held-out topics that stand in a training topic too are left out of them.
    """
    from pydoc_data.topics import topics

    return deal({name: text.replace("\r\n", "\n").encode() for name, text in topics.items()}, by_paragraph=True)


def python_source() -> Split:
    """The top-level modules of the standard library, dealt by file."""
    folder = Path(os.__file__).parent
    files = {path.name: path.read_bytes().replace(b"\r\n", b"\n") for path in folder.glob("*.py")}
    if not files:
        raise ValueError(f"this Python keeps no source files in {folder}: choose a text with --data FILE")
    return deal(files)


def deal(documents: dict[str, bytes], by_paragraph: bool = False) -> Split:
    """Join documents to training (8 of 10), validation and test text, by a checksum of their names."""
    train: list[bytes] = []
    validation: list[bytes] = []
    test: list[bytes] = []
    for name in sorted(documents):
        dealt = zlib.crc32(name.encode()) % 10
        (validation if dealt == 0 else test if dealt == 1 else train).append(documents[name])
    train_text, *held_out = (b"\n\n".join(part) for part in (train, validation, test))
    if by_paragraph:
        seen = set(train_text.split(b"\n\n"))
        held_out = [b"\n\n".join(p for p in text.split(b"\n\n") if p not in seen) for text in held_out]
    return Split(train_text, *held_out)


def split_file(path: str | Path, encoding: str = "utf-8") -> Split:
    """A text file, cut in order: 8 parts in 10 to train on, one to validate, one to test. Raises as read_whole does."""
    data = read_whole(path, encoding)
    first, second = len(data) * 8 // 10, len(data) * 9 // 10
    return Split(data[:first], data[first:second], data[second:])
