"""SmolLM2-135M with LoRA on q and v: minilora beside PyTorch with PEFT, on one CPU thread each.

    python notebooks/examples/tune_smollm2.py --length 128 --rounds 3

Both start from the same weights, the same A and B, and step over the same batches with AdamW; both tell malloc to keep
what is freed, as `minilora finetune` does. Each round is a fresh process of one side and then of the other, so that
what else the machine does meets both; it disturbs the seconds of the CPU less. Needs `pip install '.[models,oracle]'`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np

import minilora
from minilora.nn.optim import clip_by_global_norm
from minilora.process import blas_threads, keep_freed_memory, peak_memory
from minilora.training import loss_and_gradients

LR, CLIP = 2e-3, 1.0


def batches(options: argparse.Namespace) -> Iterator[Any]:
    """The same for both sides: windows of a text that every Python carries."""
    ids = minilora.load_tokenizer("smollm2").encode(minilora.data.english().train[:400_000].decode(errors="ignore"))
    at = minilora.data.random_windows(ids, options.batch, options.length, seed=0)
    return map(at, range(options.steps))


def prepare(folder: pathlib.Path) -> dict[str, Any]:
    """The base as a Hugging Face folder, and an adapter whose B is 0 and whose A is drawn once."""
    model = minilora.load_pretrained("smollm2")
    minilora.save_pretrained(model, folder / "base", minilora.load_tokenizer("smollm2"))
    minilora.attach_lora(model, ["q_proj", "v_proj"], r=8, alpha=16, rng=np.random.default_rng(0))
    minilora.save_adapter(model, folder / "adapter")
    return {}


def minilora_step(options: argparse.Namespace, folder: pathlib.Path) -> Callable[[Any], float]:
    model = minilora.load_pretrained(folder / "base")
    minilora.load_adapter(model, folder / "adapter")
    if options.recompute:
        minilora.nn.recompute(model)
    optimizer = minilora.AdamW(model.trainable_parameters(), lr=LR)

    def step(batch: Any) -> float:
        loss, grads = loss_and_gradients(model, batch)
        optimizer.step(clip_by_global_norm(grads, CLIP)[0])
        return float(loss)

    return step


def peft_step(options: argparse.Namespace, folder: pathlib.Path) -> Callable[[Any], float]:
    import peft
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    if options.recompute:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    model = peft.PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True).train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=LR, weight_decay=0.0)

    def step(batch: Any) -> float:
        logits = model(input_ids=torch.tensor(batch.ids), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(batch.targets).flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, CLIP)
        optimizer.step()
        return float(loss.detach())

    return step


def run(options: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """One side, in a process of its own: the losses and seconds of its steps, and its memory."""
    if options.side == "prepare":
        return prepare(folder)
    keep_freed_memory()
    step = {"minilora": minilora_step, "peft": peft_step}[options.side](options, folder)
    loaded, losses, seconds, cpu = peak_memory() / 2**20, [], [], []
    with blas_threads(options.threads):
        for batch in batches(options):
            start, busy = time.perf_counter(), time.process_time()
            losses.append(step(batch))
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - busy)
    times = {"seconds": median(seconds[1:]), "cpu": median(cpu[1:])}  # the first step also looks for memory
    return {"losses": losses, **times, "loaded": loaded, "peak": peak_memory() / 2**20}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 1), ("length", 128), ("steps", 6), ("rounds", 3), ("threads", 1)):
        options.add_argument(f"--{name}", type=int, default=default)
    options.add_argument("--recompute", action="store_true", help="or gradient checkpointing, as PEFT's side calls it")
    options.add_argument("--side", help=argparse.SUPPRESS)
    options.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.side:
        return print(json.dumps(run(options, options.folder)))
    found: dict[str, list[dict[str, Any]]] = {"minilora": [], "peft": []}

    def process(side: str) -> dict[str, Any]:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", folder]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])

    with tempfile.TemporaryDirectory() as folder:
        process("prepare")
        for _ in range(options.rounds):
            for side, results in found.items():
                results.append(process(side))
    batch, length, threads = options.batch, options.length, options.threads
    print(f"SmolLM2-135M, r = 8 on q and v, {batch} x {length} tokens, {threads} thread(s) each")
    for i, (ours, theirs) in enumerate(zip(*(results[0]["losses"] for results in found.values()), strict=True), 1):
        print(f"loss of step {i}: minilora {ours:.6f}, PEFT {theirs:.6f}, difference {abs(ours - theirs):.1e}")
    for side, results in found.items():
        wall, cpu, loaded, most = (median(r[key] for r in results) for key in ("seconds", "cpu", "loaded", "peak"))
        print(f"{side}: {wall:.3f} s a step, {cpu:.3f} s of CPU, {most:,.0f} MiB at most ({loaded:,.0f} once loaded)")
    for key in ("seconds", "cpu"):
        ratios = [ours[key] / theirs[key] for ours, theirs in zip(*found.values(), strict=True)]
        rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"minilora / PEFT, {key}: {median(ratios):.2f} (by round: {rounds})")


if __name__ == "__main__":
    main()
