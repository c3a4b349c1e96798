"""A problem: an op, its textbook gradient, and the mistakes that people make in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..backend import Array
from .case import Case, Tensors
from .changes import Backward, with_arguments, with_factors, with_tensors
from .language import Words, words

Terms: TypeAlias = Callable[..., dict[str, dict[str, Array]]]  # as Backward -> {"dx": {"the base path": array, ...}}
Sentences: TypeAlias = Callable[[str, str], None]  # takes what a fault says and what it asks
Law: TypeAlias = Callable[[Tensors, Case], float]  # the relative violation of what must hold of the gradients


@dataclass(frozen=True)
class Fault:
    """A mistake with a name: `wrong`, called as the gradient is, returns the tensors that come out wrong."""

    name: str
    wrong: Backward
    says: Words  # what is wrong: names the tensor, {it} if there are several, and the term, never the line of code
    asks: Words  # a question to ask back
    whole: bool = False  # named only where all of its tensors come out so


class Factor(NamedTuple):
    """What whole gradients, or terms of them, are multiplied by."""

    written: str  # "the scale s = α/r"
    value: Callable[..., Any]  # a function of those arguments of the gradient that its parameters name
    tensors: tuple[str, ...]  # the gradients that have it in every term
    terms: tuple[str, ...] = ()  # the terms of other gradients that have it


def other_rows(rng: np.random.Generator, shapes: Sequence[Any]) -> list[Any]:
    """The same sizes in other combinations: batch and tokens of one case with the widths of another."""
    return [(*shapes[j][:2], *shape[2:]) for j, shape in zip(rng.permutation(len(shapes)), shapes, strict=True)]


@dataclass
class Problem:
    """`forward(*inputs, **constants)`, its textbook `backward(dy, *inputs, **constants) -> {"dx": ...}`, and faults.

    Sentences are in English; the catalogue beside the problem has them in Chinese. Add a fault that only this problem
    has by the first of `called_with`, `multiplied`, `computed` and `fault` that can state it; common_faults() makes
    the others.
    """

    name: str
    forward: Callable[..., Array]
    backward: Backward
    draw: Callable[[np.random.Generator, Any], Case]  # a case of these sizes, one row of `shapes`
    terms: Terms = lambda *arguments, **constants: {}  # the true gradients as sums of named terms
    laws: Mapping[str, Law] = field(default_factory=dict)  # what must hold of the gradients, without a reference
    faults: dict[str, Fault] = field(default_factory=dict)
    factors: Mapping[str, Factor] = field(default_factory=dict)
    says: Mapping[str, str] = field(default_factory=dict)  # better words for a common fault, by its name
    asks: Mapping[str, str] = field(default_factory=dict)  # a better question
    formula: str = ""  # the forward as people write it
    aliases: tuple[str, ...] = ()  # other names
    complete: Callable[..., dict[str, Any]] | None = None  # all constants, where people leave some out
    optional: str = ""  # what may be left out, in words
    rows: bool = False  # each row by itself: batch and tokens may be one axis
    pairs: bool = True  # False where the gradient is one product: there two mistakes look like a third
    simpler: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # arguments that switch a part of the op off
    # gradients with dropout: what it does not touch, and what it masks if all is kept
    masked: Callable[..., dict[str, tuple[Array, Array]]] | None = None
    original: Problem | None = None  # the problem of which this is another form
    in_this_form: Callable[[Backward], Backward] = lambda backward: backward  # gradient of the original -> one of this

    shapes: Sequence[Any] = field(kw_only=True)  # the sizes of each case, batch and tokens first
    others: Callable[[np.random.Generator, Sequence[Any]], Sequence[Any]] = field(default=other_rows, kw_only=True)

    def cases(self, seed: int = 0, n: int = 6) -> list[Case]:
        """The first n cases. A seed other than 0 gives other numbers in other shapes."""
        # The 1 keeps these numbers apart from those of default_rng(0), which a checker is likely to draw.
        shapes = self.others(np.random.default_rng([seed, 1]), self.shapes) if seed else self.shapes
        return [self.draw(np.random.default_rng([seed, i, 1]), shape) for i, shape in enumerate(shapes[:n])]

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
            values_of_two = " or ".join(f"{value:g}" for value in few) if len(few) == 2 else ""
            return f"{key} {shape(values)} {values_of_two or 'of ' + str(values[0].dtype)}"

        words = [f"{key} {shape([case.inputs[key] for case in cases])}" for key in cases[0].inputs]
        words += [constant(key) for key in cases[0].constants]
        return f"{self.name}: grad(dy, {', '.join(words)}), dy {shape([case.dy for case in cases])}"

    # ---- four ways to add a fault: a decorator, and three that return a function of what it says and what it asks ----

    def fault(self, says: str, asks: str, *, whole: bool = False) -> Callable[[Backward], Backward]:
        """The decorated function, under its own name."""

        def add(wrong: Backward) -> Backward:
            self.add(wrong.__name__, wrong, whole)(says, asks)
            return wrong

        return add

    def computed(self, name: str, **tensors: Callable[..., Array]) -> Sentences:
        """Wrong tensors, each a function of those arguments of the gradient that its parameters name."""
        return self.add(name, partial(with_tensors, tensors, self.arguments))

    def multiplied(self, name: str, **factors: Any) -> Sentences:
        """Tensors of the textbook gradient times a number, or times a function as in `computed`."""
        return self.add(name, partial(with_factors, self.backward, self.arguments, factors))

    def called_with(self, name: str, *, only: str = "", **arguments: Any) -> Sentences:
        """The textbook gradient with other arguments: each a value, as eps=0, or a function as in `computed`.

        `only` names the tensors that come out wrong, "dx dg"; without it all do.
        """
        return self.add(name, partial(with_arguments, self.backward, self.arguments, arguments, only.split()))

    def add(self, name: str, wrong: Backward, whole: bool = False) -> Sentences:
        def add(says: str, asks: str) -> None:
            if name in self.faults:
                raise ValueError(f"{self.name} has a fault {name} already")
            self.faults[name] = Fault(name, wrong, words(says), words(asks), whole)

        return add

    @property
    def arguments(self) -> list[str]:
        """What the textbook gradient calls dy, the inputs and the constants."""
        return list(inspect.signature(self.backward).parameters)
