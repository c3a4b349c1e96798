"""The tokenizer of a Hugging Face folder, as `transformers` 5 reads it.

A tokenizer class, such as BertTokenizer, keeps only the vocabulary, the merges and the post-processor of a
tokenizer.json. It makes the rest from tokenizer_config.json (do_lower_case, add_prefix_space, ...); only
PreTrainedTokenizerFast takes the file as it is. Then the tokens that the other files name are added, in an order that
decides their ids.
Source: transformers 5.23, AutoTokenizer.from_pretrained, TokenizersBackend.__init__ and models/*/tokenization_*.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .families import FAMILIES

Settings = Mapping[str, Any]

UNCHANGED = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend", "BloomTokenizer")  # take the file as it is
ALIASES = {
    "DistilBertTokenizer": "BertTokenizer",
    "ElectraTokenizer": "BertTokenizer",
    "BartTokenizer": "RobertaTokenizer",
    "LongformerTokenizer": "RobertaTokenizer",
}
STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
END = "<|endoftext|>"
TOKENS = {  # the special tokens of each class that tokenizer_config.json does not name
    "BertTokenizer": {
        "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
    },
    "RobertaTokenizer": {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>",
        "cls_token": "<s>", "mask_token": "<mask>",
    },
    "GPT2Tokenizer": {"bos_token": END, "eos_token": END, "unk_token": END},
    "Qwen2Tokenizer": {"eos_token": END, "unk_token": END, "pad_token": END},
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {
        "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>",
    },
}  # fmt: skip
NEEDED = {"BertTokenizer": ("unk_token", "cls_token", "sep_token"), "RobertaTokenizer": ("cls_token", "sep_token"),
          "GemmaTokenizer": ("unk_token",)}  # fmt: skip
UNSUPPORTED = ("auto_map", "fast_tokenizer_files", "fix_mistral_regex", "init_inputs")  # name other files, or rules
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build(
    package: Any,
    content: str,
    settings: Settings,
    special_tokens_map: Settings,
    added_tokens: Settings,
    model: Settings,
) -> tuple[Any, dict[str, str]]:
    """The tokenizer of the `tokenizers` package, and its special tokens by name, {"bos_token": "<s>", ...}.

    `content` is that of tokenizer.json, `model` config.json; the others are the files of their names. Raises
    ValueError for a tokenizer_class and for settings that are not read, and what the package raises for damaged files.
    """
    for key in UNSUPPORTED:
        if settings.get(key):
            raise ValueError(
                f"{key} in tokenizer_config.json is not read: load and save the tokenizer with transformers"
            )
    file = json.loads(content)
    kind = class_of(settings.get("tokenizer_class") or model.get("tokenizer_class"), model.get("model_type"), content)
    named, extra, added = tokens_in_files(package, file, settings, special_tokens_map, added_tokens)
    named = TOKENS.get(kind, {}) | named
    named = {key: named[key] for key in (*STANDARD, *named) if named.get(key) is not None}
    if not kind and file.keys() == json.loads(word_piece({})).keys():
        raise ValueError("without a tokenizer.json it is enough for a BertTokenizer only, and none is named")
    missing = next((key for key in NEEDED.get(kind, ()) if key not in named), None)
    if missing:
        raise ValueError(f"{missing} is null, and a {kind} needs one")
    backend = package.Tokenizer.from_str(json.dumps(rebuild(kind, file, settings, named)) if kind else content)
    add_tokens(package, backend, named, extra, added)
    if kind == "Qwen2Tokenizer":
        every = dict.fromkeys(str(token) for token in (*named.values(), *extra))
        backend.add_tokens([package.AddedToken(token, special=True) for token in every])
    add_cls_and_sep(package, backend, kind, settings, named)
    backend.encode_special_tokens = bool(settings.get("split_special_tokens"))
    return backend, {key: str(token) for key, token in named.items()}


def word_piece(vocab: Mapping[str, int]) -> str:
    """The tokenizer.json of a vocab.txt: what a BertTokenizer needs of one."""
    return json.dumps({"model": {"type": "WordPiece", "vocab": vocab}, "added_tokens": []})


def tokens_in_files(
    package: Any, file: Settings, settings: Settings, special_tokens_map: Settings, added_tokens: Settings
) -> tuple[dict[str, Any], list[Any], dict[int, Any]]:
    """Special tokens by name, other special tokens, and added tokens by their ids in the files.

    Where tokenizer_config.json lists the added tokens, the files of older versions are not read.
    """
    listed, more = (list_of(package, settings, f"{kind}_special_tokens") for kind in ("extra", "additional"))
    extra = listed or more
    named = tokens_of(package, settings) | tokens_of(package, dictionary(settings.get("extra_special_tokens")))
    if "added_tokens_decoder" in settings:
        found = settings["added_tokens_decoder"]
        numbered = [(int(i), token_of(package, "added_tokens_decoder", found[i])) for i in found]
    else:
        older = tokens_of(package, special_tokens_map, special=True)
        listed = list_of(package, special_tokens_map, "extra_special_tokens")
        here = ((named | older).get(key) for key in STANDARD)
        special = {str(x) for x in (*here, *extra, *listed) if isinstance(x, str) or x in (*older.values(), *listed)}
        named |= older | tokens_of(package, dictionary(special_tokens_map.get("extra_special_tokens")))
        extra += listed
        no_list = all(isinstance(x.get("extra_special_tokens", {}), dict) for x in (settings, special_tokens_map))
        if no_list and (settings.get("extra_special_tokens") or "additional_special_tokens" not in settings):
            extra = list_of(package, special_tokens_map, "additional_special_tokens") or extra
        numbered = [
            (i, package.AddedToken(text, normalized=text not in special, special=text in special))
            for text, i in added_tokens.items()
        ]
        numbered += [(token["id"], token_of(package, "added_tokens", token)) for token in file["added_tokens"]]
    if file.get("padding"):
        named = {"pad_token": file["padding"]["pad_token"]} | named
    known = {str(token): token for _, token in numbered}
    named |= {key: known.get(str(named[key]), named[key]) for key in STANDARD if named.get(key) is not None}
    return named, extra, dict(numbered)


def add_tokens(
    package: Any, backend: Any, named: Mapping[str, Any], extra: list[Any], added: Mapping[int, Any]
) -> None:
    """Add the tokens that `backend` lacks. One outside the vocabulary gets the next free id, not that of its file."""
    new: list[Any] = [added[i] for i in sorted(added)]
    texts = {token.content for token in (*backend.get_added_tokens_decoder().values(), *new)}
    for token in (*named.values(), *extra):
        if str(token) not in texts and token not in new:
            new.append(token)
    names = {str(token) for token in named.values()}
    for i, token in enumerate(new):
        if isinstance(token, str):
            new[i] = package.AddedToken(token, special=True)
        elif str(token) in names:
            token.special = True
    backend.add_tokens(new)


def class_of(declared: Any, model_type: Any, content: str) -> str:
    """The class that transformers takes; "" for tokenizer.json as it is.

    For some families it takes one class whatever the files name. Llama 3's files name LlamaTokenizer, and are not one.
    """
    family = FAMILIES.get(str(model_type))
    if family and family.tokenizer is not None:
        return family.tokenizer
    if declared is None:
        return family.default_tokenizer if family else ""
    name = str(declared).removesuffix("Fast")
    name = ALIASES.get(name, name)
    if name in UNCHANGED or (name == "LlamaTokenizer" and '"ByteLevel"' in content):
        return ""
    if name not in TOKENS:
        raise ValueError(
            f"tokenizer_class {declared!r:.80} is not read, only {', '.join((UNCHANGED[0] + 'Fast', *TOKENS))}"
        )
    return name


def rebuild(kind: str, file: dict[str, Any], settings: Settings, named: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json that a class makes from `file` and its settings, without added tokens."""
    model = file["model"]
    wanted = "WordPiece" if kind == "BertTokenizer" else "BPE"
    if model.get("type") != wanted:
        raise ValueError(f"a {kind} needs a {wanted}, and the file holds {model.get('type')!r:.80}")
    prefix = settings.get("add_prefix_space")
    byte_level = {"type": "ByteLevel", "add_prefix_space": bool(prefix), "trim_offsets": True, "use_regex": True}
    made = {**file, "added_tokens": [], "normalizer": None, "pre_tokenizer": byte_level, "decoder": byte_level}
    made["model"] = {"type": wanted, **{key: model[key] for key in ("vocab", "merges") if key in model}}
    if kind == "BertTokenizer":
        unknown = {"unk_token": str(named["unk_token"]), "continuing_subword_prefix": "##"}
        made["model"] |= unknown | {"max_input_chars_per_word": 100}
        made["normalizer"] = {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
            "strip_accents": settings.get("strip_accents"),
            "lowercase": settings.get("do_lower_case", True),
        }
        made["pre_tokenizer"] = {"type": "BertPreTokenizer"}
        made["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    elif kind == "Qwen2Tokenizer":
        words = {"type": "Split", "pattern": {"Regex": QWEN2_WORDS}, "behavior": "Isolated", "invert": False}
        made["normalizer"] = {"type": "NFC"}
        made["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [words, byte_level | {"use_regex": False}]}
    elif kind == "GemmaTokenizer":
        made["model"] |= {"unk_token": str(named["unk_token"]), "fuse_unk": True, "byte_fallback": True}
        space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
        made["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
        made["pre_tokenizer"] = split
        made["decoder"] = {"type": "Sequence", "decoders": [space, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    elif kind == "LlamaTokenizer":
        first = "always" if settings.get("legacy", False) else "first"
        scheme = "never" if prefix is False else first
        made["model"] |= {"fuse_unk": True, "byte_fallback": True}
        space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
        parts = [space, {"type": "ByteFallback"}, {"type": "Fuse"}]
        strip = [] if prefix is False else [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
        made["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
        made["decoder"] = {"type": "Sequence", "decoders": parts + strip}
    return made


def add_cls_and_sep(package: Any, backend: Any, kind: str, settings: Settings, named: Mapping[str, Any]) -> None:
    """BERT and RoBERTa put cls and sep around a text, whatever post-processor the file has."""
    if kind not in ("BertTokenizer", "RobertaTokenizer"):
        return
    cls, sep = (str(named[f"{name}_token"]) for name in ("cls", "sep"))
    ids = {token: backend.token_to_id(token) for token in (cls, sep)}
    if kind == "BertTokenizer":
        backend.post_processor = package.processors.TemplateProcessing(
            single=f"{cls}:0 $A:0 {sep}:0", pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1", special_tokens=list(ids.items())
        )
    else:
        prefix = bool(settings.get("add_prefix_space"))
        backend.post_processor = package.processors.RobertaProcessing((sep, ids[sep]), (cls, ids[cls]), True, prefix)


def dictionary(value: Any) -> Settings:
    return value if isinstance(value, dict) else {}


def tokens_of(package: Any, settings: Settings, special: bool = False) -> dict[str, Any]:
    """The special tokens among `settings`, by name: a text, an AddedToken, or None."""
    named = {key: value for key, value in settings.items() if key.endswith("_token") and not isinstance(value, bool)}
    return {key: None if x is None else token_of(package, key, x, special) for key, x in named.items()}


def list_of(package: Any, settings: Settings, key: str) -> list[Any]:
    found = settings.get(key)
    return [token_of(package, key, token) for token in found] if isinstance(found, list) else []


def token_of(package: Any, key: str, value: Any, special: bool = False) -> Any:
    """A token as a file writes it: a text, or its flags. Raises ValueError for anything else."""
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        flags = {
            name: bool(value[name])
            for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
            if name in value
        }
        return package.AddedToken(value["content"], **flags | ({"special": True} if special else {}))
    if not isinstance(value, str):
        raise ValueError(f"{key} {value!r:.80} is not a token")
    return value
