"""LoftQ: how near Q + s B A comes to W, and whether a training ends better from there than from B = 0 beside NF4.

python notebooks/record.py loftq        makes the record
python notebooks/grids/loftq.py         prints it as the tables of docs/variants.md
"""

import sys
from functools import cache
from pathlib import Path

import numpy as np

import minilora
from minilora.adapters.initialisations.loftq import loftq
from minilora.data import random_windows
from minilora.nn import Linear
from minilora.training.metrics import paired_test

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import adapting
from record import pick, read

BLOCKS = {"normal": (), "builtin": range(5), "minilm": range(6), "smollm2": (0, 10, 20, 29)}
ROUNDS, RANKS, SEEDS = (1, 2, 3, 5), (8, 32), range(3)
RATES = 4e-3, 8e-3, 1.6e-2, 3.2e-2
STARTS = {"NF4, B = 0": ("uniform", 1), "LoftQ, T = 1": ("loftq", 1), "LoftQ, T = 5": ("loftq", 5)}  # init, rounds

RUNS = [{"matrices": name, "r": r} for name in BLOCKS for r in RANKS]
RUNS += [{"start": start, "lr": lr, "seed": seed} for start in STARTS for lr in RATES for seed in SEEDS]


@cache
def matrices(name: str) -> list[np.ndarray]:
    if name == "normal":
        return [0.02 * np.random.default_rng(seed).standard_normal((512, 512), dtype=np.float32) for seed in SEEDS]
    model = minilora.load_pretrained(name)
    blocks = [model[f"block_{i}"] for i in BLOCKS[name]]
    return [m.dense() for block in blocks for _, m in block.named_modules() if isinstance(m, Linear)]


def errors(W: np.ndarray, r: int) -> list[float]:
    """‖W - Q - s B A‖ / ‖W - q(W)‖ after each of ROUNDS."""
    found, alone = [], 0.0
    for rounds in ROUNDS:
        A, B, Q = loftq(W, r, 2.0, rounds=rounds)
        alone = alone or float(np.linalg.norm(W - Q.dense()))  # of one round Q is q(W)
        found.append(float(np.linalg.norm(W - Q.dense() - 2.0 * B @ A)) / alone)
    return found


def trained(start: str, lr: float, seed: int) -> dict[str, float]:
    """Bits per byte of Python source that it has not seen, before and after the training."""
    init, rounds = STARTS[start]
    model = minilora.load_pretrained("builtin")
    minilora.attach_lora(model, "all-linear", r=8, alpha=16, rng=seed, init=init, rounds=rounds)
    minilora.quantize(model, "nf4")
    begins = adapting.losses(model)["new"]
    schedule = minilora.cosine_schedule(40, warmup=3)
    batches = random_windows(adapting.source().train, batch=8, length=64, seed=seed)
    minilora.fit(model, batches, 40, lr=lr, schedule=schedule, seed=seed, description=None)
    return {"begins": begins, "ends": adapting.losses(model)["new"]}


def run(**how) -> dict:
    if "start" in how:
        return trained(**how)
    found = np.array([errors(W, how["r"]) for W in matrices(how["matrices"])])
    rises = int((np.diff(found, axis=1) > 0).any(axis=1).sum())
    return {"number": len(found), "mean": [round(x, 4) for x in found.mean(axis=0)], "rises": rises}


def main() -> None:
    runs = read("loftq")
    print(f"| matrices | r | {' | '.join(f'T = {T}' for T in ROUNDS)} | rises |\n|{'---|' * (len(ROUNDS) + 3)}")
    for row in (row for row in runs if "matrices" in row):
        means = " | ".join(f"{x:.3f}" for x in row["mean"])
        print(f"| {row['matrices']} ({row['number']}) | {row['r']} | {means} | {row['rises']} |")
    best = {start: min(RATES, key=lambda lr: pick(runs, "ends", start=start, lr=lr).mean()) for start in STARTS}
    ends = {start: pick(runs, "ends", start=start, lr=lr) for start, lr in best.items()}
    print(
        "\n| start | best rate | begins at | ends at | minus that of NF4, B = 0, 95% interval |\n|---|---|---|---|---|"
    )
    for start, lr in best.items():
        begins, mean = pick(runs, "begins", start=start, lr=lr).mean(), ends[start].mean()
        by = ""
        if start != "NF4, B = 0":
            d = paired_test(list(ends[start] - ends["NF4, B = 0"]), 1, 0)
            by = f"{d['mean']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f})"
        print(f"| {start} | {lr:g} | {begins:.4f} | {mean:.4f} ± {ends[start].std(ddof=1):.4f} | {by} |")


if __name__ == "__main__":
    main()
