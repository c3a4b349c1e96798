"""The tokenizer of a Hugging Face folder, from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import read_json
from .subword_tokenizer import SubwordTokenizer, convert_errors, tokenizers
from .tokenizer import Tokenizer

TOKENIZER = "tokenizer.json"
FILES_READ = (  # the files of a model folder that are read here, where they exist
    "tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "generation_config.json", "chat_template.jinja",
)  # fmt: skip
VOCABULARIES = TOKENIZER, "vocab.txt"  # the first that a folder has is read


def read_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: its tokenizer.json, or the vocab.txt of a BERT, and the files beside it,
    read as transformers does (tokenizer_classes).

    Raises ImportError where a package is missing, FileNotFoundError for a folder without either, ValueError for files
    that are damaged, and for settings that are not supported.
    """
    folder = Path(folder)
    path = next((folder / name for name in VOCABULARIES if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{folder / VOCABULARIES[0]} is missing: the text cannot be turned into the ids of this model"
        )
    settings, special_tokens_map, added_tokens, config, generation = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in (
            "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json",
            "generation_config.json",
        )
    )  # fmt: skip
    from .tokenizer_classes import build, word_piece  # a model over bytes needs none of it

    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    package = tokenizers()
    try:
        if path.name == "vocab.txt":
            content = word_piece(convert_errors(package.models.WordPiece.read_file, str(path)))
        else:
            content = path.read_text(encoding="utf-8")
        backend, names = convert_errors(build, package, content, settings, special_tokens_map, added_tokens, config)
        return SubwordTokenizer(
            backend,
            names,
            chat_template(folder, settings.get("chat_template")),
            [i for i in (ends if isinstance(ends, list) else [ends]) if isinstance(i, int)],
            folder,
            settings,
        )
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def chat_template(folder: Path, setting: Any) -> str | None:
    """The template in chat_template.jinja, else that of the setting, else None.

    The setting is a text, or a list of named templates, of which "default" is taken.
    """
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if isinstance(setting, list):
        found = [one.get("template") for one in setting if isinstance(one, dict) and one.get("name") == "default"]
        setting = found[0] if found else None
    return setting if isinstance(setting, str) else None
