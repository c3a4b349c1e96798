"""Family: how its models are built, and what Hugging Face and llama.cpp call their numbers and tensors."""

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

    # ---- tensors in Hugging Face's files ----
    base_model_prefix: str = "model"  # the prefix of all names but the head's, in a class with a head; "": none
    hf_names: Names = ()  # (our path, their name); {} is the number of a block. The first that matches counts
    hf_head_names: Mapping[str, Names] = field(default_factory=dict)  # head, or activation -> names tried before those
    copies: Sequence[str] = ()  # other names of the token embedding's weight, under which a file may hold it again
    ignored: Sequence[str] = ()  # tensors that a file may hold, and that no model reads
    transposed: Sequence[str] = ()  # the last part of the names of layers whose weights are stored as (in, out)
    unused: Mapping[str, Sequence[str]] = field(default_factory=dict)  # head -> their layers that change no output

    # ---- tensors in GGUF files, where general.architecture is the name of the family ----
    gguf_names: Mapping[str, str] = field(default_factory=dict)  # their name -> our path; empty: not in llama.cpp
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
