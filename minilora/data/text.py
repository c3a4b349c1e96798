"""Text files in any encoding, as UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from ..files import read_bytes
from ..spelling import did_you_mean

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
