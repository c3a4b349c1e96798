"""Models in GGUF files, the format of llama.cpp: what a config.json would say, tensors by Hugging Face's names, tokens.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: a header of keys and values, one entry
for each tensor, then the tensors. The header is read here, because the `gguf` package's own reader believes every
count it finds (an array of 2⁶⁴ numbers fills the memory). The blocks of weights are decoded by the package.
"""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

QUANTISED = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
FLOAT32, BOOL, STRING, ARRAY = 6, 7, 8, 9

# Stem in the file -> (stem in Hugging Face, sizes of the weight; a bias has the first of them). {} is the block.
LLAMA = {
    "token_embd": ("model.embed_tokens", "VC"),
    "blk.{}.attn_norm": ("model.layers.{}.input_layernorm", "C"),
    "blk.{}.attn_q": ("model.layers.{}.self_attn.q_proj", "QC"),
    "blk.{}.attn_k": ("model.layers.{}.self_attn.k_proj", "KC"),
    "blk.{}.attn_v": ("model.layers.{}.self_attn.v_proj", "KC"),
    "blk.{}.attn_output": ("model.layers.{}.self_attn.o_proj", "CQ"),
    "blk.{}.ffn_norm": ("model.layers.{}.post_attention_layernorm", "C"),
    "blk.{}.ffn_gate": ("model.layers.{}.mlp.gate_proj", "FC"),
    "blk.{}.ffn_up": ("model.layers.{}.mlp.up_proj", "FC"),
    "blk.{}.ffn_down": ("model.layers.{}.mlp.down_proj", "CF"),
    "output_norm": ("model.norm", "C"),
    "output": ("lm_head", "VC"),
}
GPT2 = {
    "token_embd": ("transformer.wte", "VC"),
    "position_embd": ("transformer.wpe", "TC"),
    "blk.{}.attn_norm": ("transformer.h.{}.ln_1", "C"),
    "blk.{}.attn_qkv": ("transformer.h.{}.attn.c_attn", "SC"),
    "blk.{}.attn_output": ("transformer.h.{}.attn.c_proj", "CC"),
    "blk.{}.ffn_norm": ("transformer.h.{}.ln_2", "C"),
    "blk.{}.ffn_up": ("transformer.h.{}.mlp.c_fc", "FC"),
    "blk.{}.ffn_down": ("transformer.h.{}.mlp.c_proj", "CF"),
    "output_norm": ("transformer.ln_f", "C"),
    "output": ("lm_head", "VC"),
}
LAYOUTS = {"llama": LLAMA, "qwen2": LLAMA, "gpt2": GPT2}

# Keys below the architecture that change the model, and the one value of each that is implemented.
ONLY = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    "rope.scale_linear": 1.0,
    "rope.scaling.attn_factor": 1.0,
}
# Keys that change nothing here, or that are checked where they are used.
UNDERSTOOD = {
    "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length", "tensor_data_layout",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.dimension_count", "rope.freq_base",
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
}  # fmt: skip
# Keys that llama.cpp reads for other architectures alone: in these every token sees all before it. So it does here.
UNUSED = ("attention.sliding_window", "attention.sliding_window_pattern")


class Entry(NamedTuple):
    """Where a tensor lies in the file."""

    type: Any  # gguf.GGMLQuantizationType
    shape: tuple[int, ...]  # as NumPy counts: rows first
    stored: tuple[int, ...]  # the same in bytes
    start: int  # from the start of the file
    size: int  # bytes


class Header(NamedTuple):
    """All of a file but its weights."""

    values: dict[str, Any]
    entries: dict[str, Entry]


