"""How many of the mistakes that an exercise lists its own check detects, and how many it names.

`python -m minilora.practice.record` counts them again and writes kills.json.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .catalogue import sheet
from .exercise import Exercise
from .naming import Arguments
from .parts import Function, Graded, Mistake, Part, Value
from .parts.refusals import Tensors

RECORD = Path(__file__).parent / "kills.json"


class Kill(NamedTuple):
    """What the check of a part makes of one mistake."""

    part: str
    mistake: str
    seen: bool  # it does not pass
    named: bool  # its own name is given for each tensor that is wrong
    others: tuple[str, ...]  # names of other mistakes that are given too


def kills(exercise: Exercise) -> list[Kill]:
    """A Kill for every listed mistake of an exercise."""
    parts = map(remembering, exercise.parts)
    return [killed(part, mistake) for part in parts for mistake in part.all_mistakes().values()]


def remembering(part: Part) -> Part:
    """The part with the results of each of its mistakes cached: all checks with one seed have the same cases."""
    if not isinstance(part, Value):
        return part
    same, computed = copy.copy(part), part.all_of
    kept: dict[str, list[Tensors]] = {}

    def all_of(mistake: Mistake, cases: list[Arguments], true: list[Tensors]) -> list[Tensors]:
        if mistake.name not in kept:
            kept[mistake.name] = computed(mistake, cases, true)
        return kept[mistake.name]

    same.all_of = all_of  # type: ignore[method-assign]
    return same


def killed(part: Part, mistake: Mistake, function: Function | None = None) -> Kill:
    """Check the mistake, or `function` instead of it."""
    findings = part.check(mistake.wrong if function is None else function).findings
    wrong = [finding for finding in findings if finding.kind != "right"]
    named = {finding.tensor for finding in wrong if finding.name == mistake.name}
    others = {finding.name for finding in wrong} - {mistake.name, ""}
    seen = bool(wrong)
    return Kill(part.name, mistake.name, seen, seen and {f.tensor for f in wrong} == named, tuple(sorted(others)))


def left_out(part: Part) -> Iterator[Kill]:
    """Check each of the part's own mistakes while it is not listed: then no other mistake may be named."""
    whole = remembering(part)
    for name, mistake in part.mistakes.items():
        rest = copy.copy(whole)
        rest.mistakes = {other: value for other, value in part.mistakes.items() if other != name}
        yield killed(rest, mistake)


def blunt_answers(part: Part) -> dict[str, Function]:
    """Answers that compute nothing: zeros, ones and, for functions that have arguments, the first argument and the true
    values of the first case."""
    if isinstance(part, Graded):
        return {}
    cases = part.cases(0)
    first = part.truths(cases)[0]

    def like(make: Callable[[Any], Any]) -> Function:
        def answer(*arguments: Any) -> Any:
            given = dict(zip(part.arguments, arguments, strict=True))
            true = part.truths([given])[0]
            return {name: make(value) for name, value in true.items()}

        return answer

    def first_argument(*arguments: Any) -> Any:
        return {name: copy.deepcopy(arguments[0]) for name in part.tensors}

    def hard_coded(*arguments: Any) -> Any:
        return copy.deepcopy(first)

    answers = {
        "zeros": like(lambda value: np.asarray(value) * 0),
        "ones": like(lambda value: np.asarray(value) * 0 + 1),
    }
    if part.arguments:
        answers |= {"first_argument": first_argument, "hard_coded": hard_coded}
    return answers


def counts(exercise: Exercise) -> dict[str, int]:
    """How many mistakes one exercise lists, how many its check detects ("seen"), and how many it names."""
    found = kills(exercise)
    return {"listed": len(found), "seen": sum(kill.seen for kill in found), "named": sum(kill.named for kill in found)}


def recorded() -> dict[str, dict[str, int]]:
    """{number: counts()} of the last run of record.py."""
    found: dict[str, dict[str, int]] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def table() -> str:
    """The same counts as a Markdown table."""
    rows = recorded()
    lines = ["| exercise | mistakes listed | seen | named |", "|---|---:|---:|---:|"]
    for number, row in rows.items():
        lines.append(f"| {number} {sheet(number).heading()} | {row['listed']} | {row['seen']} | {row['named']} |")
    sums = (f"**{sum(row[key] for row in rows.values())}**" for key in ("listed", "seen", "named"))
    return "\n".join([*lines, f"| **all {len(rows)}** | {' | '.join(sums)} |"])
