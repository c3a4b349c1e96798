"""Each op beside its bound: the time that its matrix products would take at the speed of a large product, or that its
bytes would take to pass through memory once, whichever is longer (Williams et al., 2009, "Roofline").

What it reads and writes is counted once: an op whose arrays stay in a cache of the processor can be faster than its
bound, and one that makes temporaries is slower.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np

from minilora import ops
from minilora.accounting.live import CountedArray, arrays, owner_of
from minilora.backend import Array, load_backend
from minilora.nn import Gradients, Parameter
from minilora.nn.optim import AdamW
from minilora.process import keep_freed_memory

from .cases import SEED, Case

SECONDS = 0.15  # for each op
LARGE = 2048  # the product that says how fast BLAS is


def op_calls(case: Case, xp: ModuleType) -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """(name, op, its arguments) in the shapes of a block of the case, and of what surrounds the blocks."""
    rng = np.random.default_rng(SEED)

    def x(*shape: int) -> Array:
        return xp.asarray(rng.standard_normal(shape, dtype="float32"))

    B, T, r, shape = case.batch, case.tokens, case.rank, case.shape
    C, V, D = shape["d_model"], shape["vocab_size"], shape["d_model"] // shape["n_heads"]
    h, F, W, up = x(B, T, C), x(B, T, 4 * C), x(C, C), x(4 * C, C)
    g, A, lora_B, E = x(C), x(r, C), x(C, r), x(V, C)
    ids = xp.asarray(rng.integers(0, V, (B, T)))

    yield "linear C → C", ops.linear_forward, (h, W, g)
    yield "  dx", ops.linear_backward, (h, W)
    yield "  dW", ops.linear_gradients, (h, h)
    yield "linear C → 4C", ops.linear_forward, (h, up)
    yield "linear 4C → C", ops.linear_forward, (F, up.T)
    yield "head C → V", ops.linear_forward, (h, E)
    yield "lora", ops.lora_forward, (h, A, lora_B, 2.0)
    yield "  dx", ops.lora_backward, (h, A, lora_B, 2.0)
    yield "  dA", ops.lora_A_gradients, (x(B * T, r), h)
    yield "  dB", ops.lora_B_gradients, (h, x(B * T, r), 2.0)
    mask = ops.attention_mask(xp, T, True, None, "float32")
    _, cache = ops.attention_forward(h, h, h, mask, D)
    yield "attention", ops.attention_forward, (h, h, h, mask, D)
    yield "  dq, dk, dv", ops.attention_backward, (h, cache)
    norm = ops.layer_norm_forward(h, g, g)[1]
    yield "layer norm", ops.layer_norm_forward, (h, g, g)
    yield "  dx", ops.layer_norm_backward, (h, norm, g)
    for name, gelu in (("gelu, tanh", ops.gelu_tanh_forward), ("gelu, erf", ops.gelu_forward)):
        yield name, gelu, (F,)
    yield "  dx", ops.gelu_backward, (F, F)
    yield "swiglu", ops.swiglu_forward, (F, F)
    yield "  dgate, dup", ops.swiglu_backward, (F, ops.swiglu_forward(F, F)[1])
    yield "rms norm", ops.rms_norm_forward, (h, g)
    cos, sin = ops.rope_tables(xp, T, ops.rope_frequencies(xp, D, 1e4), "float32")
    yield "rope", ops.rope_forward, (h, cos, sin)
    yield "embedding", ops.embedding_forward, (ids, E)
    logits = x(B, T, V)
    yield "cross-entropy", ops.cross_entropy_forward, (logits, ids)
    yield "  dlogits", ops.cross_entropy_backward, (1.0, ops.cross_entropy_forward(logits, ids)[1])
    optimizer = AdamW({f"{i}": Parameter(x(*s)) for i, s in enumerate([(r, C), (C, r)] * 2 * shape["n_layers"])})
    learned = list(optimizer.groups[0].parameters.values())
    grads = Gradients({parameter: parameter.data for parameter in learned})

    def step(*_: Any) -> list[Any]:
        optimizer.step(grads)
        return [[parameter.data for parameter in learned], optimizer.state]

    yield "AdamW, all of LoRA", step, (grads, [parameter.data + 0 for parameter in learned], dict(optimizer.state))


def seconds(call: Callable[[], Any], wait: Callable[[], None]) -> float:
    """Of one call, the median."""
    return median(times(call, wait))


def times(call: Callable[[], Any], wait: Callable[[], None]) -> list[float]:
    found: list[float] = []
    call()
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(found) < 5:
        start = time.perf_counter()
        call()
        wait()
        found.append(time.perf_counter() - start)
    return found


def waiter(xp: ModuleType) -> Callable[[], None]:
    """On a GPU a call returns before it is done: what waits until it is."""
    return (lambda: None) if xp is np else xp.cuda.Device().synchronize


def ceilings(xp: ModuleType) -> dict[str, float]:
    """FLOPs a second of a large product, bytes a second of a large copy (those read and those written)."""
    rng, wait = np.random.default_rng(SEED), waiter(xp)
    W = xp.asarray(rng.standard_normal((LARGE, LARGE), dtype="float32"))
    source = xp.asarray(rng.standard_normal(2**24, dtype="float32"))
    target = xp.empty_like(source)

    def copy() -> None:
        target[...] = source

    best = {"flops": min(times(lambda: W @ W, wait)), "bytes": min(times(copy, wait))}  # what can be had, at best
    return {"flops": 2 * LARGE**3 / best["flops"], "bytes": 2 * source.nbytes / best["bytes"]}


def products(op: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    """FLOPs of its matrix products, counted as it runs."""
    CountedArray.products = CountedArray.sums = 0
    op(*map(counting, arguments))
    return CountedArray.products


def counting(x: Any) -> Any:
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*map(counting, x))
    return x.view(CountedArray) if isinstance(x, np.ndarray) else x


def distinct(tree: Any) -> dict[int, int]:
    return {id(owner_of(x)): owner_of(x).nbytes for x in arrays(tree)}


def roofline(case: Case) -> dict[str, Any]:
    """{"ceilings", "ops": [{"op", "seconds", "flops", "bytes", "bound"}]}, on one core or on a GPU."""
    xp = load_backend("cupy" if case.device == "cuda" else "numpy")
    top, wait = ceilings(xp), waiter(xp)
    rows = []
    for (name, op, arguments), (_, _, hosted) in zip(op_calls(case, xp), op_calls(case, np), strict=True):
        flops = products(op, hosted)
        moved = sum((distinct(arguments) | distinct(op(*arguments))).values())
        took = seconds(partial(op, *arguments), wait)
        bound = max(flops / top["flops"], moved / top["bytes"])
        rows.append({"op": name, "seconds": took, "flops": flops, "bytes": moved, "bound": bound})
    return {"case": str(case), "ceilings": top, "ops": rows}


if __name__ == "__main__":
    keep_freed_memory()
    print(json.dumps(roofline(Case(**json.loads(sys.argv[1])))))
