"""What commands with a model share: --device, --base and --adapter, sampling, and how output is printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ..display.tables import visible
from ..jobs.arguments import AS_TRAINED
from .options import Options


def backend(options: Options) -> ModuleType:
    """The array library of --device."""
    from ..backend import load_backend

    return load_backend({"cpu": "numpy", "cuda": "cupy"}[options.device])


def located(options: Options) -> tuple[str | Path, Path | None]:
    """(the base: --base, the one that the adapter names, or builtin; the folder of --adapter if one is given)."""
    from ..adapters.peft import locate_adapter
    from ..jobs.bases import base_for

    adapter = locate_adapter(options.adapter) if options.adapter else None
    return base_for(adapter, options.base) or "builtin", adapter


def held_as(options: Options) -> str | None:
    """The format of the base by --quantize."""
    return getattr(options, "quantize", AS_TRAINED)


def load_model(base: str | Path, adapter: Path | None, options: Options) -> Any:
    """The model in `base`, held as --quantize says, with the adapter if there is one, on --device."""
    from ..jobs.bases import format_for, load_adapted
    from ..models.pretrained import load_pretrained

    if adapter:
        model, note = load_adapted(base, adapter, held_as(options))
    else:
        model, note = load_pretrained(base, quantize=format_for(None, held_as(options))), ""
    if note:
        print(f"note: {visible(note)}", file=sys.stderr)
    model.to(backend(options))
    return model


def sampling(options: Options) -> dict[str, Any]:
    """The options of sampling, as keyword arguments of generation.stream()."""
    import numpy as np

    chosen = {key: getattr(options, key) for key in ("temperature", "top_k", "top_p")}
    return chosen | {"rng": np.random.default_rng(options.seed)}


def shown(text: str) -> str:
    """`text` for standard output; on a terminal, which would execute control characters, with these escaped."""
    return visible(text) if sys.stdout.isatty() else text


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))
