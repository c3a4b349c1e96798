"""Adapters: what is trained beside a frozen model."""

import re
from pathlib import Path

DEFAULT = "lora"  # the variant, where none is named


def variant_names() -> list[str]:
    """The names of the variants, in the alphabet: those of base.variants(), read from the files without importing them,
    for a --help that need not wait for NumPy."""
    files = (path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py"))
    return sorted({name for text in files for name in re.findall(r'^    variant = "(.+)"$', text, re.MULTILINE)})
