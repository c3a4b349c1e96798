"""config.json to Config and back. The keys of each model_type are in its file in families/.

Dropout rates in a config.json are not used: only adapters have dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spelling import choose_from
from .bitsandbytes import format_in
from .config import HEADS, LABELLED, Config
from .families import FAMILIES
from .labels import default_label_maps
from .transformer import Transformer

HF_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
CLASS_ENDINGS = {  # of the name of a class -> its head
    "ForCausalLM": "lm",
    "LMHeadModel": "lm",
    "ForMaskedLM": "lm",
    "ForConditionalGeneration": "lm",
    "ForPreTraining": "lm",
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "tokens",
    "ForImageClassification": "classify",
    "Model": "none",
}
MAX_LABELS = 100_000
PRESERVED = (  # keys that save_pretrained writes as load_pretrained found them
    "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "sliding_window", "use_sliding_window",
    "max_window_layers", "layer_types", "no_rope_layers", "no_rope_layer_interval",
    "original_max_position_embeddings",
)  # fmt: skip
DERIVED = "n_kv_heads", "head_dim", "d_ff", "decoder_layers"  # may be null in a config.json, which is 0 in a Config


def read_config(
    values: Mapping[str, Any], source: str, dtype: str, head: str | None = None, labels: int | None = None
) -> tuple[str, Config]:
    """(family, Config) of a config.json. `head` and `labels` replace those in it.

    Raises ValueError, with the key and its value, for what is missing, impossible or not implemented.
    """
    name = values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        why = {key: why for family in FAMILIES.values() for key, why in family.not_read.items()}.get(str(name))
        hint = why or choose_from(str(name), FAMILIES)
        raise ValueError(f"{source}: family {name!r:.80} is not supported: {hint}")
    family = FAMILIES[name]
    for key, fixed in family.config_fixed.items():
        if values.get(key, fixed) != fixed:
            raise ValueError(f"{source}: {key} = {values[key]!r:.80} is not supported, only {fixed!r}")
    format_in(values, source)
    values = {**family.config_defaults, **values}
    fields: dict[str, Any] = {"dtype": dtype}
    for field, key in family.config_keys.items():
        if key not in values or (values[key] is None and field not in DERIVED):
            raise ValueError(f"{source} lacks {key!r}")
        if values[key] == 0 and values[key] is not False:  # which would ask a Config to derive it
            raise ValueError(f"{source}: {key} = 0 is not supported")
        fields[field] = 0 if values[key] is None else values[key]
    if "activation" in fields:
        if fields["activation"] not in HF_ACTIVATIONS:
            key, known = family.config_keys["activation"], ", ".join(HF_ACTIVATIONS)
            raise ValueError(f"{source}: {key} = {values[key]!r:.80} is not supported, only {known}")
        fields["activation"] = HF_ACTIVATIONS[fields["activation"]]
    try:
        fields |= read_head(values, head, labels)
        if fields["head"] not in family.classes:
            raise ValueError(f"head {fields['head']!r:.80} is not one that a {name} has: {', '.join(family.classes)}")
        return name, Config(**fields | family.extra_fields(values))
    except ValueError as error:
        field, _, rest = str(error).partition(" ")
        raise ValueError(f"{source}: {family.config_keys.get(field, field)} {rest}") from None


def read_head(values: Mapping[str, Any], head: str | None, labels: int | None) -> dict[str, Any]:
    """The fields head and labels: the arguments, else those of the config.json, else a language model's."""
    if head not in (None, *HEADS):
        raise ValueError(f"no head is called {head!r}: {choose_from(head, HEADS)}")
    classes = values.get("architectures") or ["ForCausalLM"]
    if head is None:
        endings = (end for end in CLASS_ENDINGS if isinstance(classes, list) and str(classes[0]).endswith(end))
        head = CLASS_ENDINGS.get(next(endings, ""))
    if head is None:
        raise ValueError(
            f"architectures = {classes!r:.80} is not supported: choose a head, head='none' for the model without one"
        )
    if head not in LABELLED:
        if labels is not None:
            raise ValueError(f"labels = {labels} needs head='classify' or head='tokens'")
        return {"head": head}
    if labels is None:
        names = values.get("id2label")
        labels = values.get("num_labels") or (len(names) if isinstance(names, dict) else 0) or 2
    if type(labels) is not int or not 1 <= labels <= MAX_LABELS:
        raise ValueError(f"labels = {labels!r:.80} is not a whole number from 1 to {MAX_LABELS}")
    return {"head": head, "labels": labels}


def write_config(model: Transformer) -> dict[str, Any]:
    """The config.json of `model`, for `transformers` 4 and 5."""
    config, family = model.config, FAMILIES[model.family]
    values: dict[str, Any] = {
        **family.config_fixed,
        **{key: getattr(config, field) for field, key in family.config_keys.items()},
        "model_type": model.family,
        "architectures": [family.classes[config.head]],
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **family.extra_keys(config),
    }
    if "activation" in family.config_keys:
        values[family.config_keys["activation"]] = {"gelu": "gelu", "gelu_tanh": "gelu_new"}[config.activation]
    if config.head in LABELLED:
        values |= default_label_maps(config.labels)
    preserved = {key: value for key, value in model.hf_config.items() if config.head in LABELLED or "label" not in key}
    if len(preserved.get("id2label") or values.get("id2label", ())) != config.labels:
        preserved = {key: value for key, value in preserved.items() if "label" not in key}
    return values | preserved