def read_gguf(path: str | Path) -> tuple[dict[str, Any], Tensors, dict[str, Any]]:
    """(values, tensors, vocabulary) of a model: the keys and values of a config.json, the tensors by Hugging Face's
    names, float32 arrays that are decoded when they are asked for, and what the file says of its tokens.

    The architectures are llama (with which llama.cpp writes Mistral and SmolLM2 too), qwen2 and gpt2. Every tensor of
    the file has its place, with the shape that the values give it. A sliding window that the file says is not used, as
    in llama.cpp, and a warning says so.
    Raises FileNotFoundError, ImportError where the `gguf` package is missing, and ValueError for a file that is
    damaged or truncated, and for an architecture, a feature or a type of weights that is not supported.
    """
    path = Path(path)
    try:
        header = read_header(path)
        architecture = header.values.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in LAYOUTS:
            raise ValueError(f"architecture {architecture!r:.80} is not supported, only {', '.join(LAYOUTS)}")
        settings = Settings(architecture, header)
        for key in UNUSED:
            if key in settings.values:
                warnings.warn(f"{path}: {architecture}.{key} is not used, as llama.cpp does not use it", stacklevel=4)
        values = gpt2_values(settings) if architecture == "gpt2" else llama_values(settings, path)
        tensors = Tensors(path, header.entries, names_in(settings, values), architecture, values)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as GGUF: {error}") from None
    return values, tensors, {key: value for key, value in header.values.items() if key.startswith("tokenizer.")}


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
            raise ValueError(f"the text at byte {start} is no UTF-8") from None

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
        if kind not in NUMBERS:
            raise ValueError(f"a value of type {kind} at byte {self.position} is not known")
        dtype = np.dtype(NUMBERS[kind])
        data = self.take(count * dtype.itemsize)
        return np.frombuffer(data, "u1") != 0 if kind == BOOL else np.frombuffer(data, dtype)


