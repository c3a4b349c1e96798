"""A fully fine-tuned model into a LoRA of rank r: by the SVD of its ΔW, or by distillation.

    python notebooks/examples/distillation.py [--small] [FIGURE.png]

The teacher is the built-in model, all of whose weights learned Python's source. Four students of each rank: the best
approximation of the teacher's ΔW, distilled with KL(teacher ‖ student), with KL(student ‖ teacher), and LoRA on the
text itself, which has no teacher. All see the same batches; a seed decides batches and A.
"""

import statistics
import sys
from copy import deepcopy

import figures
import numpy as np

import minilora
from minilora.adapters.attach import low_rank_adapter
from minilora.adapters.spectrum import svd, truncate
from minilora.data import all_windows, bits, excerpts, python_source, random_windows
from minilora.nn import Linear
from minilora.nn.optim import cosine_schedule
from minilora.training import distillation

TARGETS = [f"{name}_proj" for name in ("q", "k", "v", "o", "up", "gate", "down")]
T = 2.0  # temperature


def learn(model, text, steps, lr, seed, **loss):
    schedule = cosine_schedule(steps, steps // 10)
    minilora.fit(model, random_windows(text, 8, 64, seed), steps, lr=lr, schedule=schedule, description=None, **loss)
    return model


def extracted(base, teacher, r):
    """The base with the best B A of rank r in every linear layer of a block."""
    student = deepcopy(base)
    for path, layer in teacher.named_modules():
        if isinstance(layer, Linear) and path.split(".")[-1] in TARGETS:
            B, A = truncate(svd(layer.weight.data - base[path].weight.data), r)
            student[path] = low_rank_adapter(student[path], A, B)
    return student


def one_seed(seed, base, ranks, steps):
    """{way: {rank: (bits a byte held out, KL to the teacher)}}; the base and the teacher have rank 0."""
    split = python_source()
    held = list(all_windows(excerpts(split.validation, 4096), 8, 64))
    teacher = learn(deepcopy(base), split.train, steps, 2e-3, seed)
    kl = distillation(teacher)

    def measured(model):
        return bits(minilora.evaluate(model, held)), minilora.evaluate(model, held, loss=kl)

    found = {"base": {0: measured(base)}, "full fine-tuning": {0: measured(teacher)}}
    for r in ranks:
        losses = {
            "KL(teacher ‖ student)": {"loss": distillation(teacher, T)},
            "KL(student ‖ teacher)": {"loss": distillation(teacher, T, reverse=True)},
            "LoRA on the text": {},
        }
        found.setdefault("SVD of ΔW", {})[r] = measured(extracted(base, teacher, r))
        for way, loss in losses.items():
            student = deepcopy(base)
            minilora.attach_lora(student, TARGETS, r=r, alpha=2 * r, rng=seed)
            found.setdefault(way, {})[r] = measured(learn(student, split.train, steps, 8e-3, seed, **loss))
    return found


def main(small=False, out="runs/distillation.png"):
    base, (ranks, steps, seeds) = (
        minilora.load_pretrained("builtin"),
        ((2,), 5, 1) if small else ((1, 2, 4, 8), 60, 3),
    )
    runs = [one_seed(seed, base, ranks, steps) for seed in range(seeds)]
    print(f"{'':<24}{'rank':>5}{'bits per byte held out':>26}{'KL to the teacher, nats':>26}")
    table = {way: {r: np.array([run[way][r] for run in runs]) for r in rows} for way, rows in runs[0].items()}
    for way, rows in table.items():
        for r, numbers in rows.items():
            spread = [statistics.stdev(column) if len(column) > 1 else 0 for column in numbers.T.tolist()]
            mean = [f"{m:.3f} ± {s:.3f}" for m, s in zip(numbers.mean(axis=0), spread, strict=True)]
            print(f"{way:<24}{r or '':>5}{mean[0]:>26}{mean[1]:>26}")
    figures.distillation(out, table)
    return {way: {r: numbers.tolist() for r, numbers in rows.items()} for way, rows in table.items()}


if __name__ == "__main__":
    main("--small" in sys.argv, next((word for word in sys.argv if word.endswith(".png")), "runs/distillation.png"))
