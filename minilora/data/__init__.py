"""Batches, text files, tables of records and corpora."""

from .batches import (
    Batch,
    all_windows,
    as_array,
    by_length,
    decode_bytes,
    encode_bytes,
    in_batches,
    in_order,
    lengths_of,
    random_windows,
    shuffled,
    take,
)
from .bits import bigram_bits_per_byte, bits, lzma_bits_per_byte, perplexity, zlib_bits_per_byte
from .corpora import Split, deal, english, python_source, split_file
from .text import (
    ASIAN,
    BYTE_ORDER_MARKS,
    ENCODINGS,
    PIECE,
    advice,
    check_encoding,
    excerpts,
    is_in,
    lines_of,
    read_utf8,
    read_whole,
)
