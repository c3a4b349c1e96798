"""Parts of twins that are functions of tensors, graded as the functions of arrays in the NumPy exercise.

Only the files of twins, and torch_layers.py, import this one: it imports torch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from ..backend import Array
from ..verify.language import words
from .naming import Arguments
from .parts import Function, Refused, Rule, Value


@contextlib.contextmanager
def reproducible(seed: int = 0) -> Iterator[None]:
    """In the block torch's default dtype is float64, its generator has this seed, and it runs on one thread, as every
    tensor is small."""
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
    """The value with each array as a tensor on the same memory; with `grad`, tensors of floats require a gradient."""
    if isinstance(value, np.ndarray):
        tensor = torch.from_numpy(value)
        return tensor.requires_grad_(grad and tensor.is_floating_point())
    if isinstance(value, tuple | list):
        return type(value)(tensors_of(each, grad) for each in value)
    return value


def arrays_of(value: Any) -> Any:
    """The value with each tensor as an array."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    if isinstance(value, tuple | list):
        return type(value)(map(arrays_of, value))
    return {key: arrays_of(each) for key, each in value.items()} if isinstance(value, Mapping) else value


class Watched(TorchFunctionMode):
    """Counts the operations in a block, and the entries of the largest result that is not a view."""

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
    """Whether the result begins at the same memory as an argument."""
    where = result.untyped_storage().data_ptr()
    return any(isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() == where for each in args)


def watched(function: Function, *arguments: Any) -> Watched:
    """The counts of one call of the learner's function, with these arrays as tensors."""
    given = tensors_of(list(arguments))
    with reproducible(), Watched() as watch:
        function(*given)
    return watch


@dataclass
class Twin(Value):
    """A function of tensors. `of`, the part of the NumPy exercise, has its cases, true values, mistakes and rules."""

    of: Value | None = None
    without: Sequence[str] = ()  # names of its mistakes and rules that do not apply here
    tests: Mapping[str, Callable[[Function], bool]] = field(default_factory=dict)  # other tests for its rules

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
        """A function of arrays as a function of tensors. Autograd does not see inside it."""

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
    """A test for a rule: True if the gradient of an argument differs from the solution's. `read` makes one tensor of
    what the function returns."""

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
