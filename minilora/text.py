"""Text as bytes: two corpora that every Python carries, batches of windows, and what a compressor makes of them.

The tokens are the bytes themselves, 0..255: nothing to train, nothing to load, and a loss in bits per byte that
can be set beside zlib's.
"""

from __future__ import annotations

import codecs
import math
import os
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from .checkpoint import read_bytes
from .ops import IGNORE
from .spelling import did_you_mean
from .transformer import Config

PIECE = 2**20  # bytes that are decoded at a time
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # which begins with UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
ENCODINGS = [
    "utf-16",
    "utf-8",
    "utf-32",
    "latin-1",
    "cp1252",
    "gb18030",
    "gbk",
    "shift-jis",
    "big5",
    "euc-kr",
    "euc-jp",
]
ENCODINGS += ["cp1250", "cp1251", "cp1253", "cp1254", "koi8-r", "iso-8859-1", "iso-8859-15", "mac-roman", "ascii"]
ASIAN = ["gb18030", "shift_jis", "big5", "euc_kr"]


class Batch(NamedTuple):
    """What a step learns from; arrays on the host."""

    ids: np.ndarray  # (B, T) int64
    targets: np.ndarray  # int64, (B, T) the label of each position, or (B,) of each text; IGNORE: none
    padding: np.ndarray | None = None  # (B, T) bool, True for a real token
    segments: np.ndarray | None = None  # (B, T) int64, BERT


class Split(NamedTuple):
    train: bytes
    validation: bytes
    test: bytes


def english() -> Split:
    """The documentation of the Python language, from pydoc_data.topics (about half a million characters).

    Topics are dealt by a checksum of their name, so that another Python version deals them alike; paragraphs of
    the held-out topics that stand in a training topic too are left out of them.
    """
    from pydoc_data.topics import topics

    return deal({name: text.replace("\r\n", "\n").encode() for name, text in topics.items()}, by_paragraph=True)


def python_source() -> Split:
    """The top-level modules of the standard library, dealt by file."""
    folder = Path(os.__file__).parent
    files = {path.name: path.read_bytes().replace(b"\r\n", b"\n") for path in folder.glob("*.py")}
    if not files:
        raise ValueError(f"this Python keeps no source files in {folder}: choose a text with --data FILE")
    return deal(files)


def deal(documents: dict[str, bytes], by_paragraph: bool = False) -> Split:
    """Join documents to training (8 of 10), validation and test text, by a checksum of their names."""
    train: list[bytes] = []
    validation: list[bytes] = []
    test: list[bytes] = []
    for name in sorted(documents):
        dealt = zlib.crc32(name.encode()) % 10
        (validation if dealt == 0 else test if dealt == 1 else train).append(documents[name])
    train_text, *held_out = (b"\n\n".join(part) for part in (train, validation, test))
    if by_paragraph:
        seen = set(train_text.split(b"\n\n"))
        held_out = [b"\n\n".join(p for p in text.split(b"\n\n") if p not in seen) for text in held_out]
    return Split(train_text, *held_out)


def read_text(path: str | Path, encoding: str = "utf-8") -> Split:
    """A text file, cut in order: 8 parts in 10 to train on, one to validate, one to test. Raises as read_whole does."""
    data = read_whole(path, encoding)
    first, second = len(data) * 8 // 10, len(data) * 9 // 10
    return Split(data[:first], data[first:second], data[second:])


def read_whole(path: str | Path, encoding: str = "utf-8") -> bytes:
    """A text file in UTF-8, its lines ended by a line feed. Raises ValueError for an empty file, and as read_utf8."""
    data = read_utf8(Path(path), encoding).replace(b"\r\n", b"\n")
    if not data:
        raise ValueError(f"{path} is empty")
    return data


def read_utf8(path: Path, encoding: str = "utf-8") -> bytes:
    """A text file in UTF-8, without a byte order mark. The file is in `encoding`, unless such a mark says another.

    Raises ValueError for an unknown encoding; with the line and the encodings that fit, for a file in another one; for
    a file that is no text; and OSError and ValueError as read_bytes does.
    """
    check_encoding(encoding)
    data = read_bytes(path)
    mark, encoding = next(((mark, name) for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), (b"", encoding))
    data = data[len(mark) :] if mark else data
    decoder, parts, keep = codecs.getincrementaldecoder(encoding)(), [], codecs.lookup(encoding).name == "utf-8"
    for start in range(0, len(data) + 1, PIECE):  # never all of it as a str, of up to four bytes a letter
        waiting = len(decoder.getstate()[0])
        try:
            part = decoder.decode(data[start : start + PIECE], final=start + PIECE > len(data))
            encoded = b"" if keep else part.encode()
        except UnicodeError as error:
            place = start - waiting + (error.start if isinstance(error, UnicodeDecodeError) else 0)
            line = data.count(b"\n", 0, place) + 1
            raise ValueError(f"{path} line {line} is not {encoding.upper()}: {advice(data, encoding)}") from None
        if "\0" in part:
            raise ValueError(f"{path} is not {encoding.upper()} text: {advice(data, encoding)}")
        parts.append(encoded)
    return data if keep else b"".join(parts)


