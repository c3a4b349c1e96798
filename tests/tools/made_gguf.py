"""Small GGUF files: the keys and tensors of a model of each architecture, in any type of weights."""

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
tokenizers = pytest.importorskip("tokenizers")

TYPES = {kind.name: kind for kind in gguf.GGMLQuantizationType}
V, C, F, H, KV, D, BLOCKS = 300, 32, 128, 4, 2, 8, 2
ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
MERGES = ["i n", "Ġ t", "Ġt h", "1 2", "12 3", "Ã Ĺ"]


def byte_level_values(pre="smollm", **changes):
    """The keys of a byte-level vocabulary of V tokens, the rest of which is padding."""
    tokens = [*ALPHABET, "<|end|>", "<think>", "in", "Ġt", "Ġth", "12", "123", "ÃĹ", "hello"]
    types = [1] * len(ALPHABET) + [3, 4] + [1] * 7
    tokens += [f"[PAD{i}]" for i in range(len(tokens), V)]
    types += [5] * (V - len(types))
    values = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": MERGES, "eos_token_id": 256}
    return {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items() if value is not None}


SIZES = {"embedding_length": C, "feed_forward_length": F, "block_count": BLOCKS, "attention.head_count": H}
VALUES = {
    "llama": SIZES | {"vocab_size": V, "context_length": 64, "attention.head_count_kv": KV, "rope.dimension_count": D,
                      "rope.freq_base": 5000.0, "attention.layer_norm_rms_epsilon": 1e-5},
    "gpt2": SIZES | {"context_length": 1024, "attention.layer_norm_epsilon": 1e-5},
}  # fmt: skip
VALUES["qwen2"] = {key: value for key, value in VALUES["llama"].items() if key != "rope.dimension_count"}
VALUES["smollm3"] = VALUES["phi3"] = VALUES["gemma3"] = VALUES["llama"]
VALUES["qwen3"] = VALUES["qwen2"] | {"attention.key_length": D, "attention.value_length": D}


def shapes(architecture, tied=True):
    """{name in the file: shape} of a model with the sizes above, biases where the architecture has them."""
    llama = {"attn_norm": (C,), "attn_q": (H * D, C), "attn_k": (KV * D, C), "attn_v": (KV * D, C)}
    llama |= {"attn_output": (C, H * D), "ffn_norm": (C,), "ffn_gate": (F, C), "ffn_up": (F, C), "ffn_down": (C, F)}
    gpt2 = {"attn_norm": (C,), "attn_qkv": (3 * C, C), "attn_output": (C, C), "ffn_norm": (C,), "ffn_up": (F, C)}
    phi3 = {"attn_norm": (C,), "attn_qkv": ((H + 2 * KV) * D, C), "attn_output": (C, H * D), "ffn_norm": (C,)}
    phi3 |= {"ffn_up": (2 * F, C), "ffn_down": (C, F)}
    block = {"gpt2": gpt2 | {"ffn_down": (C, F)}, "phi3": phi3}.get(architecture, llama)
    biased = {"qwen2": ("attn_q", "attn_k", "attn_v"), "gpt2": tuple(block)}.get(architecture, ())
    if architecture == "qwen3":
        block = llama | {"attn_q_norm": (D,), "attn_k_norm": (D,)}
    found = {"token_embd.weight": (V, C), "output_norm.weight": (C,)}
    if architecture == "gpt2":
        found |= {"position_embd.weight": (1024, C), "output_norm.bias": (C,)}
    if not tied:
        found["output.weight"] = (V, C)
    for i in range(BLOCKS):
        found |= {f"blk.{i}.{part}.weight": shape for part, shape in block.items()}
        found |= {f"blk.{i}.{part}.bias": block[part][:1] for part in biased}
    return found


def write(path, architecture="llama", tensors=None, values=None, vocabulary=None, kind="F32"):
    """A file with `tensors`, {name in the file: array}, in blocks of `kind` where they are matrices that divide."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("small")
    settings = VALUES[architecture] | (values or {})
    keys = {f"{architecture}.{key}": value for key, value in settings.items() if value is not None}
    for key, value in (keys | (byte_level_values() if vocabulary is None else vocabulary)).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, x in (random_tensors(architecture) if tensors is None else tensors).items():
        block = gguf.GGML_QUANT_SIZES[TYPES[kind]][0]
        if x.dtype == np.uint8:  # blocks already
            writer.add_tensor(name, x, raw_dtype=TYPES[kind])
        elif x.ndim == 2 and x.shape[1] % block == 0 and kind != "F32":
            writer.add_tensor(name, gguf.quantize(x, TYPES[kind]), raw_dtype=TYPES[kind])
        else:
            writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_tensors(architecture="llama", tied=True):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes(architecture, tied).items()}
