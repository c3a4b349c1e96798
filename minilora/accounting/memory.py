"""Bytes: weights, gradients, optimizer state, and the ledger of what forward keeps for backward.

The ledger has a row for each array, with the reason. Two rules make it: a gradient needs the input of its matrix
(dW = dyᵀ x, dA = dhᵀ x), so a frozen matrix keeps nothing; and what is not linear keeps what its slope depends on,
trained or not. Nothing is kept below the lowest stage (embeddings, a block, ...) in which something is trained.
A layer's input is one array however many layers read it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ..models.names import hub_name
from .architecture import Activation, Architecture, Attention, Linear, Norm, Op, Select, Shape, Table
from .methods import Insert, Plan

ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
LETTERS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # in a .safetensors file
QUANTISED = {"nf4": False, "nf4-dq": True}  # and whether the scales are quantised too; the rest is in bfloat16
DTYPES = (*ITEMSIZE, *QUANTISED)
EMBEDDINGS = ("embed_tokens", "lm_head")  # PEFT saves the frozen weight of a target of these names beside its adapter


def size(shape: Shape) -> int:
    return math.prod(shape)


def itemsize(dtype: str) -> int:
    """Bytes of a number that is computed with: beside a base in 4 bits, bfloat16's."""
    return ITEMSIZE.get(dtype, 2)


# ---- what is stored ----


