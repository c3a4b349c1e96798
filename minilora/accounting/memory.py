"""Bytes: weights, gradients, optimizer state, and the ledger of what forward keeps for backward.

The ledger has a row for each array, with the reason. Nothing is kept below the lowest layer of the model (embeddings, a
block, ...) in which something is trained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ..adapters.base import Adapter
from ..adapters.parts import Parts
from ..adapters.statements import shape
from ..models.families import FAMILIES
from ..models.names import hub_name
from ..models.quantized import format_of, formats_for
from ..models.transformer import Transformer
from ..nn import Costs, KeptArray, Parameter, Part
from ..nn.costs import Shape
from ..quantization import Quantized, formats
from ..quantization.base import parts
from .methods import VirtualTokens, virtual_tokens

ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
LETTERS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # in a .safetensors file
QUANTISED = tuple(name for name, cls in formats().items() if cls.for_blocks)  # the rest is in bfloat16
IN_4_BITS = "nf4", "nf4-dq"
DTYPES = (*ITEMSIZE, *QUANTISED)
EMBEDDINGS = ("embed_tokens", "lm_head")  # PEFT saves the frozen weight of a target of these names beside its adapter


def itemsize(dtype: str) -> int:
    """Bytes of a number that is computed with: beside a base in 4 or 8 bits, bfloat16's."""
    return ITEMSIZE.get(dtype, 2)


# ---- what is stored ----


def nf4_bits(n: int, double: bool) -> int:
    """Bits of n numbers in NF4 (Dettmers et al., 2023): 4 each, and for every block of 64 a scale.

    The scale is a float32; or (double quantisation) 8 bits, and for every 256 of them a float32, and one float32, their
    mean, for the whole tensor. So 4.5 or nearly 4.127 bits a number.
    """
    half_a_byte = 4 * (n % 2)  # is empty, behind the last of an odd number
    return 8 * formats()["nf4-dq" if double else "nf4"].nbytes_of((1, n)) - half_a_byte


class Held(NamedTuple):
    """Arrays of one kind, and how many weights they are of."""

    nbytes: int
    weights: int


def held_weights(model: Transformer, dtype: str) -> dict[str, Held]:
    """{kind of array: its bytes} of the base. What is Quantized is counted as it is held, the rest as in `dtype`, one
    of DTYPES: in one of QUANTISED as load_pretrained's `quantize` holds it, where the vectors are in float32; in the
    others every number alike."""
    live, found = format_of(model), dict[str, Held]()
    made = formats_for(model, dtype) if dtype in QUANTISED and not live else {}
    for p in model.base_parameters().values():
        W, size = p.data, math.prod(p.data.shape)
        if isinstance(W, Quantized):
            kinds = {f"{name} of {W.name}": x.nbytes for name, x in W.arrays.items()}
        elif p in made:
            sizes = made[p].sizes(*W.shape).items()
            kinds = {f"{name} of {made[p].name}": math.prod(s) * np.dtype(kind).itemsize for name, (s, kind) in sizes}
        else:
            plain = W.dtype.name if live else dtype if dtype in ITEMSIZE else "float32"
            kinds = {f"{'matrices' if W.ndim > 1 else 'vectors'} in {plain}": size * ITEMSIZE[plain]}
        for kind, nbytes in kinds.items():
            before = found.get(kind, Held(0, 0))
            found[kind] = Held(before.nbytes + nbytes, before.weights + size)
    return found


def weight_bytes(model: Transformer, dtype: str) -> int:
    """Bytes of the base, as held_weights() lists them."""
    return sum(held.nbytes for held in held_weights(model, dtype).values())


def decoded_bytes(model: Transformer, dtype: str, computed: str) -> int:
    """Bytes of the most that is decoded at a time: rows of one matrix, for a product."""
    made = formats_for(model, dtype) if dtype in QUANTISED else {}
    matrices = [p.data for p in model.base_parameters().values() if isinstance(p.data, Quantized) or p in made]
    return max((next(parts(W)).stop * W.shape[1] * itemsize(computed) for W in matrices), default=0)


def file_tensors(
    path: str, module: Adapter, model: Transformer, prefix: str = ""
) -> Iterator[tuple[str, Parameter, Shape]]:
    """(name, Parameter, shape) of an adapter's tensors in PEFT's file; `prefix` before what its slots are called."""
    for slot in module.slots:
        p = getattr(module, slot.name)
        if slot.shared:
            yield f"base_model.{slot.file}", p, p.data.shape
        else:
            yield f"{peft_name(model, path)}.{prefix}{slot.file}", p, shape(slot.file_shape or slot.shape, module.sizes)


def added_tensors(model: Transformer, trained: bool) -> dict[str, Shape]:
    """{name: shape} of what is beside the base and trained, or frozen. Names are those of PEFT's file where it has one.

    Tensors that several layers share are there once.
    """
    found: dict[Parameter, tuple[str, Shape]] = {}
    for path, module in model.named_modules():
        if isinstance(module, VirtualTokens):
            found[module.weight] = module.name, module.weight.data.shape
        elif isinstance(module, Adapter):
            for name, parameter, axes in file_tensors(path, module, model):
                found.setdefault(parameter, (name, axes))
    return {name: axes for parameter, (name, axes) in found.items() if parameter.trainable == trained}


