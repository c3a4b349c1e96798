"""Initialisations of LoRA, one file each: functions (W, r, s, data) -> (A, B, W_residual).

    W (out, in)          the pretrained weight, which no function writes to
    r, s                 the rank, and the scale α/r or α/√r
    data                 what else it may use: a generator, the layer's inputs, the gradient of W (start.Data)
    A (r, in), B (out, r)                   the adapter's, in the dtype of W
    W_residual (out, in)                    the frozen weight that s B A is added to

W_residual + s B A = W: the layer's outputs do not change. Most have B A = 0, and W_residual is W itself. Others
(takes_from_W) move a part of W into s B A, which is then trained. No adapter here holds a second W for it: it stores
the start A₀, B₀ instead, as W_residual = W - s B₀ A₀ (ResidualLoRALinear). W_residual is returned for readers and tests
of the function. Only for LoftQ (quantizes) W_residual is a W in few bits, which replaces the layer's W (LoftQLinear):
the sum comes near W.

A file states INITS = {name: Init(a line about it, its function, ...)}. The names are PEFT's for init_lora_weights.
"""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .start import Init


@functools.cache
def inits() -> dict[str, Init]:
    """{name: Init} of all files, the default first."""
    files = (importlib.import_module(f".{file.name}", __package__) for file in pkgutil.iter_modules(__path__))
    found = {name: init for file in files for name, init in getattr(file, "INITS", {}).items()}
    return dict(sorted(found.items(), key=lambda item: item[0] != "uniform"))


def descriptions() -> dict[str, str]:
    """{name: a line about it}, the default first, read from the files' text: --help need not wait for NumPy."""
    found: dict[str, str] = {}
    for file in sorted(Path(__path__[0]).glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.value, ast.Dict)
                and "INITS" in ast.dump(node.targets[0])
            ):
                calls = zip(node.value.keys, node.value.values, strict=True)
                found |= {ast.literal_eval(name): ast.literal_eval(call.args[0]) for name, call in calls}  # type: ignore
    return dict(sorted(found.items(), key=lambda item: item[0] != "uniform"))
