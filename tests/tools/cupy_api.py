"""Write cupy_api.json: the names, with their parameters, that NumPy shares with CuPy.

CuPy must be installed; a GPU is not needed. A run narrows an existing file to what the installed CuPy has too, so for
two versions start without the file and run once under each:

    rm tests/tools/cupy_api.json
    pip install cupy-cuda13x==13.6.0 && python tests/tools/cupy_api.py
    pip install cupy-cuda13x==14.2.0 && python tests/tools/cupy_api.py
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import cupy
import numpy as np

Parameters = list[str] | None  # None for what is not called: constants, types, submodules

FILE = Path(__file__).with_name("cupy_api.json")
NAMESPACES = {
    "": (cupy, np),
    "linalg.": (cupy.linalg, np.linalg),
    "ndarray.": (cupy.ndarray, np.ndarray),
    "random.Generator.": (cupy.random.Generator, np.random.Generator),
}
UFUNC = ["*args", "out", "dtype", "casting"]
STARS = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
STATED = {"einsum": ["*operands", "dtype", "optimize"]}  # its signature says **kwargs, its body refuses all others


def parameters(name: str, function: Any) -> Parameters:
    """Parameter names, variable ones with their stars, from the signature or from the docstring's first line."""
    if name in STATED:
        return STATED[name]
    if isinstance(function, type) or not callable(function):
        return None
    if isinstance(function, cupy.ufunc):
        return UFUNC
    try:
        signature = inspect.signature(function).parameters.values()
        found = [STARS.get(parameter.kind, "") + parameter.name for parameter in signature]
    except (TypeError, ValueError):  # compiled without one
        call = re.match(r"\w+(?:\.\w+)?\((.*?)\)", function.__doc__ or "")
        if call is None:
            return None
        # "Py_ssize_t axis=0" and "axis: int = 0" both name axis
        found = [re.split("[=:]", argument)[0].split()[-1] for argument in call[1].split(",") if argument.strip()]
    return [parameter for parameter in found if parameter != "self"]


def common(old: Parameters, new: Parameters) -> Parameters:
    """The parameters that both versions take. `**kwargs` takes any, so the other version's list is the smaller one."""
    if old is None or new is None:
        return new if old is None else old
    if any(parameter.startswith("**") for parameter in old):
        return new
    if any(parameter.startswith("**") for parameter in new):
        return old
    return [parameter for parameter in old if parameter in new]


def main() -> None:
    api = {}
    for prefix, (theirs, ours) in NAMESPACES.items():
        for name in dir(ours):
            if not name.startswith("_") and hasattr(theirs, name):
                api[prefix + name] = parameters(prefix + name, getattr(theirs, name))
    if FILE.exists():
        old = json.loads(FILE.read_text())
        api = {name: common(old[name], new) for name, new in api.items() if name in old}
    lines = [f"{json.dumps(name)}: {json.dumps(api[name])}" for name in sorted(api)]  # one a line, for a readable diff
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"CuPy {cupy.__version__}: {len(api)} names in {FILE.name}")


if __name__ == "__main__":
    main()
