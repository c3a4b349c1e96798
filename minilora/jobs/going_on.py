"""A run that continues from an adapter: the settings it takes from it, and the options that contradict it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adapters.peft import classes_of, load_adapter, options_of, read_adapter
from ..adapters.targets import choose
from ..files import read_json
from ..models.transformer import Transformer
from .arguments import AS_TRAINED
from .bases import format_for
from .runs import SETTINGS
from .settings import OF_METHOD


def settings_from(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, fields of settings, with those of the adapter in `folder`: its method and all options, and the format of
    its base. Raises ValueError if a given field contradicts the adapter's, and as read_adapter does.

    They are what the file holds: a PiSSA is stored as a LoRA of twice the rank, and a LoRA-FA as a LoRA, whose A is
    trained. If settings.json names another method or init, a warning says so.
    """
    config, _, _ = read_adapter(folder)
    cls = classes_of(config)[0]
    own = json.loads(json.dumps(options_of(cls, config, "")))
    found: dict[str, Any] = {"method": cls.variant, "init": None}
    found |= {field: own.pop(name) for field, name in OF_METHOD.items() if name in own}
    own.pop("quantize", None)  # of LoftQ: set by --quantize
    option = given.get("option") or {}
    for name, value, has in [
        *((name, given[name], found[name]) for name in found if name in given),
        *((name, option[name], own.get(name)) for name in option),
    ]:
        if value != has:
            raise ValueError(f"{name} = {value!r:.80} contradicts {folder}, where it is {has!r:.80}: leave it out")
    before = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    if was := {key: before[key] for key in ("method", "init") if before.get(key) not in (None, found[key])}:
        what = " and ".join(f"{key} {value!r:.40}" for key, value in was.items())
        rank = f" of rank {found['rank']}" if "rank" in found else ""
        warnings.warn(f"{folder} was trained with {what}; its file holds a {cls.variant}{rank}, and continues as that",
                      stacklevel=2)  # fmt: skip
    quantize = format_for(folder, given.get("quantize", AS_TRAINED))
    return {"targets": None, **given, **found, "option": own or None, "quantize": quantize}


def go_on(model: Transformer, folder: Path, targets: Any) -> list[str]:
    """Put the adapter in `folder` on its base and return the paths of its layers. Raises ValueError for other `targets`
    than those, and as load_adapter does; warns of what that notes."""
    note = load_adapter(model, folder)
    if note:
        warnings.warn(note, stacklevel=2)
    adapted = [path for path, module in model.named_modules() if module.is_adapter]
    if targets is not None and {*choose(model, targets)} != {*adapted}:
        what = f"which adapts {', '.join(sorted({path.rpartition('.')[2] for path in adapted}))}"
        raise ValueError(f"targets = {targets!r:.80} contradicts {folder}, {what}: leave it out")
    return adapted
