"""Weights as their file has them, beside the same file in float32: memory and time of SmolLM2, and of decoding alone.

    python -m benchmarks.stored

One BLAS thread. Processes of the two take turns, and the medians of three are printed; seconds are those of the
processor, the least of three in each: what else runs there counts less.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import gguf
import numpy as np

import minilora
from minilora.models.pretrained import load_pretrained
from minilora.process import peak_memory
from minilora.quantization import formats
from minilora.quantization.gguf_blocks import TYPES, GGUFBlocks

MODEL, TOKENS, LENGTH, ROUNDS = "smollm2", 16, 128, 3
SHAPE = 455, 576  # about the rows that a layer decodes together


def seconds(function: Callable[[], Any], calls: int = 1) -> float:
    """The least of ROUNDS, of one call."""
    taken = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(calls):
            function()
        taken.append((time.process_time() - start) / calls)
    return min(taken)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(quantize: str | None) -> dict[str, float]:
    """Of a process of its own. Memory is what comes on top of the process before it loads the model."""
    tokenizer, before = minilora.load_tokenizer(MODEL), resident()
    model = load_pretrained(MODEL, quantize=quantize)
    found: dict[str, float] = {"held": resident() - before, "peak of loading": peak_memory() - before}
    text = "The capital of"
    found["tokens/s"] = TOKENS / seconds(lambda: minilora.generate(model, text, TOKENS, tokenizer=tokenizer))
    minilora.attach_lora(model, ["q_proj", "v_proj"], r=8, alpha=16, rng=0)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, 10 * LENGTH)
    batches = minilora.data.random_windows(ids, batch=1, length=LENGTH, seed=0)
    found["s a step"] = seconds(lambda: minilora.fit(model, batches, steps=1))
    found["peak of all"] = peak_memory() - before
    return found


def decoding() -> dict[str, float]:
    """{format: ns a weight}"""
    rng = np.random.default_rng(0)
    found = {}
    for kind, (size, scales, _) in TYPES.items():
        block = 256 if kind.endswith("K") else 32
        n_in = SHAPE[1] // block * block
        blocks = rng.integers(0, 256, (SHAPE[0] * n_in // block, size), np.uint8)
        blocks[:, scales] = np.ones((scales.stop - scales.start) // 2, np.float16).view(np.uint8)
        Q = GGUFBlocks({"blocks": blocks.reshape(SHAPE[0], -1)}, (SHAPE[0], n_in), kind)
        found[kind] = seconds(Q.dense, 50) / Q.size * 1e9
        package = partial(gguf.dequantize, Q.arrays["blocks"], gguf.GGMLQuantizationType[kind])
        found[f"{kind}, by gguf"] = seconds(package, 50) / Q.size * 1e9
    W = rng.standard_normal(SHAPE, np.float32)
    return found | {name: seconds(cls.of(W).dense, 50) / W.size * 1e9 for name, cls in formats().items()}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(None if sys.argv[1] == "float32" else sys.argv[1])))
        return
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    found: dict[str, list[dict[str, float]]] = {"float32": [], "stored": []}
    for _ in range(ROUNDS):
        for quantize, results in found.items():
            command = [sys.executable, "-m", "benchmarks.stored", quantize]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout))
    print(f"{'':<20}{'float32':>10}{'stored':>10}{'stored / float32':>20}")
    for name in found["float32"][0]:
        full, stored = ([result[name] for result in results] for results in found.values())
        each = (f"{x / 2**20:.0f} MiB" if x > 2**16 else f"{x:.2f}" for x in (median(full), median(stored)))
        ratio = median(b / a for a, b in zip(full, stored, strict=True))
        print(f"    {name:<16}" + "".join(f"{x:>10}" for x in each) + f"{ratio:>20.2f}")
    print("ns to decode a weight")
    for name, x in decoding().items():
        print(f"    {name:<16} {x:.2f}")


if __name__ == "__main__":
    main()
