"""Name what is wrong with a value: a listed mistake, a factor, another argument, one value for every case, or facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..verify.explanations.finding import Finding, alternatives
from ..verify.language import words
from ..verify.scale import proportion, readings

Arguments: TypeAlias = Mapping[str, Any]  # by name, in the order of the function's parameters


def named(
    it: str,
    mine: Sequence[Any],
    true: Sequence[Any],
    cases: Sequence[Arguments],
    listed: Sequence[Any],
    same: Callable[[Any, Any], bool],
    common: bool,
) -> list[Finding]:
    """What is wrong with the value `it`. `listed` are the mistakes of the exercise that give these values."""
    if listed:
        return alternatives([Finding(it, "fault", m.says.filled(it=it), m.asks, m.name) for m in listed])
    for step in (scaled, argument, constant) if common else ():
        if found := step(it, mine, true, cases, same):
            return [found]
    return [unknown(it, mine, true, cases, same)]


def numbers(values: Sequence[Any]) -> bool:
    try:
        return all(np.asarray(value).dtype.kind in "fiu" for value in values)
    except ValueError:  # a list of arrays that differ in length
        return False


def scaled(it: str, mine: Any, true: Any, cases: Any, same: Any) -> Finding | None:
    """The true value times a product of the numbers among the arguments."""
    if not numbers([*mine, *true]):
        return None
    pairs = [(np.asarray(a, float), np.asarray(t, float)) for a, t in zip(mine, true, strict=True)]
    if any(np.any(a) and not np.any(t) for a, t in pairs):
        return None
    kept = [i for i, (a, t) in enumerate(pairs) if np.any(t) and a.shape == t.shape]
    factors = [proportion(*pairs[i]) for i in kept]
    if not factors or None in factors:
        return None
    sizes = [
        {
            name: float(v)
            for name, v in cases[i].items()
            if isinstance(v, int | float) and not isinstance(v, bool) and v > 0
        }
        for i in kept
    ]
    read = readings([c for c in factors if c is not None], sizes)
    if read == ["0"]:
        return Finding(
            it,
            "scale",
            words("{it} is zero", it=it),
            words("What does your function compute that reaches {it}?", it=it),
        )
    if len(read) != 1:
        return None
    says = words("{it} is {factor} times what it must be", it=it, factor=read[0])
    return Finding(it, "scale", says, words("Where does that factor come from, and how often did you use it?"))


def argument(it: str, mine: Any, true: Any, cases: Any, same: Any) -> Finding | None:
    """One of the arguments, unchanged."""
    for name in cases[0]:
        values = [case[name] for case in cases]
        if numbers(values) and numbers(mine) and all(map(same, values, mine)):
            return Finding(it, "argument", words("{it} is the argument {name}, as it came", it=it, name=name))
    return None


def constant(it: str, mine: Any, true: Any, cases: Any, same: Any) -> Finding | None:
    """The same in every case, where the true value is not."""
    flat = [np.unique(np.asarray(a)) for a in mine]
    if all(len(a) == 1 for a in flat) and len({a[0].item() for a in flat}) == 1 and len(mine) > 1:
        says = words("{it} is {value} whatever the arguments are", it=it, value=f"{flat[0][0]}")
        return Finding(it, "constant", says, words("Which of the arguments must it depend on?"))
    return None


def unknown(it: str, mine: Any, true: Any, cases: Any, same: Any) -> Finding:
    """None of the known mistakes: in which cases it is wrong, and one number to work out by hand."""
    wrong = [i for i, (a, t) in enumerate(zip(mine, true, strict=True)) if not same(a, t)]
    smallest = min(wrong, key=lambda i: np.asarray(true[i]).size)
    a, t = np.asarray(mine[smallest]), np.asarray(true[smallest])
    if a.dtype.kind in "fiub" and t.dtype.kind in "fiub":
        at = tuple(int(n) for n in np.unravel_index(int(np.abs(np.nan_to_num(a - 1.0 * t)).argmax()), t.shape))
    else:
        at = next((tuple(int(n) for n in place) for place in np.argwhere(a != t)), ())
    says = words("{it} is wrong, and not by a mistake that is known here", it=it)
    if len(wrong) < len(mine):
        says = words(
            "{it} is right in {right} of {n} cases, and wrong in the others, not by a mistake that is known here",
            it=it, right=str(len(mine) - len(wrong)), n=str(len(mine)),
        )  # fmt: skip
    asks = words(
        "Work one number out by hand: in case {i}, with {given}, {entry} must be {true}, and is {yours}.",
        i=str(smallest),
        given=described(cases[smallest]), entry=f"{it}{list(at)}" if at else it, true=shown(t[at]), yours=shown(a[at]),
    )  # fmt: skip
    return Finding(it, "unknown", says, asks)


def shown(value: Any) -> str:
    return f"{value:.6g}" if np.asarray(value).dtype.kind == "f" else str(value)


def shape(a: Any) -> str:
    return str(tuple(np.shape(a)))


def described(arguments: Arguments) -> str:
    """x (3, 4), alpha = 16, config = {'r': 3}, spectra = [(4,), (2,)]"""

    def one(name: str, value: Any) -> str:
        if is_short(value):
            return f"{name} = {round(value, 6) if isinstance(value, float) else value!r}"
        if isinstance(value, list) and all(isinstance(v, np.ndarray) for v in value):
            return f"{name} = [{', '.join(map(shape, value))}]"
        if isinstance(value, type):
            return f"{name} = {value.__name__}"
        return f"{name} {shape(value)}" if isinstance(value, np.ndarray) else name

    return ", ".join(one(name, value) for name, value in arguments.items()) or "()"


PLAIN = int | float | str | None


def is_short(value: Any) -> bool:
    """Whether the value can be written out: a number, a word, or a few of them."""
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
    return len(values) <= 20 and all(isinstance(v, PLAIN) for v in values)
