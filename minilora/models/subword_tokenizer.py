"""The vocabulary of a pretrained model: the `tokenizers` package splits the text, and special tokens, batches and chat
templates are added here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_bytes, to_json
from .chat_template import marked, render
from .tokenizer import TextBatch, Tokenizer, padded

BATCH = 4096  # texts that are encoded at a time: the package takes a hundred bytes for each of their tokens
SETTINGS = ("add_prefix_space", "split_special_tokens", "truncation_side")  # those that tokenizer.json cannot hold
FILES_COPIED = (  # the files that transformers makes a tokenizer from, and generation_config.json
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json", "generation_config.json",
)  # fmt: skip
TEMPLATES = "additional_chat_templates"  # a folder of further chat templates
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")  # how a vocabulary with byte fallback writes a byte


class SubwordTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` package (`backend`), with special tokens, a chat template and eos ids.

    `names` are the special tokens, {"bos_token": "<s>", ...}; `template` is the chat template; `more_eos` are further
    ids that end a text; `settings` are those of tokenizer_config.json; `folder` is where the files are, if any.
    Raises ValueError for a special token that is not in the vocabulary.
    """

    def __init__(
        self,
        backend: Any,
        names: Mapping[str, str],
        template: str | None = None,
        more_eos: Iterable[int] = (),
        folder: Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = {key: settings[key] for key in SETTINGS if key in settings} if settings else {}
        cut = backend.truncation or {}
        self.truncation_side = self.settings.setdefault("truncation_side", cut.get("direction", "right"))
        backend.no_truncation()  # a file may hold the settings that its author last used
        backend.no_padding()
        self.backend, self.names, self.template = backend, dict(names), template
        self.vocab = 1 + max(backend.get_vocab().values(), default=-1)
        self.special = frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)
        self.bos, self.eos, self.pad = (self._id(f"{name}_token") for name in ("bos", "eos", "pad"))
        self.more_eos, self.folder = frozenset(more_eos), folder
        named = getattr(backend.model, "unk_token", self.names.get("unk_token"))  # a unigram model has no such name
        self.unknown = None if named is None else backend.token_to_id(named)
        self.encode("a")  # some damaged files fail only here

    def _id(self, name: str) -> int | None:
        if name not in self.names:
            return None
        found: int | None = self.backend.token_to_id(self.names[name])
        if found is None:
            raise ValueError(f"{name} {self.names[name]!r} is not in the tokenizer's vocabulary")
        return found

    def encode(self, text: str, special: bool = True) -> np.ndarray:
        return np.array(convert_errors(self.backend.encode, valid_text(text), add_special_tokens=special).ids, np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=True))

    def batch(self, texts: Sequence[str | tuple[str, str]], length: int | None = None) -> TextBatch:
        """As Tokenizer.batch. Of a pair, the longer text is truncated first. Not thread-safe.

        Raises ValueError for a length that has no room for a text between its special tokens.
        """
        rows = [valid_text(text) if isinstance(text, str) else tuple(map(valid_text, text)) for text in texts]
        if length is not None:
            around = self.backend.num_special_tokens_to_add(is_pair=any(isinstance(row, tuple) for row in rows))
            if length <= around:
                raise ValueError(f"length = {length} has no room for a text: {around} special tokens are added to it")
            self.backend.enable_truncation(length, direction=self.truncation_side)
        ids, segments, lengths = [], [], []
        try:
            for start in range(0, len(rows), BATCH):
                for one in convert_errors(self.backend.encode_batch, rows[start : start + BATCH]):
                    ids.append(np.array(one.ids, np.int32))
                    segments.append(np.array(one.type_ids, np.int8))
                    lengths.append(len(one.ids) + sum(rest.special_tokens_mask.count(0) for rest in one.overflowing))
        finally:
            self.backend.no_truncation()
        return padded(ids, segments, lengths, self.pad or 0)

    @cached_property
    def stop(self) -> frozenset[int]:
        """eos, the eos_token_id of the model's files, and the special token that ends a turn of the chat template."""
        found = {*self.more_eos, self.eos}
        if self.template is not None:
            answer = "an answer"
            try:
                text = self.chat([{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}], False)
            except ValueError:  # the template refuses these messages
                text = answer
            after = self.encode(text.rpartition(answer)[2], special=False).tolist()
            found.add(next((i for i in after if i in self.special), self.eos))
        return frozenset(i for i in found if i is not None)

    def chat(self, messages: Sequence[Mapping[str, Any]], reply: bool = True) -> str:
        if self.template is None:
            return super().chat(messages, reply)
        return render(self.template, **self._chat_values(messages, reply))

    def generated(self, messages: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
        values = self._chat_values(messages, reply=False)
        if self.template is None or not (parts := marked(self.template, **values)):
            return None
        text = valid_text(render(self.template, **values))
        tokens = convert_errors(self.backend.encode, text, add_special_tokens=False).offsets
        starts, ends = np.array(tokens, np.int64).reshape(-1, 2).T
        found = np.zeros(len(tokens), bool)
        for start, end in parts:
            found |= (starts < end) & (ends > start)
        return found

    def _chat_values(self, messages: Sequence[Mapping[str, Any]], reply: bool) -> dict[str, Any]:
        return {"messages": [dict(message) for message in messages], "add_generation_prompt": reply, **self.names}

    def files(self) -> dict[str, bytes]:
        if self.folder is not None:
            return files_in(self.folder)
        settings = {**self.settings, "tokenizer_class": "PreTrainedTokenizerFast", **self.names}
        if self.template is not None:
            settings["chat_template"] = self.template
        ends = {"eos_token_id": sorted(self.stop)} if self.stop else {}
        return {
            "tokenizer.json": self.backend.to_str(pretty=True).encode(),
            "tokenizer_config.json": to_json(settings),
            "generation_config.json": to_json(ends),
        }

    def is_skipped(self, i: int) -> bool:
        return int(i) in self.special or self.backend.id_to_token(int(i)) is None

    def is_byte(self, i: int) -> bool:
        return BYTE_TOKEN.fullmatch(self.backend.id_to_token(int(i))) is not None


def valid_text(text: str) -> str:
    """`text`. Raises ValueError if it holds half a surrogate pair, which json.loads accepts and UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} of the text, {text[error.start]!r}, is half a surrogate pair"
        ) from None
    return text


def files_in(folder: Path) -> dict[str, bytes]:
    """{file name: content} of the FILES_COPIED and the chat templates in a folder."""
    paths = [*(folder / name for name in FILES_COPIED), *sorted((folder / TEMPLATES).glob("*.jinja"))]
    return {path.relative_to(folder).as_posix(): read_bytes(path) for path in paths if path.is_file()}


def convert_errors(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """make(...), a function of the `tokenizers` package, with its errors as ValueError.

    The package raises Exception, and for some damaged files a panic, which is a BaseException.
    """
    try:
        return make(*arguments, **options)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # Ctrl-C
        raise ValueError(" ".join(str(error).split())[:200]) from None


def tokenizers() -> Any:
    """The package. Raises ImportError with the line to run."""
    try:
        import tokenizers as package
    except ImportError:
        raise ImportError("this model's tokenizer needs a package: pip install 'tokenizers>=0.20'") from None
    return package
