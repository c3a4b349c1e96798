"""Regular expressions from a file of someone else's: none may keep `re` busy for minutes.

`re` tries the ways to match one after the other. (.*)*x cuts a name of n characters in 2ⁿ ways before it gives up, and
.*.*.*.*.*x in about n⁵/5!. So the ways are counted before a pattern is used, and one that has too many is refused.
"""

from __future__ import annotations

import itertools
import re
from re import _constants as code  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

MOST = 10**6  # ways, for one name: some hundredths of a second
LONG = 20  # ways that an unbounded repeat counts for: k of them cut n = 50 characters in C(n + k, k) ~ 20ᵏ ways


def check_regular(key: str, pattern: str, whole: str) -> None:
    """Raise ValueError, with the key and the pattern, unless `whole`, which it is a part of, is a regular expression
    that is quick on a name. Some that would be quick are refused too: the count is a bound from above."""
    short = pattern if len(pattern) <= 80 else f"{pattern[:80]}..."
    try:
        re.compile(pattern)
        re.compile(whole)
        n = ways(parser.parse(whole))
    except (re.error, OverflowError, RecursionError):
        raise ValueError(f"{key}: {short!r} is no regular expression") from None
    if n > MOST:
        raise ValueError(f"{key}: {short!r} can match a name in so many ways that it could run for minutes: it needs "
                         "fewer repeats (* and +), and none inside another")  # fmt: skip


def ways(parsed: Any) -> int:
    """In how many ways a parsed expression can match the beginning of a name, at most; MOST + 1 for all above it."""
    n = 1
    for kind, what in parsed:
        if kind in (code.MAX_REPEAT, code.MIN_REPEAT, code.POSSESSIVE_REPEAT):
            _, times, body = what
            times, each = LONG if times is code.MAXREPEAT else times, ways(body)
            n *= 1 + (times if each == 1 else each ** min(times, LONG))
        elif kind is code.BRANCH:
            branches = [ways(body) for body in what[1]]
            n *= max(branches) if exclude_each_other(what[1]) else sum(branches)
        else:  # groups, lookarounds and conditions hold expressions; characters hold none
            for body in what if isinstance(what, tuple) else (what,):
                if isinstance(body, parser.SubPattern):
                    n *= ways(body)
        n = min(n, MOST + 1)
    return n


def exclude_each_other(branches: list[Any]) -> bool:
    """Where one of q_proj|k_proj matches, the other does not."""

    def differ(a: Any, b: Any) -> bool:
        for one, two in zip(a, b, strict=False):
            if one != two or one[0] not in (code.LITERAL, code.AT):
                return bool(one[0] is two[0] is code.LITERAL and one != two)
        return False

    return all(differ(a, b) for a, b in itertools.combinations(branches, 2))
