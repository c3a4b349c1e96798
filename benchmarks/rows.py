"""A batch in which each row has its own adapter, beside PEFT's `adapter_names`: one layer, and a GPT-2's forward.

    python -m benchmarks.rows

32 rows of 8 LoRAs, r = 8, in mixed order, width 768, float32, no gradients. The two run in processes of their own on
one BLAS thread each, in bursts that take turns, and their outputs must agree. The time is the processor's, and ratios
are medians over the rounds. The layer gets rows that are sorted already, as it does in a model, where the sorting is
once for all layers and is timed with it. Without adapters both do the same work for the base: what is above that is
what the adapters take.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from minilora.adapters.lora import LoRALinear
from minilora.adapters.many import Many
from minilora.adapters.peft import Adapters, load_adapters, save_adapter
from minilora.models.config import Config
from minilora.models.families.gpt2 import gpt2
from minilora.models.pretrained import load_pretrained
from minilora.models.saving import save_pretrained
from minilora.nn import Inputs, Linear, Pass
from minilora.process import blas_threads, keep_freed_memory

from .cases import SEED, Job
from .rounds import Process, start
from .worker import serve

ROWS, ADAPTERS, WIDTH, RANK = 32, 8, 768, 8
ROUNDS, SECONDS, AGREE = 7, 0.4, 2e-4
NAMES = [f"a{i % ADAPTERS}" for i in range(ROWS)]
WORK = {
    "layer": "a layer 768 x 768, 1 token a row",
    "layer of 16": "a layer 768 x 768, 16 tokens a row",
    "model": "GPT-2, LoRA on q, k and v, 1 token a row",
}


def tokens(work: str) -> int:
    return 16 if work.endswith("16") else 1


def drawn() -> tuple[Any, ...]:
    """W, and A and B of each adapter"""
    rng = np.random.default_rng(SEED)
    shapes = (WIDTH, WIDTH), (ADAPTERS, RANK, WIDTH), (ADAPTERS, WIDTH, RANK)
    return tuple((rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32) for shape in shapes)


def batch(work: str) -> tuple[np.ndarray, np.ndarray]:
    """x, for a layer, and ids, for a model"""
    rng, T = np.random.default_rng(SEED + 1), tokens(work)
    return rng.standard_normal((ROWS, T, WIDTH), np.float32), rng.integers(0, 1000, (ROWS, T))


def prepare(folder: Path) -> None:
    """A GPT-2, and the folders of its adapters."""
    config = Config(vocab_size=1000, n_layers=12, d_model=WIDTH, n_heads=12, max_length=16, dtype="float32")
    save_pretrained(gpt2(config, np.random.default_rng(SEED)), folder / "base")
    adapters = Adapters(load_pretrained(folder / "base"))
    for i, name in enumerate(dict.fromkeys(NAMES)):
        adapters.attach(name, "lora", ["qkv_proj"], r=RANK, alpha=RANK, rng=i)
        adapters.activate(name)
        rng = np.random.default_rng(i)
        for path, parameter in adapters.model.trainable_parameters().items():
            if path.endswith("lora_B"):
                parameter.data = 0.05 * rng.standard_normal(parameter.data.shape, np.float32)
        save_adapter(adapters.model, folder / name)


def ours(work: str, folder: Path, names: list[str] | None) -> Callable[[], Any]:
    """With the names of the rows' adapters, or None: the base alone."""
    x, ids = batch(work)
    if work.startswith("layer"):
        W, A, B = drawn()
        base = Linear(W)
        each = {f"a{i}": {"lora_A": A[i], "lora_B": B[i]} for i in range(ADAPTERS)}
        layer = Many(base, {name: LoRALinear.of(base, t, r=RANK, alpha=RANK) for name, t in each.items()})
        layer.freeze()
        if names is None:
            return lambda: base.forward(x)[0]
        inputs, order, _ = Inputs(adapters=names).by_adapter()
        x, run = x[order], Pass(memo={})  # what the layers of a model share in a forward
        return lambda: layer.forward(x, inputs, run)[0]
    model = load_pretrained(folder / "base")
    if names:
        load_adapters(model, {name: folder / name for name in dict.fromkeys(names)})
    model.freeze()
    return lambda: model.forward(ids, Inputs(adapters=names))[0]


