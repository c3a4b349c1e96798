"""The GGUF file format, of llama.cpp: the header, and the rows of tensors.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: a header of keys and values, one entry
for each tensor, then the tensors. The header is read here, because the `gguf` package's own reader does not check the
counts in it (an array of 2⁶⁴ numbers fills the memory). The package names the types of weights, and their sizes;
quantization/gguf_blocks.py decodes them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..quantization import Quantized, is_finite
from ..quantization.bfloat16 import BFloat16
from ..quantization.float16 import Float16
from ..quantization.gguf_blocks import TYPES, GGUFBlocks

NUMBERS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # of BF16, which NumPy lacks, the bits
WEIGHT_TYPES = (*NUMBERS, *TYPES)
DTYPES = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
FLOAT32, BOOL, STRING, ARRAY = 6, 7, 8, 9


class TensorEntry(NamedTuple):
    """Where a tensor lies in the file."""

    type: Any  # gguf.GGMLQuantizationType
    shape: tuple[int, ...]  # as NumPy counts: rows first
    stored: tuple[int, ...]  # the same in bytes
    start: int  # from the start of the file
    size: int  # bytes


class Header(NamedTuple):
    """All of a file but its weights."""

    values: dict[str, Any]
    entries: dict[str, TensorEntry]


class Scanner:
    """A file read forwards, never beyond its end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.position = file, size, 0

    def take(self, count: int) -> bytes:
        if count > self.size - self.position:
            raise ValueError(f"it ends after {self.size} bytes, and {count} more are to come at {self.position}")
        self.position += count
        return self.file.read(count)

    def number(self, form: str) -> int:
        return int(struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0])

    def string(self) -> str:
        start = self.position
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError:
            raise ValueError(f"the text at byte {start} is not UTF-8") from None

    def value(self, kind: int) -> Any:
        """A number, a text, a list of texts, or an array of numbers."""
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, count = self.number("I"), self.number("Q")
            return [self.string() for _ in range(count)] if kind == STRING else self.numbers(kind, count)
        number = self.numbers(kind, 1)[0]
        return float(str(number)) if kind == FLOAT32 else number.item()  # 1e-05, as it was before it was a float32

    def numbers(self, kind: int, count: int) -> np.ndarray:
        if kind not in DTYPES:
            raise ValueError(f"a value of type {kind} at byte {self.position} is not known")
        dtype = np.dtype(DTYPES[kind])
        data = self.take(count * dtype.itemsize)
        return np.frombuffer(data, "u1") != 0 if kind == BOOL else np.frombuffer(data, dtype)


def read_header(path: Path) -> Header:
    """The header of a GGUF file. Raises FileNotFoundError, ImportError, and ValueError for another or damaged file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    size = path.stat().st_size
    with path.open("rb") as file:
        scanner = Scanner(file, size)
        if scanner.take(4) != b"GGUF":
            raise ValueError("it does not start with the letters GGUF")
        version = scanner.number("I")
        if version not in (2, 3):
            raise ValueError(f"version {version} is not supported, only 2 and 3 with the lowest byte first")
        tensor_count, value_count = scanner.number("Q"), scanner.number("Q")
        values: dict[str, Any] = {}
        for _ in range(value_count):
            key = scanner.string()
            if key in values:
                raise ValueError(f"the key {key!r:.80} is in it twice")
            values[key] = scanner.value(scanner.number("I"))
        entries: dict[str, TensorEntry] = {}
        for _ in range(tensor_count):
            name = scanner.string()
            if name in entries:
                raise ValueError(f"the tensor {name!r:.80} is in it twice")
            dimensions = scanner.number("I")
            if not 1 <= dimensions <= 4:
                raise ValueError(f"the tensor {name!r:.80} has {dimensions} dimensions")
            shape = tuple(scanner.number("Q") for _ in range(dimensions))[::-1]
            entries[name] = entry(name, shape, scanner.number("I"), scanner.number("Q"))
    parts = values.get("split.count", 1)
    if not isinstance(parts, int) or parts > 1:
        raise ValueError(f"it is one of {parts!r:.80} parts: merge them first, with llama-gguf-split")
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment = {alignment!r:.80} is not a power of two")
    data = -(-scanner.position // alignment) * alignment
    entries = {name: one._replace(start=one.start + data) for name, one in entries.items()}
    check_places(entries, alignment, data, size)
    return Header(values, entries)


def entry(name: str, shape: tuple[int, ...], kind: int, offset: int) -> TensorEntry:
    """The entry of one tensor, `start` still without the header. Raises ValueError for a type that is not supported."""
    types = gguf_package().GGMLQuantizationType
    type_name = types(kind).name if kind in [*types] else f"number {kind}"
    if type_name not in WEIGHT_TYPES:
        raise ValueError(f"the tensor {name!r:.80} is of type {type_name}: supported are {', '.join(WEIGHT_TYPES)}")
    block, size = gguf_package().GGML_QUANT_SIZES[types(kind)]
    if shape[-1] % block or min(shape) < 1:
        raise ValueError(f"the tensor {name!r:.80} of shape {shape} does not divide into blocks of {block}")
    stored = (*shape[:-1], shape[-1] // block * size)
    return TensorEntry(types(kind), shape, stored, offset, math.prod(stored))


def check_places(entries: Mapping[str, TensorEntry], alignment: int, data: int, size: int) -> None:
    """Raise ValueError unless each tensor lies in the file, and no two share a byte."""
    end, before = data, ""
    for name, one in sorted(entries.items(), key=lambda item: item[1].start):
        if one.start % alignment:
            raise ValueError(f"the tensor {name!r:.80} starts at byte {one.start}, not a multiple of {alignment}")
        if one.start < end:
            raise ValueError(f"the tensors {before!r:.80} and {name!r:.80} overlap")
        end, before = one.start + one.size, name
        if end > size:
            raise ValueError(f"the tensor {name!r:.80} would end at byte {end}, and the file has {size}")


def gguf_package() -> Any:
    try:
        import gguf
    except ImportError:
        raise ImportError("the types of a GGUF file's weights are in a package: pip install 'gguf>=0.10'") from None
    return gguf


def read_stored(
    path: Path, name: str, entry: TensorEntry, order: Callable[[np.ndarray], np.ndarray] = lambda rows: rows
) -> np.ndarray | Quantized:
    """One tensor as the file has it, its rows in another `order`. Raises ValueError for NaN and infinity."""
    kind = entry.type.name
    dtype = np.dtype(NUMBERS.get(kind, "u1"))
    rows = np.fromfile(path, dtype, entry.size // dtype.itemsize, offset=entry.start)
    if rows.nbytes < entry.size:
        raise ValueError(f"{path} has changed while it was read: the tensor {name!r} is cut off")
    x: np.ndarray | Quantized
    x = rows = order(rows.reshape(*entry.shape[:-1], -1))
    if kind == "F16":
        x = Float16({"values": rows}, entry.shape)
    elif kind == "BF16":
        x = BFloat16({"bits": rows}, entry.shape)
    elif kind in TYPES:
        x = GGUFBlocks({"blocks": rows}, entry.shape, kind)
    if not is_finite(x):
        raise ValueError(f"{path}: the tensor {name!r} holds numbers that are not finite")
    return x
