"""What a family of models is: how one is built, and what Hugging Face and llama.cpp call its numbers and tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...backend import Rng
from ..config import Config
from ..transformer import Transformer

Names = Sequence[tuple[str, str]]


def nothing(_: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """One `model_type` of Hugging Face. Its file in families/ is called like it."""

    build: Callable[[Config, Rng | None], Transformer]  # without a generator: shapes, no weights

    # ---- config.json ----
    classes: Mapping[str, str]  # head -> the class in `transformers`
    keys: Mapping[str, str]  # field of Config -> key of config.json
    only: Mapping[str, Any]  # key -> the one value that is implemented, which is also what a missing key means
    defaults: Mapping[str, Any] = field(default_factory=dict)  # what other missing keys mean
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = nothing  # config.json -> the fields that `keys` has not
    write: Callable[[Config], dict[str, Any]] = nothing  # Config -> the keys that `keys` has not

    # ---- tensors in Hugging Face's files ----
    body: str = "model"  # the attribute, of a class with a head, that holds the model below it
    names: Names = ()  # (path here, path there); {} is the number of a block. The first that fits counts
    names_of_head: Mapping[str, Names] = field(default_factory=dict)  # head -> names that come before those
    transposed: Sequence[str] = ()  # the last names of layers whose weights are stored as (in, out)
    unused: Mapping[str, Sequence[str]] = field(default_factory=dict)  # head -> layers there that change no output

    # ---- GGUF: the architecture is called like the family ----
    gguf_names: Mapping[str, str] = field(default_factory=dict)  # name there -> path here; empty: llama.cpp has none
    gguf_interleaved: bool = False  # llama.cpp rotates rows 2i and 2i + 1 of q and k, Hugging Face i and i + D/2

    # ---- tokenizer: the class that `transformers` takes ----
    tokenizer: str | None = None  # whatever the files name; "": tokenizer.json as it is; None: what the files name
    default_tokenizer: str = ""  # where the files name none


def decoder_classes(name: str) -> dict[str, str]:
    return {"lm": f"{name}ForCausalLM", "classify": f"{name}ForSequenceClassification", "none": f"{name}Model"}


def encoder_classes(name: str) -> dict[str, str]:
    return {
        "lm": f"{name}ForMaskedLM",
        "classify": f"{name}ForSequenceClassification",
        "tokens": f"{name}ForTokenClassification",
        "none": f"{name}Model",
    }
