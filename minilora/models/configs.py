"""config.json and Config, both ways: a table for each model_type says what Hugging Face calls each number.

Dropout rates of a base are not used: a frozen base has none here, and full fine-tuning goes without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..ops import RopeScaling
from ..spelling import choose_from
from .config import HEADS, HUGE, LABELLED, Config
from .names import ENDINGS, window_fields
from .transformer import Transformer


@dataclass(frozen=True)
class Format:
    """How one model_type is written down."""

    family: str
    classes: dict[str, str]  # head -> the class in `transformers`; others with the same head end alike
    keys: dict[str, str]  # field of Config -> key
    only: dict[str, Any]  # key -> its one value that is implemented, which is also what a missing key means
    defaults: dict[str, Any] = field(default_factory=dict)  # what else a missing key means
    fixed: dict[str, Any] = field(default_factory=dict)  # fields of Config that no key says


SHAPE = {
    "vocab_size": "vocab_size",
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "max_length": "max_position_embeddings",
    "tied": "tie_word_embeddings",
}
LLAMA_KEYS = {**SHAPE, "n_kv_heads": "num_key_value_heads", "head_dim": "head_dim", "eps": "rms_norm_eps"}
LLAMA_ONLY = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "is_causal": True,
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "quantization_config": None,
    "is_decoder": False,
    "add_cross_attention": False,
}
LLAMA_DEFAULTS = {"tie_word_embeddings": False, "num_key_value_heads": None, "head_dim": None}
BERT_KEYS = {**SHAPE, "segments": "type_vocab_size", "eps": "layer_norm_eps", "activation": "hidden_act"}
BERT_ONLY = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "quantization_config": None,
}
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def decoder(name: str) -> dict[str, str]:
    return {"lm": f"{name}ForCausalLM", "classify": f"{name}ForSequenceClassification", "none": f"{name}Model"}


def encoder(name: str) -> dict[str, str]:
    return {"lm": f"{name}ForMaskedLM", "classify": f"{name}ForSequenceClassification",
            "tokens": f"{name}ForTokenClassification", "none": f"{name}Model"}  # fmt: skip


FORMATS = {
    "llama": Format("llama", decoder("Llama"), LLAMA_KEYS, LLAMA_ONLY, LLAMA_DEFAULTS),
    "mistral": Format("llama", decoder("Mistral"), LLAMA_KEYS, LLAMA_ONLY, LLAMA_DEFAULTS),
    "qwen2": Format("llama", decoder("Qwen2"), LLAMA_KEYS, LLAMA_ONLY, LLAMA_DEFAULTS, {"qkv_bias": True}),
    "gpt2": Format(
        "gpt2",
        decoder("GPT2") | {"lm": "GPT2LMHeadModel"},
        {"vocab_size": "vocab_size", "n_layers": "n_layer", "d_model": "n_embd", "n_heads": "n_head", "d_ff": "n_inner",
         "max_length": "n_positions", "eps": "layer_norm_epsilon", "activation": "activation_function",
         "tied": "tie_word_embeddings"},
        {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False,
         "add_cross_attention": False, "quantization_config": None},
        {"tie_word_embeddings": True, "n_inner": None},
    ),
    "bert": Format("bert", encoder("Bert"), BERT_KEYS, BERT_ONLY, {"tie_word_embeddings": True}),
    "roberta": Format("roberta", encoder("Roberta"), BERT_KEYS, BERT_ONLY, {"tie_word_embeddings": True}),
}  # fmt: skip
MOST_LABELS = 100_000
KEPT = (  # what save_pretrained gives back as it was
    "model_type", "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id",
    "sliding_window", "use_sliding_window", "max_window_layers", "layer_types",
)  # fmt: skip
DERIVED = "n_kv_heads", "head_dim", "d_ff"  # null says what 0 says here


def read_config(
    values: Mapping[str, Any], source: str, dtype: str, head: str | None = None, labels: int | None = None
) -> tuple[str, Config]:
    """(family, Config) of what a config.json says. `head` and `labels` replace what it says of them.

    Raises ValueError, with the key and its value, for what is missing, impossible or not implemented.
    """
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FORMATS:
        raise ValueError(f"{source}: family {kind!r:.80} is not supported: {choose_from(str(kind), FORMATS)}")
    form = FORMATS[kind]
    for key, only in form.only.items():
        if values.get(key, only) != only:
            raise ValueError(f"{source}: {key} = {values[key]!r:.80} is not supported, only {only!r}")
    values = {**form.defaults, **values}
    found: dict[str, Any] = {"dtype": dtype, **form.fixed}
    for ours, theirs in form.keys.items():
        if theirs not in values or (values[theirs] is None and ours not in DERIVED):
            raise ValueError(f"{source} lacks {theirs!r}")
        if values[theirs] == 0 and values[theirs] is not False:  # which would ask a Config to derive it
            raise ValueError(f"{source}: {theirs} = 0 is not supported")
        found[ours] = 0 if values[theirs] is None else values[theirs]
    if "activation" in form.keys:
        key = form.keys["activation"]
        if found["activation"] not in ACTIVATIONS:
            raise ValueError(f"{source}: {key} = {values[key]!r:.80} is not supported, only {', '.join(ACTIVATIONS)}")
        found["activation"] = ACTIVATIONS[found["activation"]]
    try:
        found |= head_of(values, head, labels)
        if found["head"] not in form.classes:
            raise ValueError(f"head {found['head']!r:.80} is not one that a {kind} has: {', '.join(form.classes)}")
        if form.family == "llama":
            found |= rotary(values) | window_fields(values)
        if form.family == "roberta":  # the rows of the table up to the padding's are no positions
            pad = values.get("pad_token_id", 1)
            if type(pad) is not int or pad < 0:
                raise ValueError(f"pad_token_id = {pad!r:.80} is not a whole number from 0 up")
            found["offset"] = pad + 1
            found["max_length"] -= pad + 1
        return form.family, Config(**found)
    except ValueError as error:
        name, _, says = str(error).partition(" ")
        raise ValueError(f"{source}: {form.keys.get(name, name)} {says}") from None


def head_of(values: Mapping[str, Any], head: str | None, labels: int | None) -> dict[str, Any]:
    """The head that is asked for, or that of the class that wrote the config, or a language model's."""
    if head not in (None, *HEADS):
        raise ValueError(f"no head is called {head!r}: {choose_from(head, HEADS)}")
    written = values.get("architectures") or ["ForCausalLM"]
    if head is None:
        endings = (end for end in ENDINGS if isinstance(written, list) and str(written[0]).endswith(end))
        head = ENDINGS.get(next(endings, ""))
    if head is None:
        raise ValueError(
            f"architectures = {written!r:.80} is not supported: say head='none' for its body, or another head"
        )
    if head not in LABELLED:
        if labels is not None:
            raise ValueError(f"labels = {labels} needs head='classify' or head='tokens'")
        return {"head": head}
    if labels is None:
        named = values.get("id2label")
        labels = values.get("num_labels") or (len(named) if isinstance(named, dict) else 0) or 2
    if type(labels) is not int or not 1 <= labels <= MOST_LABELS:
        raise ValueError(f"labels = {labels!r:.80} is not a whole number from 1 to {MOST_LABELS}")
    return {"head": head, "labels": labels}


