"""The tokenizer that a GGUF file describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .gguf import read_header
from .tokenizer import SubwordTokenizer, Tokenizer, refusing, tokenizers

# Text is cut into words before it is cut into tokens; `tokenizer.ggml.pre` names the rule that the model learned with.
LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {"llama-bpe": rf"{LETTERS}|\p{{N}}{{1,3}}|{SIGNS}", "qwen2": rf"{LETTERS}|\p{{N}}|{SIGNS}"}
CONTROL, USER_DEFINED = 3, 4


def gguf_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer that a GGUF file describes: byte-level BPE with the word rules of GPT-2, SmolLM2, Llama 3, Qwen2.

    Raises as read_gguf does, and ValueError for another kind of tokenizer.
    """
    path = Path(path)
    try:
        values = read_header(path).values
        return byte_level(values)
    except ValueError as error:
        raise ValueError(f"{path} holds no tokenizer that can be read: {error}") from None


def byte_level(values: Mapping[str, Any]) -> Tokenizer:
    """Byte-level BPE. The words of a text, as bytes in a printable alphabet, are joined by merges in their order."""
    kind, pre = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise ValueError(f"tokenizer.ggml.model = {kind!r:.80} is not supported, only 'gpt2'")
    if pre not in ("gpt-2", "smollm", *SPLITS):
        raise ValueError(f"tokenizer.ggml.pre = {pre!r:.80} is not supported, only gpt-2, smollm, {', '.join(SPLITS)}")
    tokens, merges = texts(values, "tokens"), [tuple(merge.split(" ")) for merge in texts(values, "merges")]
    if len(set(tokens)) < len(tokens):
        raise ValueError("a token stands twice in tokenizer.ggml.tokens")
    if any(len(merge) != 2 for merge in merges):
        raise ValueError("an entry of tokenizer.ggml.merges does not join two tokens")
    package = tokenizers()
    ids = {token: i for i, token in enumerate(tokens)}
    # Llama 3 looks a whole word up before it joins its parts.
    model = refusing(package.models.BPE, vocab=ids, merges=merges, ignore_merges=pre == "llama-bpe")
    splitter = package.Tokenizer(model)
    rules, words = package.pre_tokenizers, []
    if pre == "qwen2":
        splitter.normalizer = package.normalizers.NFC()
    if pre == "smollm":
        words = [rules.Digits(individual_digits=True)]
    if pre in SPLITS:
        words = [rules.Split(package.Regex(SPLITS[pre]), "isolated")]
    splitter.pre_tokenizer = rules.Sequence(
        [*words, rules.ByteLevel(add_prefix_space=False, use_regex=pre not in SPLITS)]
    )
    splitter.decoder = package.decoders.ByteLevel()
    return finish(package, splitter, values, tokens, bos=pre == "llama-bpe")


def finish(package: Any, splitter: Any, values: Mapping[str, Any], tokens: list[str], bos: bool) -> Tokenizer:
    """Mark the special tokens, and put bos and eos where the file says (`bos`: where it says nothing)."""
    types = values.get("tokenizer.ggml.token_type", np.zeros(len(tokens)))
    if np.shape(types) != (len(tokens),):
        raise ValueError(f"tokenizer.ggml.token_type has shape {np.shape(types)}: there are {len(tokens)} tokens")
    for kind, add in ((CONTROL, splitter.add_special_tokens), (USER_DEFINED, splitter.add_tokens)):
        chosen = [tokens[i] for i in np.flatnonzero(np.asarray(types) == kind)]
        add([package.AddedToken(token, normalized=False, special=kind == CONTROL) for token in chosen if token])
    names = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"), ("eot", "eot")):
        i = values.get(f"tokenizer.ggml.{key}_token_id")
        if i is not None:
            if not isinstance(i, int) or not 0 <= i < len(tokens):
                raise ValueError(f"tokenizer.ggml.{key}_token_id = {i!r:.80} is none of {len(tokens)} tokens")
            names[f"{name}_token"] = tokens[i]
    around = [
        names.get(f"{name}_token") if values.get(f"tokenizer.ggml.add_{name}_token", default) else None
        for name, default in (("bos", bos), ("eos", False))
    ]
    if any(around):
        before, after = ([token] if token else [] for token in around)
        splitter.post_processor = package.processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *(f"{token}:1" for token in before), "$B:1", *(f"{t}:1" for t in after)],
            special_tokens=[(token, splitter.token_to_id(token)) for token in around if token],
        )
    template = values.get("tokenizer.chat_template")
    ends = [i for i in [values.get("tokenizer.ggml.eot_token_id")] if i is not None]
    return SubwordTokenizer(splitter, names, template if isinstance(template, str) else None, ends)


def texts(values: Mapping[str, Any], key: str) -> list[str]:
    found = values.get(f"tokenizer.ggml.{key}")
    if not isinstance(found, list):
        raise ValueError(f"tokenizer.ggml.{key} is missing, or holds no texts")
    return found
