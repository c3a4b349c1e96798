"""The families of models, one a file, by their `model_type` in Hugging Face: FAMILIES.

A new family is a new file here that is called like its model_type, with a FAMILY in it.
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
