"""Parts of twins that are layers: an nn.Module around a frozen nn.Linear. With given A and B, its output and the
gradients that autograd computes are graded.

Only the files of twins import this one: it imports torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..backend import Array
from ..verify.language import words
from ..verify.problems.low_rank import low_rank
from .naming import Arguments, shape
from .parts import Function, Refused, Tensors, Value, refuse
from .torch_functions import arrays_of, kind, reproducible


@dataclass
class Layer(Value):
    """A layer class of the learner, called with (base, r, alpha), and p if it takes one; base is an nn.Linear.

    With A and B of the case, these are compared: y, dx, dA and dB in eval mode; dW and db, which must be zero, as base
    is frozen; and keep, the smallest and the largest factor by which dropout multiplies an x in train mode.
    """

    returns: str = "y dx dA dB dW db keep"
    groups: Sequence[str] = ("y dx dA dB", "dW db", "keep")  # a mistake is named where it explains a whole group
    may_change_base: bool = False

    @functools.cached_property
    def with_dropout(self) -> bool:
        return "p" in self.arguments

    def together(self, tensor: str) -> list[str]:
        groups = ([name for name in self.tensors if name in group.split()] for group in self.groups)
        return next(group for group in groups if tensor in group)

    def cases(self, seed: int = 0) -> list[Arguments]:
        return [self.of_bank(i, seed) for i in range(len(low_rank.cases()))]

    def of_bank(self, i: int, seed: int) -> Arguments:
        """Case i of the problem low_rank, with a bias b, which is None in case 3."""
        case, rng = low_rank.cases(seed)[i], np.random.default_rng([seed, i, 3])
        constants = {name: case.constants[name] for name in ("alpha", "r", "p")}
        W, b = case.constants["W"], rng.standard_normal(len(case.constants["W"]))
        return {"dy": case.dy, **case.inputs, "W": W, "b": None if i == 3 else b, **constants}

    def truths(self, cases: Sequence[Arguments]) -> list[Tensors]:
        return [self.of_truth(**case) for case in cases]

    def of_truth(
        self, dy: Array, x: Array, A: Array, B: Array, W: Array, b: Any, alpha: float, r: int, p: float
    ) -> Any:
        given = {"x": x, "A": A, "B": B, "W": W, "keep": np.ones(x.shape), "alpha": alpha, "r": r, "p": 0.0}
        y = low_rank.forward(**given) + (0 if b is None else b)
        frozen = {"dW": 0 * W, "db": np.zeros(len(W))}
        keep = np.array([0, 1 / (1 - p)])
        true = {"y": y, **low_rank.backward(dy, **given), **frozen, "keep": keep}
        return {name: true[name] for name in self.tensors}

    def call(self, function: Function, arguments: Arguments) -> Any:
        case = dict(arguments)
        with reproducible():
            base = linear(case["W"], case["b"])
            layer = self.built(function, base, case)
            found = self.measured(layer, base, case)
        if not self.may_change_base and not np.array_equal(base.weight.detach(), case["W"]):
            says = words("{it} changes the weight of base, which is frozen", it=self.name)
            raise Refused("changed", says, detail="W")
        return {name: found[name] for name in self.tensors}

    def built(self, function: Function, base: nn.Linear, case: Arguments) -> Any:
        layer = function(base, case["r"], case["alpha"], *([case["p"]] if self.with_dropout else []))
        if not isinstance(layer, nn.Module):
            raise Refused("type", words("{it} is not an nn.Module", it=self.name))
        held = [*layer.parameters(), *layer.buffers()]
        if not any(each.shape == base.weight.shape and torch.equal(each, base.weight) for each in held):
            says = words("{it} does not hold the base that it is given: its state_dict has no W", it=self.name)
            raise Refused("base", says, words("What must a checkpoint of the layer have in it?"))
        for name in "AB":
            tensor = factor(layer, name)
            refuse(name, np.zeros(tensor.shape), {name: case[name]}, {key: case[key] for key in ("W", "r")})
        return layer

    def measured(self, layer: nn.Module, base: nn.Linear, case: Arguments) -> Tensors:
        give(layer, case)
        layer.eval()
        torch.default_generator.seed()  # what is drawn in eval mode differs from call to call
        found = gradients(layer, base, case)
        if self.with_dropout:
            keep = self.kept(layer, case)
            found["keep"] = np.array([0, 1 / (1 - case["p"])]) if keep is None else np.array([keep.min(), keep.max()])
        return found

    def kept(self, layer: nn.Module, case: Arguments) -> Array | None:
        """The factors (60, 4, r) by which dropout multiplies x on the low-rank path in train mode; None if that is 0.

        x is zero except for its first r entries, the first r columns of A can be inverted, and the first r rows of B
        are the identity: so the x that A has seen can be computed from y.
        """
        (n, m), r = case["W"].shape, case["r"]
        A, B, x = np.zeros((r, m)), np.eye(n, r), np.zeros((60, 4, m))
        A[:, :r] = 1 + r * np.eye(r)
        x[..., :r] = 1 + np.random.default_rng(5).random((60, 4, r))
        give(layer, {"A": A, "B": B})
        base = x @ case["W"].T + (0 if case["b"] is None else case["b"])
        seen = []
        for mode in (False, True):
            torch.default_generator.manual_seed(1)
            with torch.no_grad():
                y = layer.train(mode)(torch.from_numpy(x.copy())).numpy()
            seen.append((y - base)[..., :r] @ np.linalg.inv(A[:, :r].T))
        evaluated, trained = seen
        if np.allclose(evaluated, 0):
            return None
        return np.divide(trained, evaluated, out=np.ones_like(trained), where=np.abs(evaluated) > 1e-9)

    def masks(self, function: Function) -> Iterator[tuple[float, Array]]:
        """(p, which entries of an x (60, 4, r) are dropped in train mode) of each case, for a class whose values are
        right."""
        for case in self.cases(0):
            with reproducible():
                keep = self.kept(self.built(function, linear(case["W"], case["b"]), case), case)
            if keep is not None:
                yield case["p"], np.abs(keep) < 1e-9


def linear(W: Array, b: Array | None) -> nn.Linear:
    """An nn.Linear with copies of these arrays."""
    base = nn.Linear(W.shape[1], W.shape[0], bias=b is not None)
    base.weight = nn.Parameter(torch.tensor(W))
    if b is not None:
        base.bias = nn.Parameter(torch.tensor(b))
    return base


def factor(layer: nn.Module, name: str) -> nn.Parameter:
    """A or B of a layer: a parameter, or an nn.Linear without bias."""
    found = getattr(layer, name, None)
    if isinstance(found, nn.Linear):
        if found.bias is not None:
            says = words("{name} is an nn.Linear with a bias: the low-rank path has none", name=name)
            raise Refused("bias", says, words("Which arguments does nn.Linear have?"))
        found = found.weight
    if found is None:
        raise Refused("missing", words("the layer has no self.{name}", name=name), detail=name)
    if not isinstance(found, nn.Parameter):
        says = words("{name} is not a parameter of the layer: neither parameters() nor state_dict() has it", name=name)
        raise Refused(
            "parameter", says, words("How does an optimizer, or .to(device), get to know of {name}?", name=name)
        )
    return found


def give(layer: nn.Module, tensors: Mapping[str, Any]) -> None:
    """Copy A and B into the layer."""
    with torch.no_grad():
        for name in "AB":
            factor(layer, name).copy_(torch.from_numpy(tensors[name]))


def forward(layer: nn.Module, x: torch.Tensor, case: Arguments) -> torch.Tensor:
    """y. Raises Refused unless it is a tensor of the right shape."""
    y = layer(x)
    if not isinstance(y, torch.Tensor):
        raise Refused("type", words("forward returns {found}, and must return a torch.Tensor", found=kind(y)))
    if y.shape != case["dy"].shape:
        wanted = {"found": str(tuple(y.shape)), "wanted": shape(case["dy"]), "x": shape(case["x"])}
        raise Refused("shape", words("y has shape {found}, and must have {wanted}, for x {x}", **wanted))
    return y


def output(layer: nn.Module, case: Arguments) -> Array:
    with torch.no_grad():
        return forward(layer, torch.from_numpy(case["x"]), case).numpy()


def gradients(layer: nn.Module, base: nn.Linear, case: Arguments) -> Tensors:
    """y, and what a backward from dy leaves at x, A, B, W and b: zeros where nothing arrives."""
    x = torch.from_numpy(case["x"]).requires_grad_()
    y = forward(layer, x, case)
    if y.requires_grad:
        y.backward(torch.from_numpy(case["dy"]))
    leaves = {"dx": x, "dA": factor(layer, "A"), "dB": factor(layer, "B"), "dW": base.weight, "db": base.bias}
    found = {
        name: np.zeros(len(case["W"]))
        if leaf is None
        else arrays_of(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
        for name, leaf in leaves.items()
    }
    return {"y": arrays_of(y), **found}


def fresh(function: Function, p: bool = True, seed: int = 3) -> tuple[nn.Linear, Any]:
    """A base, and the learner's layer around it as it is after __init__."""
    with reproducible(seed):
        base = nn.Linear(7, 5)
        return base, function(base, 3, 8.0, *([0.25] if p else []))


def begins(A: bool, B: bool, p: bool = True) -> Callable[[Function], bool]:
    """A test for a rule: True if after __init__ exactly those of A and B are zero for which False is given."""

    def broken(function: Function) -> bool:
        _, layer = fresh(function, p)
        return (bool(factor(layer, "A").any()), bool(factor(layer, "B").any())) == (A, B)

    return broken
