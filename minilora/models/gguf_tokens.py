"""The tokenizer of a GGUF file, which holds a vocabulary and the name of a rule for splitting text into words.

Both kinds are BPE: a word starts as its letters (or bytes), and the best pair of neighbours is joined, again and again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..spelling import choose_from
from .gguf_file import read_header
from .subword_tokenizer import SubwordTokenizer, convert_errors, tokenizers
from .tokenizer import Tokenizer
from .tokenizer_classes import QWEN2_WORDS

# Text is split into words, and words into tokens; `tokenizer.ggml.pre` names the rule for words.
WORDS = {"llama3": QWEN2_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|"), "qwen2": QWEN2_WORDS}  # up to 3 digits, or each
LLAMA3 = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano")
RULES = {  # those of llama.cpp's names (src/llama-vocab.cpp has them, and their regexes) that mean one of four rules
    "gpt-2": ("gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "a.x-4.0", "mellum",
              "modern-bert", "exaone4", "mpt", "olmo", "jais", "trillion", "granite-docling"),
    "smollm": ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    "llama3": (*LLAMA3, "dbrx", "smaug-bpe", "glm4", "chatglm-bpe"),
    "qwen2": ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open"),
}  # fmt: skip
RULE_OF = {name: rule for rule, names in RULES.items() for name in names}

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown", "eot": "eot"}


def gguf_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a GGUF file: byte-level BPE with the word rules of GPT-2, SmolLM2, Llama 3 and Qwen2, by
    any of llama.cpp's names for them (RULES), or SentencePiece's BPE, as Llama 2 and the first Mistral have it.

    Raises FileNotFoundError, ImportError where a package is missing, and ValueError for a file that is damaged, and
    for a tokenizer of another kind or with rules that the `tokenizers` package cannot follow exactly.
    """
    path = Path(path)
    try:
        return build(read_header(path).values)
    except ValueError as error:
        raise ValueError(f"{path} holds no tokenizer that can be read: {error}") from None