def peft_name(model: Transformer, path: str) -> str:
    """base_model.model.<path in Hugging Face's model>, which in a model without a head lacks the name of its body."""
    family, head = model.family, model.config.head
    name, body = hub_name(family, path, head, model.config.gated), FAMILIES[family].base_model_prefix
    return f"base_model.model.{name.removeprefix(f'{body}.') if head == 'none' else name}"


def adapter_bytes(model: Transformer, dtype: str = "float32") -> int:
    """The length of adapter_model.safetensors as PEFT writes it: added tensors in float32 (float64 if the base is),
    trained tensors of the base in its `dtype`, adapters on parts of a fused layer as one on the whole. For a variant
    that PEFT does not have, a file of the same layout. For a method without a file format, the trained parameters
    alone.
    """
    base, wide = (dtype if dtype in ITEMSIZE else "bfloat16"), "float64" if dtype == "float64" else "float32"
    trained = {path: p.data.shape for path, p in model.base_parameters().items() if p.trainable}
    added = added_tensors(model, trained=True)
    if not has_file(model):
        return sum(
            ITEMSIZE[kind] * sum(map(math.prod, shapes.values())) for kind, shapes in ((wide, added), (base, trained))
        )
    adapters = {path: m for path, m in model.named_modules() if isinstance(m, Adapter) and not isinstance(m.base, Part)}
    tensors = {} if adapters else {name: (wide, axes) for name, axes in added.items()}
    for path, axes in trained.items():  # with prompt tuning PEFT wraps the model once less: one "model." fewer
        name = peft_name(model, path)
        tensors[name.replace(".model.", ".", 1) if virtual_tokens(model) else name] = base, axes
    alone, seen = all(module.companion for module in adapters.values()), set[Parameter]()
    for path, module in adapters.items():
        prefix = module.companion.prefix if module.companion and not alone else ""
        for name, parameter, axes in file_tensors(path, module.in_file(), model, prefix):
            if not (prefix and parameter in seen):  # beside others, a tied head has nothing of its own
                tensors[name] = wide, axes
            seen.add(parameter)
        name = peft_name(model, path)
        if name.endswith(EMBEDDINGS) and not any(module.companion for module in adapters.values()):
            tensors[f"{name}.base_layer.weight"] = base, module.weight.data.shape
    return safetensors_bytes(tensors)


def has_file(model: Transformer) -> bool:
    """Whether what is added has a file format: PEFT's, or one like it, of a type of its own."""
    added = [module for _, module in model.named_modules() if module.is_adapter and not isinstance(module, Parts)]
    return bool(added) and all(getattr(module, "peft_type", "") for module in added)


def safetensors_bytes(tensors: Mapping[str, tuple[str, Shape]]) -> int:
    """The length of a .safetensors file of {name: (dtype, shape)}: 8 bytes, a JSON header padded to a multiple of 8,
    and the data, wide numbers first."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, axes) in sorted(tensors.items(), key=lambda item: (-ITEMSIZE[item[1][0]], item[0])):
        start, end = end, end + ITEMSIZE[dtype] * math.prod(axes)
        header[name] = {"dtype": LETTERS[dtype], "shape": axes, "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + length + -length % 8 + end


# ---- what is kept for backward ----


def step_costs(
    model: Transformer,
    batch: int,
    tokens: int,
    dtype: str = "float32",
    *,
    dropout: bool = False,
    source_tokens: int | None = None,
) -> Costs:
    """What a step keeps and multiplies over `batch` sequences of `tokens` without padding, of what is trainable now.

    `dropout`: forward is given a generator. `source_tokens`: of each source that an encoder reads; None: `tokens` too.
    """
    costs, c = Costs(model, itemsize(dtype), dropout=dropout), model.config
    costs.source = costs.array(batch, source_tokens or tokens, itemsize=8)
    images = costs.array(batch, c.channels, c.image_size, c.image_size)
    model.costs(images if c.image_size else costs.array(batch, tokens, itemsize=8), costs)
    return costs


def ledger(
    model: Transformer,
    batch: int,
    tokens: int,
    dtype: str = "float32",
    *,
    dropout: bool = False,
    source_tokens: int | None = None,
    loss: bool = True,
) -> list[KeptArray]:
    """What is alive when the forward of such a step ends, array by array; of blocks that are run again for their
    backward, what the largest keeps then. `loss` adds what the cross-entropy of a language model keeps."""
    kept = step_costs(model, batch, tokens, dtype, dropout=dropout, source_tokens=source_tokens).alive()
    return kept + (loss_keeps(model, batch, tokens, dtype) if loss and kept else [])


def loss_keeps(model: Transformer, batch: int, tokens: int, dtype: str) -> list[KeptArray]:
    if "lm_head" not in model.layers:
        return []
    N, V, each = batch * (tokens + virtual_tokens(model)), model.config.vocab_size, itemsize(dtype)
    return [
        KeptArray("loss", "P", (N, V), each, "dlogits = (P - onehot) / n"),
        KeptArray("loss", "targets", (N,), 8, "dlogits"),
        KeptArray("loss", "weight", (N, 1), each, "dlogits, 1/n where there is a label"),
    ]
