"""The families of models, one a file, by their `model_type` in Hugging Face: FAMILIES.

To add one, write a file with the name of its model_type that holds a FAMILY: gemma3_text.py for Gemma 3.
qwen3.py is a short example, family.py says what a Family holds. No other file has to name it. Layers that no family has
yet go to nn/, and how they are made for a Config to ../parts.py.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from .family import Family

FAMILIES: dict[str, Family] = {
    module.name: import_module(f"{__name__}.{module.name}").FAMILY
    for module in iter_modules(__path__)
    if module.name != "family"
}
