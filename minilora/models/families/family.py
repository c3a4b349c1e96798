"""Family: how its models are built, and what Hugging Face and llama.cpp call their sizes and tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...backend import Rng
from ..config import Config
from ..transformer import Transformer

Names = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Family:
    """One `model_type` of Hugging Face, which is also the name of its file in families/."""

    build: Callable[[Config, Rng | None], Transformer]  # rng None: the shapes only, without weights

    # ---- config.json ----
    classes: Mapping[str, str]  # head -> the class in `transformers`
    config_keys: Mapping[str, str]  # field of Config -> key of config.json
    config_fixed: Mapping[str, Any]  # key -> the only value that is supported, also the value of a missing key
    config_defaults: Mapping[str, Any] = field(default_factory=dict)  # the values of other missing keys
    extra_fields: Callable[[Mapping[str, Any]], dict[str, Any]] = (
        lambda values: {}
    )  # config.json -> fields that need code
    extra_keys: Callable[[Config], dict[str, Any]] = lambda config: {}  # those fields -> config.json
    not_read: Mapping[str, str] = field(default_factory=dict)  # a model_type near this one that no family reads -> why

    # ---- tensors in Hugging Face's files ----
    base_model_prefix: str = "model"  # the prefix of all names but the head's, in a class with a head; "": none
    hf_names: Names = ()  # (our path, their name); {} is the number of a block. The first that matches counts
    hf_head_names: Mapping[str, Names] = field(default_factory=dict)  # head -> names that are tried before hf_names
    ungated_names: Names = ()  # names that are tried before those where the MLPs are not gated (T5 1.0)
    file_names: Names = ()  # (part of their name, what it is in files), where transformers renames what it loads
    copies: Sequence[str] = ()  # other names of the token embedding's weight, under which a file may hold it again
    ignored: Sequence[str] = ()  # tensors that a file may hold, and that no model reads
    transposed: Sequence[str] = ()  # the last part of the names of layers whose weights are stored as (in, out)
    unused: Mapping[str, Sequence[str]] = field(default_factory=dict)  # head -> their layers without any effect

    # ---- GGUF files ----
    gguf_names: Mapping[str, str] = field(default_factory=dict)  # their name -> our path; empty: not in llama.cpp
    gguf_architecture: str = ""  # general.architecture, where it is not the name of the family
    gguf_keys: Mapping[str, str] = field(default_factory=dict)  # key below the architecture -> key of config.json
    gguf_values: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda values: {}  # keys of config.json it lacks
    gguf_added_to_norms: float = 0.0  # to the gain of each norm, by llama.cpp's converter
    gguf_interleaved: bool = False  # llama.cpp rotates rows 2i and 2i + 1 of q and k, Hugging Face i and i + D/2

    # ---- tokenizer, by its class in `transformers` ----
    tokenizer: str | None = None  # replaces the class that the files name; "": tokenizer.json is used as it is
    default_tokenizer: str = ""  # where the files name no class


def decoder_classes(name: str) -> dict[str, str]:
    """Family.classes of a model in which a token sees no later one."""
    return {"lm": f"{name}ForCausalLM", "classify": f"{name}ForSequenceClassification", "none": f"{name}Model"}


def encoder_classes(name: str) -> dict[str, str]:
    """Family.classes of a model in which every token sees every other."""
    return {
        "lm": f"{name}ForMaskedLM",
        "classify": f"{name}ForSequenceClassification",
        "tokens": f"{name}ForTokenClassification",
        "none": f"{name}Model",
    }
