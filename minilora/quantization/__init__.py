"""Matrices in fewer bits: one format a file, and what all share in base.py."""

from .base import Quantized, dense, format_named, formats

__all__ = ["Quantized", "dense", "format_named", "formats"]
