"""What a diagnosis says, in two languages: English stands in the code, Chinese in the catalogues beside it, *.zh.json.

A catalogue maps each English sentence to its Chinese. `zh.json` has those of a package, and each problem and each
exercise has one of its own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Words(NamedTuple):
    """One sentence in each language."""

    en: str
    zh: str

    def in_language(self, language: str) -> str:
        """The sentence in one language, by its code. Raises ValueError for any but those two."""
        if language not in self._fields:
            raise ValueError(f"no words in {language!r}, only in {' and '.join(map(repr, self._fields))}")
        return str(getattr(self, language))

    def filled(self, **values: str | Words) -> Words:
        """Both sentences with each name in braces, as {it}, replaced by its value."""
        texts = list(self)
        for name, value in values.items():
            each = value if isinstance(value, Words) else (value, value)
            texts = [text.replace(f"{{{name}}}", word) for text, word in zip(texts, each, strict=True)]
        return Words(*texts)


@functools.cache
def catalogue() -> dict[str, str]:
    """{English: Chinese}, of all catalogues."""
    found: dict[str, str] = {}
    for path in sorted(Path(__file__).parent.parent.rglob("*zh.json")):
        found |= json.loads(path.read_text(encoding="utf-8"))
    return found


def words(english: str, **values: str | Words) -> Words:
    """The sentence in both languages, filled with the values. One that is in no catalogue stays English."""
    return Words(english, catalogue().get(english, english)).filled(**values)


def joined(separator: str, parts: Iterable[Words]) -> Words:
    """All parts as one sentence. The separator has an entry in the catalogue too."""
    between, texts = words(separator), list(parts)
    return Words(between.en.join(part.en for part in texts), between.zh.join(part.zh for part in texts))


def either(parts: Iterable[Words]) -> Words:
    """One or another of these statements."""
    return functools.reduce(lambda a, b: words("{a} or {b}", a=a, b=b), parts)
