"""Is the check any good? Every backward and every gradients function of the ops, with one small mistake at a time.

Each mutant takes its function's place in the library; the op cases that call the function are then checked, at every
size. A mutant that no case fails has survived: either it computes the same (EQUIVALENT says why), or a case is missing.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..display.tables import numbers_right, wide_console
from ..process import blas_threads
from ..spelling import choose_from
from .case import apply
from .mutants import edits
from .op_cases import OPS, at_every_size

# (the function, its source at the edit): why the edit changes no result
EQUIVALENT = {
    ("adalora_gradients", "sum(axis=-2)"): "of two axes, axis 0 is axis -2",
    ("orthogonality_gradients", "unit(E).T @ A"): "E = A Aᵀ - I is symmetric",
    ("squared_orthogonality_gradients", "E.T @ A"): "E = A Aᵀ - I is symmetric",
    ("attention_backward", "swapaxes(-1, 2)"): "of four axes, axis 2 is axis -2",
    ("attention_backward", "swapaxes(-1, --2)"): "of four axes, axis 2 is axis -2",
    ("attention_bias_gradients", "reshape(-2,"): "to NumPy, any negative size means: what is left over",
    ("attention_bias_gradients", "swapaxes(-1, 2)"): "of four axes, axis 2 is axis -2",
    ("attention_bias_gradients", "swapaxes(-1, --2)"): "of four axes, axis 2 is axis -2",
    ("bias_gradients", "sum(axis=-2)"): "of two axes, axis 0 is axis -2",
    ("gain_gradients", "sum(axis=-2)"): "of two axes, axis 0 is axis -2",
    ("ia3_gradients", "sum(axis=-2)"): "of two axes, axis 0 is axis -2",
    ("svf_gradients", "sum(axis=-2)"): "of two axes, axis 0 is axis -2",
    ("token_rows_backward", "* (at < 0)[..., None] * (at < 0)"): "a mask of 0 and 1 is its own square",
    ("relu_backward", "positive * positive"): "a mask of 0 and 1 is its own square",
    ("reverse_kl_backward", "sum(axis=1,"): "of two axes, axis 1 is axis -1",
    ("reverse_kl_backward", "sum(axis=--1,"): "of two axes, axis 1 is axis -1",
    ("vera_gradients", "sum(axis=-2)"): "of two axes, axis 0 is axis -2",
    ("vera_gradients", "sum(axis=-1)"): "of two axes, axis 1 is axis -1",
    ("csr_backward", "@ row.T"): "a row has one axis",
    ("dora_A_gradients", "(s * (cB.T @ B)).T"): "(c ∘ B)ᵀ B is symmetric",
    ("loha_A_gradients", "sum(axis=-2)"): "of three axes, axis 1 is axis -2",
    ("loha_B_gradients", "sum(axis=-1)"): "of three axes, axis 2 is axis -1",
    ("loha_B_gradients", "sum(axis=-2)"): "of three axes, axis 1 is axis -2",
    ("loha_B_gradients", "B2.shape[-1]"): "of two axes, axis 1 is axis -1",
    ("lokr_backward", "w1.shape[-1]"): "of two axes, axis 1 is axis -1",
    ("lokr_backward", "w2.shape[-1]"): "of two axes, axis 1 is axis -1",
    ("lokr_w1_gradients", "w2.shape[-1]"): "of two axes, axis 1 is axis -1",
    ("embedding_gradients", "reshape(-2)"): "to NumPy, any negative size means: what is left over",
}


class Mutant(NamedTuple):
    function: str
    edit: str  # what it amounts to
    line: str  # the statement it is in
    call: Callable[..., Any]

    @property
    def reason(self) -> str:
        """Why no check can fail it; "" if one must."""
        found = [why for (name, written), why in EQUIVALENT.items() if name == self.function and written in self.line]
        return found[0] if found else ""


class Outcome(NamedTuple):
    function: str
    edit: str
    line: str
    killed: bool
    reason: str  # of a survivor


def functions() -> dict[str, Callable[..., Any]]:
    """Every *_backward and *_gradients of the ops."""
    return {name: getattr(ops, name) for name in sorted(vars(ops)) if name.endswith(("_backward", "_gradients"))}


def mutants(name: str) -> Iterator[Mutant]:
    """Every edit of the function; two edits that come to the same source are one mutant."""
    function = functions()[name]
    tree = Spelled().visit(ast.parse(textwrap.dedent(inspect.getsource(function))))
    lines, seen = statements(tree), set()
    for says, mutated in edits(tree):
        line = next((new for old, new in zip(lines, statements(mutated), strict=True) if new != old), "")
        if line and line not in seen:
            seen.add(line)
            scope = dict(vars(sys.modules[function.__module__]))
            exec(compile(ast.fix_missing_locations(mutated), f"<mutant of {name}>", "exec"), scope)
            yield Mutant(name, says.en, line, scope[name])


class Spelled(ast.NodeTransformer):
    """`a -= b` as `a = a - b`, where a term can be dropped and a sign flipped."""

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.Assign:
        before = ast.parse(ast.unparse(node.target), mode="eval").body
        return ast.Assign([node.target], ast.BinOp(before, node.op, node.value), lineno=node.lineno)


def statements(tree: ast.Module) -> list[str]:
    """The source of every statement; those inside a loop come before the loop."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and not isinstance(node, ast.FunctionDef)]
    return [ast.unparse(statement) for statement in reversed(nodes)]


