"""Matrices in fewer bits: one format a file, and what all share in base.py."""

from .base import STORED, Quantized, dense, format_named, formats, is_finite

__all__ = ["STORED", "Quantized", "dense", "format_named", "formats", "is_finite"]