def read_header(path: Path) -> Header:
    """Raises FileNotFoundError, ImportError, and ValueError for what is no GGUF file, or a damaged one."""
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
                raise ValueError(f"the key {key!r:.80} stands in it twice")
            values[key] = scanner.value(scanner.number("I"))
        entries: dict[str, Entry] = {}
        for _ in range(tensor_count):
            name = scanner.string()
            if name in entries:
                raise ValueError(f"the tensor {name!r:.80} stands in it twice")
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
        raise ValueError(f"general.alignment = {alignment!r:.80} is no power of two")
    data = -(-scanner.position // alignment) * alignment
    entries = {name: one._replace(start=one.start + data) for name, one in entries.items()}
    check_places(entries, alignment, data, size)
    return Header(values, entries)


def entry(name: str, shape: tuple[int, ...], kind: int, offset: int) -> Entry:
    """Raises ValueError for weights of a type that cannot be decoded here."""
    types = gguf_package().GGMLQuantizationType
    type_name = types(kind).name if kind in [*types] else f"number {kind}"
    if type_name not in QUANTISED:
        raise ValueError(f"the tensor {name!r:.80} is of type {type_name}: supported are {', '.join(QUANTISED)}")
    block, size = gguf_package().GGML_QUANT_SIZES[types(kind)]
    if shape[-1] % block or min(shape) < 1:
        raise ValueError(f"the tensor {name!r:.80} of shape {shape} does not divide into blocks of {block}")
    stored = (*shape[:-1], shape[-1] // block * size)
    return Entry(types(kind), shape, stored, offset, math.prod(stored))


def check_places(entries: Mapping[str, Entry], alignment: int, data: int, size: int) -> None:
    """Raise ValueError unless each tensor lies in the file, and no two share a byte."""
    end, before = data, ""
    for name, one in sorted(entries.items(), key=lambda item: item[1].start):
        if one.start % alignment:
            raise ValueError(f"the tensor {name!r:.80} starts at byte {one.start}, no multiple of {alignment}")
        if one.start < end:
            raise ValueError(f"the tensors {before!r:.80} and {name!r:.80} overlap")
        end, before = one.start + one.size, name
        if end > size:
            raise ValueError(f"the tensor {name!r:.80} would end at byte {end}, and the file has {size}")


def gguf_package() -> Any:
    try:
        import gguf
    except ImportError:
        raise ImportError("the weights of a GGUF file are decoded by a package: pip install 'gguf>=0.10'") from None
    return gguf


class Settings:
    """The values below the architecture's name, each with the type it must have. Raises ValueError for another."""

    def __init__(self, architecture: str, header: Header) -> None:
        self.architecture, self.entries = architecture, header.entries
        self.values = {
            key.removeprefix(architecture + "."): value
            for key, value in header.values.items()
            if key.startswith(architecture + ".")
        }
        self.tokens = {key: header.values.get(f"tokenizer.ggml.{key}") for key in ("bos_token_id", "eos_token_id")}
        for key, value in self.values.items():
            if key in ONLY and not (np.isscalar(value) and value == ONLY[key]):
                raise ValueError(f"{architecture}.{key} = {value!r:.80} is not supported, only {ONLY[key]!r}")
            if key not in ONLY and key not in UNDERSTOOD and key not in UNUSED:
                raise ValueError(f"the key {f'{architecture}.{key}'!r:.80} = {value!r:.80} is not supported")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
            raise ValueError(f"{self.architecture}.{key} = {value!r:.80} is no count")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{self.architecture}.{key} = {value!r:.80} is no positive number")
        return float(value)

    def vocab(self) -> int:
        """Rows of the embedding, which the file's own vocab_size may not contradict."""
        if "token_embd.weight" not in self.entries:
            raise ValueError("the tensor 'token_embd.weight' is missing")
        rows = self.entries["token_embd.weight"].shape[0]
        if self.integer("vocab_size", rows) != rows:
            raise ValueError(f"vocab_size = {self.values['vocab_size']}, and the embedding has {rows} rows")
        return rows


def llama_values(settings: Settings, path: Path) -> dict[str, Any]:
    """A config.json of model_type llama or qwen2."""
    width, heads = settings.integer("embedding_length"), settings.integer("attention.head_count")
    head_dim = settings.integer("attention.key_length", max(1, width // heads))
    if head_dim % 2:
        raise ValueError(f"the head's width {head_dim} is odd: its rows cannot be rotated in pairs")
    for key in ("attention.value_length", "rope.dimension_count"):
        if settings.integer(key, head_dim) != head_dim:
            raise ValueError(f"{key} = {settings.values[key]} is not supported, only the head's width {head_dim}")
    values = {
        "model_type": settings.architecture,
        "vocab_size": settings.vocab(),
        "hidden_size": width,
        "intermediate_size": settings.integer("feed_forward_length"),
        "num_hidden_layers": settings.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": settings.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": settings.integer("context_length"),
        "rms_norm_eps": settings.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": settings.real("rope.freq_base", 10000.0),
        "rope_scaling": rope_scaling(settings, path, head_dim),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in settings.entries,
        **settings.tokens,
    }
    if settings.architecture == "llama":  # a qwen2 always has the biases of q, k and v, and no others
        biases = [name for name in settings.entries if name.endswith(".bias")]
        values["attention_bias"] = any(".attn_" in name and "norm" not in name for name in biases)
        values["mlp_bias"] = any(".ffn_" in name and "norm" not in name for name in biases)
    return values


def rope_scaling(settings: Settings, path: Path, head_dim: int) -> dict[str, Any] | None:
    """What config.json says under this name."""
    kind = settings.values.get("rope.scaling.type", "none")
    if "rope_freqs.weight" in settings.entries:
        if kind != "none":
            raise ValueError(f"rope.scaling.type = {kind!r:.80} beside the tensor 'rope_freqs.weight' is not supported")
        return llama3_rule(settings, path, head_dim)
    if kind == "none":
        return None
    found = {"rope_type": kind, "factor": settings.real("rope.scaling.factor")}
    if "rope.scaling.original_context_length" in settings.values:
        found["original_max_position_embeddings"] = settings.integer("rope.scaling.original_context_length")
    return found


def llama3_rule(settings: Settings, path: Path, head_dim: int) -> dict[str, Any]:
    """The rule of Llama 3 (`transformers`, _compute_llama3_parameters), at the constants of Llama 3.1 to 3.3.

    A file does not hold the rule but what it gives: the factor by which each frequency θ^(-2i/D) is divided.
    Raises ValueError for factors that are not of this rule.
    """
    entry = settings.entries["rope_freqs.weight"]
    if entry.shape != (head_dim // 2,):
        raise ValueError(f"the tensor 'rope_freqs.weight' has shape {entry.shape}, not {(head_dim // 2,)}")
    factors = decode(path, "rope_freqs.weight", entry)
    low, high, old = 1.0, 4.0, 8192
    frequencies = settings.real("rope.freq_base", 10000.0) ** -(np.arange(0, head_dim, 2) / head_dim)
    waves = old * frequencies / (2 * math.pi)  # as many as fit the context of the first training
    smooth = np.clip((waves - low) / (high - low), 0, 1)
    factor = float(factors.max())
    if factor < 1 or not np.allclose(factors * (factor * smooth + 1 - smooth), factor, rtol=1e-4):
        raise ValueError("the factors in 'rope_freqs.weight' are not those of Llama 3's rule: not supported")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": old,
    }


def gpt2_values(settings: Settings) -> dict[str, Any]:
    """A config.json of model_type gpt2."""
    return {
        "model_type": "gpt2",
        "vocab_size": settings.vocab(),
        "n_embd": settings.integer("embedding_length"),
        "n_inner": settings.integer("feed_forward_length"),
        "n_layer": settings.integer("block_count"),
        "n_head": settings.integer("attention.head_count"),
        "n_positions": settings.integer("context_length"),
        "layer_norm_epsilon": settings.real("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
        "tie_word_embeddings": "output.weight" not in settings.entries,
        **settings.tokens,
    }


def names_in(settings: Settings, values: Mapping[str, Any]) -> dict[str, str]:
    """{name in Hugging Face: name in the file}. Raises ValueError for a tensor that is missing, has no place in the
    model, or has another shape than the values say: nothing is allocated that the file does not hold.
    """
    get = values.get
    D = get("head_dim", 0)
    C, F = get("hidden_size") or values["n_embd"], get("intermediate_size") or values["n_inner"]
    sizes = {"V": values["vocab_size"], "C": C, "F": F, "S": 3 * C, "T": get("n_positions")}
    sizes |= {"Q": get("num_attention_heads", 0) * D, "K": get("num_key_value_heads", 0) * D}
    left = {name for name in settings.entries if name != "rope_freqs.weight"}
    found = {}

    def place(theirs: str, ours: str, letters: str, needed: bool) -> None:
        shape = tuple(sizes[letter] for letter in letters)
        if theirs not in settings.entries:
            if needed:
                raise ValueError(f"the tensor {theirs!r} is missing")
            return
        if settings.entries[theirs].shape != shape:
            raise ValueError(f"the tensor {theirs!r} has shape {settings.entries[theirs].shape}, not {shape}")
        left.discard(theirs)
        found[ours] = theirs

    for theirs, (ours, letters) in LAYOUTS[settings.architecture].items():
        for block in range(settings.integer("block_count") if "{}" in theirs else 1):
            place(f"{theirs}.weight".format(block), f"{ours}.weight".format(block), letters, theirs != "output")
            place(f"{theirs}.bias".format(block), f"{ours}.bias".format(block), letters[0], False)
    if left:
        raise ValueError(f"the tensor {min(left)!r:.80} has no place in a {settings.architecture} model")
    return found


class Tensors(Mapping[str, np.ndarray]):
    """{name in Hugging Face: float32 array}, each decoded when it is asked for, so that one at a time is in memory."""

    def __init__(
        self, path: Path, entries: dict[str, Entry], names: dict[str, str], architecture: str, values: dict[str, Any]
    ) -> None:
        self.path, self.entries, self.names, self.architecture = path, entries, names, architecture
        self.heads = {
            "attn_q": values.get("num_attention_heads", 0),
            "attn_k": values.get("num_key_value_heads", 0),
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> np.ndarray:
        """Raises KeyError, and ValueError for weights that are no finite numbers."""
        theirs = self.names[name]
        x = decode(self.path, theirs, self.entries[theirs])
        part = theirs.split(".")[-2]
        if self.architecture == "llama" and part in self.heads:
            x = rotary_halves(x, self.heads[part])
        if self.architecture == "gpt2" and theirs.startswith("blk.") and x.ndim == 2:
            x = np.ascontiguousarray(x.T)  # Hugging Face keeps GPT-2's matrices as Conv1D: (in, out)
        return x


def rotary_halves(W: np.ndarray, heads: int) -> np.ndarray:
    """(H·D, ...): the rows of each head in the order in which Hugging Face rotates them.

    A rotation turns pairs of rows. Hugging Face pairs row i with row i + D/2; llama.cpp, in its architecture llama,
    row 2i with row 2i + 1. So its row 2i + s is Hugging Face's row s·D/2 + i, for s = 0, 1 and 0 ≤ i < D/2:

        W[h, s·D/2 + i] = W'[h, 2i + s]
    """
    return W.reshape(heads, -1, 2, *W.shape[1:]).swapaxes(1, 2).reshape(W.shape)


def decode(path: Path, name: str, entry: Entry) -> np.ndarray:
    """One tensor as a float32 array. Raises ValueError for NaN and infinity."""
    stored = np.fromfile(path, np.uint8, entry.size, offset=entry.start)
    if stored.size < entry.size:
        raise ValueError(f"{path} has changed while it was read: the tensor {name!r} is cut off")
    with np.errstate(all="ignore"):  # an infinite scale times zero: found below
        x = gguf_package().dequantize(stored.reshape(entry.stored), entry.type).astype(np.float32, copy=False)
    if not np.isfinite(x).all():
        raise ValueError(f"{path}: the tensor {name!r} holds numbers that are not finite")
    return x.reshape(entry.shape)
