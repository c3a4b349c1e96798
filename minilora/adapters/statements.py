"""What a variant states, in records: its Slots, Options and Keys, the arrays that forward has Kept, the Products that
it computes; and the values of their letters and formulas."""

from __future__ import annotations

import ast
import sys
from collections.abc import Hashable, Mapping
from functools import cache
from types import CodeType
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array


class Slot(NamedTuple):
    """One tensor of an adapter: an attribute that holds a Parameter, and a tensor in PEFT's file."""

    name: str  # of the attribute
    file: str  # how the tensor's name ends in PEFT's file; "" if the file lacks it, and computed() makes it
    shape: tuple[str, ...]  # in the letters of sizes_for(): n_in, n_out, r
    trained: bool = True
    shared: bool = False  # one Parameter for all layers, as large as the largest; its name in the file has no layer
    file_shape: tuple[str, ...] = ()  # the shape in the file, if it differs: an axis of "1" more, or transposed
    saved_if: str = ""  # the option, if any, that is True where the file holds it; else draw_shared() makes it

    def to_file(self, x: Array) -> Array:
        """The attribute's array with the axes of the file."""
        if self.file_shape == self.shape[::-1]:
            return x.T
        sizes = iter(x.shape)
        return x.reshape([1 if axis == "1" else next(sizes) for axis in self.file_shape or self.shape])

    def from_file(self, x: Array) -> Array:
        """The file's array with the axes of the attribute."""
        if self.file_shape == self.shape[::-1]:
            return x.T
        axes = zip(x.shape, self.file_shape or self.shape, strict=True)
        return x.reshape([size for size, axis in axes if axis != "1"])


class Option(NamedTuple):
    """One hyperparameter: an attribute of the adapter, and a key of PEFT's config."""

    name: str
    key: str  # "": PEFT has no such key, the option affects training alone and is not saved; "a.b": key b of mapping a
    default: Any  # PEFT's, for a config without the key; () for a list of token ids, and for a mask
    pattern: str = ""  # the key of {regular expression: value} for layers with another value
    mask_of: str = ""  # the tensor whose rows this option masks; `pattern` is then the key of {tensor: [bool per row]}
    words: Mapping[Any, str] = {}  # {PEFT's value: ours}, where the two differ
    ordered: bool = False  # token ids are a sequence, in which an id may repeat; otherwise they are a set

    def from_file(self, value: Any) -> Any:
        """Our value for the value of a config."""
        return self.words.get(value, value) if isinstance(value, Hashable) else value

    def to_file(self, value: Any) -> Any:
        """PEFT's value for ours, where the two differ."""
        return next((theirs for theirs, ours in self.words.items() if ours == value), value)

    @property
    def is_ids(self) -> bool:
        """Is it a list of token ids?"""
        return isinstance(self.default, tuple) and not self.mask_of

    def check(self, value: Any) -> None:
        """Raise ValueError for a value of another type than the default, or out of range."""
        if self.mask_of:
            right = isinstance(value, list | tuple) and all(isinstance(entry, bool) for entry in value)
            what = "not a list of true and false"
        elif isinstance(self.default, bool):
            right, what = isinstance(value, bool), "neither true nor false"
        elif isinstance(self.default, int):
            least, whole = min(self.default, 1), isinstance(value, int | np.integer) and not isinstance(value, bool)
            right, what = whole and least <= value < 2**31, f"not a whole number from {least} to {2**31 - 1}"
        elif isinstance(self.default, str):
            right, what = isinstance(value, str), "not a word"
        elif self.is_ids:
            ids = isinstance(value, list | tuple) and all(
                isinstance(i, int | np.integer) and not isinstance(i, bool) and 0 <= i < 2**31 for i in value
            )
            different = "" if self.ordered else "different "
            right = ids and (self.ordered or len({*value}) == len(value))
            what = f"not a list of {different}whole numbers from 0 up"
        elif self.name == "dropout":
            right, what = is_number(value) and 0 <= value < 1, "not a probability below 1"
        else:
            right, what = is_number(value), "not a number that a float can hold"
        if not right:
            raise ValueError(f"{self.name} {short(value)} is {what}")