def rotary(values: Mapping[str, Any]) -> dict[str, Any]:
    """rope_theta and rope_scaling, from where transformers 5 writes them (rope_parameters) or 4 did."""
    key = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope = values.get(key) or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"{key} = {rope!r:.80} is not supported")
    theta = rope.get("rope_theta", values.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {"rope_theta": theta}
    names = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
    given: list[Any] = [rope.get(name) for name in names]
    if kind != "llama3" or not all(type(number) in (int, float) and 0 < number < HUGE for number in given):
        raise ValueError(f"{key} = {dict(rope)!r:.80} is not supported, only 'default' and a whole 'llama3'")
    scaling = RopeScaling(*given)
    if scaling.high <= scaling.low:
        raise ValueError(f"{key} = {dict(rope)!r:.80} is not supported: high_freq_factor must be above low_freq_factor")
    return {"rope_theta": theta, "rope_scaling": scaling}


def label_maps(names: Sequence[str]) -> dict[str, Any]:
    """id2label and label2id, as config.json has them, of the outputs of a classifier in order."""
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {x: i for i, x in enumerate(names)}}


def names_of(id2label: Any, labels: int) -> list[str]:
    """The names of so many labels, in order; [] unless each has one of its own."""
    found = id2label if isinstance(id2label, dict) else {}
    names = [str(found[str(i)]) for i in range(len(found)) if isinstance(found.get(str(i)), str | int)]
    return names if len(set(names)) == len(found) == labels else []


def unnamed(labels: int) -> dict[str, Any]:
    """What a config.json says of labels without names, as `transformers` writes it."""
    return label_maps([f"LABEL_{i}" for i in range(labels)])


def write_config(model: Transformer) -> dict[str, Any]:
    """What config.json says of `model`, as `transformers` 4 and 5 read it."""
    config = model.config
    usual = "qwen2" if config.qkv_bias else "mistral" if config.sliding_window else model.family
    kind = model.said.get("model_type", usual)
    form = FORMATS[kind]
    values: dict[str, Any] = {
        **form.only,
        **{theirs: getattr(config, ours) for ours, theirs in form.keys.items()},
        "model_type": kind,
        "architectures": [form.classes[config.head]],
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": config.offset - 1 if config.offset else None,
    }
    if "activation" in form.keys:
        values[form.keys["activation"]] = {"gelu": "gelu", "gelu_tanh": "gelu_new"}[config.activation]
    if form.family == "llama":
        rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
        if config.rope_scaling:
            factor, low, high, trained = config.rope_scaling
            rope |= {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
            rope |= {"original_max_position_embeddings": trained}
            values["rope_scaling"] = rope
        values |= {"rope_theta": config.rope_theta, "rope_parameters": rope}
    if kind in ("mistral", "qwen2"):
        values["sliding_window"] = config.sliding_window
    if kind == "qwen2":
        values |= {"use_sliding_window": config.sliding_window is not None}
        values |= {"max_window_layers": config.max_window_layers, "layer_types": list(config.layer_types) or None}
    if form.family == "roberta":
        values["max_position_embeddings"] = config.max_length + config.offset
    if config.head in LABELLED:
        values |= unnamed(config.labels)
    kept = {key: value for key, value in model.said.items() if config.head in LABELLED or "label" not in key}
    if len(kept.get("id2label") or values.get("id2label", ())) != config.labels:
        kept = {key: value for key, value in kept.items() if "label" not in key}
    return {key: value for key, value in (values | kept).items() if key != "quantization_config"}