@contextmanager
def in_place_of(name: str, call: Callable[..., Any]) -> Iterator[None]:
    """`call` is ops.name, in its own file too, until the end of the block."""
    original = getattr(ops, name)
    homes = ops, sys.modules[original.__module__]
    for home in homes:
        setattr(home, name, call)
    try:
        yield
    finally:
        for home in homes:
            setattr(home, name, original)


def callers(name: str, seed: int) -> list[str]:
    """The op cases whose gradients go through the function."""
    calls: list[None] = []
    original = getattr(ops, name)

    def counted(*arguments: Any) -> Any:
        calls.append(None)
        return original(*arguments)

    found = []
    for op in OPS:
        calls.clear()
        with in_place_of(name, counted):
            apply(OPS[op].grad, next(at_every_size(op, np.random.default_rng(seed))))
        if calls:
            found.append(op)
    return found


def killed(mutant: Mutant, cases: list[str], seed: int) -> bool:
    """Does a check fail, or refuse, or raise?"""
    with in_place_of(mutant.function, mutant.call), np.errstate(all="ignore"):
        for op in cases:
            rng = np.random.default_rng([seed, len(op)])
            try:
                if not all(OPS[op].check(case, rng).ok for case in at_every_size(op, rng)):
                    return True
            except Exception:  # a mistake may raise anything
                return True
    return False


@blas_threads()
def mutation_run(sample: int | None = None, seed: int = 0, only: str = "") -> list[Outcome]:
    """Try every mutant of the functions whose names contain `only`, or `sample` of them; seconds for all.

    Raises ValueError if no function's name contains it.
    """
    from tqdm import tqdm

    names = [name for name in functions() if only.casefold() in name.casefold()]
    if not names:
        raise ValueError(f"no function has {only!r} in its name: {choose_from(only, functions())}")
    made = [mutant for name in names for mutant in mutants(name)]
    if sample is not None and sample < len(made):
        chosen = np.random.default_rng(seed).choice(len(made), sample, replace=False)
        made = [made[i] for i in sorted(chosen)]
    cases = {name: callers(name, seed) for name in dict.fromkeys(mutant.function for mutant in made)}
    outcomes = []
    for mutant in tqdm(made, desc="mutants", leave=False, disable=None):
        dead = killed(mutant, cases[mutant.function], seed)
        outcomes.append(Outcome(mutant.function, mutant.edit, mutant.line, dead, "" if dead else mutant.reason))
    return outcomes


def unexplained(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if not outcome.killed and not outcome.reason]


def show_mutants(outcomes: list[Outcome]) -> None:
    """The survivors, each with its reason, and the count."""
    console = wide_console()
    survivors = [outcome for outcome in outcomes if not outcome.killed]
    table = numbers_right("Survivors", "function", "survives if", "in", "because", words=(0, 1, 2, 3))
    for function, edit, line, _, reason in survivors:
        table.add_row(function, edit, line, reason or "NO REASON: a case is missing")
    if survivors:
        console.print(table)
    counts = f"{len(outcomes)} mutants, {len(outcomes) - len(survivors)} killed, {len(survivors)} survive"
    console.print(f"{counts}, {len(unexplained(outcomes))} of them without a reason", soft_wrap=True)
