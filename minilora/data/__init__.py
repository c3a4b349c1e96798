"""Batches, text files, labelled records and corpora."""

from .batches import (
    Batch,
    all_windows,
    as_array,
    by_length,
    decode_bytes,
    encode_bytes,
    in_batches,
    in_order,
    random_windows,
    shuffled,
    take,
)
from .bits import bigram_bits_per_byte, bits, lzma_bits_per_byte, perplexity, zlib_bits_per_byte
from .corpora import Split, english, python_source, split_documents, split_file
from .text import PIECE, check_encoding, excerpts, lines_of, read_utf8, read_whole
