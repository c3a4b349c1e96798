"""Damaged models and adapters: each is read, or refused in one line within 2 s and 512 MiB, and nothing else happens.

GGUF files have the same done to them in test_gguf.py.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import bounded, mutate, refusal

import minilora
from minilora.models.families import FAMILIES
from minilora.models.pretrained import load_pretrained
from minilora.models.saving import save_pretrained

pytestmark = pytest.mark.filterwarnings("ignore:.*(for another head|drawn anew)")
SHAPE: dict[str, Any] = {"vocab_size": 24, "n_layers": 2, "d_model": 8, "n_heads": 2, "d_ff": 12, "max_length": 16}


def test_the_bounds_of_these_tests_hold():
    with pytest.raises(TimeoutError), bounded(seconds=0.1):
        time.sleep(5)
    if Path("/proc/self/statm").exists():
        with pytest.raises(MemoryError), bounded():
            np.ones(2**30)  # more than the process may have kept of what it freed


def made(family: str) -> Any:
    reads = {"image_size": 8, "patch_size": 4, "head": "none"} if "image_size" in FAMILIES[family].config_keys else {}
    model = FAMILIES[family].build(minilora.Config(**SHAPE | reads), np.random.default_rng(0))
    return model


def files_of(folder: Path, family: str, adapted: bool) -> dict[str, bytes]:
    """A valid model folder, or an adapter folder for made(family)."""
    model = made(family)
    if adapted:
        minilora.attach_lora(model, "all-linear", r=2, alpha=3, rng=np.random.default_rng(1))
        minilora.save_adapter(model, folder)
    else:
        save_pretrained(model, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def header_end(content: bytes) -> int:
    """Where the numbers begin: the damage is mostly before."""
    return 8 + int.from_bytes(content[:8], "little") if content[:1] != b"{" else len(content)


def fuzz(folder: Path, seed: int, count: int, adapted: bool) -> int:
    """Read `count` damaged folders, and count the refusals."""
    families = list(FAMILIES)
    whole = {family: files_of(folder / family, family, adapted) for family in families}
    damaged, refused = folder / "damaged", 0
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        files = whole[families[i % len(families)]]
        name = list(files)[i // len(families) % len(files)]
        shutil.rmtree(damaged, ignore_errors=True)
        damaged.mkdir()
        for other, content in files.items():
            (damaged / other).write_bytes(mutate(content, header_end(content), rng) if other == name else content)
        read: Callable[[Path], Any] = load_pretrained
        if adapted:
            model = made(families[i % len(families)])
            before = model.state_dict()

            def read(path: Path, model: Any = model) -> None:
                minilora.load_adapter(model, path)

        line = refusal(read, damaged)
        refused += line is not None
        assert line is None or str(damaged) in line, (seed, i, line)
        if adapted and line is not None:  # the model is as it was: the very arrays, all of them learning
            assert all(x is before[path] for path, x in model.state_dict().items()), (seed, i)
            assert len(model.state_dict()) == len(before) == len(model.trainable_parameters()), (seed, i)
    return refused


@pytest.mark.parametrize("adapted", [False, True], ids=["models", "adapters"])
def test_damaged_folders_are_read_or_refused_in_one_line(adapted, tmp_path):
    assert fuzz(tmp_path, seed=0, count=240, adapted=adapted) > 60


@pytest.mark.slow
@pytest.mark.parametrize("adapted", [False, True], ids=["models", "adapters"])
def test_thousands_of_damaged_folders_are_read_or_refused_in_one_line(adapted, tmp_path):
    assert fuzz(tmp_path, seed=1, count=5000, adapted=adapted) > 1000
