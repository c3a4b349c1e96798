"""The demo: adapt the built-in model to Python source, by LoRA and by full fine-tuning, and compare the two."""

from __future__ import annotations

import copy
import platform
import statistics
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .. import ops
from ..accounting import adapter_parameters, count_parameters, memory
from ..adapters.merge import merge, unmerge
from ..adapters.peft import CONFIG, WEIGHTS, adapter_files
from ..adapters.spectrum import adapter_singular_values, effective_rank, energy, singular_values
from ..backend import Array, to_numpy
from ..data import Split, all_windows, bits, excerpts, python_source, random_windows
from ..display.tables import numbers_right, wide_console
from ..files import check_free, read_json, to_json, write_files
from ..models.generation import generate
from ..models.pretrained import load_pretrained
from ..models.sources import BUILTIN
from ..models.transformer import Transformer
from ..nn.optim import AdamW, cosine_schedule
from ..process import blas_threads, folder_lock
from ..training import History, fit, loss_and_gradients
from ..verify import check_model
from .demo_figure import report_figure
from .finetuning import attach
from .pretraining import bits_per_byte, evaluate_english
from .settings import Settings

RANK, ALPHA = 8, 16
STEPS, BATCH, LENGTH = 80, 16, 128
EXCERPT = 16384  # bytes of held-out Python for the final measurements
GRID = BUILTIN.parent / "grid.json"  # what search() found
RATES = {"full": [5e-4, 1e-3, 2e-3, 4e-3, 8e-3], "lora": [2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]}
FILES = ("report.json", "report.png", CONFIG, WEIGHTS)
PROMPT = "    def __init__(self"


@blas_threads()
def demo(out: str | Path, *, seed: int = 0, shards: int = 2, backend: ModuleType = np) -> dict[str, Any]:
    """Write report.json, report.png and the adapter to the folder `out`, and return the report."""
    with folder_lock(out):
        check_free(out, FILES if (Path(out) / "report.json").is_file() else ())
        report, lora = measure(seed, shards, backend)
        files = {"report.json": to_json(report), "report.png": report_figure(report)}
        write_files(out, adapter_files(lora) | files)
    return report


def measure(seed: int, shards: int, backend: ModuleType) -> tuple[dict[str, Any], Transformer]:
    """(the report, the model with its trained adapter)."""
    start = time.perf_counter()
    source = python_source()
    test = excerpts(source.test, EXCERPT)
    rates = read_json(GRID)["best"]

    base, full, lora = (load_pretrained() for _ in range(3))
    english = evaluate_english(base, shards)
    adapted = attach(lora, Settings(rank=RANK, alpha=ALPHA, seed=seed))
    for model in (base, full, lora):
        model.to(backend)
    models = {"full": full, "lora": lora}
    history = {name: train(model, source, rates[name], seed, shards, name) for name, model in models.items()}
    target = {
        name: bits_per_byte(model, test, shards, "reading Python") for name, model in {"base": base, **models}.items()
    }
    costs = step_costs(models, source, seed)
    frozen = load_pretrained().state_dict()
    report: dict[str, Any] = {
        "base": {"params": count_parameters(base)["total"], "bits_per_byte": english["model"], "english": english},
        "target": {"bits_per_byte": target},
        "lora": {
            **costs["lora"],
            "label": f"LoRA, r = {RANK}",
            "by_formula": adapter_parameters(lora),
            "rank": RANK,
            "alpha": ALPHA,
            "targets": sorted({path.rpartition(".")[2] for path in adapted}),
            "share_of_gain": (target["base"] - target["lora"]) / (target["base"] - target["full"]),
            "lr": rates["lora"],
            "curve": curve(history["lora"]),
        },
        "full": {**costs["full"], "label": "full fine-tuning", "lr": rates["full"], "curve": curve(history["full"])},
        **merge_and_unmerge(lora, source),
        "frozen_unchanged": all(np.array_equal(to_numpy(lora.state_dict()[path]), W) for path, W in frozen.items()),
        "rank": {name: layer_spectra(model, base, adapted) for name, model in models.items()},
        "gradcheck": check_gradients(lora, source, seed),
        "samples": {
            name: generate(model, PROMPT, 160, temperature=0.6, rng=np.random.default_rng(seed))
            for name, model in {"before": base, "after": lora}.items()
        },
        "steps": STEPS,
        "seed": seed,
        "python": platform.python_version(),  # whose standard library is the text
    }
    report["seconds"] = time.perf_counter() - start
    return report, lora


