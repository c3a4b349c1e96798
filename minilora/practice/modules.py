"""Parts of twins: what the learner writes in PyTorch, with the cases and true values of the NumPy exercise.

    Twin     a function of tensors: the part of the NumPy exercise grades it, with its mistakes
    Layer    an nn.Module around a frozen nn.Linear: what it computes with given A and B, and what autograd makes of it

Only the files of twins import this one, for it imports torch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..backend import Array
from ..verify.language import words
from ..verify.problems.low_rank import low_rank
from .naming import Arguments, shape
from .parts import Function, Refused, Rule, Tensors, Value, refuse


@contextlib.contextmanager
def reproducible(seed: int = 0) -> Iterator[None]:
    """float64 where nothing else is said, a seed for what is drawn, and one thread, for all is small."""
    # torch.manual_seed would take most of the time of a check: it formats a traceback for each kind of device
    draws = torch.default_generator
    state, dtype, threads = draws.get_state(), torch.get_default_dtype(), torch.get_num_threads()
    draws.manual_seed(seed)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        draws.set_state(state)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def tensors_of(value: Any, grad: bool = False) -> Any:
    """The same with each array as a tensor on the same memory, which asks for a gradient if it is one of floats."""
    if isinstance(value, np.ndarray):
        tensor = torch.from_numpy(value)
        return tensor.requires_grad_(grad and tensor.is_floating_point())
    if isinstance(value, tuple | list):
        return type(value)(tensors_of(each, grad) for each in value)
    return value


def arrays_of(value: Any) -> Any:
    """The same with each tensor as an array."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    if isinstance(value, tuple | list):
        return type(value)(map(arrays_of, value))
    return {key: arrays_of(each) for key, each in value.items()} if isinstance(value, Mapping) else value


class Watched(TorchFunctionMode):
    """How many operations are carried out, and how many numbers the largest result has."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.largest = 0, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and func is not torch.Tensor.detach:
            self.operations += 1
            self.largest = max(self.largest, 0 if is_view(result, args) else result.numel())
        return result


def is_view(result: torch.Tensor, args: Sequence[Any]) -> bool:
    """Does it lie in the memory of an argument?"""
    where = result.untyped_storage().data_ptr()
    return any(isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() == where for each in args)


def watched(function: Function, *arguments: Any) -> Watched:
    """What a call of the learner's function with arrays does."""
    given = tensors_of(list(arguments))
    with reproducible(), Watched() as watch:
        function(*given)
    return watch


# ---- functions of tensors ----


@dataclass
class Twin(Value):
    """A function of tensors: `of` grades it."""

    of: Value | None = None
    without: Sequence[str] = ()  # mistakes and rules that are none here
    tests: Mapping[str, Callable[[Function], bool]] = field(default_factory=dict)  # of rules that arrays are tried for

    def __post_init__(self) -> None:
        assert self.of
        for each in fields(Value):
            if each.init and each.name != "solution":
                setattr(self, each.name, getattr(self.of, each.name))
        self.mistakes = {
            name: mistake._replace(wrong=self.in_torch(mistake.wrong))
            for name, mistake in self.of.mistakes.items()
            if name not in self.without
        }
        for name, (mistake, broken) in self.of.rules.items():
            if name not in self.without:
                test = self.tests.get(name, lambda function, broken=broken: broken(self.in_numpy(function)))
                self.rules[name] = Rule(mistake._replace(wrong=self.in_torch(mistake.wrong)), test)

    def in_torch(self, wrong: Function) -> Function:
        """A function of arrays as a function of tensors, which autograd does not look through."""

        @functools.wraps(wrong)
        def function(*arguments: Any) -> Any:
            return tensors_of(wrong(*map(arrays_of, arguments)))

        return function

    def in_numpy(self, function: Function) -> Function:
        """The learner's function, called as that of the NumPy exercise."""
        assert self.of
        names = self.of.arguments
        return lambda *arguments: self.call(function, dict(zip(names, arguments, strict=True)))

    def call(self, function: Function, arguments: Arguments) -> Any:
        with reproducible():
            result = function(*tensors_of(list(arguments.values()), grad=True))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, np.ndarray | float | int):
                says = words("{it} returns {found}, and must return a torch.Tensor", it=self.name, found=kind(each))
                raise Refused("type", says, words("How would the gradient find its way back to the arguments?"))
        return arrays_of(result)


def kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")


def cut_from_autograd(part: Twin, read: Callable[[Any], torch.Tensor] = lambda result: result) -> Function:
    """A test for a rule: is a gradient of an argument another than that of the solution? `read` makes one tensor of
    what is returned."""

    def gradients(function: Function, case: Arguments) -> list[Array]:
        given = tensors_of(list(case.values()), grad=True)
        leaves = [each for value in given for each in (value if isinstance(value, list) else [value])]
        leaves = [each for pair in leaves for each in (pair if isinstance(pair, tuple) else [pair])]
        leaves = [each for each in leaves if isinstance(each, torch.Tensor) and each.requires_grad]
        with reproducible():
            y = read(function(*given))
            if y.requires_grad:
                y.backward(torch.randn(y.shape))
        return [(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad).numpy() for leaf in leaves]

    def broken(function: Function) -> bool:
        return any(
            not part.same(mine, true)
            for case in part.cases(0)[:2]
            for mine, true in zip(gradients(function, case), gradients(part.solution, case), strict=True)
        )

    return broken


# ---- layers ----


@dataclass
class Layer(Value):
    """A class of the learner, called with (base, r, alpha, p), p only if it takes one; base is an nn.Linear.

    Of every case it is asked with A and B of the case: y and dx, dA, dB in eval mode, dW and db, which are zero if base
    is frozen, and keep, the least and the largest number that dropout multiplies an x by in train mode.
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
        """Case i of the problem low_rank, and a bias, which one case has not."""
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
            raise Refused("type", words("{it} is no nn.Module", it=self.name))
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
        """What each of some x (60, 4, r) is multiplied by on the low-rank path in train mode; None where there is none.

        x is zero but for its first r entries, the first r columns of A can be inverted, and the first r rows of B are
        the identity: so the low-rank path of y shows what became of x.
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
        """Of each case p, and what of some x (60, 4, r) is dropped in train mode, for a class that is right else."""
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
        says = words("{name} is no parameter of the layer: neither parameters() nor state_dict() has it", name=name)
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
    """y, in the shape that it must have."""
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
    """A base, and a layer of the learner around it as it is at the start."""
    with reproducible(seed):
        base = nn.Linear(7, 5)
        return base, function(base, 3, 8.0, *([0.25] if p else []))


def begins(A: bool, B: bool, p: bool = True) -> Callable[[Function], bool]:
    """A test for a rule: are A and B at the start random, where this is true, and else zero?"""

    def broken(function: Function) -> bool:
        _, layer = fresh(function, p)
        return (bool(factor(layer, "A").any()), bool(factor(layer, "B").any())) == (A, B)

    return broken
