"""The bank: one file per op, each with its textbook gradient and the mistakes that people make in it."""

from importlib import import_module

from ..problem import Problem

FILES = [
    "linear",
    "low_rank",
    "dora",
    "vera",
    "ia3",
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


def signatures(only: str = "") -> str:
    """Each problem whose name or alias contains `only`: print(signatures("lora")).

    What its gradient is called with, its forward as a formula, and in which other forms the gradient may come. Raises
    ValueError when nothing is called so.
    """
    wanted = only.casefold()
    found = [
        "\n    ".join(filter(None, [problem.signature(), problem.formula, problem.also]))
        for problem in problems().values()
        if any(wanted in name for name in (problem.name, *problem.aliases))
    ]
    if not found:
        raise ValueError(f"no problem has {only!r} in its name; there are: {', '.join(problems())}")
    return "\n".join(found)
