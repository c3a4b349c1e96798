"""What the tests of the command line share: words to give it, small bases, and how a refusal looks."""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minilora import files as checkpoint
from minilora.cli import main, parser
from minilora.files import load_tensors, save_tensors
from minilora.models.config import Config
from minilora.models.families.llama import llama
from minilora.models.saving import save_pretrained

SMALL: dict[str, Any] = {
    "vocab_size": 256, "n_layers": 1, "d_model": 16, "n_heads": 2, "n_kv_heads": 1, "d_ff": 24, "max_length": 32,
}  # fmt: skip

WORDS = "".join(f"def f{i}(x):\n    return x + {i}\n\n" for i in range(120)).encode()
RUN = ["--steps", "3", "--batch", "2", "--length", "8", "--rank", "2", "--evaluate-every", "2"]


def make_base(folder: Path, seed: int = 1, **changes: Any) -> Path:
    save_pretrained(llama(Config(**SMALL | changes), np.random.default_rng(seed)), folder)
    return folder


def make_inputs(folder: Path) -> Path:
    """A small base and a text."""
    make_base(folder / "base")
    (folder / "words.txt").write_bytes(WORDS)
    return folder


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file below `folder` with its bytes, every folder with None."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def plant(folder: Path, files: dict[str, bytes | None]) -> None:
    """What tree() has read, in a folder again."""
    for name, content in files.items():
        (folder / name).mkdir(exist_ok=True) if content is None else (folder / name).write_bytes(content)


FINETUNE = ["finetune", "--base", "base", "--data", "words.txt", "--out", "out", *RUN]


def lines(stderr: str) -> list[str]:
    """What a terminal shows of it: a progress bar that was cleared is gone."""
    return [line for line in (row.rpartition("\r")[2] for row in stderr.split("\n")) if line.strip()]


def code_of(words: list[str]) -> Any:
    """The exit code of a command, whether its words did not parse or it could not be done."""
    try:
        return main(words)
    except SystemExit as stop:
        return stop.code


def assert_refused(here: Path, capfd: Any, words: list[str], says: str) -> None:
    before = tree(here.parent)
    assert code_of(words) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(lines(err)) == 1
    assert lines(err)[0].startswith("minilora")
    assert re.search(says, lines(err)[0]), lines(err)[0]
    assert tree(here.parent) == before


def subparsers() -> dict[str, argparse.ArgumentParser]:
    return next(a.choices for a in parser()._actions if isinstance(a, argparse._SubParsersAction))


def promised(command: str) -> set[str]:
    """The files that `minilora <command> --help` says --out will contain."""
    return set(re.findall(r"\w+\.(?:json|png|safetensors)", subparsers()[command].format_help().split("--out will")[1]))


def outside() -> dict[str, str]:
    """The environment for a command in a process of its own."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(checkpoint.__file__).parents[1]), *sys.path])}


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(path: Path, edit: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    save_tensors(path, edit(load_tensors(path)[0]), {"format": "pt"})


def refusing(path: Any, *arguments: Any) -> None:
    raise PermissionError(13, "Permission denied", str(path))
