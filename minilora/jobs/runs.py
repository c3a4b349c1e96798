"""The folder of a run: its settings, how far it is, and how to go on with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.peft import CONFIG, WEIGHTS, classifier_weight, load_adapter, load_base, read_adapter
from ..files import check_writable, load_tensors, read_json, to_json, write_files, write_folder
from ..models.configs import names_of
from ..models.hub import HubName, name_on_hub
from ..models.pretrained import name_labels
from ..models.sources import NAMES, pinned
from ..models.tokenizer import Tokenizer
from ..models.transformer import Transformer
from ..process import folder_lock

SETTINGS, CHECKPOINT, HISTORY, SAMPLES = "settings.json", "checkpoint.safetensors", "history.json", "samples.json"
NUMBERS = {"steps": 1, "batch": 1, "length": 1, "seed": 0}  # of settings.json, and the least that each may be
FILES = (SETTINGS, CHECKPOINT, HISTORY, SAMPLES, CONFIG, WEIGHTS)  # what fine-tuning writes


@contextmanager
def training_folder(out: str | Path, settings: dict[str, Any], resume: bool) -> Iterator[Path]:
    """The folder of a run, with its settings; no other process writes there in the meantime. A folder with settings and
    no checkpoint is of a run not yet begun.

    Resumed, a run may go on at another learning rate, such as a lower one after numbers that blew up; settings.json
    then says until which step the old one held. A run that is stopped or blows up says what a person can do then.
    Raises ValueError if the folder is taken, another process writes there, or the run had other settings; OSError if
    nothing can be written there.
    """
    folder = Path(out)
    with folder_lock(folder) as killed:
        begin(folder, settings, resume, killed)
        with resume_advice(folder):
            yield folder


def begin(folder: Path, settings: dict[str, Any], resume: bool, killed: bool) -> None:
    """Put the settings into the folder of a run; `killed` says that the last one there was."""
    before = read_settings(folder) if (folder / SETTINGS).is_file() else {}
    begun = bool(before) and (folder / CHECKPOINT).is_file()
    if not resume:
        if begun:
            raise ValueError(f"{folder} already holds a run: --resume goes on with it, or choose another folder")
        write_folder(folder, {SETTINGS: to_json(settings)}, replaces=[SETTINGS] if before else [])
        return
    if not before and not killed:
        raise FileNotFoundError(f"{folder} holds no run to resume: start one without --resume")
    check_writable(folder, FILES)
    if not begun:
        write_files(folder, {SETTINGS: to_json(settings)})
        return
    lr, (done, stopped_early) = before.get("lr"), progress(folder)
    if settings["lr"] != lr and done < settings["steps"] and not stopped_early:
        check_settings(folder, settings | {"lr": lr})
        settings = {f"lr_until_step_{done}": lr} | before | {"lr": settings["lr"]}
        write_files(folder, {SETTINGS: to_json(settings)})
    else:
        check_settings(folder, settings)


def load_adapted(base: str | Path, folder: Path) -> tuple[Transformer, str]:
    """The model in `base` with the head that the adapter in `folder` is for, and the adapter on it; and load_adapter's
    note. Raises as load_base and load_adapter do."""
    config, tensors, _ = read_adapter(folder)
    model = base_of_run(base, folder, config, tensors)
    return model, load_adapter(model, folder)


def base_of_run(base: str | Path, folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Transformer:
    """load_base(), and what a run's settings.json says of a classifier: the seed of what the base lacked, and the names
    of the labels, which adapters did not always hold."""
    classifies = classifier_weight(tensors) is not None
    settings = read_settings(folder) if classifies and (folder / SETTINGS).is_file() else {}
    model = load_base(base, config, tensors, np.random.default_rng(settings.get("seed", 0)))
    names = names_of({str(i): x for i, x in enumerate(settings.get("labels") or [])}, model.config.labels)
    if names:
        name_labels(model, names)
    return model


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run in `folder`. Raises ValueError for a settings.json of something else, or with a value of
    another type."""
    path = folder / SETTINGS
    settings = read_json(path)
    lacking = next((key for key in NUMBERS if key not in settings), None)
    if lacking:
        raise ValueError(f"{path} is not of a run, it lacks {lacking!r}: choose another folder")
    for key, least in NUMBERS.items():
        if type(settings[key]) is not int or settings[key] < least:
            raise ValueError(f"{path}: {key} is {settings[key]!r:.60}, not a whole number from {least} up")
    for key in ("base", "data"):
        if not isinstance(settings.get(key, ""), str):
            raise ValueError(f"{path}: {key} is {settings[key]!r:.60}, not a name")
    labels = settings.get("labels", ["0", "1"])
    names = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not names or len(set(labels)) < max(2, len(labels)):
        raise ValueError(f"{path}: labels is {labels!r:.60}, not a list of two or more names")
    return settings


