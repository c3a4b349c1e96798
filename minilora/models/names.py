"""What our dotted paths are called in Hugging Face's models: one table per family, {} is the number of a block; and
what a config.json says of a sliding window."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

LLAMA = [
    ("embed.token", "model.embed_tokens"),
    ("block_{}.norm_1", "model.layers.{}.input_layernorm"),
    ("block_{}.attention", "model.layers.{}.self_attn"),
    ("block_{}.norm_2", "model.layers.{}.post_attention_layernorm"),
    ("block_{}.mlp", "model.layers.{}.mlp"),
    ("norm", "model.norm"),
    ("lm_head", "lm_head"),
    ("classifier", "score"),
]
GPT2 = [
    ("embed.token", "transformer.wte"),
    ("embed.position", "transformer.wpe"),
    ("block_{}.norm_1", "transformer.h.{}.ln_1"),
    ("block_{}.attention.qkv_proj", "transformer.h.{}.attn.c_attn"),
    ("block_{}.attention.o_proj", "transformer.h.{}.attn.c_proj"),
    ("block_{}.attention", "transformer.h.{}.attn"),
    ("block_{}.norm_2", "transformer.h.{}.ln_2"),
    ("block_{}.mlp.up_proj", "transformer.h.{}.mlp.c_fc"),
    ("block_{}.mlp.down_proj", "transformer.h.{}.mlp.c_proj"),
    ("norm", "transformer.ln_f"),
    ("lm_head", "lm_head"),
    ("classifier", "score"),
]
BERT_BODY = [
    ("embed.token", "bert.embeddings.word_embeddings"),
    ("embed.position", "bert.embeddings.position_embeddings"),
    ("embed.segment", "bert.embeddings.token_type_embeddings"),
    ("embed.norm", "bert.embeddings.LayerNorm"),
    ("block_{}.attention.q_proj", "bert.encoder.layer.{}.attention.self.query"),
    ("block_{}.attention.k_proj", "bert.encoder.layer.{}.attention.self.key"),
    ("block_{}.attention.v_proj", "bert.encoder.layer.{}.attention.self.value"),
    ("block_{}.attention.o_proj", "bert.encoder.layer.{}.attention.output.dense"),
    ("block_{}.norm_1", "bert.encoder.layer.{}.attention.output.LayerNorm"),
    ("block_{}.mlp.up_proj", "bert.encoder.layer.{}.intermediate.dense"),
    ("block_{}.mlp.down_proj", "bert.encoder.layer.{}.output.dense"),
    ("block_{}.norm_2", "bert.encoder.layer.{}.output.LayerNorm"),
    ("pooler", "bert.pooler.dense"),
]
BERT = [
    *BERT_BODY,
    ("head_transform", "cls.predictions.transform.dense"),
    ("head_norm", "cls.predictions.transform.LayerNorm"),
    ("lm_head.bias", "cls.predictions.bias"),
    ("lm_head.unused", "cls.predictions.decoder"),  # of an untied head, which has two biases and adds one
    ("lm_head", "cls.predictions.decoder"),
    ("classifier", "classifier"),
]
ROBERTA = [
    *((ours, theirs.replace("bert.", "roberta.", 1)) for ours, theirs in BERT_BODY),
    ("head_transform", "lm_head.dense"),
    ("head_norm", "lm_head.layer_norm"),
    ("lm_head.bias", "lm_head.bias"),
    ("lm_head.unused", "lm_head.decoder"),
    ("lm_head", "lm_head.decoder"),
    ("classifier_transform", "classifier.dense"),
    ("classifier", "classifier.out_proj"),
]
DEBERTA = [
    ("embed.position", "deberta.encoder.rel_embeddings"),
    ("embed.position_norm", "deberta.encoder.LayerNorm"),
    ("block_{}.attention.q_proj", "deberta.encoder.layer.{}.attention.self.query_proj"),
    ("block_{}.attention.k_proj", "deberta.encoder.layer.{}.attention.self.key_proj"),
    ("block_{}.attention.v_proj", "deberta.encoder.layer.{}.attention.self.value_proj"),
    ("conv", "deberta.encoder.conv.conv"),
    ("conv_norm", "deberta.encoder.conv.LayerNorm"),
    ("pooler", "pooler.dense"),
    *((ours, theirs.replace("bert.", "deberta.", 1)) for ours, theirs in BERT_BODY),
    ("classifier", "classifier"),
]
VIT = [
    ("embed.class_token", "vit.embeddings.cls_token"),
    ("embed.position", "vit.embeddings.position_embeddings"),
    ("embed.patch_proj", "vit.embeddings.patch_embeddings.projection"),
    ("block_{}.norm_1", "vit.layers.{}.layernorm_before"),
    ("block_{}.attention", "vit.layers.{}.attention"),
    ("block_{}.norm_2", "vit.layers.{}.layernorm_after"),
    ("block_{}.mlp.up_proj", "vit.layers.{}.mlp.fc1"),
    ("block_{}.mlp.down_proj", "vit.layers.{}.mlp.fc2"),
    ("norm", "vit.layernorm"),
    ("pooler", "vit.pooler.dense"),
    ("classifier", "classifier"),
]
T5 = [
    ("embed.token", "shared"),
    *(
        (f"{stack}.block_{{}}.{ours}", f"{stack}.block.{{}}.layer.{theirs}")
        for stack, last in (("encoder", 1), ("decoder", 2))
        for ours, theirs in (
            ("norm_1", "0.layer_norm"),
            ("attention.q_proj", "0.SelfAttention.q"),
            ("attention.k_proj", "0.SelfAttention.k"),
            ("attention.v_proj", "0.SelfAttention.v"),
            ("attention.o_proj", "0.SelfAttention.o"),
            ("attention.relative_bias", "0.SelfAttention.relative_attention_bias"),
            ("norm_cross", "1.layer_norm"),
            ("cross_attention.q_proj", "1.EncDecAttention.q"),
            ("cross_attention.k_proj", "1.EncDecAttention.k"),
            ("cross_attention.v_proj", "1.EncDecAttention.v"),
            ("cross_attention.o_proj", "1.EncDecAttention.o"),
            ("norm_2", f"{last}.layer_norm"),
            ("mlp.up_proj", f"{last}.DenseReluDense.wi"),
            ("mlp.down_proj", f"{last}.DenseReluDense.wo"),
        )
    ),
    ("encoder.norm", "encoder.final_layer_norm"),
    ("decoder.norm", "decoder.final_layer_norm"),
    ("lm_head", "lm_head"),
]
ENDINGS = {  # of the name of a class -> its head
    "ForCausalLM": "lm",
    "LMHeadModel": "lm",
    "ForMaskedLM": "lm",
    "ForPreTraining": "lm",
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "tokens",
    "Model": "none",
}
FAMILIES = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "bert": BERT,
    "roberta": ROBERTA,
    "deberta-v2": DEBERTA,
    "vit": VIT,
    "t5": T5,
}


def hub_name(family: str, path: str, head: str = "lm") -> str:
    """block_0.attention.q_proj -> model.layers.0.self_attn.q_proj, in a model with a head. Which one matters to a
    classifier: of tokens it is called "classifier", except in a llama, and in RoBERTa it is one layer instead of two.

    Raises ValueError for a family without a table, and a path that is not in it.
    """
    if family not in FAMILIES:
        raise ValueError(f"Hugging Face's names are known for {', '.join(FAMILIES)}, not for {family}")
    for pattern, theirs in patterns(family):
        match = pattern.fullmatch(path)
        if match:
            if head == "tokens" and path.startswith("classifier") and family != "llama":
                theirs = "classifier"
            return theirs.format(match.groupdict().get("block")) + (match["rest"] or "")
    raise ValueError(f"{path} has no name in a Hugging Face {family} model")


def window_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of Config that say which queries see how far back: {} where a config.json says nothing of it.

    A Mistral has its window in every layer. A Qwen2 has one if use_sliding_window, in the layers from max_window_layers
    on or in those that layer_types says. What is missing is as in `transformers`; a Llama has no window whatever its
    config says. Raises ValueError for a use_sliding_window or layer_types of another type.
    """
    window = values.get("sliding_window", 4096)
    if values["model_type"] == "mistral":
        return {"sliding_window": window}
    if values["model_type"] != "qwen2":
        return {}
    used, types = values.get("use_sliding_window", False), values.get("layer_types")
    if type(used) is not bool:
        raise ValueError(f"use_sliding_window = {used!r} is not true or false")
    if not isinstance(types, list | None) or not all(isinstance(name, str) for name in types or ()):
        raise ValueError(f"layer_types = {types!r:.80} is not a list of names")
    return {
        "sliding_window": window if used else None,
        "max_window_layers": values.get("max_window_layers", 28),
        "layer_types": tuple(types or ()),
    }


@cache
def patterns(family: str) -> list[tuple[re.Pattern[str], str]]:
    return [
        (re.compile(ours.replace(".", r"\.").replace("{}", r"(?P<block>\d+)") + r"(?P<rest>\..+)?"), theirs)
        for ours, theirs in FAMILIES[family]
    ]