def nf4_bits(n: int, double: bool) -> int:
    """Bits of n numbers in NF4 (Dettmers et al., 2023): 4 each, and for every block of 64 a scale.

    The scale is a float32; or (double quantisation) 8 bits, and for every 256 of them a float32, and one float32, their
    mean, for the whole tensor. So 4.5 or nearly 4.127 bits a number.
    """
    blocks = -(-n // 64)
    return 4 * n + (8 * blocks + 32 * -(-blocks // 256) + 32 if double else 32 * blocks)


def weight_bytes(model: Architecture, dtype: str) -> int:
    """Bytes of the base in `dtype`, one of DTYPES; "nf4" and "nf4-dq" hold the matrices of the blocks in 4 bits.

    A matrix of an odd number of numbers fills its last byte.
    """
    quantised = set()
    if dtype in QUANTISED:
        quantised = {op.weight for op in model.linears() if "block_" in op.path and not op.shape}
    return sum(
        -(-nf4_bits(size(shape), QUANTISED[dtype]) // 8) if path in quantised else size(shape) * itemsize(dtype)
        for path, shape in model.tensors().items()
    )


def added_tensors(model: Architecture, plan: Plan, trained: bool) -> dict[str, Shape]:
    """{name in PEFT's file: shape} of what the plan adds: what is trained of it, or what is frozen."""
    added: dict[str, Shape] = {}
    for insert in plan.inserts:
        name = peft_name(model, insert.layer.path)
        added |= {f"{name}.{end}": shape for end, shape in (insert.trained if trained else insert.frozen).items()}
    return added | dict(plan.rest if trained else {f"base_model.{name}": shape for name, shape in plan.shared.items()})


def peft_name(model: Architecture, path: str) -> str:
    """base_model.model.<path in Hugging Face's model>, which in a model without a head lacks the name of its body."""
    name = hub_name(model.family, path, model.head)
    body = {"gpt2": "transformer.", "llama": "model.", "deberta-v2": "deberta."}.get(model.family, f"{model.family}.")
    return f"base_model.model.{name.removeprefix(body) if model.head == 'none' else name}"


def adapter_bytes(model: Architecture, plan: Plan, dtype: str = "float32") -> int:
    """The length of adapter_model.safetensors as PEFT writes it: what is added is in float32 (beside float64, in that),
    trained tensors of the base in its own `dtype`. For a method that PEFT has no format for, the trained numbers alone.
    """
    shapes, base = model.tensors(), dtype if dtype in ITEMSIZE else "bfloat16"
    wide = "float64" if dtype == "float64" else "float32"
    added = added_tensors(model, plan, trained=True)
    if not plan.in_peft:
        rest = sum(size(shapes[path]) for path in plan.trained)
        return ITEMSIZE[wide] * sum(map(size, added.values())) + ITEMSIZE[base] * rest
    tensors = {name: (wide, shape) for name, shape in (added | added_tensors(model, plan, trained=False)).items()}
    for path in plan.trained:  # beside a prompt, which wraps the model once less, their names lack a "model."
        name = peft_name(model, path)
        tensors[name.replace(".model.", ".", 1) if plan.virtual_tokens else name] = base, shapes[path]
    for insert in plan.inserts:
        name, layer = peft_name(model, insert.layer.path), insert.layer
        if name.endswith(EMBEDDINGS):
            rows = (layer.rows, layer.width) if isinstance(layer, Table) else (layer.n_out, layer.n_in)
            tensors[f"{name}.base_layer.weight"] = base, rows
    return safetensors_bytes(tensors)


def safetensors_bytes(tensors: Mapping[str, tuple[str, Shape]]) -> int:
    """The length of a .safetensors file of {name: (dtype, shape)}: 8 bytes, a JSON header padded to a multiple of 8,
    and the data, wide numbers first."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (-ITEMSIZE[item[1][0]], item[0])):
        start, end = end, end + ITEMSIZE[dtype] * size(shape)
        header[name] = {"dtype": LETTERS[dtype], "shape": shape, "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + length + -length % 8 + end


# ---- what is kept for backward ----


class Entry(NamedTuple):
    """One array of the ledger."""

    layer: str
    what: str
    shape: Shape
    itemsize: int
    why: str

    @property
    def nbytes(self) -> int:
        return size(self.shape) * self.itemsize


def lowest_stage(model: Architecture, plan: Plan) -> int:
    """The first stage that has something to train: backward stops there. The number of stages if there is none."""
    adapted = {insert.layer.path for insert in plan.inserts if insert.trained}
    for i, ops in enumerate(model.stages.values()):
        tensors = {path for op in ops for path in op.tensors()} | {op.weight for op in ops if isinstance(op, Linear)}
        if plan.rest or tensors & plan.trained or any(op.path in adapted for op in ops):
            return i
    return len(model.stages)


def ledger(
    model: Architecture, plan: Plan, batch: int, tokens: int, dtype: str = "float32", *, recompute: bool = False,
    loss: bool = True,
) -> list[Entry]:  # fmt: skip
    """What is alive when forward ends, array by array; batch (B) sequences of `tokens` (T), without padding.

    With `recompute` a block keeps its input alone, and what it would have kept is there for one block at a time, while
    backward is in it: the largest is listed. `loss` adds what the cross-entropy of a language model keeps.
    """
    T, each = (model.tokens or tokens) + plan.virtual_tokens, itemsize(dtype)
    inserts = {insert.layer.path: insert for insert in plan.inserts}
    stages = list(model.stages.items())[lowest_stage(model, plan) :]
    found: dict[str, Entry] = {}
    blocks: list[dict[str, Entry]] = []
    for name, ops in stages:
        again = recompute and name in model.blocks()
        if again:
            first = ops[0]
            x = first.x if isinstance(first, Linear) else f"{name}.x"  # a post-norm block's q_proj reads its input
            found.setdefault(x, Entry(name, "x", (batch, T, model.width), each, "computing the block again"))
        kept: dict[str, Entry] = {}
        for op in ops:
            for buffer, entry in op_keeps(op, plan, inserts.get(op.path), batch, T, each):
                if buffer not in found:
                    kept.setdefault(buffer, entry)
        if again:
            blocks.append(kept)
        else:
            found |= kept
    if blocks:
        largest = max(range(len(blocks)), key=lambda i: sum(entry.nbytes for entry in blocks[i].values()))
        found |= blocks[largest]
    entries = list(found.values())
    head = next((op for op in model.linears() if op.path == "lm_head"), None)
    if loss and head and entries:
        entries.append(Entry("loss", "P", (batch * T, head.n_out), each, "dlogits = (P - onehot) / n"))
        entries.append(Entry("loss", "targets", (batch * T,), 8, "dlogits"))
        entries.append(Entry("loss", "weight", (batch * T, 1), each, "dlogits, 1/n where there is a label"))
    return entries


def op_keeps(op: Op, plan: Plan, insert: Insert | None, B: int, T: int, each: int) -> Iterator[tuple[str, Entry]]:
    """(name of the buffer, its entry) of all that an op and its insert keep."""

    def entry(what: str, shape: Shape, why: str, itemsize: int = each) -> Entry:
        return Entry(op.path, what, shape, itemsize, why)

    kept = {entry.what for entry in insert.kept} if insert else set()
    if isinstance(op, Table) and op.ids and (f"{op.path}.weight" in plan.trained or "ids" in kept):
        shape = (B, T) if op.ids == "batch" else (T,)
        yield f"{op.path}.ids", entry("ids", shape, "dW adds dy up by id", 8)
    elif isinstance(op, Linear) and op.weight in plan.trained:
        yield op.x, entry("x", (B, op.rows or T, op.n_in), "dW = dyᵀ x")
    elif isinstance(op, Norm):
        yield f"{op.path}.xhat", entry("x̂", (B, T, op.width), "dx through the norm, and dg")
        yield f"{op.path}.sigma", entry("σ", (B, T, 1), "dx through the norm")
    elif isinstance(op, Attention):
        H, G, D = op.heads, op.kv_heads, op.head_dim
        if op.rope:
            yield "rope", entry("cos, sin", (2, T, 1, D), "turning dq and dk back")
        yield f"{op.path}.q", entry("q/√D", (B, T, H * D), "dk = dSᵀ q/√D")
        if op.fused:
            yield f"{op.path}.qkv", entry("q, k, v", (B, T, 3 * H * D), "dq = dS k/√D, dP = do vᵀ: k and v are views")
        else:
            yield f"{op.path}.k", entry("k", (B, T, G * D), "dq = dS k/√D")
            yield f"{op.path}.v", entry("v", (B, T, G * D), "dP = do vᵀ")
        # o_proj reads a copy of o with the heads side by side, unless one head or one token makes them the same
        same = H == 1 or T == 1
        if op.blockwise(T):
            yield f"{op.path}.L", entry("L", (B, H, T, 1), "P = exp(S - L), S made again")
            same = same or G in (1, H)  # the heads of a group are side by side already
        else:
            yield f"{op.path}.E", entry("E", (B, H, T, T), "dS = E ∘ (...), dv = Eᵀ do/Z")
            yield f"{op.path}.Z", entry("Z", (B, H, T, 1), "do_Z = do / Z")
        yield f"{op.path}.o" if same else f"{op.path}.o, by heads", entry("o", (B, H, T, D), "rowsum(do ∘ o)")
        if op.relative:
            yield f"{op.path}.relative", entry("k, q of distances", (2, op.relative, H * D), "dq, dk")
    elif isinstance(op, Select):
        yield f"{op.path}.b, t", entry("b, t", (2, B), "dx is dy at b and t, and 0 elsewhere", 8)
    elif isinstance(op, Activation) and op.kind == "tanh":
        yield f"{op.path}.y", entry("y", (B, op.rows or T, op.width), "dx = dy ∘ (1 - y²)")
    elif isinstance(op, Activation):
        yield f"{op.path}.slope", entry("dy/dx", (B, T, op.width), "dx = dy ∘ dy/dx")
        if op.kind == "swiglu":
            yield f"{op.path}.silu", entry("silu(gate)", (B, T, op.width), "dup = dy ∘ silu(gate)")
    if insert is not None:
        rows = op.rows or T if isinstance(op, Linear) else T
        for what, width, why in insert.kept:
            if width:
                buffer = op.x if what == "x" and isinstance(op, Linear) else f"{op.path}.{what}"
                yield buffer, entry(what, (B, rows, width), why)
