"""Automatic mutants: a function with one small edit of its source, like a mistake that people make."""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from .language import Words, words

Edit = tuple[Words, ast.expr]  # its effect, and what replaces an expression


@functools.cache
def mutants_of(function: Callable[..., Any]) -> list[tuple[Words, Callable[..., Any]]]:
    """[(effect of the edit, edited function)] for every edit of the source of `function`; [] if it has no source."""
    if function.__closure__:
        return []  # its source alone does not run
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, IndentationError):
        return []
    if not isinstance(tree.body[0], ast.FunctionDef):
        return []
    made = []
    for says, mutated in edits(tree):
        scope = dict(function.__globals__)
        exec(compile(ast.fix_missing_locations(mutated), "<mutant>", "exec"), scope)
        made.append((says, scope[tree.body[0].name]))
    return made


def fault_within(
    outer: Callable[..., Any], inner: Callable[..., Any], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """`outer`, which calls `backward`, as it is when that call returns the tensors of `inner` instead of the true
    ones."""
    scope = scope_with(inner, backward)
    if isinstance(outer, functools.partial):
        return functools.partial(outer.func, scope[backward.__name__], *outer.args[1:])
    return bound(outer, scope)


def calls(function: Callable[..., Any], backward: Callable[..., Any]) -> bool:
    """Whether the function calls `backward`, directly or through functions of its own file."""
    if isinstance(function, functools.partial):
        return function.args[0] is backward
    name = backward.__name__
    named = getattr(getattr(function, "__code__", None), "co_names", ())
    inner = (function.__globals__.get(other) for other in named) if named else ()
    return name in named or any(
        isinstance(other, FunctionType) and other is not function and other.__globals__ is function.__globals__
        and calls(other, backward) for other in inner
    )  # fmt: skip


@functools.cache
def scope_with(inner: Callable[..., Any], backward: Callable[..., Any]) -> dict[str, Any]:
    """The globals of the file of `backward`, where every function calls a replacement of it, with the tensors of
    `inner`."""
    home = backward.__globals__
    scope = dict(home)
    for name, value in home.items():
        if isinstance(value, FunctionType) and value.__globals__ is home:
            scope[name] = bound(value, scope)

    def replacement(*arguments: Any, **constants: Any) -> Any:
        return {**backward(*arguments, **constants), **inner(*arguments, **constants)}

    scope[backward.__name__] = replacement
    return scope


def bound(function: Callable[..., Any], scope: dict[str, Any]) -> Callable[..., Any]:
    return FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)


def edits(tree: ast.Module) -> Iterator[tuple[Words, ast.Module]]:
    """Every mutant of `tree`: at each expression, each edit of it."""
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    function.decorator_list, function.returns = [], None
    for argument in [*function.args.args, *function.args.kwonlyargs]:
        argument.annotation = None
    nodes = list(ast.walk(tree))
    for i, node in enumerate(nodes):
        if isinstance(node, ast.expr):
            for says, replacement in edits_of(node):
                mutated = copy.deepcopy(tree)
                yield says, Replace(list(ast.walk(mutated))[i], replacement).visit(mutated)


class Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, copy.deepcopy(new)

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


def edits_of(node: ast.expr) -> Iterator[Edit]:
    """What people write by mistake where `node` is right."""
    if isinstance(node, ast.BinOp):
        left, right = node.left, node.right
        if isinstance(node.op, ast.Add | ast.Sub):
            yield words("the term {x} were missing", x=text(right)), left
            yield (
                words("the term {x} were missing", x=text(left)),
                right if isinstance(node.op, ast.Add) else ast.UnaryOp(ast.USub(), right),
            )
            flipped = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
            yield words("the sign of {x} were flipped", x=text(right)), ast.BinOp(left, flipped, right)
        if isinstance(node.op, ast.Mult | ast.Div):
            missing, twice = "the factor {x} were missing", "the factor {x} were applied twice"
            yield words(missing, x=text(right)), left
            if isinstance(node.op, ast.Mult):
                yield words(missing, x=text(left)), right
                yield words(twice, x=text(left)), ast.BinOp(node, ast.Mult(), left)
            yield words(twice, x=text(right)), ast.BinOp(node, node.op, right)
            inverse = ast.Div() if isinstance(node.op, ast.Mult) else ast.Mult()
            yield words("{x} were inverted", x=text(right)), ast.BinOp(left, inverse, right)
        if isinstance(node.op, ast.MatMult):
            yield words("the factors of {x} were swapped", x=text(node)), ast.BinOp(right, node.op, left)
            for a, b in ((left, transposed(right)), (transposed(left), right)):
                yield words("a factor of {x} were transposed", x=text(node)), ast.BinOp(a, node.op, b)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield words("the sign of {x} were flipped", x=text(node.operand)), node.operand
    if isinstance(node, ast.Attribute) and node.attr == "T":
        yield words("{x} were not transposed", x=text(node.value)), node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("sum", "mean"):
        summed = node.func.attr == "sum"
        other = ast.Attribute(node.func.value, "mean" if summed else "sum", ast.Load())
        says = words("{x} were a mean" if summed else "{x} were a sum", x=text(node))
        yield says, ast.Call(other, node.args, node.keywords)
        for keyword in node.keywords:
            if keyword.arg == "axis":
                for axis in (-1, -2, 0, 1):
                    if text(keyword.value) != str(axis):
                        keywords = [
                            k if k is not keyword else ast.keyword("axis", ast.Constant(axis)) for k in node.keywords
                        ]
                        says = words("{x} ran over another axis", x=text(node))
                        yield says, ast.Call(node.func, node.args, keywords)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        number = node.value
        for value in (number + 1, 2 * number, -number):
            if value != number:
                yield words("{x} were {y}", x=str(number), y=str(value)), ast.Constant(value)


def transposed(node: ast.expr) -> ast.expr:
    return ast.Attribute(node, "T", ast.Load())


def text(node: ast.expr) -> str:
    return ast.unparse(node)