def build(values: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that the values of a header describe. Raises ValueError."""
    given = {key.removeprefix("tokenizer.ggml."): value for key, value in values.items()}
    tokens, kind = strings(given, "tokens"), str(given.get("model"))
    types = np.asarray(given.get("token_type", [NORMAL] * len(tokens)))
    if types.shape != (len(tokens),):
        raise ValueError(f"tokenizer.ggml.token_type has shape {types.shape}: there are {len(tokens)} tokens")
    if kind not in ("gpt2", "llama"):
        raise ValueError(f"tokenizer.ggml.model = {kind!r:.80} is not supported, only gpt2 and llama")
    names = {
        f"{name}_token": token_of(tokens, key, given) for name, key in SPECIAL.items() if f"{key}_token_id" in given
    }
    make = byte_level if kind == "gpt2" else sentence_piece
    backend, bos = make(given, tokens, types, names)

    package = tokenizers()
    special = [*(tokens[i] for i in np.flatnonzero(types == CONTROL)), *names.values()]
    backend.add_special_tokens([package.AddedToken(token, normalized=False) for token in special if token])
    defined = [tokens[i] for i in np.flatnonzero(types == USER_DEFINED) if tokens[i] not in special]
    backend.add_tokens([package.AddedToken(token, normalized=False) for token in defined if token])
    before = [names["bos_token"]] if given.get("add_bos_token", bos) is True and "bos_token" in names else []
    after = [names["eos_token"]] if given.get("add_eos_token") is True and "eos_token" in names else []
    if before or after:
        single = [*before, "$A", *after]
        backend.post_processor = convert_errors(
            package.processors.TemplateProcessing,
            single=single,
            pair=[*single, *(f"{part}:1" for part in (*before, "$B", *after))],
            special_tokens=[(token, backend.token_to_id(token)) for token in (*before, *after)],
        )
    template = values.get("tokenizer.chat_template")
    ends = [given["eot_token_id"]] if "eot_token" in names else []
    return SubwordTokenizer(backend, names, template if isinstance(template, str) else None, ends)


def strings(given: Mapping[str, Any], key: str) -> list[str]:
    found = given.get(key)
    if not isinstance(found, list):
        raise ValueError(f"tokenizer.ggml.{key} is missing, or holds no strings")
    return found


def token_of(tokens: list[str], key: str, given: Mapping[str, Any]) -> str:
    i = given[f"{key}_token_id"]
    if not isinstance(i, int) or not 0 <= i < len(tokens):
        raise ValueError(f"tokenizer.ggml.{key}_token_id = {i!r:.80} is none of {len(tokens)} tokens")
    return tokens[i]


def ids_of(tokens: list[str]) -> dict[str, int]:
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        raise ValueError("a token is in tokenizer.ggml.tokens twice")
    return ids


def byte_level(
    given: Mapping[str, Any], tokens: list[str], types: np.ndarray, names: Mapping[str, str]
) -> tuple[Any, bool]:
    """GPT-2's BPE, over the bytes of each word, written as printable letters. The file lists the merges, best first.

    Returns the tokenizer of the package, and whether a text starts with bos where the file does not say.
    """
    pre = str(given.get("pre"))
    if pre not in RULE_OF:
        raise ValueError(f"tokenizer.ggml.pre = {pre!r:.80} is not supported: {choose_from(pre, RULE_OF)}")
    rule = RULE_OF[pre]
    merges = [tuple(merge.split(" ")) for merge in strings(given, "merges")]
    if any(len(merge) != 2 for merge in merges):
        raise ValueError("an entry of tokenizer.ggml.merges does not join two tokens")
    package = tokenizers()
    rules, words = package.pre_tokenizers, []
    # Llama 3 looks a whole word up before it joins its letters; llama.cpp does so for these names.
    model = convert_errors(package.models.BPE, vocab=ids_of(tokens), merges=merges, ignore_merges=pre in LLAMA3)
    backend = package.Tokenizer(model)
    if pre == "qwen2":  # its own tokenizer.json has it; llama.cpp normalises nothing
        backend.normalizer = package.normalizers.NFC()
    if rule == "smollm":
        words = [rules.Digits(individual_digits=True)]
    if rule in WORDS:
        words = [rules.Split(package.Regex(WORDS[rule]), "isolated")]
    words.append(rules.ByteLevel(add_prefix_space=False, use_regex=rule not in WORDS))
    backend.pre_tokenizer = rules.Sequence(words)
    backend.decoder = package.decoders.ByteLevel()
    return backend, pre in LLAMA3


def sentence_piece(
    given: Mapping[str, Any], tokens: list[str], types: np.ndarray, names: Mapping[str, str]
) -> tuple[Any, bool]:
    """SentencePiece's BPE: the whole text, ▁ for a space; of all pairs, the one whose result scores best is joined.

    The file lists scores of pieces instead of merges. The merges are all splits of pieces in two, those of the highest
    score first. SentencePiece joins pairs of equal scores from left to right, which a list of merges cannot express:
    such a file is refused. Letters that are no piece become bytes. Returns as byte_level does.
    """
    scores = np.asarray(given.get("scores"))
    if scores.shape != types.shape or scores.dtype.kind != "f" or not np.isfinite(scores).all():
        raise ValueError(f"tokenizer.ggml.scores does not hold a number for each of the {len(tokens)} tokens")
    if np.isin(types, (USER_DEFINED, UNUSED)).any():
        raise ValueError("tokens of type user-defined or unused beside scores are not supported")
    ids = ids_of(tokens)
    pieces = {tokens[i]: scores[i] for i in np.flatnonzero(types == NORMAL)}
    cuts = [
        (score, piece[:i], piece[i:])
        for piece, score in pieces.items()
        for i in range(1, len(piece))
        if piece[:i] in pieces and piece[i:] in pieces
    ]
    joined = Counter(pieces[piece] for piece in {left + right for _, left, right in cuts})
    if joined and max(joined.values()) > 1:
        raise ValueError("two pieces of tokenizer.ggml.scores have the same score: their order is not known")
    missing = sorted({letter for piece in pieces for letter in piece} - set(pieces))
    if missing:
        raise ValueError(f"the letter {missing[0]!r} is part of tokens in tokenizer.ggml.tokens, and no token")
    package = tokenizers()
    merges = [(left, right) for _, left, right in sorted(cuts, key=lambda cut: (-cut[0], len(cut[1])))]
    model = convert_errors(
        package.models.BPE,
        vocab=ids,
        merges=merges,
        unk_token=names.get("unk_token"),
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = package.Tokenizer(model)
    spaces = [package.normalizers.Replace(" ", "▁")]
    decoders = package.decoders
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if given.get("add_space_prefix", True):
        spaces.insert(0, package.normalizers.Prepend("▁"))
        parts.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = package.normalizers.Sequence(spaces)
    backend.decoder = decoders.Sequence(parts)
    return backend, True
