"""A live model: what is there, counted, and the model laid out as what the formulas count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..adapters.lora import LoRA, LoRAEmbedding, TiedLoRALinear
from ..backend import Array
from ..models.config import LABELLED
from ..models.transformer import Transformer
from ..nn import Gradients, Module
from ..nn.optim import Optimizer
from .architecture import Architecture, Linear, Table
from .methods import Insert, Kept, Plan, lora
from .named import architecture

# ---- what is there ----


def count_parameters(model: Module) -> dict[str, int]:
    """`total` (without adapters) and `trainable`, every parameter once, tied or not."""
    parameters = model.named_parameters()
    total = sum(p.data.size for path, p in parameters.items() if not path.endswith(("lora_A", "lora_B")))
    return {"total": total, "trainable": sum(p.data.size for p in parameters.values() if p.trainable)}


def lora_parameters(model: Module) -> int:
    """Σ r (in + out) over the adapted layers, r (V + C) of an embedding: the formula for what count_parameters counts.

    A tied head that has its embedding's A and B adds nothing.
    """
    adapters = (m for _, m in model.named_modules() if isinstance(m, LoRA) and not isinstance(m, TiedLoRALinear))
    return sum(adapter.r * sum(adapter.weight.data.shape) for adapter in adapters)


def memory(model: Module, cache: Any, grads: Gradients, optimizer: Optimizer) -> dict[str, int]:
    """Bytes of the four values of training: weights, cache, gradients, optimizer state.

    Each buffer is counted once, a view as the array it looks into.
    """
    return {
        "weights": nbytes(parameter.data for parameter in model.named_parameters().values()),
        "cache": nbytes(cache),
        "gradients": nbytes(grads),
        "optimizer": nbytes(optimizer.state),
    }


def nbytes(tree: Any) -> int:
    """Bytes of the distinct buffers behind the arrays in nested tuples, lists, iterables and values of dicts."""
    owners = {id(owner): owner for owner in map(owner_of, arrays(tree))}
    return sum(owner.nbytes for owner in owners.values())


def arrays(tree: Any) -> Iterator[Array]:
    if hasattr(tree, "nbytes") and hasattr(tree, "shape"):
        yield tree
    elif isinstance(tree, Mapping):
        yield from arrays(tree.values())
    elif isinstance(tree, Iterable) and not isinstance(tree, str):
        for branch in tree:
            yield from arrays(branch)


def owner_of(array: Any) -> Any:
    while hasattr(array.base, "base"):  # bytes read from a file end the chain
        array = array.base
    return array


# ---- what the formulas make of it ----


def describe(model: Transformer, *, dropout: bool = False) -> tuple[Architecture, Plan]:
    """The architecture of a live model, and as a plan what is trainable in it now: ledger(*describe(model), B, T) has
    the bytes of its cache, flops(...) the products of its steps. `dropout`: forward is given a generator.
    """
    made = replace(laid_out(model), name=f"this {model.family}")
    trained = frozenset(path for path, parameter in model.named_parameters().items() if parameter.trainable)
    layers = {op.path: op for op in made.ops() if isinstance(op, Linear | Table)}
    inserts = [
        insert_of(module, layers[path], dropout) for path, module in model.named_modules() if isinstance(module, LoRA)
    ]
    return made, Plan("this", "what is trainable", trained & set(made.tensors()), tuple(inserts))


def laid_out(model: Transformer) -> Architecture:
    c = model.config
    shared: dict[str, Any] = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "intermediate_size": c.d_ff,
        "max_position_embeddings": c.max_length,
        "tie_word_embeddings": c.tied,
    }
    head: dict[str, Any] = {"head": c.head, "labels": c.labels if c.head in LABELLED else None}
    if model.family == "gpt2":
        sizes = {"n_embd": c.d_model, "n_layer": c.n_layers, "n_head": c.n_heads, "n_inner": c.d_ff}
        return architecture({"model_type": "gpt2", **shared, **sizes, "n_positions": c.max_length}, **head)
    if model.family in ("bert", "roberta"):
        sizes = {"type_vocab_size": c.segments, "max_position_embeddings": c.max_length + c.offset}
        made = architecture({"model_type": model.family, **shared, **sizes}, **head)
        absent = {"none": ("first", "pooler", "pooler_tanh"), "lm": ("unused",)}.get(c.head, ())
        return replace(made, stages={name: ops for name, ops in made.stages.items() if name not in absent})
    kind = "qwen2" if c.qkv_bias else "mistral" if c.sliding_window else "llama"
    shared |= {"model_type": kind, "head_dim": c.head_dim, "sliding_window": c.sliding_window}
    shared |= {"use_sliding_window": c.sliding_window is not None, "max_window_layers": c.max_window_layers}
    return architecture({**shared, "layer_types": list(c.layer_types) or None}, **head)


def insert_of(adapter: LoRA, layer: Linear | Table, dropout: bool) -> Insert:
    """What lora() says, less what a frozen A or B does not need; dropout keeps a mask, and an x of the layer's own.

    A tied head reads its embedding's B where others have A, and A where they have B, and adds no tensor.
    """
    made, r = lora(layer, adapter.r), adapter.r
    A, B = adapter.lora_A.trainable, adapter.lora_B.trainable
    first, second = (B, A) if isinstance(adapter, TiedLoRALinear) else (A, B)
    kept = [entry for entry in made.kept if (second if entry.what == "h" else first)]
    if isinstance(layer, Table):
        return replace(made, **parts(made, A, B), kept=kept, backward=2 * r * layer.width * (A + B))
    assert not isinstance(adapter, LoRAEmbedding)
    n_in, n_out = layer.n_in, layer.n_out
    if dropout and adapter.dropout:
        mask = Kept("keep", n_in, "to drop the same of dx")
        kept = [mask, *(e._replace(what="x, dropped") if e.what == "x" else e for e in kept)]
    backward = 2 * r * (n_in + n_out) + 2 * r * (n_in * first + n_out * second)
    added = {"trained": {}} if isinstance(adapter, TiedLoRALinear) else parts(made, A, B)
    return replace(made, **added, kept=kept, backward=backward)


def parts(made: Insert, A: bool, B: bool) -> dict[str, Any]:
    """The tensors of an insert, by whether they learn."""
    trained = {name: shape for name, shape in made.trained.items() if (A if "_A" in name else B)}
    return {"trained": trained, "frozen": {name: x for name, x in made.trained.items() if name not in trained}}


class CountedArray(np.ndarray):
    """An array that counts the FLOPs of its matrix products; what is made of it counts too."""

    products = 0
    sums = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        if out:
            options["out"] = tuple(map(plain, out))
        y = getattr(ufunc, method)(*map(plain, inputs), **options)
        if ufunc is np.matmul:
            # an op adds rows by a product with a vector of constants, a plain array, or of each row with a column
            sums = y.shape[1:] == (1, 1) or not all(isinstance(x, CountedArray) for x in inputs)
            kind = "sums" if sums else "products"
            setattr(CountedArray, kind, getattr(CountedArray, kind) + 2 * inputs[0].shape[-1] * y.size)
        return out[0] if out else counted(y)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        return counted(super().__array_function__(function, types, arguments, options))


def plain(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, CountedArray) else x


def counted(y: Any) -> Any:
    if isinstance(y, tuple | list):
        return type(y)(map(counted, y))
    return y.view(CountedArray) if isinstance(y, np.ndarray) else y


def executed_flops(model: Module, run: Callable[[], Any]) -> dict[str, int]:
    """FLOPs of the matrix products while `run` uses `model` on the CPU: "products", and "sums" written as products."""
    parameters = list(model.named_parameters().values())
    CountedArray.products = CountedArray.sums = 0
    for parameter in parameters:
        parameter.data = parameter.data.view(CountedArray)
    try:
        run()
    finally:
        for parameter in parameters:
            parameter.data = plain(parameter.data)
    return {"products": CountedArray.products, "sums": CountedArray.sums}
