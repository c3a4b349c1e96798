"""Text files in any encoding, as UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ..files import read_bytes
from ..spelling import did_you_mean

PIECE = 2**20  # bytes that are decoded at a time
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
ENCODINGS = [
    "utf-16",
    "utf-8",
    "cp1252",
    "gb18030",
    "shift-jis",
    "utf-32",
    "latin-1",
    "gbk",
    "big5",
    "euc-kr",
    "euc-jp",
]
ENCODINGS += ["cp1250", "cp1251", "cp1253", "cp1254", "koi8-r", "iso-8859-1", "iso-8859-15", "mac-roman", "ascii"]
ADVICE = f"say its encoding, as --encoding {', '.join(ENCODINGS[2:5])}, or save it as UTF-8"


def read_whole(path: str | Path, encoding: str = "utf-8") -> bytes:
    """A text file in UTF-8 with "\\n" as line ends. Raises ValueError for an empty file, and as read_utf8 does."""
    data = read_utf8(Path(path), encoding).replace(b"\r\n", b"\n")
    if not data:
        raise ValueError(f"{path} is empty")
    return data


def read_utf8(path: Path, encoding: str = "utf-8") -> bytes:
    """A text file in UTF-8, without a byte order mark. It is read in `encoding`, or in that of its byte order mark.

    Raises ValueError for an unknown encoding, for a file that is not in it, with the line, and for one with bytes of 0;
    OSError and ValueError as read_bytes does.
    """
    check_encoding(encoding)
    data = read_bytes(path)
    mark, encoding = next(((mark, name) for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), (b"", encoding))
    data = data[len(mark) :] if mark else data
    decoder, parts, is_utf8 = codecs.getincrementaldecoder(encoding)(), [], codecs.lookup(encoding).name == "utf-8"
    for start in range(0, len(data) + 1, PIECE):  # in pieces, as a str may take four bytes for each character
        pending = len(decoder.getstate()[0])
        try:
            part = decoder.decode(data[start : start + PIECE], final=start + PIECE > len(data))
            encoded = b"" if is_utf8 else part.encode()
        except UnicodeError as error:
            place = start - pending + (error.start if isinstance(error, UnicodeDecodeError) else 0)
            line = data.count(b"\n", 0, place) + 1
            raise ValueError(f"{path} line {line} is not {encoding.upper()}: {ADVICE}") from None
        if "\0" in part:
            raise ValueError(
                f"{path} is not {encoding.upper()} text: it holds bytes of 0, as UTF-16 does (--encoding utf-16-le)"
            )
        parts.append(encoded)
    return data if is_utf8 else b"".join(parts)


def check_encoding(name: str) -> None:
    """Raise ValueError unless Python knows a text encoding of this name."""
    try:
        b"ab".decode(name, "replace")
    except (LookupError, ValueError):
        meant = did_you_mean(name, ENCODINGS) or f"give one such as {', '.join(ENCODINGS[:5])}"
        raise ValueError(f"the encoding {name!r:.40} is not known: {meant.strip()}") from None


def lines_of(stream: TextIO) -> Iterator[str]:
    """The lines of standard input, without a byte order mark.

    Raises ValueError for another encoding, and for a line of more than PIECE characters: a stream need not have an end.
    """
    mark = "\ufeff"
    try:
        while line := stream.readline(PIECE + 1):
            if len(line) > PIECE:
                raise ValueError(f"a line has more than {PIECE:,} letters: put one text on each line")
            yield line.removeprefix(mark)
            mark = ""
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not {error.encoding.upper()}: {ADVICE}") from None


def excerpts(data: bytes, size: int, pieces: int = 16) -> bytes:
    """`size` bytes of `data`, in `pieces` spread evenly over it; all of `data` if it is shorter."""
    each = size // pieces
    if len(data) <= size:
        return data
    return b"".join(data[start : start + each] for start in (len(data) * i // pieces for i in range(pieces)))
