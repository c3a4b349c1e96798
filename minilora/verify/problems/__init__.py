"""The bank: one file per op, each with its textbook gradient and the mistakes that people make in it."""

from importlib import import_module

from ..problem import Problem

FILES = [
    "linear",
    "low_rank",
    "attention",
    "rope",
    "layer_norm",
    "rms_norm",
    "gelu",
    "swiglu",
    "cross_entropy",
    "mean_squared_error",
    "embedding",
    "dropout",
    "residual",
]


def problems() -> dict[str, Problem]:
    """{name: problem} of the whole bank."""
    found = [value for name in FILES for value in vars(import_module(f".{name}", __name__)).values()]
    return {problem.name: problem for problem in found if isinstance(problem, Problem)}


def signatures() -> str:
    """What a gradient of each problem is called with, a line for each: print(signatures())."""
    return "\n".join(problem.signature() for problem in problems().values())
