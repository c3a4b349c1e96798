"""NF4 and int8 in the folders that Transformers writes with bitsandbytes, and reads.

A layer L of the model, with n = out · in numbers, has these tensors. In NF4, with or without double quantisation
(QuantState.as_dict in bitsandbytes 0.50.2):

    L.weight                    (⌈n/2⌉, 1) uint8        codes, two a byte
    L.weight.absmax             (⌈n/64⌉,) float32       or uint8, the codes p of double quantisation, which also has
    L.weight.nested_absmax      (⌈n/64/256⌉,) float32   A
    L.weight.nested_quant_map   (256,) float32          level8
    L.weight.quant_map          (16,) float32           level
    L.weight.quant_state.bitsandbytes__nf4   uint8      JSON: the shape, the sizes of the blocks, and μ

and in int8 (Linear8bitLt)

    L.weight                    (out, in) int8          codes
    L.SCB                       (out,) float32          absmax
    L.weight_format             () uint8                0: row by row

GPT-2's layers, which files store as (in, out) otherwise, are (out, in) here. Tensors of other layers are as in every
folder. In config.json, quantization_config says the format, and llm_int8_skip_modules which layers are in none.

On a CPU with AVX-512, bitsandbytes 0.50.2 decodes NF4 wrongly where the width of a matrix is a multiple of 16 and not
of 64 (tests/quantization/test_bitsandbytes.py). Its codes and scales are right, and so is what is read here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ..backend import Array
from ..files import Reader, Tensors
from ..nn import Linear
from ..quantization import Quantized, dense
from ..quantization.int8 import Int8
from ..quantization.nf4 import LEVELS, NF4, DoubleNF4
from .families import FAMILIES
from .names import hf_name
from .transformer import Transformer

STATE, NESTED_MAP = "weight.quant_state.bitsandbytes__nf4", "weight.nested_quant_map"
PART = re.compile(
    rf"(?P<layer>.+)\.(?P<part>SCB|weight_format|weight\.(nested_)?(absmax|quant_map)|{re.escape(STATE)})"
)


def format_in(values: Mapping[str, Any], source: str) -> str | None:
    """The format in quantization/ that a config.json names; None if it names none.

    Raises ValueError for other methods, such as gptq, and for bitsandbytes' own 4 bits, fp4.
    """
    config = values.get("quantization_config")
    if config is None:
        return None
    given = config if isinstance(config, dict) else {}
    in_4_bits, in_8_bits = given.get("load_in_4bit"), given.get("load_in_8bit")
    name = given.get("quant_method", "bitsandbytes" if in_4_bits or in_8_bits else "an unnamed format")
    if name == "bitsandbytes":
        if in_8_bits:
            return "int8"
        kind, storage = given.get("bnb_4bit_quant_type", "fp4"), given.get("bnb_4bit_quant_storage", "uint8")
        if in_4_bits and kind == "nf4" and storage == "uint8":
            return "nf4-dq" if given.get("bnb_4bit_use_double_quant") else "nf4"
        name = kind if storage == "uint8" else f"{kind} in {storage}"
    raise ValueError(
        f"{source}: quantization_config = {config!r:.80} is not supported: the weights are in {name!s:.40}, and only "
        "nf4 and int8 of bitsandbytes are read"
    )


# ---- reading ----


def gathered(tensors: Tensors, format: str) -> Tensors:
    """The tensors of such a folder, those of a quantised matrix as one Quantized, with the codes as they are. `format`
    is what config.json says.

    Reading one raises ValueError for parts that are missing or do not fit each other or the format.
    """
    readers: dict[str, Reader] = {}
    parts: dict[str, dict[str, Reader]] = {}
    for name, reader in tensors.readers.items():
        if match := PART.fullmatch(name):
            parts.setdefault(match["layer"], {})[match["part"]] = reader
        else:
            readers[name] = reader
    for layer, those in parts.items():
        weight = f"{layer}.weight"
        if weight not in readers:
            raise ValueError(f"{layer}.{min(those)} is there without {weight}")
        readers[weight] = partial(read_matrix, layer, {"weight": readers[weight], **those}, format)
    return Tensors(readers)


def read_matrix(layer: str, parts: Mapping[str, Reader], format: str) -> Quantized:
    """The matrix of a layer, of {part: its reader}, in 4 or 8 bits as the format is."""

    def part(name: str, dtype: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        if name not in parts:
            raise ValueError(f"{layer}.{name} is missing")
        x = dense(parts[name]())
        if x.dtype != dtype or (shape is not None and x.shape != shape):
            needed = dtype if shape is None else f"{dtype} {shape}"
            raise ValueError(f"{layer}.{name} is {x.dtype} {x.shape}, and {needed} is needed")
        return x

    in_8_bits = bool(parts.keys() & {"SCB", "weight_format"})
    if in_8_bits is not (format == "int8"):
        raise ValueError(f"{layer}.weight is in {'int8' if in_8_bits else 'nf4'}, and config.json says {format}")
    if not in_8_bits:
        return read_nf4(layer, part, "weight.nested_absmax" in parts)
    codes = part("weight", "int8")
    if "weight_format" in parts and part("weight_format", "uint8").any():
        raise ValueError(f"{layer}.weight is not held row by row: its weight_format is not 0")
    return Int8({"codes": codes, "absmax": part("SCB", "float32", codes.shape[:1])}, codes.shape)


def read_nf4(layer: str, part: Callable[..., np.ndarray], double: bool) -> NF4:
    shape, block, nested, offset = parse_state(layer, part(STATE, "uint8"), double)
    n = math.prod(shape)
    blocks = -(-n // block)
    if not np.array_equal(part("weight.quant_map", "float32"), LEVELS):
        raise ValueError(f"{layer}.weight.quant_map is not the levels of NF4")
    codes = part("weight", "uint8", (-(-n // 2), 1)).reshape(-1)
    if not double:
        return NF4({"codes": codes, "absmax": part("weight.absmax", "float32", (blocks,))}, shape, block=block)
    arrays = {
        "codes": codes,
        "absmax": part("weight.absmax", "uint8", (blocks,)),
        "nested_absmax": part("weight.nested_absmax", "float32", (-(-blocks // nested),)),
        "offset": np.asarray(offset, np.float32),
    }
    return DoubleNF4(arrays, shape, block=block, nested_block=nested, levels=part(NESTED_MAP, "float32", (256,)))


def parse_state(layer: str, content: np.ndarray, double: bool) -> tuple[tuple[int, int], int, int, float]:
    """(shape, size of a block, of a block of scales, μ) from the JSON in L.weight.quant_state.bitsandbytes__nf4."""
    try:
        state = json.loads(content.tobytes())
        n_out, n_in = state["shape"]
        block, nested = state["blocksize"], state["nested_blocksize"] if double else 1
        offset = state["nested_offset"] if double else 0.0
        whole = all(type(n) is int and n > 0 for n in (n_out, n_in, block, nested))
        if whole and type(offset) in (int, float) and abs(offset) < 3.4e38:
            return (n_out, n_in), block, nested, float(offset)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError(f"{layer}.{STATE} is not the JSON of a matrix in NF4")


# ---- writing ----


def tensors_of(name: str, Q: NF4 | Int8) -> dict[str, Array]:
    """{name in the file: array} of a quantised matrix, whose weight is called `name`."""
    layer = name.removesuffix(".weight")
    if isinstance(Q, Int8):
        parts = {"weight": Q.arrays["codes"], "SCB": Q.arrays["absmax"], "weight_format": np.zeros((), np.uint8)}
    else:
        state = {"quant_type": "nf4", "blocksize": Q.block, "dtype": "float32", "shape": Q.shape}
        parts = {"weight": Q.arrays["codes"][:, None], "weight.absmax": Q.arrays["absmax"], "weight.quant_map": LEVELS}
        if isinstance(Q, DoubleNF4):
            parts |= {"weight.nested_absmax": Q.arrays["nested_absmax"], NESTED_MAP: Q.levels}
            state |= {"nested_blocksize": Q.nested_block, "nested_dtype": "float32"}
            state["nested_offset"] = float(Q.arrays["offset"])
        parts[STATE] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return {f"{layer}.{part}": x for part, x in parts.items()}


def quantization_config(model: Transformer) -> dict[str, Any] | None:
    """The key of config.json, by which `transformers` makes its layers; None where no Linear is in NF4 or int8.

    Raises ValueError where some are in the one and some in the other, for which there is no such key.
    """
    linears = {hf_name(model, path): m.weight.data for path, m in model.named_modules() if isinstance(m, Linear)}
    quantised = {name: Q for name, Q in linears.items() if isinstance(Q, NF4 | Int8)}
    kinds = {type(Q).name for Q in quantised.values()}
    if not kinds:
        return None
    if "int8" in kinds and len(kinds) > 1:
        raise ValueError(f"layers are in {' and '.join(sorted(kinds))}, and a config.json has one of 4 and 8 bits")
    unused = FAMILIES[model.family].unused.get(model.config.head, ())
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": "int8" not in kinds,
        "load_in_8bit": "int8" in kinds,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": "nf4-dq" in kinds,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": sorted({*linears, *unused} - {*quantised}),
    }
