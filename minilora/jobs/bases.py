"""The base of an adapter or a run: its name, its format, and the model with the adapter on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.peft import CONFIG, classifier_weight, load_adapter, load_base, read_adapter
from ..files import read_json
from ..models.hub import HubName, name_on_hub
from ..models.labels import name_labels, names_from
from ..models.pretrained import load_tokenizer
from ..models.sources import NAMES, pinned
from ..models.tokenizer import Tokenizer
from ..models.tokenizer_files import TOKENIZER, read_tokenizer
from ..models.transformer import Transformer
from .arguments import AS_TRAINED
from .runs import SETTINGS, read_settings


def named_base(folder: Path) -> str | Path | None:
    """The base that settings.json in `folder` names, or else the adapter's config; of the Hub, with its commit."""
    settings, config = (read_json(folder / file) if (folder / file).is_file() else {} for file in (SETTINGS, CONFIG))
    found, key = (settings, "base") if "base" in settings else (config, "base_model_name_or_path")
    name, revision = found.get(key), found.get("revision")
    if not name or not isinstance(name, str):
        return None
    if name in NAMES:
        return name
    if not name_on_hub(name) or (found is settings and not revision):  # a run on a base of the Hub names its commit
        return Path(name)
    return str(HubName(name, revision)) if isinstance(revision, str) else name


def base_for(folder: Path | None, base: str | None) -> str | Path | None:
    """`base`, or if that is None, the base that `folder` names. A name on the Hub gets a commit: that in `folder`, if
    the base there is the same. Raises as load_pretrained does for a name that does not exist."""
    named = named_base(folder) if folder else None
    source = named if base is None or str(named).startswith(f"{base}@") else base
    hub = source and pinned(source)
    return str(hub) if hub else source


def format_for(folder: Path | None, quantize: str | None = AS_TRAINED) -> str | None:
    """The format to hold the base in: `quantize`, or if that is AS_TRAINED, the one in the settings of the run in
    `folder`; None for full precision."""
    if quantize != AS_TRAINED:
        return quantize
    found = read_json(folder / SETTINGS).get("quantize") if folder and (folder / SETTINGS).is_file() else None
    if not isinstance(found, str | None):
        raise ValueError(f"{folder}/{SETTINGS}: quantize is {found!r:.60}, not a name")
    return found


def tokenizer_for(base: str | Path, folder: Path | None) -> Tokenizer:
    """The tokenizer of the model in `base`, or that beside the adapter in `folder` if it has more tokens."""
    tokenizer = load_tokenizer(base)
    own = read_tokenizer(folder) if folder and (folder / TOKENIZER).is_file() else tokenizer
    return own if own.vocab > tokenizer.vocab else tokenizer


def load_adapted(base: str | Path, folder: Path, quantize: str | None = AS_TRAINED) -> tuple[Transformer, str]:
    """The model in `base`, held in format_for(), with the adapter in `folder` on it, and load_adapter's note. Raises as
    load_base and load_adapter do."""
    config, tensors, _ = read_adapter(folder)
    model = base_of_run(base, folder, config, tensors, quantize)
    return model, load_adapter(model, folder)


def base_of_run(
    base: str | Path,
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, np.ndarray],
    quantize: str | None = AS_TRAINED,
) -> Transformer:
    """load_base(), held in format_for(); for a classifier with the seed in settings.json, from which weights that the
    base lacks were drawn, and the names of the labels there, which older adapters do not hold."""
    classifies = classifier_weight(tensors) is not None
    settings = read_settings(folder) if classifies and (folder / SETTINGS).is_file() else {}
    rng = np.random.default_rng(settings.get("seed", 0))
    model = load_base(base, config, tensors, rng, format_for(folder, quantize))
    names = names_from({str(i): x for i, x in enumerate(settings.get("labels") or [])}, model.config.labels)
    if names:
        name_labels(model, names)
    return model