def check_encoding(name: str) -> None:
    """Raise ValueError unless Python knows a text encoding of this name."""
    try:
        b"ab".decode(name, "replace")
    except (LookupError, ValueError):
        meant = did_you_mean(name, ENCODINGS) or f"give one such as {', '.join(ENCODINGS[:5])}"
        raise ValueError(f"the encoding {name!r:.40} is not known: {meant.strip()}") from None


def advice(data: bytes, tried: str) -> str:
    """In which encodings `data` may be, likeliest first, and what to do; it is not in the one that was `tried`."""
    sample = np.frombuffer(data[:PIECE], np.uint8)
    as_utf8 = is_in(sample.tobytes(), "utf-8")
    if not sample.all():
        first, second = np.count_nonzero(sample[: len(sample) & ~1].reshape(-1, 2) == 0, axis=0)
        found = ["utf-16-be" if first else "utf-16-le"]
        if (first and second) or (as_utf8 and first + second < len(sample) / 4):  # one by accident
            return "it holds bytes of 0, as no text does"
    elif as_utf8 and codecs.lookup(tried).name != "utf-8":
        return "it is UTF-8: leave --encoding out"
    else:
        many = np.mean(sample >= 128) > 0.2  # letters of a script that is not Latin
        likely = [*ASIAN, "cp1251", "cp1252"] if many else ["cp1252", *ASIAN, "latin-1"]
        found = [name for name in likely if is_in(sample.tobytes(), name)][:2]
    if not found:
        return "save it as UTF-8"
    looks = " or ".join(f"{name} (Windows' Latin-1)" if name == "cp1252" else name for name in found)
    return f"it looks like {looks}; say which, as --encoding {found[0]}, or save it as UTF-8"


def is_in(data: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(data)  # the end may be cut
    except UnicodeDecodeError:
        return False
    return True


def encode(text: str | bytes | np.ndarray) -> np.ndarray:
    """(N,) int64: the bytes of `text`; those of a command line that are no UTF-8 come back out of their surrogates.

    An array stays as it is: the ids that a tokenizer gave.
    """
    if isinstance(text, np.ndarray):
        return text
    return as_array(text.encode(errors="surrogateescape") if isinstance(text, str) else text).astype(np.int64)


def as_array(data: bytes | np.ndarray) -> np.ndarray:
    """Bytes as the uint8 that they are, in place; ids of a tokenizer as they are."""
    return data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)


def check_vocabulary(config: Config) -> None:
    """Raise ValueError unless a model of this config reads and writes bytes."""
    if config.vocab_size != 256:
        raise ValueError(f"text is read as bytes, which need a vocabulary of 256: this model's is {config.vocab_size}")


def decode(ids: np.ndarray) -> str:
    return bytes(ids.tolist()).decode(errors="replace")


def random_windows(data: bytes | np.ndarray, batch: int, length: int, seed: int) -> Callable[[int], Batch]:
    """step -> a Batch of `batch` windows of `length` bytes (or ids) of `data`, the next of each as its label.

    A batch depends on seed and step alone: a run that is resumed sees what it would have seen.
    Raises ValueError for data shorter than one batch.
    """
    if len(data) <= batch * length:
        raise ValueError(
            f"{len(data)} tokens are less than one batch of {batch} windows of {length}: more text, or smaller batches"
        )
    tokens = as_array(data)

    def at(step: int) -> Batch:
        starts = np.random.default_rng([seed, step]).integers(0, len(tokens) - length, batch)
        windows = tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)
        return Batch(windows[:, :-1], windows[:, 1:])

    return at


