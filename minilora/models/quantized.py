"""Which matrices of a model are held in which format, and a model that is loaded so."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from ..backend import Array
from ..files import stored
from ..nn import Block, Checkpointed, Embedding, Linear, Module, Parameter, Sequential, check_names, converted, join
from ..quantization import STORED, Quantized, dense, format_named
from ..quantization.bfloat16 import BFloat16
from ..quantization.float16 import Float16

CLASSIFIER_LAYERS = re.compile(r"(classifier|classifier_transform|pooler)\.")  # drawn where a file lacks them


def matrices(model: Module) -> Iterator[tuple[Parameter, bool]]:
    """(Parameter, whether it is in a block) of the matrices that may be Quantized: all but those of classifiers."""
    for name, layer in model.children().items():
        if isinstance(layer, Sequential):  # an encoder
            yield from matrices(layer)
            continue
        in_block = isinstance(layer, Block | Checkpointed)
        for path, module in layer.named_modules(name):
            if isinstance(module, Linear | Embedding) and not CLASSIFIER_LAYERS.match(join(path, "weight")):
                yield module.weight, in_block


def formats_for(model: Module, format: str) -> dict[Parameter, type[Quantized]]:
    """{Parameter: its format} of the matrices that are quantised.

    "nf4", "nf4-dq" and "int8" are for the linear layers of the blocks, and the other matrices, of embeddings and heads,
    are in bfloat16 then; "bfloat16" and "float16" are for all. Biases and the gains of norms stay as they are, and so
    does a classifier, which is trained whole. Raises ValueError for a format that does not exist.
    """
    chosen = format_named(format)
    return {p: chosen if in_block or not chosen.for_blocks else BFloat16 for p, in_block in matrices(model)}


def format_of(model: Module) -> str:
    """The format that the matrices of the blocks are held in; "" for arrays. Several are joined in sorted order."""
    blocks = (module for _, module in model.named_modules() if isinstance(module, Block | Checkpointed))
    held = (p.data for block in blocks for p in block.parameters())
    return ", ".join(sorted({data.name for data in held if isinstance(data, Quantized)}))


def quantize(model: Module, format: str, without: Collection[str] = ()) -> None:
    """Hold the matrices of a model as formats_for() says, except those of the layers at the paths in `without`; they
    are frozen then. One that is Quantized already stays. Raises ValueError, with the model as it was, as formats_for()
    does, for numbers that the format has no code for, and for a matrix that is trained together with adapters."""
    left = {model[path].weight for path in without}  # type: ignore[attr-defined]
    formats, adapted = formats_for(model, format), any(module.is_adapter for _, module in model.named_modules())
    made: dict[Parameter, Quantized] = {}
    for path, p in model.named_parameters().items():
        if p in formats and p not in left and not isinstance(p.data, Quantized):
            if adapted and p.trainable:
                raise ValueError(
                    f"{path} is trained beside the adapters, and would be frozen in {format}: quantise first"
                )
            made[p] = coded(path, formats[p], p.data)
    for p, Q in made.items():
        p.data = Q


def coded(path: str, format: type[Quantized], W: Array | Quantized) -> Quantized:
    """The matrix at a path in a format. Raises ValueError with the path."""
    try:
        return format.of(W)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def convert(model: Module, dtype: str) -> None:
    """Convert the matrices of a model to a format, whatever they are in, or with "float32" to arrays."""
    formats = {} if dtype == "float32" else formats_for(model, dtype)
    for parameter in model.parameters():
        parameter.data = formats[parameter].of(parameter.data) if parameter in formats else dense(parameter.data)


def load_quantized(model: Module, state: Mapping[str, Array | Quantized], quantize: str) -> None:
    """load_state_dict(), matrix by matrix: each is quantised before the next is read. One that its file has in the same
    format keeps its codes. The model is frozen then, its vectors too: what is trained is attached to it.

    "stored" keeps every matrix as its file has it: in blocks, as a BFloat16 or Float16, or as an array.
    """
    held, formats = {p for p, _ in matrices(model)}, {} if quantize == STORED else formats_for(model, quantize)
    parameters = model.named_parameters()
    check_names(state, parameters)
    for path, parameter in parameters.items():
        x: Any = stored(state, path) if parameter in held else state[path]
        if x.shape != parameter.data.shape:
            raise ValueError(f"{path} has shape {x.shape}, and {parameter.data.shape} is needed")
        if parameter in formats:
            x = coded(path, formats[parameter], x)
        elif parameter in held and x.dtype == np.float16:
            x = Float16({"values": x}, x.shape)
        parameter.data = converted(x, parameter.xp, parameter.data.dtype)
    model.freeze()
