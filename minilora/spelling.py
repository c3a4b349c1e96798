"""Suggestions for misspelt names, and plurals."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LISTED = 20  # names; the rest are only counted


def choose_from(word: object, names: Iterable[object]) -> str:
    """The end of an error, such as "did you mean 'lora'? choose from full, lora, qlora"."""
    known = list(dict.fromkeys(map(str, names)))
    listed = ("; " if any("," in name for name in known) else ", ").join(known[:LISTED])
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return f"{did_you_mean(word, known)}choose from {listed or 'none'}{more}"


def did_you_mean(word: object, names: Iterable[str]) -> str:
    """Such as "did you mean 'lora'? "; "" if no name is similar."""
    known = {name.casefold(): name for name in names}
    near = get_close_matches(str(word)[:100].casefold(), known, 1)
    return f"did you mean {known[near[0]]!r}? " if near else ""


def counted(n: int, what: str) -> str:
    """Such as "1 layer", "2 layers"."""
    return f"{n:,} {what}{'s' * (n != 1)}"