def base_settings(model: Transformer, base: str) -> dict[str, Any]:
    """What settings.json says of where `model` is from: `base`, or its name on the Hub and the commit."""
    return {"base": model.hub[0], "revision": model.hub[1]} if model.hub else {"base": base}


def named_base(folder: Path) -> str | Path | None:
    """The base of the run or adapter in `folder`, as settings.json or else the adapter's config names it, a name on the
    Hub with the commit; None where neither does."""
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
    """`base`, or without one named_base(folder); a name on the Hub with its commit, that of named_base(folder) if it is
    the same name and `base` has no revision. Raises what load_pretrained does for a name that is not there."""
    named = named_base(folder) if folder else None
    source = named if base is None or str(named).startswith(f"{base}@") else base
    hub = source and pinned(source)
    return str(hub) if hub else source


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raise ValueError if the run in `folder` had other settings. Base, tokenizer and data are known by their hashes: a
    file may have several names."""
    before, names = read_settings(folder), ("base", "revision", "data")
    key = next((key for key in settings if key not in names and before.get(key) != settings[key]), None)
    if key:
        changed = f"{folder} was run with {key} = {before.get(key)!r:.80}, not {settings[key]!r:.80}"
        if key.endswith("_sha256"):
            changed = f"the {key.removesuffix('_sha256')} is not the one that {folder} was run with"
        raise ValueError(f"{changed}: resume with the same settings, or choose another folder")


def data_hash(*columns: Collection[str]) -> str:
    """sha256 over what data files hold, column by column, before a tokenizer or a template has touched it."""
    digest = hashlib.sha256()
    for column in columns:
        digest.update(f"{len(column)} texts\n".encode())
        for text in column:
            data = text.encode()
            digest.update(f"{len(data)} bytes\n".encode() + data)
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """sha256 over a tokenizer's files, the chat template as it is written, not as it is rendered, among them."""
    digest = hashlib.sha256()
    for name, content in sorted(tokenizer.files().items()):
        digest.update(f"{name} {len(content)} bytes\n".encode() + content)
    return digest.hexdigest()


@contextmanager
def resume_advice(folder: Path) -> Iterator[None]:
    """When a run is stopped or blows up, say what a person can do then."""
    try:
        yield
    except KeyboardInterrupt as stop:
        words = stop.args[0] if stop.args else "stopped"
        advice = " before the first checkpoint: start again"
        if (folder / CHECKPOINT).is_file():
            advice = "; the same command with --resume goes on"
        raise KeyboardInterrupt(words + advice) from None
    except FloatingPointError as error:
        advice = "no step is kept: start again, in the same folder"
        if (folder / CHECKPOINT).is_file():  # a rate far too high may have spoilt what it holds, finite as it is
            advice = "--resume goes on from there, or start in another folder"
        raise FloatingPointError(f"{error}; {advice}") from None


def progress(folder: Path) -> tuple[int, bool]:
    """How many steps the checkpoint in `folder` holds, 0 without one, and whether the last of them was an early stop.

    Raises ValueError for a file that is no checkpoint.
    """
    if not (folder / CHECKPOINT).is_file():
        return 0, False
    _, metadata = load_tensors(folder / CHECKPOINT)
    try:
        history = json.loads(metadata["minilora"])["history"]
        return len(history["loss"]), bool(history["stopped_early"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{folder / CHECKPOINT} is not a checkpoint of minilora: it does not say its steps") from None


def describe_run(folder: Path) -> dict[str, str]:
    """What `minilora info` says of the folder of a run."""
    settings, (done, stopped_early) = read_settings(folder), progress(folder)
    return {
        "run": f"{done} of {settings['steps']} steps{', stopped early' * stopped_early}, seed {settings['seed']}",
        "on": f"{settings.get('data', 'English prose')}, batches of {settings['batch']} x {settings['length']} tokens",
    }