def train(model: Transformer, source: Split, lr: float, seed: int, shards: int, name: str) -> History:
    """Fine-tune `model` at the rate `lr`; all else is the same for both methods."""
    held_out = excerpts(source.validation, 4096)
    description = {"full": "full fine-tuning", "lora": "LoRA fine-tuning"}[name]
    return fit(
        model, random_windows(source.train, BATCH, LENGTH, seed), STEPS, lr=lr,
        schedule=cosine_schedule(STEPS, warmup=10), held_out=lambda: all_windows(held_out, BATCH, LENGTH),
        evaluate_every=STEPS // 4, shards=shards, seed=seed, description=description,
    )  # fmt: skip


def curve(history: History) -> dict[str, Any]:
    """Losses in bits per byte."""
    return {
        "train": [bits(loss) for loss in history.loss],
        "held_out": [(step, bits(loss)) for step, loss in history.evaluations],
    }


def step_costs(models: dict[str, Transformer], source: Split, seed: int) -> dict[str, Any]:
    """Parameters, bytes and seconds of one training step of each model, timed in turn: A B A B ..."""
    from tqdm import trange

    batch = random_windows(source.train, BATCH, LENGTH, seed)(STEPS)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    costs = {}
    for _ in trange(3, desc="timing a step", leave=False, disable=None):
        for name, model in models.items():
            optimizer = AdamW(model.trainable_parameters(), lr=0.0)
            start = time.perf_counter()
            loss, grads = loss_and_gradients(model, batch)
            optimizer.step(grads)
            float(loss)  # waits for a GPU
            seconds[name].append(time.perf_counter() - start)
            _, cache = model.forward(batch.ids)
            costs[name] = {
                "trainable": count_parameters(model)["trainable"],
                "memory": memory(model, cache, grads, optimizer),
                "step_seconds": statistics.median(seconds[name]),
            }
    return costs


def layer_spectra(model: Transformer, base: Any, paths: Iterable[str]) -> dict[str, Any]:
    """Effective rank, spectrum and energy of ΔW, averaged over the layers."""
    spectra = []
    for path in paths:
        layer: Any = model[path]
        if layer.is_adapter:
            sigma = adapter_singular_values(layer)
        else:
            sigma = singular_values(layer.weight.data - base[path].weight.data)
        spectra.append(sigma.astype(float))
    shortest = min(map(len, spectra))
    return {
        "effective_rank": statistics.mean(map(effective_rank, spectra)),
        "mean_spectrum": np.mean([sigma[:shortest] / sigma[0] for sigma in spectra], axis=0).tolist(),
        "energy_kept": {
            r: statistics.mean(float(energy(sigma)[min(r, len(sigma)) - 1]) for sigma in spectra)
            for r in (1, 2, 4, 8, 16, 32)
        },
    }


def merge_and_unmerge(model: Transformer, source: Split) -> dict[str, Any]:
    """The largest difference that merging makes to a logit, and whether unmerging restores every bit of the model."""
    ids = next(all_windows(source.test, BATCH, LENGTH)).ids
    before, W0 = to_numpy(model.forward(ids)[0]), model.state_dict()
    merge(model)
    merged = to_numpy(model.forward(ids)[0])
    unmerge(model)
    after, W = to_numpy(model.forward(ids)[0]), model.state_dict()
    same = np.array_equal(before, after) and all(np.array_equal(to_numpy(W[k]), to_numpy(W0[k])) for k in W0)
    return {
        "merge": {"max_abs_diff": float(np.abs(merged - before).max()), "max_abs_logit": float(np.abs(before).max())},
        "unmerge": {"bit_exact": same},
    }


def check_gradients(model: Transformer, source: Split, seed: int) -> dict[str, Any]:
    """Every gradient of the adapted model, also of frozen weights, against central differences in float64."""
    from tqdm import tqdm

    model = copy.deepcopy(model)
    model.to(np)
    model.astype(np.float64)
    for parameter in model.named_parameters().values():
        parameter.trainable = True
    batch = random_windows(source.train, 2, 16, seed)(0)
    _, grads = loss_and_gradients(model, batch)
    with tqdm(total=4 * len(grads), desc="checking gradients", leave=False, disable=None) as bar:

        def loss() -> Array:
            bar.update()
            logits, _ = model.forward(batch.ids)
            return ops.cross_entropy_forward(logits, batch.targets)[0]

        rng = np.random.default_rng(seed)
        result = check_model(model, loss, grads, rng=rng, directions=1, complex_step=False)
    groups: dict[str, float] = {}
    for row in result.rows:
        group = kind_of(row.tensor)
        groups[group] = max(groups.get(group, 0.0), row.errors["central"] or 0.0)
    return {"ok": result.ok, "worst_relative_error": result.worst(), "groups": groups, "tensors": len(result.rows)}


def kind_of(path: str) -> str:
    parent, _, name = path.rpartition(".")
    if name in ("lora_A", "lora_B"):
        return name
    return "embedding" if "embed" in parent else "norm gains" if "norm" in parent else "linear weights"


