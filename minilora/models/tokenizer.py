"""Text to token ids and back: bytes, or the vocabulary of a pretrained model.

The `tokenizers` package splits the text. This file adds special tokens, batches, chat templates and streaming.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data import decode_bytes, encode_bytes
from ..files import read_bytes, read_json, to_json
from .chat_template import marked, render

TOKENIZER = "tokenizer.json"
FILES_READ = (  # the files of a model folder that are read here, where they exist
    "tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "generation_config.json", "chat_template.jinja",
)  # fmt: skip
VOCABULARIES = TOKENIZER, "vocab.txt"  # the first that a folder has is read
BATCH = 4096  # texts that are encoded at a time: the package takes a hundred bytes for each of their tokens
SETTINGS = ("add_prefix_space", "split_special_tokens", "truncation_side")  # those that tokenizer.json cannot hold
FILES_COPIED = (  # the files that transformers makes a tokenizer from, and generation_config.json
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json", "generation_config.json",
)  # fmt: skip
TEMPLATES = "additional_chat_templates"  # a folder of further chat templates
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")  # how a vocabulary with byte fallback writes a byte


class TextBatch(NamedTuple):
    """Texts as the rows of arrays on the host, padded on the right."""

    ids: np.ndarray  # (B, T) int64
    padding: np.ndarray  # (B, T) bool, True for a real token
    segments: np.ndarray  # (B, T) int64, 1 in the second text of a pair
    truncated: np.ndarray  # (B,) bool, True for a text that was truncated
    lengths: np.ndarray  # (B,) int64, the tokens of each before truncation


class Tokenizer:
    """Text to ids and back.

    `bos`, `eos`, `pad` and `unknown` (for text outside the vocabulary) are ids, or None. `special` are the ids of all
    special tokens, `vocab` is the number of ids.
    """

    vocab: int
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    unknown: int | None = None
    special: frozenset[int] = frozenset()

    def encode(self, text: str, special: bool = True) -> np.ndarray:
        """(N,) int64. `special` adds the special tokens around a text ([CLS] ... [SEP], <s> ...)."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special tokens."""
        raise NotImplementedError

    def batch(self, texts: Sequence[str | tuple[str, str]], length: int | None = None) -> TextBatch:
        """Texts or pairs of texts with their special tokens, each truncated to at most `length` ids (None: not)."""
        raise NotImplementedError

    @cached_property
    def stop(self) -> frozenset[int]:
        """The ids that end a text."""
        return frozenset()

    def chat(self, messages: Sequence[Mapping[str, Any]], reply: bool = True) -> str:
        """The text of a conversation, [{"role": "user", "content": "Hi"}, ...], in the model's chat template.

        `reply` adds the beginning of the model's turn (add_generation_prompt). The text has its special tokens: encode
        it with special=False. Raises ValueError for a model without a chat template, and for messages that the template
        refuses.
        """
        raise ValueError("this model has no chat template: it continues a text, it does not answer messages")

    def generated(self, messages: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
        """(N,) bool: the tokens of chat(messages, reply=False) that the chat template marks with {% generation %}, as
        written by the model; None where it marks nothing. Raises as chat() does."""
        return None

    def files(self) -> dict[str, bytes]:
        """{file name: content} from which read_tokenizer makes this tokenizer again; {} for bytes.

        The files that it was read from, byte for byte, or new ones.
        """
        return {}

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of `ids`, each piece as soon as no later id can change it. Joined they are decode(ids).

        The text of an id depends on its neighbours: a space between words, the bytes of one letter. So each time the
        ids of the last piece are decoded once more, together with the new ones.
        """
        context: list[int] = []  # the ids of the last piece, ...
        waiting: list[int] = []  # ... and those after it
        for i in ids:
            if self.is_skipped(i):
                continue
            waiting.append(i)
            before, now = self.decode(context), self.decode(context + waiting)
            if not (now.endswith("\N{REPLACEMENT CHARACTER}") or self.is_byte(i)):
                if len(now) > len(before):
                    yield now[len(before) :]
                context, waiting = waiting, []
        if waiting:
            yield self.decode(context + waiting)[len(self.decode(context)) :]

    def is_skipped(self, i: int) -> bool:
        """Whether decode skips this id."""
        return False

    def is_byte(self, i: int) -> bool:
        """Whether this id stands for one byte: with the bytes after it, it may become another letter."""
        return False


class ByteTokenizer(Tokenizer):
    """The ids are the bytes, 0..255: nothing to load, and no special tokens."""

    vocab = 256
    pad = 0  # a byte that no text has

    def encode(self, text: str, special: bool = True) -> np.ndarray:
        return encode_bytes(text)

    def decode(self, ids: Iterable[int]) -> str:
        return decode_bytes(np.fromiter(ids, np.int64))

    def batch(self, texts: Sequence[str | tuple[str, str]], length: int | None = None) -> TextBatch:
        if any(not isinstance(text, str) for text in texts):
            raise ValueError("bytes have no token to separate a pair of texts: give one text for each row")
        rows = [self.encode(text) for text in texts if isinstance(text, str)]
        lengths = [len(row) for row in rows]
        return padded([row[:length] for row in rows], [np.zeros(len(row[:length])) for row in rows], lengths, 0)


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


def padded(ids: Sequence[Any], segments: Sequence[Any], lengths: Sequence[int], pad: int) -> TextBatch:
    """Rows of different lengths as one TextBatch; `lengths` before truncation."""
    shape, before = (len(ids), max(map(len, ids), default=0)), np.array(lengths, np.int64)
    cut = before > np.array([len(row) for row in ids], np.int64)
    batch = TextBatch(np.full(shape, pad), np.zeros(shape, bool), np.zeros(shape, np.int64), cut, before)
    for row, (row_ids, row_segments) in enumerate(zip(ids, segments, strict=True)):
        batch.ids[row, : len(row_ids)] = row_ids
        batch.padding[row, : len(row_ids)] = True
        batch.segments[row, : len(row_ids)] = row_segments
    return batch


def valid_text(text: str) -> str:
    """`text`. Raises ValueError if it holds half a surrogate pair, which json.loads accepts and UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} of the text, {text[error.start]!r}, is half a surrogate pair"
        ) from None
    return text


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


def files_in(folder: Path) -> dict[str, bytes]:
    """{file name: content} of the FILES_COPIED and the chat templates in a folder."""
    paths = [*(folder / name for name in FILES_COPIED), *sorted((folder / TEMPLATES).glob("*.jinja"))]
    return {path.relative_to(folder).as_posix(): read_bytes(path) for path in paths if path.is_file()}


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


def check_matches(tokenizer: Tokenizer, vocab: int) -> None:
    """Raise ValueError if the tokenizer has more ids than the embedding has rows. Many embeddings have spare rows."""
    if tokenizer.vocab > vocab:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab} ids, the model's embedding {vocab} rows: they do not belong together"
        )
