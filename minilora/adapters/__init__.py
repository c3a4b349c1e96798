"""Adapters: what is trained in addition to a frozen model."""

import importlib
import re
from pathlib import Path
from types import ModuleType

DEFAULT = "lora"  # the variant, where none is named


def variant_names() -> list[str]:
    """The names of the variants, sorted: those of registry.variants(), read from the files without importing
    them, for a --help that need not wait for NumPy."""
    files = (path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py"))
    return sorted({name for text in files for name in re.findall(r'^    variant = "(.+)"$', text, re.MULTILINE)})


def __getattr__(name: str) -> ModuleType:
    """minilora.adapters.dora, without an import of it."""
    if (Path(__file__).parent / name).is_dir() or (Path(__file__).parent / f"{name}.py").is_file():
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
