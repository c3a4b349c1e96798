"""Two corpora that come with Python, and splits of texts into training, validation and test data."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import NamedTuple

from .text import read_whole


class Split(NamedTuple):
    """A text in UTF-8, in three parts."""

    train: bytes
    validation: bytes
    test: bytes


def english() -> Split:
    """The documentation of the Python language, from pydoc_data.topics (about half a million characters).

    A checksum of its name decides to which part a topic belongs, so that it is the same for every version of Python.
    Paragraphs that are also in a training topic are left out of validation and test. Raises ImportError for a Python
    without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ImportError(
            "this Python lacks its documentation, pydoc_data: in a browser, import pydoc_data in a cell, which loads it"
        ) from None
    return split_documents(
        {name: text.replace("\r\n", "\n").encode() for name, text in topics.items()}, by_paragraph=True
    )


def python_source() -> Split:
    """The top-level modules of the standard library, split by file. Raises ValueError for a Python without them."""
    folder = Path(os.__file__).parent
    files = {path.name: path.read_bytes().replace(b"\r\n", b"\n") for path in folder.glob("*.py")}
    if not files:
        raise ValueError(f"this Python keeps no source files in {folder}: choose a text with --data FILE")
    return split_documents(files)


def split_documents(documents: dict[str, bytes], by_paragraph: bool = False) -> Split:
    """Training (about 8 of 10 documents), validation and test text, by a checksum of the documents' names.

    `by_paragraph` leaves training paragraphs out of the others.
    """
    train: list[bytes] = []
    validation: list[bytes] = []
    test: list[bytes] = []
    for name in sorted(documents):
        part = zlib.crc32(name.encode()) % 10
        (validation if part == 0 else test if part == 1 else train).append(documents[name])
    train_text, *held_out = (b"\n\n".join(part) for part in (train, validation, test))
    if by_paragraph:
        seen = set(train_text.split(b"\n\n"))
        held_out = [b"\n\n".join(p for p in text.split(b"\n\n") if p not in seen) for text in held_out]
    return Split(train_text, *held_out)


def split_file(path: str | Path, encoding: str = "utf-8") -> Split:
    """A text file: the first 8/10 are training, 1/10 validation, 1/10 test text. Raises as read_whole does."""
    data = read_whole(path, encoding)
    first, second = len(data) * 8 // 10, len(data) * 9 // 10
    return Split(data[:first], data[first:second], data[second:])
