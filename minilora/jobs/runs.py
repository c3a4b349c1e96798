"""The folder of a run: its settings, its progress, and how it is resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..adapters import DEFAULT
from ..adapters.peft import CONFIG, WEIGHTS
from ..files import check_contents, check_writable, load_tensors, read_json, to_json, write_files
from ..models.tokenizer import Tokenizer
from ..process import folder_lock

SETTINGS, CHECKPOINT, HISTORY, SAMPLES = "settings.json", "checkpoint.safetensors", "history.json", "samples.json"
FORGETTING = "forgetting.png"
GIVEN = "from_sha256", "watch_sha256"  # in settings.json only if --from or --watch was given
ABSENT: dict[str, Any] = {  # the values of keys that an older settings.json lacks
    "method": DEFAULT,
    **dict.fromkeys(("init", "option", "quantize", "warmup", "teacher")),
    **{"schedule": "cosine", "weight_decay": 0.0, "clip": 1.0, "temperature": 1.0, "reverse_kl": False},
}
OF_CLASSIFIER = {"schedule": "linear", "warmup": 0.05}  # the same for the task "classify"
LEAST = {"steps": 1, "batch": 1, "length": 1, "seed": 0}  # the least values of integers that every settings.json has
FILES = (SETTINGS, CHECKPOINT, HISTORY, SAMPLES, CONFIG, WEIGHTS)  # what fine-tuning writes


@contextmanager
def training_folder(out: str | Path, settings: dict[str, Any], resume: bool) -> Iterator[Path]:
    """Yield the folder of a run, with settings.json written, and locked against other processes.

    A folder with settings.json and no checkpoint counts as not started. A resumed run may continue at another learning
    rate, such as a lower one after it diverged; settings.json then says until which step the old rate held. The error
    of a run that is stopped or diverges gets advice on what to do next. Raises ValueError if the folder is taken,
    another process writes there, or the run had other settings; OSError if nothing can be written there.
    """
    folder = Path(out)
    with folder_lock(folder) as killed:
        begin(folder, settings, resume, killed)
        try:
            yield folder
        except KeyboardInterrupt as stop:
            advice = " before the first checkpoint: start again"
            if (folder / CHECKPOINT).is_file():
                advice = "; the same command with --resume goes on"
            raise KeyboardInterrupt((stop.args[0] if stop.args else "stopped") + advice) from None
        except FloatingPointError as error:
            advice = "no step is kept: start again, in the same folder"
            if (folder / CHECKPOINT).is_file():  # its numbers are finite, but may be useless
                advice = "--resume goes on from there, or start in another folder"
            raise FloatingPointError(f"{error}; {advice}") from None


def begin(folder: Path, settings: dict[str, Any], resume: bool, killed: bool) -> None:
    """Write settings.json, or check it for a resumed run. `killed`: whether a killed process last wrote there."""
    before = read_settings(folder) if (folder / SETTINGS).is_file() else {}
    begun = bool(before) and (folder / CHECKPOINT).is_file()
    if resume:
        if not before and not killed:
            raise FileNotFoundError(f"{folder} holds no run to resume: start one without --resume")
        check_writable(folder, FILES)
    elif begun:
        raise ValueError(f"{folder} already holds a run: --resume goes on with it, or choose another folder")
    else:
        check_contents(folder, [SETTINGS] if before else [])
    if begun:
        lr, (done, stopped_early) = before.get("lr"), progress(folder)
        if settings["lr"] == lr or done >= settings["steps"] or stopped_early:
            check_settings(folder, settings)
            return
        check_settings(folder, settings | {"lr": lr})
        settings = {f"lr_until_step_{done}": lr} | before | {"lr": settings["lr"]}
    write_files(folder, {SETTINGS: to_json(settings)})


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run in `folder`. Raises ValueError for a settings.json of something else, and for a value of
    a wrong type."""
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


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raise ValueError if the run in `folder` had other settings. Base, tokenizer and data are compared by hash, not by
    name."""
    before, names = read_settings(folder), ("base", "revision", "data", "from", "watch")
    before = ABSENT | (OF_CLASSIFIER if before.get("task") == "classify" else {}) | before
    keys = [*settings, *(key for key in GIVEN if key in before)]
    key = next((key for key in keys if key not in names and before.get(key) != settings.get(key)), None)
    if key:
        changed = f"{folder} was run with {key} = {before.get(key)!r:.80}, not {settings.get(key)!r:.80}"
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
    """sha256 over a tokenizer's files, the chat template unrendered."""
    digest = hashlib.sha256()
    for name, content in sorted(tokenizer.files().items()):
        digest.update(f"{name} {len(content)} bytes\n".encode() + content)
    return digest.hexdigest()


def progress(folder: Path) -> tuple[int, bool]:
    """(steps in the checkpoint in `folder`, or 0; whether the run stopped early). Raises ValueError for a file that is
    no checkpoint."""
    if not (folder / CHECKPOINT).is_file():
        return 0, False
    _, metadata = load_tensors(folder / CHECKPOINT)
    try:
        history = json.loads(metadata["minilora"])["history"]
        return len(history["loss"]), bool(history["stopped_early"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{folder / CHECKPOINT} is not a checkpoint of minilora: it does not say its steps") from None


def trained_parameters(folder: Path) -> int:
    """The number of parameters that a run trains, by its checkpoint; 0 without one. The adapter's file may hold more:
    frozen tensors, a second copy for a tied head, or the initial A and B of an init that changes W (PiSSA)."""
    if not (folder / CHECKPOINT).is_file():
        return 0
    tensors, _ = load_tensors(folder / CHECKPOINT)
    return sum(x.size for name, x in tensors.items() if name.startswith("parameter."))


def describe_run(folder: Path) -> dict[str, str]:
    """What `minilora info` prints of the folder of a run."""
    settings, (done, stopped_early) = read_settings(folder), progress(folder)
    method = {"method": settings["method"]} if "method" in settings else {}
    trained = trained_parameters(folder)
    if trained:
        method["trained"] = f"{trained:,} parameters"
    return method | {
        "run": f"{done} of {settings['steps']} steps{', stopped early' * stopped_early}, seed {settings['seed']}",
        "on": f"{settings.get('data', 'English prose')}, batches of {settings['batch']} x {settings['length']} tokens",
    }
