"""The variants that have a file here, and which class of one is for a layer."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

from ..spelling import choose_from
from .base import Adapter


@cache
def variants() -> dict[str, list[type[Adapter]]]:
    """{name: its classes} of every variant that has a file here; that of lora_fa.py is called lora-fa. A class in
    another file than its variant's, as lora_conv.py, comes after those in it."""
    found: dict[str, list[type[Adapter]]] = {}
    for module in pkgutil.iter_modules(importlib.import_module(__package__).__path__):
        if not module.ispkg:
            file = importlib.import_module(f".{module.name}", __package__)
            own = [cls for cls in vars(file).values() if getattr(cls, "__module__", "") == file.__name__]
            for cls in own:
                if hasattr(cls, "base_type") and {"base_type", "variant"} & {*vars(cls)}:
                    found.setdefault(cls.variant, []).append(cls)
    return found


def classes_of(variant: str) -> list[type[Adapter]]:
    """The classes of a variant. Raises ValueError for one that has no file here."""
    if variant not in variants():
        raise ValueError(f"no variant is called {variant!r}: {choose_from(variant, variants())}")
    return variants()[variant]


def class_for(classes: list[type[Adapter]], base: Any, is_listed: Callable[[type[Adapter]], bool]) -> type[Adapter]:
    """The class of a variant for one layer: the one whose list of modules (modules_key) names it, else the one without
    a list. Where there is none for this type of layer, the first, whose check() says so."""
    right = [cls for cls in classes if isinstance(base, cls.base_type)]
    named = [cls for cls in right if cls.modules_key and is_listed(cls)]
    return next(iter([*named, *(cls for cls in right if not cls.modules_key), *classes]))
