"""A problem: an op as a learner meets it, its textbook gradient, and the mistakes that people make in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..backend import Array

Tensors: TypeAlias = dict[str, Array]  # "dx" -> the gradient of the input x


class Case(NamedTuple):
    """One configuration. Over the cases of a problem all constants and sizes differ, so that none hides another."""

    dy: Array
    inputs: Tensors  # what has a gradient, in order
    constants: dict[str, Any]  # what has none: ids, masks, alpha, r
    sizes: dict[str, float]  # what a wrong scale may be made of: alpha, r, tokens, "1-p", ...


class Words(NamedTuple):
    """The same sentence twice."""

    en: str
    zh: str

    def in_language(self, language: str) -> str:
        """The sentence in one language, by its code. Raises ValueError for any but those two."""
        if language not in self._fields:
            raise ValueError(f"no words in {language!r}, only in {' and '.join(map(repr, self._fields))}")
        return str(getattr(self, language))

    def about(self, tensor: str) -> Words:
        """The sentence about this tensor: its name is written where {it} stands."""
        return Words(*(words.replace("{it}", tensor) for words in self))


Law: TypeAlias = Callable[[Tensors, Case], float]  # the relative violation of what must hold of the tensors


@dataclass(frozen=True)
class Fault:
    """A mistake with a name: `wrong`, called as the gradient is, returns the tensors that come out wrong."""

    name: str
    wrong: Callable[..., Tensors]
    says: Words  # what is wrong: names the tensor, {it} if there are several, and the term, never the line of code
    asks: Words  # a question to ask back
    whole: bool = False  # it speaks of all its tensors together: named only where all of them come out so


@dataclass
class Problem:
    """`forward(*inputs, **constants)`, its textbook `backward(dy, *inputs, **constants) -> {"dx": ...}`, and faults.

    `draw(rng, i)` makes case i. `terms(dy, *inputs, **constants)` writes true gradients as sums of named terms:
    {"dx": {Words("the base path", "基础路径"): ..., ...}}. `laws` say, without a reference, what must hold of the
    tensors: law(tensors, case) is the relative violation. `zero` names the inputs whose gradient is always 0.
    `formula` is the forward as people write it, and `aliases` are other names. `complete(*inputs, **constants)` returns
    all constants where people write the op without some of them; `rows` says that the op knows no batch and tokens,
    only rows. `pairs` is False where the gradient is one product, in which two mistakes look like a third.
    `masked(dy, *inputs, **constants)` are gradients with dropout: what it does not touch, and what it masks if all is
    kept. `simpler` are changes of a case that switch one part of the op off.
    """

    name: str
    forward: Callable[..., Array]
    backward: Callable[..., Tensors]
    draw: Callable[[np.random.Generator, int], Case]
    terms: Callable[..., dict[str, dict[Words, Array]]] | None = None
    laws: Mapping[Words, Law] = field(default_factory=dict)
    zero: tuple[str, ...] = ()
    faults: dict[str, Fault] = field(default_factory=dict)
    formula: str = ""
    aliases: tuple[str, ...] = ()
    complete: Callable[..., dict[str, Any]] | None = None
    also: str = ""  # what `complete` allows, in words
    rows: bool = False
    pairs: bool = True
    simpler: Mapping[Words, Callable[[Case], Case]] = field(default_factory=dict)
    masked: Callable[..., dict[str, tuple[Array, Array]]] | None = None
    textbook: Problem | None = None  # of which this is another form,
    around: Callable[[Callable[..., Tensors]], Callable[..., Tensors]] = lambda function: function  # a function of it

    def cases(self, seed: int = 0, n: int = 6) -> list[Case]:
        # The 1 keeps these numbers apart from those of default_rng(0), which a checker is likely to draw.
        return [self.draw(np.random.default_rng([seed, i, 1]), i) for i in range(n)]

    def signature(self) -> str:
        """What a gradient of this problem is called with, in a line: shapes, and the constants of the first case."""
        cases = self.cases()

        def shape(arrays: list[Any]) -> str:
            return f"({', '.join(map(name, zip(*(array.shape for array in arrays), strict=True)))})"

        def name(lengths: tuple[int, ...]) -> str:
            named = (size for size in cases[0].sizes if lengths == tuple(case.sizes[size] for case in cases))
            return next(named, str(lengths[0]) if len(set(lengths)) == 1 else "n")

        def constant(key: str) -> str:
            values = [case.constants[key] for case in cases]
            if not isinstance(values[0], np.ndarray):
                return f"{key} = {values[0]:g}"
            few = np.unique(values[0])
            held = " or ".join(f"{value:g}" for value in few) if len(few) == 2 else ""
            return f"{key} {shape(values)} {held or 'of ' + str(values[0].dtype)}"

        words = [f"{key} {shape([case.inputs[key] for case in cases])}" for key in cases[0].inputs]
        words += [constant(key) for key in cases[0].constants]
        return f"{self.name}: grad(dy, {', '.join(words)}), dy {shape([case.dy for case in cases])}"

    def fault(
        self, en: str, zh: str, ask_en: str, ask_zh: str, *, whole: bool = False
    ) -> Callable[[Callable[..., Tensors]], Callable[..., Tensors]]:
        """Add the decorated function, under its own name, to the faults."""

        def add(wrong: Callable[..., Tensors]) -> Callable[..., Tensors]:
            name = wrong.__name__
            if name in self.faults:
                raise ValueError(f"{self.name} has a fault {name} already")
            self.faults[name] = Fault(name, wrong, Words(en, zh), Words(ask_en, ask_zh), whole)
            return wrong

        return add


def apply(function: Callable[..., Any], case: Case) -> Any:
    """function(dy, *inputs, **constants)"""
    return function(case.dy, *case.inputs.values(), **case.constants)


def relative_error(a: Array, b: Array) -> float:
    """‖a - b‖ / max(‖a‖, ‖b‖), infinite for different shapes or what is not finite."""
    if np.shape(a) != np.shape(b) or not np.all(np.isfinite(a)):
        return np.inf
    size = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)))
    return float(np.linalg.norm(np.asarray(a) - b)) / size if size else 0.0
