"""Does the test double behave as CuPy does? On a machine with a GPU the two outputs are the same:

    python tests/tools/cupy_fidelity.py fakecupy > double.txt
    python tests/tools/cupy_fidelity.py cupy > real.txt
    diff double.txt real.txt

Some of the expressions are legal and some are mistakes. A line says what came out, or that it was refused. Written for
CuPy 14; CuPy 13 promotes NumPy scalars as NumPy 1 did.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import sys
from types import ModuleType
from typing import Any

import numpy as np

EXPRESSIONS = [
    # NumPy arrays among device arrays
    "x + n", "n + x", "x.__isub__(n)", "x.__setitem__(slice(None), n)", "cp.exp(n)", "cp.exp([1.0, 2.0])",
    "x + [1.0, 2.0, 3.0, 4.0]", "np.concatenate([x, n])", "np.asarray(x)", "np.asarray([x.sum()])",
    "np.testing.assert_allclose(x, n)", "isinstance(x, np.ndarray)",
    # NumPy's functions on device arrays
    "np.exp(x)", "np.sum(x, axis=0)", "np.linalg.norm(x)", "np.stack([x[0], x[1]])", "np.add.at(table, ids, x)",
    "np.save(file, x)", "np.zeros((2,), like=x)", "np.arange(3, like=x)", "np.ones((2,), like=x)",
    "np.eye(3, like=x)",
    # what CuPy lacks
    "cp.errstate(all='ignore')", "cp.vecdot(x, x)", "cp.unstack(x)", "cp.linalg.vector_norm(x)",
    "cp.linalg.svd(square, hermitian=True)", "cp.sum(x, where=x > 0)", "cp.exp(x, out=x, where=x > 0)",
    "x.sum(initial=0)", "cp.clip(x, min=0.0)", "cp.var(x, correction=0)",
    "cp.einsum('ij,kj->ik', x, x, out=square)",
    "x.__array_namespace__()", "x.item(0)", "rng.normal(0, 1, 3)", "rng.permutation(3)", "rng.choice(3)",
    "rng.integers([1, 2], 5)",
    # 0-d arrays in place of scalars
    "x.sum()", "x[0, 0]", "cp.argmax(x)", "cp.allclose(x, x)", "cp.array_equal(x, x)", "rng.random()", "x * x.sum()",
    "cp.asarray([x.sum(), x.sum()])", "cp.full((2,), x.sum())", "range(cp.max(ids))", "json.dumps(x.sum())",
    # waiting for the device
    "float(x[0, 0])", "int(ids[2])", "bool((x > 0).all())", "bool(x)", "math.log(x.sum())", "f'{x.sum():.3f}'",
    "x.sum().item()", "x.tolist()", "x.get()", "len(x)", "list(x[0])", "list(x.sum())",
    # dtypes
    "x * 2.0", "x * np.float32(2)", "x * np.float64(2)", "x * cp.asarray(2.0)", "x / math.sqrt(64)", "ids * 0.5",
    "ids / 2", "(x > 0) / 0.9", "(x > 0).mean()", "(x > 0).sum()", "ids.sum()", "cp.where(x > 0, x, -np.inf)",
    "x.astype(cp.float64)", "x.astype('float16').sum()", "cp.asarray(n, dtype='float64')",
    "cp.asarray(x, dtype=cp.float64)", "cp.arange(3)", "cp.zeros(3)", "cp.ones((3, 3), dtype=bool)",
    "cp.zeros_like(x)", "cp.float32(2)", "cp.finfo(x.dtype).eps", "x.dtype == np.float32",
    # elements
    "cp.exp(x)", "cp.exp(x, out=x)", "cp.tanh(x)", "cp.sqrt(x)", "x**2", "-x", "x.__iadd__(1.0)",
    "cp.maximum(x, 0.5)", "cp.clip(x, 0.0, 1.0)", "cp.isfinite(x).all()",
    # reductions
    "x.sum(axis=0)", "x.sum(0, out=row)", "x.mean(axis=-1, keepdims=True)", "x.max(-1, keepdims=True)", "x.var(-1)",
    "cp.argmax(x, axis=-1)", "cp.linalg.norm(x, axis=1)",
    # products
    "x @ x.T", "cp.matmul(x, x.T)", "cp.einsum('ij,kj->ik', x, x)", "cp.tensordot(x, x, axes=((1,), (1,)))",
    "cp.linalg.svd(square, full_matrices=False)[1]",
    "cp.linalg.inv(square + cp.eye(4, dtype='float32'))",
    # shapes
    "x.reshape(-1, 2, 2).transpose(0, 2, 1)", "x.swapaxes(0, 1)", "x[:, None, ::2]", "cp.split(x, 2, axis=1)",
    "cp.concatenate([x, x])", "cp.stack([x[0], x[1]])", "cp.broadcast_to(x, (2, 3, 4))",
    "cp.tril(cp.ones((3, 3), dtype=bool))",
    "cp.tri(3, 4, 1, dtype=bool)",
    # indices
    "x[ids]", "x[[0, 1]]", "x[x > 0]", "x[cp.arange(3), ids]", "x.__setitem__((cp.arange(3), ids), 0.0)",
    "x.__setitem__(ids, 0.0)", "x.__setitem__(0, [1.0, 2.0, 3.0, 4.0])", "cp.take(x, ids, axis=0)",
    "cp.take(x, ids, mode='clip')",
    "cp.take_along_axis(x, ids[:, None], axis=1)",
    "cp.add.at(table, ids, x)",
    # random numbers
    "rng.random((2, 3), dtype=cp.float32)",
    "rng.standard_normal((2, 3), dtype=cp.float32)",
    "rng.uniform(-1.0, 1.0, (2, 3))",
    "rng.integers(0, 5, (2, 3))",
]  # fmt: skip

STRICTER = [
    # CuPy computes these. The double refuses them, because their meaning differs from NumPy's,
    "x.__setitem__(ids, x)",  # any of the repeated rows may be written last
    "x[ids + 7]",  # wraps around
    # because they copy to the device at each call,
    "x[np.array([0, 1])]",
    # because CuPy 13 lacks them,
    "x.mT",
    # or because nothing needs them.
    "cp.maximum.at(table, ids, x)",
    "cp.r_[x, x]",
    "cp.fft.fft(x)",
    "x.flat",
]


def operands(cp: ModuleType) -> dict[str, Any]:
    """The names that the expressions use, with arrays of `cp`."""
    host = np.random.default_rng(0)
    return {
        "cp": cp, "np": np, "math": math, "json": json, "file": io.BytesIO(), "n": np.ones((3, 4), dtype="float32"),
        "x": cp.asarray(host.uniform(0.5, 1.5, (3, 4)).astype("float32")),
        "row": cp.zeros(4, dtype="float32"),
        "square": cp.asarray(host.standard_normal((4, 4)).astype("float32")),
        "ids": cp.asarray(np.array([0, 0, 1])),
        "table": cp.zeros((5, 4), dtype="float32"),
        "rng": cp.random.default_rng(0),
    }  # fmt: skip


def outcome(expression: str, cp: ModuleType) -> str:
    """The kind of the expression's value, with its dtype and shape if it has them, or "refused"."""
    try:
        value = eval(expression, operands(cp))
    except Exception:
        return "refused"
    kind = "device array" if isinstance(value, cp.ndarray) else type(value).__name__
    return f"{kind} {getattr(value, 'dtype', '')} {getattr(value, 'shape', '')}".rstrip()


def main() -> None:
    cp = importlib.import_module(sys.argv[1])
    for expression in EXPRESSIONS + STRICTER:
        print(f"{expression}  ->  {outcome(expression, cp)}")


if __name__ == "__main__":
    main()
