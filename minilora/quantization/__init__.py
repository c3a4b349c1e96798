"""Matrices in fewer bits: one format a file, and what all share in base.py."""

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Quantized as Quantized
    from .base import dense as dense
    from .base import format_named as format_named
    from .base import formats as formats
    from .base import is_finite as is_finite

STORED = "stored"  # in addition to the names of formats(): as the file has it, whatever that is
__all__ = ["STORED", "Quantized", "dense", "format_named", "format_names", "formats", "is_finite"]


def format_names() -> list[str]:
    """What load_pretrained's `quantize` can be: the sorted names of base.formats(), and STORED. They are
    read from the files without importing them, for a --help that need not wait for NumPy."""
    files = (path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py"))
    found = {name for text in files for name in re.findall(r'^    name = "(.+)"$', text, re.MULTILINE)}
    return [*sorted(found), STORED]


def __getattr__(name: str) -> Any:
    """What base.py has, imported when it is first asked for."""
    if name in __all__:
        return getattr(importlib.import_module(".base", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
