"""The folder of a run: its settings, its progress, and how it is resumed."""

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
from ..models.hub import HubName, name_on_hub
from ..models.labels import name_labels, names_from
from ..models.sources import NAMES, pinned
from ..models.tokenizer import Tokenizer
from ..models.transformer import Transformer
from ..process import folder_lock

SETTINGS, CHECKPOINT, HISTORY, SAMPLES = "settings.json", "checkpoint.safetensors", "history.json", "samples.json"
LEAST = {"steps": 1, "batch": 1, "length": 1, "seed": 0}  # whole numbers of settings.json
FILES = (SETTINGS, CHECKPOINT, HISTORY, SAMPLES, CONFIG, WEIGHTS)  # what fine-tuning writes


@contextmanager
def training_folder(out: str | Path, settings: dict[str, Any], resume: bool) -> Iterator[Path]:
    """Yield the folder of a run, with settings.json written, and locked against other processes.

    A folder with settings and no checkpoint is of a run not yet begun. A resumed run may go on at another learning
    rate, such as a lower one after numbers that blew up; settings.json then says until which step the old one held. The
    message of a run that is stopped or blows up is completed with what to do then. Raises ValueError if the folder is
    taken, another process writes there, or the run had other settings; OSError if nothing can be written there.
    """
    folder = Path(out)
    with folder_lock(folder) as killed:
        begin(folder, settings, resume, killed)
        with resume_advice(folder):
            yield folder


def begin(folder: Path, settings: dict[str, Any], resume: bool, killed: bool) -> None:
    """Write settings.json, or check it for a run that is resumed; `killed`: was the process that last wrote there?"""
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
    """The model in `base` with the adapter in `folder` on it, and load_adapter's note. Raises as load_base and
    load_adapter do."""
    config, tensors, _ = read_adapter(folder)
    model = base_of_run(base, folder, config, tensors)
    return model, load_adapter(model, folder)


def base_of_run(base: str | Path, folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Transformer:
    """load_base() with what settings.json says of a classifier: the seed of the weights that the base lacks, and the
    names of the labels, which older adapters do not hold."""
    classifies = classifier_weight(tensors) is not None
    settings = read_settings(folder) if classifies and (folder / SETTINGS).is_file() else {}
    model = load_base(base, config, tensors, np.random.default_rng(settings.get("seed", 0)))
    names = names_from({str(i): x for i, x in enumerate(settings.get("labels") or [])}, model.config.labels)
    if names:
        name_labels(model, names)
    return model


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run in `folder`. Raises ValueError for a file of something else, and for a value of a wrong
    type."""
    path = folder / SETTINGS
    settings = read_json(path)
    lacking = next((key for key in LEAST if key not in settings), None)
    if lacking:
        raise ValueError(f"{path} is not of a run, it lacks {lacking!r}: choose another folder")
    for key, least in LEAST.items():
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
    """The base in settings.json: `base`, or the name of `model` on the Hub and the commit."""
    return {"base": model.hub[0], "revision": model.hub[1]} if model.hub else {"base": base}


def named_base(folder: Path) -> str | Path | None:
    """The base that settings.json, or else the adapter's config, names in `folder`, on the Hub with its commit."""
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
    """`base`, or without one the base that `folder` names. A name on the Hub gets a commit: the one in `folder`, if it
    names the same base. Raises as load_pretrained does for a name that is not there."""
    named = named_base(folder) if folder else None
    source = named if base is None or str(named).startswith(f"{base}@") else base
    hub = source and pinned(source)
    return str(hub) if hub else source


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raise ValueError if the run in `folder` had other settings. Base, tokenizer and data are compared by hash: a file
    may have several names."""
    before, names = read_settings(folder), ("base", "revision", "data")
    key = next((key for key in settings if key not in names and before.get(key) != settings[key]), None)
    if key:
        changed = f"{folder} was run with {key} = {before.get(key)!r:.80}, not {settings[key]!r:.80}"
        if key.endswith("_sha256"):
            changed = f"the {key.removesuffix('_sha256')} is not the one that {folder} was run with"
        raise ValueError(f"{changed}: resume with the same settings, or choose another folder")


def data_hash(*columns: Collection[str]) -> str:
    """sha256 over the texts of data files, column by column, before a template or tokenizer is applied."""
    digest = hashlib.sha256()
    for column in columns:
        digest.update(f"{len(column)} texts\n".encode())
        for text in column:
            data = text.encode()
            digest.update(f"{len(data)} bytes\n".encode() + data)
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """sha256 over a tokenizer's files, with the chat template as it is written, not as it is rendered."""
    digest = hashlib.sha256()
    for name, content in sorted(tokenizer.files().items()):
        digest.update(f"{name} {len(content)} bytes\n".encode() + content)
    return digest.hexdigest()


@contextmanager
def resume_advice(folder: Path) -> Iterator[None]:
    """Add to the error of a run that is stopped or blows up what a person can do then."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stopped = stop.args[0] if stop.args else "stopped"
        advice = " before the first checkpoint: start again"
        if (folder / CHECKPOINT).is_file():
            advice = "; the same command with --resume goes on"
        raise KeyboardInterrupt(stopped + advice) from None
    except FloatingPointError as error:
        advice = "no step is kept: start again, in the same folder"
        if (folder / CHECKPOINT).is_file():  # a rate far too high may have spoilt what it holds, finite as it is
            advice = "--resume goes on from there, or start in another folder"
        raise FloatingPointError(f"{error}; {advice}") from None


def progress(folder: Path) -> tuple[int, bool]:
    """(steps in the checkpoint in `folder`, or 0; did the run stop early?). Raises ValueError for what is no
    checkpoint."""
    if not (folder / CHECKPOINT).is_file():
        return 0, False
    _, metadata = load_tensors(folder / CHECKPOINT)
    try:
        history = json.loads(metadata["minilora"])["history"]
        return len(history["loss"]), bool(history["stopped_early"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{folder / CHECKPOINT} is not a checkpoint of minilora: it does not say its steps") from None


def describe_run(folder: Path) -> dict[str, str]:
    """What `minilora info` prints of the folder of a run."""
    settings, (done, stopped_early) = read_settings(folder), progress(folder)
    return {
        "run": f"{done} of {settings['steps']} steps{', stopped early' * stopped_early}, seed {settings['seed']}",
        "on": f"{settings.get('data', 'English prose')}, batches of {settings['batch']} x {settings['length']} tokens",
    }
