"""The families: from what a config.json holds to the ops of the model, with one of its heads.

Each is the wiring of its blocks, as in transformer.py, written once more with shapes in the place of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..models.config import Config
from ..models.names import window_fields
from .architecture import Activation, Architecture, Attention, Linear, Norm, Op, Select, Table, Vector

# ---- the parts ----


def attention(
    p: str, x: str, C: int, H: int, G: int, D: int, *, bias: bool, o_bias: bool | None = None, keys: str = "",
    fused: bool = False, rope: bool = False, relative: int = 0, causal: bool = False, window: int | None = None,
) -> list[Op]:  # fmt: skip
    """q, k, v and o around a softmax; keys and values are made from the array `keys` where it is another than x."""
    projections: list[Op] = (
        [Linear(f"{p}.qkv_proj", C, 3 * H * D, bias, x)]
        if fused
        else [
            Linear(f"{p}.q_proj", C, H * D, bias, x),
            Linear(f"{p}.k_proj", C, G * D, bias, keys or x),
            Linear(f"{p}.v_proj", C, G * D, bias, keys or x),
        ]
    )
    o_proj = Linear(f"{p}.o_proj", H * D, C, bias if o_bias is None else o_bias, f"{p}.o")
    return [*projections, Attention(p, H, G, D, rope, fused, relative, causal, window), o_proj]


def mlp(p: str, x: str, C: int, F: int, kind: str, *, bias: bool) -> list[Op]:
    gate: list[Op] = [Linear(f"{p}.gate_proj", C, F, bias, x)] if kind == "swiglu" else []
    up, down = Linear(f"{p}.up_proj", C, F, bias, x), Linear(f"{p}.down_proj", F, C, bias, f"{p}.h")
    return [*gate, up, Activation(p, kind, F), down]


def pre_norm(b: str, C: int, bias: bool, attends: list[Op], feeds: list[Op]) -> list[Op]:
    """x₁ = x + attention(norm_1(x))       y = x₁ + mlp(norm_2(x₁))"""
    return [Norm(f"{b}.norm_1", C, bias), *attends, Norm(f"{b}.norm_2", C, bias), *feeds]


def post_norm(b: str, C: int, attends: list[Op], feeds: list[Op]) -> list[Op]:
    """x₁ = norm_1(x + attention(x))       y = norm_2(x₁ + mlp(x₁))"""
    return [*attends, Norm(f"{b}.norm_1", C, True), *feeds, Norm(f"{b}.norm_2", C, True)]


def pooled(which: str, transform: str, C: int) -> dict[str, list[Op]]:
    """The first or last token; of a transform of it, tanh."""
    stages: dict[str, list[Op]] = {which: [Select(which)]}
    if transform:
        stages[transform] = [Linear(transform, C, C, True, f"{which}.y", rows=1)]
        stages[f"{transform}_tanh"] = [Activation(f"{transform}_tanh", "tanh", C, rows=1)]
    return stages


def classifier(C: int, labels: int, bias: bool, x: str, rows: int | None = 1) -> list[Op]:
    return [Linear("classifier", C, labels, bias, x, rows=rows)]


# ---- the families: `c` is what config.json holds ----


def gpt2(c: Mapping[str, Any], head: str, labels: int) -> Architecture:
    C, V, T = c["n_embd"], c["vocab_size"], c["n_positions"]
    F, H, fused = c.get("n_inner") or 4 * C, c["n_head"], c.get("fused", True)
    stages: dict[str, list[Op]] = {"embed": [Table("embed.token", V, C), Table("embed.position", T, C, "positions")]}
    for b in (f"block_{i}" for i in range(c["n_layer"])):
        attends = attention(f"{b}.attention", f"{b}.norm_1", C, H, H, C // H, bias=True, fused=fused, causal=True)
        stages[b] = pre_norm(b, C, True, attends, mlp(f"{b}.mlp", f"{b}.norm_2", C, F, "gelu", bias=True))
    stages["norm"] = [Norm("norm", C, True)]
    stages |= decoder_head(C, V, c.get("tie_word_embeddings", True), head, labels)
    return Architecture("", "gpt2", head, C, stages, T)


def llama(c: Mapping[str, Any], head: str, labels: int) -> Architecture:
    """Llama, Mistral (which has a sliding window), Qwen2 (which has biases on q, k and v, and may have a window)."""
    C, V, F, H = c["hidden_size"], c["vocab_size"], c["intermediate_size"], c["num_attention_heads"]
    G, D = c.get("num_key_value_heads") or H, c.get("head_dim") or C // H
    o_bias = c.get("attention_bias", False)
    bias, mlp_bias = o_bias or c["model_type"] == "qwen2", c.get("mlp_bias", False)
    stages: dict[str, list[Op]] = {"embed": [Table("embed.token", V, C)]}
    config = Config(V, c["num_hidden_layers"], C, H, G, F, head_dim=D, qkv_bias=bias, **window_fields(c))
    for i in range(config.n_layers):
        b, window = f"block_{i}", config.window(i)
        attends = attention(
            f"{b}.attention", f"{b}.norm_1", C, H, G, D, bias=bias, o_bias=o_bias, rope=True, causal=True, window=window
        )
        stages[b] = pre_norm(b, C, False, attends, mlp(f"{b}.mlp", f"{b}.norm_2", C, F, "swiglu", bias=mlp_bias))
    stages["norm"] = [Norm("norm", C, False)]
    stages |= decoder_head(C, V, c.get("tie_word_embeddings", False), head, labels)
    return Architecture("", "llama", head, C, stages, c["max_position_embeddings"])


def decoder_head(C: int, V: int, tied: bool, head: str, labels: int) -> dict[str, list[Op]]:
    if head == "lm":
        return {"lm_head": [Linear("lm_head", C, V, False, "norm", "embed.token" if tied else "")]}
    if head == "none":
        return {}
    if head == "tokens":
        return {"classifier": classifier(C, labels, True, "norm", rows=None)}
    return pooled("last", "", C) | {"classifier": classifier(C, labels, False, "last.y")}


def bert(c: Mapping[str, Any], head: str, labels: int) -> Architecture:
    """BERT and RoBERTa."""
    C, V, F, H = c["hidden_size"], c["vocab_size"], c["intermediate_size"], c["num_attention_heads"]
    T, roberta = c["max_position_embeddings"], c["model_type"] == "roberta"
    stages: dict[str, list[Op]] = {}
    tables = [Table("embed.token", V, C), Table("embed.position", T, C, "positions")]
    stages["embed"] = [*tables, Table("embed.segment", c["type_vocab_size"], C), Norm("embed.norm", C, True)]
    x = "embed.norm"
    for b in (f"block_{i}" for i in range(c["num_hidden_layers"])):
        attends = attention(f"{b}.attention", x, C, H, H, C // H, bias=True)
        stages[b] = post_norm(b, C, attends, mlp(f"{b}.mlp", f"{b}.norm_1", C, F, "gelu", bias=True))
        x = f"{b}.norm_2"
    tied = "embed.token" if c.get("tie_word_embeddings", True) else ""
    if head == "lm":
        stages |= {
            "head_transform": [Linear("head_transform", C, C, True, x)],
            "head_gelu": [Activation("head", "gelu", C)],
            "head_norm": [Norm("head_norm", C, True)],
            "lm_head": [Linear("lm_head", C, V, True, "head_norm", tied)],
        }
        if not tied:  # transformers then has two biases, and adds one of them
            stages["unused"] = [Vector("lm_head.unused.bias", (V,))]
    elif head == "tokens":
        stages["classifier"] = classifier(C, labels, True, x, rows=None)
    else:  # without a head, Hugging Face's has BERT's pooler all the same
        transform = "classifier_transform" if roberta and head == "classify" else "pooler"
        stages |= pooled("first", transform, C)
        stages |= {"classifier": classifier(C, labels, True, f"{transform}_tanh.y")} if head == "classify" else {}
    return Architecture("", c["model_type"], head, C, stages, T - 2 if roberta else T)


def deberta(c: Mapping[str, Any], head: str, labels: int) -> Architecture:
    """DeBERTa-v2: distances are embedded, and multiply queries and keys through the layer's own q_proj and k_proj."""
    C, V, F, H = c["hidden_size"], c["vocab_size"], c["intermediate_size"], c["num_attention_heads"]
    for key, only in {"share_att_key": True, "position_biased_input": False, "type_vocab_size": 0,
                      "norm_rel_ebd": "layer_norm", "relative_attention": True}.items():  # fmt: skip
        if c.get(key) != only:
            raise ValueError(f"a deberta-v2 with {key} = {c.get(key)!r:.80} is not known, only {only!r}")
    distances = 2 * c["position_buckets"]
    stages: dict[str, list[Op]] = {}
    stages["embed"] = [
        Table("embed.token", V, C), Norm("embed.norm", C, True), Table("embed.position", distances, C, ""),
        Norm("embed.position_norm", C, True),
    ]  # fmt: skip
    x, kernel = "embed.norm", c.get("conv_kernel_size", 0)
    for i in range(c["num_hidden_layers"]):
        b = f"block_{i}"
        attends = attention(f"{b}.attention", x, C, H, H, C // H, bias=True, relative=distances)
        stages[b] = post_norm(b, C, attends, mlp(f"{b}.mlp", f"{b}.norm_1", C, F, "gelu", bias=True))
        x = f"{b}.norm_2"
        if i == 0 and kernel:  # a convolution of the embeddings is added to the first block's output
            conv = Linear("conv", kernel * C, C, True, "conv.x", shape=(C, C, kernel))
            stages[b] += [conv, Activation("conv", "gelu", C), Norm("conv_norm", C, True)]
            x = "conv_norm"
    if head == "tokens":
        stages["classifier"] = classifier(C, labels, True, x, rows=None)
    if head == "classify":
        stages["classifier"] = [Linear("pooler", C, C, True, x, rows=1), *classifier(C, labels, True, "pooler.y")]
    return Architecture("", "deberta-v2", head, C, stages, c["max_position_embeddings"])


def vit(c: Mapping[str, Any], head: str, labels: int) -> Architecture:
    """A convolution whose stride is its size is a Linear on patches."""
    C, F, H, patch = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"], c["patch_size"]
    patches, n_in = (c["image_size"] // patch) ** 2, c["num_channels"] * patch**2
    projection = Linear("embed.patch_proj", n_in, C, True, "pixels", rows=patches,
                        shape=(C, c["num_channels"], patch, patch))  # fmt: skip
    position = Vector("embed.position", (1, patches + 1, C))
    stages: dict[str, list[Op]] = {"embed": [projection, Vector("embed.class_token", (1, 1, C)), position]}
    for b in (f"block_{i}" for i in range(c["num_hidden_layers"])):
        attends = attention(f"{b}.attention", f"{b}.norm_1", C, H, H, C // H, bias=c.get("qkv_bias", True), o_bias=True)
        stages[b] = pre_norm(b, C, True, attends, mlp(f"{b}.mlp", f"{b}.norm_2", C, F, "gelu", bias=True))
    stages["norm"] = [Norm("norm", C, True)]
    if head == "classify":
        stages["classifier"] = classifier(C, labels, True, "norm")
    else:  # without a head, Hugging Face's has a pooler all the same
        stages |= pooled("first", "pooler", C)
    return Architecture("", "vit", head, C, stages, patches + 1, tokens=patches + 1)


def t5(c: Mapping[str, Any], head: str, labels: int) -> Architecture:
    """Encoder and decoder, each over T tokens; the first block of each learns a bias for every distance."""
    C, V, F, H, D = c["d_model"], c["vocab_size"], c["d_ff"], c["num_heads"], c["d_kv"]
    if c.get("feed_forward_proj", "relu") != "relu":
        raise ValueError(f"a t5 with feed_forward_proj = {c['feed_forward_proj']!r:.80} is not known, only 'relu'")
    layers = c["num_layers"]
    stages: dict[str, list[Op]] = {"embed": [Table("embed.token", V, C)]}

    def block(stack: str, i: int) -> list[Op]:
        b = f"{stack}.block_{i}"
        attends = attention(f"{b}.attention", f"{b}.norm_1", C, H, H, D, bias=False)
        if i == 0:
            attends.append(Table(f"{b}.attention.relative_bias", c["relative_attention_num_buckets"], H, ""))
        if stack == "decoder":
            cross = attention(f"{b}.cross_attention", f"{b}.norm_cross", C, H, H, D, bias=False, keys="encoder.norm")
            attends += [Norm(f"{b}.norm_cross", C, False), *cross]
        return pre_norm(b, C, False, attends, mlp(f"{b}.mlp", f"{b}.norm_2", C, F, "relu", bias=False))

    for stack, depth in (("encoder", layers), ("decoder", c.get("num_decoder_layers") or layers)):
        stages |= {f"{stack}.block_{i}": block(stack, i) for i in range(depth)}
        stages[f"{stack}.norm"] = [Norm(f"{stack}.norm", C, False)]
    if head == "lm":
        tied = "embed.token" if c.get("tie_word_embeddings", True) else ""
        stages["lm_head"] = [Linear("lm_head", C, V, False, "decoder.norm", tied)]
    return Architecture("", "t5", head, C, stages, c.get("n_positions", 512))