def search(out: str | Path, *, seed: int = 1, shards: int = 2, backend: ModuleType = np) -> dict[str, Any]:
    """Choose the demo's learning rates among RATES by their loss on validation text; write and return grid.json."""
    source = python_source()
    grid: dict[str, Any] = {"bits_per_byte": {}, "best": {}, "steps": STEPS, "seed": seed, "rank": RANK}
    with folder_lock(out):
        check_free(out)
        for name, rates in RATES.items():
            tried = {}
            for lr in rates:
                model = load_pretrained()
                if name == "lora":
                    attach(model, Settings(rank=RANK, alpha=ALPHA, seed=seed))
                model.to(backend)
                train(model, source, lr, seed, shards, name)
                tried[lr] = bits_per_byte(model, excerpts(source.validation, 32768), shards, "reading Python")
                print(f"{name} at {lr:g}: {tried[lr]:.4f} bits per byte on validation text")
            grid["bits_per_byte"][name] = {f"{lr:g}": value for lr, value in tried.items()}
            grid["best"][name] = min(tried, key=tried.__getitem__)
        write_files(out, {"grid.json": to_json(grid)})
    return grid


def print_report(report: dict[str, Any], out: str | Path) -> None:
    """The report as tables, and what follows from it."""
    console, table = wide_console(80), partial(numbers_right, min_width=78)
    base, lora, full, rank = report["base"], report["lora"], report["full"], report["rank"]
    target, english = report["target"]["bits_per_byte"], base["english"]

    rows = table("Bits per byte of English test text, which it has not seen", "the base", "zlib", "lzma", "bigram")
    rows.columns[0].justify = "right"
    rows.add_row(*(f"{english[name]:.2f}" for name in ("model", "zlib", "lzma", "bigram")))
    console.print(rows)

    rows = table("Python source, test text that it has not seen", "", "base", "LoRA", "full fine-tuning")
    rows.add_row("bits per byte", *(f"{target[name]:.3f}" for name in ("base", "lora", "full")))
    rows.add_row("trained parameters", "0", f"{lora['trainable']:,}", f"{full['trainable']:,}")
    rows.add_row("  by Σ r (in + out)", "", f"{lora['by_formula']:,}", "")
    for kind in ("weights", "cache", "gradients", "optimizer"):
        sizes = (f"{costs['memory'][kind] / 2**20:.2f} MiB" for costs in (lora, full))
        rows.add_row(f"memory: {kind}", "", *sizes)
    rows.add_row("seconds per step, one thread", "", *(f"{costs['step_seconds']:.3f}" for costs in (lora, full)))
    console.print(rows)

    rows = table("The rank of what was learned, mean over the layers", "", "LoRA's ΔW", "full fine-tuning's ΔW")
    rows.add_row("effective rank", *(f"{rank[name]['effective_rank']:.1f}" for name in ("lora", "full")))
    for r in rank["full"]["energy_kept"]:
        rows.add_row(f"energy kept by rank {r}", *(f"{rank[n]['energy_kept'][r]:.1%}" for n in ("lora", "full")))
    console.print(rows)

    check = report["gradcheck"]
    rows = table(f"Gradients against central differences, float64, {check['tensors']} tensors", "group", "worst error")
    for group, error in check["groups"].items():
        rows.add_row(group, f"{error:.1e}")
    console.print(rows)

    for name, sample in report["samples"].items():
        console.print(f"\n{name} fine-tuning:", style="bold")
        console.print(sample, markup=False, style="dim", soft_wrap=True)
    share, part = lora["share_of_gain"], lora["trainable"] / base["params"]
    shrunk = full["memory"]["optimizer"] / lora["memory"]["optimizer"]
    frozen = "are bit for bit those of the file" if report["frozen_unchanged"] else "HAVE CHANGED"
    restored = "restored every bit" if report["unmerge"]["bit_exact"] else "DID NOT restore the base"
    moved, largest = report["merge"]["max_abs_diff"], report["merge"]["max_abs_logit"]
    console.print(
        f"""
On test text, LoRA closed {share:.0%} of full fine-tuning's gain with {part:.1%} of the parameters.
Gradients and optimizer state shrank {shrunk:.0f}-fold; the cache did not, because dA
needs the input of every adapted layer. The frozen weights {frozen}.
Merging moved no logit by more than {moved:.1e} (the largest is {largest:.0f}), and
unmerging {restored}.

{report["seconds"]:.0f} s. Look at {Path(out) / "report.png"}: its curves are on validation text, on which
the learning rates were chosen. The adapter beside it loads in Hugging Face PEFT.""",
        soft_wrap=True,
    )