class Keys(NamedTuple):
    """The keys of a variant's adapter_config.json in PEFT, besides its options and the keys that all have."""

    init: str  # the key of the initialisation
    inits: tuple[Any, ...] = (True, False)  # its values that the class reads; the first is written
    wrong_transposed: tuple[Any, ...] = ()  # of these, the ones that PEFT handles wrongly for a W stored as (in, out)
    fixed: Mapping[str, Any] = {}  # {key: the only value that is read}; tells variants of one peft_type apart
    ignored: tuple[str, ...] = ()  # keys that do not change what the adapter computes
    lacks: tuple[str, ...] = ()  # keys that most configs of PEFT have, and this one does not
    companions: tuple[str, ...] = ()  # keys that hold adapters of another variant: its Companion.key


class Companion(NamedTuple):
    """How PEFT stores an adapter in the config and file of another variant's: token rows in those of a LoRA."""

    key: str  # in the config, {layer: the value of the option}; the value alone is that of the token embedding
    option: str
    prefix: str  # before the name of a slot in the file


class Kept(NamedTuple):
    """One array that forward saves for backward, and the formula that reads it; an entry for each such formula."""

    what: str  # "x" is the layer's own input, which other layers may keep too
    width: str  # elements for each row of x, in n_in, n_out, r and the options; with 0 it is not kept
    why: str  # the formula that reads it
    slots: tuple[str, ...] = ()  # kept while one of these is trainable, whose gradients need it; (): always kept
    once: bool = False  # kept once, independent of the number of rows


class Products(NamedTuple):
    """FLOPs of the adapter's own matrix products, 2 for a multiplication and an addition, for each row of x.

    Formulas in n_in, n_out, r, the options, and `drops`: is there dropout in this forward? A boolean may appear only as
    the last factor of a term.
    """

    forward: str
    backward: str  # where dx is needed
    gradients: Mapping[tuple[str, ...], str]  # {slots: the product of their gradients, made while one is trainable}
    without_dx: str = "0"  # the backward where it is not
    once: str = "0"  # per forward, independent of the number of rows
    backward_once: str = "0"  # per backward, independent of the number of rows and of which slots are trainable
    gradients_once: Mapping[tuple[str, ...], str] = {}  # as `gradients`, per backward, independent of the rows


def shape(axes: tuple[str, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """("r", "n_in") -> (8, 64)"""
    return tuple(sizes[axis] if axis in sizes else int(axis) for axis in axes)


def number(formula: str, sizes: Mapping[str, int]) -> int:
    """("2 * r * n_in", its sizes) -> 1024"""
    return eval(compiled(formula), {"__builtins__": {}}, dict(sizes))


@cache
def simplified(formula: str, true: frozenset[str], false: frozenset[str]) -> str:
    """The formula for display, without factors that are in `true`, which are 1, and terms with one in `false`, which
    are 0: ("r + n_in * drops", {}, {"drops"}) -> "r"."""

    class Simplify(ast.NodeTransformer):
        def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
            self.generic_visit(node)
            left, right = ast.unparse(node.left), ast.unparse(node.right)
            if isinstance(node.op, ast.Mult) and right in true | false:
                return node.left if right in true else ast.Constant(0)
            if isinstance(node.op, ast.Add) and "0" in (left, right):
                return node.left if right == "0" else node.right
            return node

    return ast.unparse(Simplify().visit(ast.parse(formula, mode="eval")))


@cache
def compiled(formula: str) -> CodeType:
    return compile(formula, formula, "eval")


def is_number(x: Any) -> bool:
    """Is it a finite number that a float can hold?"""
    return (
        isinstance(x, int | float | np.integer | np.floating)
        and not isinstance(x, bool)
        and bool(-sys.float_info.max <= x <= sys.float_info.max)
    )


def short(value: Any) -> str:
    """A value, of a file or a person, in a line for people."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