def all_windows(data: bytes | np.ndarray, batch: int, length: int) -> Iterator[Batch]:
    """Every byte (or id) of `data` but the first, once as a label, with at least length/2 before it if there are.

    Windows overlap by half, and what a window shares with the one before it counts for nothing.
    """
    tokens, stride = as_array(data), max(1, length // 2)
    overlap = length - stride
    ids, targets = [], []
    for start in range(0, max(1, len(tokens) - 1 - overlap), stride):
        window = tokens[start : start + length + 1].astype(np.int64)
        label = window[1:].copy()
        if start:
            label[:overlap] = IGNORE
        rest = length - len(label)
        ids.append(np.pad(window[:-1], (0, rest)))
        targets.append(np.pad(label, (0, rest), constant_values=IGNORE))
        if len(ids) == batch:
            yield Batch(np.stack(ids), np.stack(targets))
            ids, targets = [], []
    if ids:
        yield Batch(np.stack(ids), np.stack(targets))


def take(texts: Batch, rows: np.ndarray) -> Batch:
    """These rows, cut to the longest of them."""
    T = len(texts.ids[0])
    if texts.padding is not None:
        T = int(texts.padding[rows].any(axis=0).nonzero()[0].max()) + 1
    fields: Any = (x if x is None else x[rows, :T] if x.ndim == 2 else x[rows] for x in texts)
    return Batch(*fields)


def shuffled(texts: Batch, batch: int, seed: int) -> Callable[[int], Batch]:
    """step -> a Batch of `batch` texts of like length, in another order each time that all have been seen.

    A pool of 16 batches is sorted by length and cut, so that little of a batch is padding, and chance still decides
    who meets whom. A batch depends on seed and step alone: a run that is resumed sees what it would have seen.
    """
    N, lengths = len(texts.ids), lengths_of(texts)
    per_epoch = -(-N // batch)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([seed, epoch])
        rows, pool = rng.permutation(N), 16 * batch
        pools = (rows[i : i + pool] for i in range(0, N, pool))
        cut = [part for rows in pools for part in by_length(rows, lengths, batch)]
        return [cut[i] for i in rng.permutation(per_epoch)]

    return lambda step: take(texts, order(step // per_epoch)[step % per_epoch])


def in_order(texts: Batch, batch: int) -> list[np.ndarray]:
    """All rows, in groups of `batch` of like length, for evaluation."""
    return by_length(np.arange(len(texts.ids)), lengths_of(texts), batch)


def in_batches(texts: Batch, batch: int) -> Iterator[Batch]:
    """The same groups, as batches."""
    return (take(texts, rows) for rows in in_order(texts, batch))


def by_length(rows: np.ndarray, lengths: np.ndarray, batch: int) -> list[np.ndarray]:
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    return [rows[i : i + batch] for i in range(0, len(rows), batch)]


def lengths_of(texts: Batch) -> np.ndarray:
    return np.full(len(texts.ids), texts.ids.shape[1]) if texts.padding is None else texts.padding.sum(axis=1)


def lines_of(stream: TextIO) -> Iterator[str]:
    """The lines of a stream, without a byte order mark. Raises ValueError for one in another encoding, and for a line
    of more than PIECE letters: a stream need not have an end."""
    mark = "\ufeff"
    try:
        while line := stream.readline(PIECE + 1):
            if len(line) > PIECE:
                raise ValueError(f"a line has more than {PIECE:,} letters: put one text on each line")
            yield line.removeprefix(mark)
            mark = ""
    except UnicodeDecodeError as error:
        raise ValueError(
            f"standard input is not {error.encoding.upper()}: {advice(error.object, error.encoding)}"
        ) from None


def excerpts(data: bytes, size: int, pieces: int = 16) -> bytes:
    """`size` bytes of `data`, from `pieces` places spread evenly over it; all of it where it is shorter."""
    each = size // pieces
    if len(data) <= size:
        return data
    return b"".join(data[start : start + each] for start in (len(data) * i // pieces for i in range(pieces)))


def zlib_bits_per_byte(data: bytes, given: bytes) -> float:
    """What zlib needs for `data` when it has the end of `given` as its dictionary (its window is 32 KiB)."""
    compressor = zlib.compressobj(9, zdict=given[-32768:])
    return 8 * len(compressor.compress(data) + compressor.flush()) / len(data)


def lzma_bits_per_byte(data: bytes, given: bytes) -> float:
    """What lzma needs for `data` after all of `given`: the difference of two archives."""
    import lzma

    alone, both = (len(lzma.compress(text, preset=9)) for text in (given, given + data))
    return 8 * (both - alone) / len(data)


def bigram_bits_per_byte(data: bytes, given: bytes) -> float:
    """P(byte | the byte before) by counting pairs in `given`, half a count added to each (Krichevsky, Trofimov)."""
    counts = np.full((256, 256), 0.5)
    tokens, held_out = encode(given), encode(data)
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    bits = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    return float(bits[held_out[:-1], held_out[1:]].mean())


def bits(nats: float) -> float:
    return nats / math.log(2)


def perplexity(nats: float) -> float:
    """e^nats: among how many tokens a model seems to guess. From e^700 up it is infinite."""
    return math.exp(nats) if nats < 700 else math.inf