def theirs(work: str, folder: Path, names: list[str] | None) -> Callable[[], Any]:
    import torch

    from .theirs import import_peft

    transformers, peft = import_peft()
    x, ids = (torch.tensor(array) for array in batch(work))
    if work.startswith("layer"):
        W, A, B = (torch.tensor(array) for array in drawn())
        module: Any = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH, bias=False))
        module[0].weight.data = W
        config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["0"])
        model = peft.get_peft_model(module, config, "a0")
        for i in range(ADAPTERS):
            if i:
                model.add_adapter(f"a{i}", config)
            layer = model.base_model.model[0]
            layer.lora_A[f"a{i}"].weight.data, layer.lora_B[f"a{i}"].weight.data = A[i], B[i]
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        if names:
            model = peft.PeftModel.from_pretrained(model, folder / "a0", "a0")
            for name in [*dict.fromkeys(names)][1:]:
                model.load_adapter(folder / name, name)
    model.train(False)
    own = {"adapter_names": names} if names else {}

    def run() -> Any:
        with torch.inference_mode():
            if work.startswith("layer"):
                return layer(x, **own) if names else layer.base_layer(x)
            return model(input_ids=ids, use_cache=False, **own).logits

    return run


def worker(said: dict[str, Any]) -> None:
    with blas_threads(1):
        keep_freed_memory()
        make = ours if said["library"] == "minilora" else theirs
        made = make(said["work"], Path(said["folder"]), NAMES if said["adapters"] else None)
        if said["library"] != "minilora":
            import torch

            torch.set_num_threads(1)
        last = None

        def run() -> None:
            nonlocal last
            last = made()

        def wait() -> list[float]:
            y = np.asarray(last)
            return [float(abs(y).sum()), float(abs(y[..., :7]).max())]  # of sorted rows too

        serve(Job(run, wait), {})


def main() -> None:
    if len(sys.argv) > 1:
        return worker(json.loads(sys.argv[1]))
    print(f"{ROWS} rows, {ADAPTERS} adapters, r = {RANK}; ms of the processor, medians of {ROUNDS} rounds")
    print(f"{'':<48}{'minilora':>10}{'PEFT':>10}{'ratio':>8}{'of what the adapters take':>28}")
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for work, words in WORK.items():
            with ExitStack() as stack:
                all_four = []
                for adapters in (True, False):
                    for library in ("minilora", "peft"):
                        said = {"work": work, "library": library, "folder": name, "adapters": adapters}
                        process = stack.enter_context(start(said, 1, "rows"))
                        stack.callback(process.kill)
                        all_four.append(Process(library, process))
                for one, two in (all_four[:2], all_four[2:]):
                    for mine, other in zip(one.results[0], two.results[0], strict=True):
                        if abs(mine - other) > AGREE * abs(other):
                            raise RuntimeError(f"{work}: minilora finds {mine}, and PEFT {other}")
                for _ in range(ROUNDS):
                    for each in all_four:
                        each.burst(SECONDS)
                ms = [[1e3 * r["cpu"] for r in each.rounds] for each in all_four]
            whole = median(a / b for a, b, _, _ in zip(*ms, strict=True))
            added = median((a - c) / (b - d) for a, b, c, d in zip(*ms, strict=True))
            for what, (a, b) in ((words, ms[:2]), ("    the base alone", ms[2:])):
                ratios = f"{whole:>8.2f}{added:>28.2f}" if a is ms[0] else ""
                print(f"{what:<48}{median(a):>10.2f}{median(b):>10.2f}{ratios}", flush=True)


if __name__ == "__main__":
    main()
