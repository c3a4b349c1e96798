"""Several adapters into one, what that does to the loss of each one's task, and how far the adapters agree. The command
`minilora combine`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..adapters.combine import Layer, combine, cosines, off_the_sum
from ..adapters.combining import combinations
from ..adapters.peft import Adapters, adapter_files, locate_adapter, read_adapter
from ..data import bits
from ..display.plots import check_png
from ..display.tables import numbers_right, wide_console
from ..files import check_free, write_folder, write_whole
from ..models.generation import check_continues
from ..models.tokenizer import Tokenizer
from ..models.transformer import Transformer
from ..process import blas_threads
from ..spelling import counted
from ..training import evaluate
from .bases import base_for, base_of_run, tokenizer_for
from .combining_figure import combining_figure
from .language_model import Dataset
from .runs import tokenizer_hash
from .text import read_text

COMBINED = "the combined adapter"  # its name among those that are loaded
DENSITY = 0.5  # of the ways that are tried beside the chosen one
BATCH, LENGTH = 16, 128  # of held-out text, as in fine-tuning


@blas_threads()
def combine_adapters(
    folders: Sequence[str],
    how: str = "svd",
    *,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
    base: str | None = None,
    out: str | None = None,
    data: Sequence[str] = (),
    plot: str | None = None,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """The adapters in `folders`, each times its weight (1 by default), as one; return {"how", "layers", "off", "least",
    "cosines"} for JSON, and with `data` "losses".

    `base` is by default the one that the first adapter names. `out` is a new folder for the adapter. `data` are texts
    ("builtin" is Python's source), one for each adapter: of what finetune holds out of them, the loss in bits per byte
    of the base, of each adapter, and of each way to combine them. A `plot` is a .png of the cosines and the losses.
    `show` is called with the result before anything is written. Raises ValueError and FileNotFoundError, also before.
    """
    if out:
        check_free(out)
    if plot:
        check_png(plot)
    given = [1.0] * len(folders) if weights is None else weights
    if len(given) != len(folders):
        raise ValueError(f"{counted(len(given), 'weight')} for {counted(len(folders), 'adapter')}: give one for each")
    if data and len(data) != len(folders):
        raise ValueError(f"{counted(len(data), 'text')} for {counted(len(folders), 'adapter')}: give one for each")
    if twice := next((one for i, one in enumerate(folders) if one in folders[:i]), None):
        raise ValueError(f"{twice} is given twice: give it once, with a larger weight")
    if plot and not data:
        raise ValueError("the figure is of losses: give the texts to measure them on too")
    adapters, tokenizer, notes = loaded(folders, base)
    datasets = held_out(adapters.model, tokenizer, data)
    weighted = dict(zip(folders, given, strict=True))
    found = combine(adapters, COMBINED, weighted, how, rank=rank, density=density, rng=seed)
    pairs = [(a, b) for i, a in enumerate(folders) for b in folders[:i]]
    result: dict[str, Any] = {
        "how": how,
        "weights": weighted,
        "layers": {path: layer._asdict() for path, layer in found.items()},
        "off": off_the_sum(found),
        "least": off_the_sum(found, least=True),
        "cosines": [{"adapters": [b, a], "layers": cosines(adapters, b, a)} for a, b in pairs],
        "notes": notes,
    }
    if data:
        result["losses"] = losses(adapters, weighted, datasets, rank, density, seed)
    figure = combining_figure(result) if plot else b""
    if show:
        show(result)
    if out:
        adapters.activate(COMBINED)
        own = tokenizer.files() if adapters.model.added_tokens else {}
        write_folder(out, own | adapter_files(adapters.model))
    if plot:
        write_whole(Path(plot), figure)
    return result


def loaded(folders: Sequence[str], base: str | None) -> tuple[Adapters, Tokenizer, list[str]]:
    """(the adapters, by their folders; their tokenizer; notes to print). Raises ValueError for adapters with different
    tokens."""
    first = locate_adapter(folders[0])
    source = base_for(first, base) or "builtin"
    config, tensors, _ = read_adapter(first)
    adapters = Adapters(base_of_run(source, first, config, tensors))
    notes = [adapters.load(folder, folder) for folder in folders]
    tokenizer = tokenizer_for(source, first)
    for folder in folders[1:]:
        if tokenizer_hash(tokenizer_for(source, locate_adapter(folder))) != tokenizer_hash(tokenizer):
            raise ValueError(f"{folder} has other tokens than {folders[0]}: leave one of them out")
    return adapters, tokenizer, [note for note in notes if note]


def held_out(model: Transformer, tokenizer: Tokenizer, data: Sequence[str]) -> list[Dataset]:
    """The datasets whose held-out part is that of finetune on these texts."""
    if not data:
        return []
    check_continues(model, tokenizer)
    length = min(LENGTH, model.config.max_length)
    return [read_text(name, tokenizer, BATCH, length, 0) for name in data]


def bits_per_byte(adapters: Adapters, name: str | None, dataset: Dataset) -> float:
    """The loss on a held-out text, with the adapter of that name, or with None of the base."""
    adapters.activate(name)
    return bits(evaluate(adapters.model, dataset.held_out()) * dataset.tokens_per_byte)


def losses(
    adapters: Adapters,
    weights: dict[str, float],
    datasets: Sequence[Dataset],
    rank: int | None,
    density: float | None,
    seed: int,
) -> list[dict[str, Any]]:
    """A row for the base, for each adapter alone, and for each method: its bits per byte of each text, in the order of
    the datasets, its distance from the sum, and its rank. A method that cannot combine these adapters has a reason
    instead."""
    from tqdm import tqdm

    rows: list[dict[str, Any]] = []

    def add(what: str, name: str | None, found: dict[str, Layer] | None = None) -> None:
        row: dict[str, Any] = {"what": what, "bits": [bits_per_byte(adapters, name, d) for d in datasets]}
        if found:
            row |= {"off": off_the_sum(found), "rank": max(layer.rank for layer in found.values())}
        rows.append(row)

    add("the base", None)
    for name in weights:
        add(name, name)
    for how, way in tqdm(combinations().items(), desc="combining", leave=False, disable=None):
        own: dict[str, Any] = {"rank": rank} if "rank" in way.reads else {}
        own |= {"density": density or DENSITY} if "density" in way.reads else {}
        name = f"{COMBINED} by {how}"  # a folder may be called svd
        try:
            found = combine(adapters, name, weights, how, rng=seed, **own)
        except ValueError as error:
            rows.append({"what": how, "why_not": str(error)})
        else:
            add(how, name, found)
    adapters.activate(None)
    return rows


def print_combined(result: dict[str, Any]) -> None:
    """How far the result is off the sum, how far the adapters agree, and the losses."""
    console = wide_console()
    for note in result["notes"]:
        console.print(f"note: {note}", soft_wrap=True)
    for line in conclusions(result):
        console.print(line, soft_wrap=True)
    if "losses" in result:
        rows = [row for row in result["losses"] if "bits" in row]
        texts = [f"{name}'s\ntext" for name in result["weights"]]
        table = numbers_right("Bits per byte of held-out text", "", *texts, "off\nthe sum", "rank")
        for row in rows:
            off = [f"{row['off']:.1%}", str(row["rank"])] if "off" in row else ["", ""]
            table.add_row(row["what"], *(f"{x:.3f}" for x in row["bits"]), *off)
        console.print(table)
        for row in (row for row in result["losses"] if "why_not" in row):
            console.print(f"{row['what']}: {row['why_not']}", soft_wrap=True)


def conclusions(result: dict[str, Any]) -> list[str]:
    """What the numbers say, in sentences."""
    ranks = [layer["rank"] for layer in result["layers"].values()]
    of_rank = f"{min(ranks)} to {max(ranks)}" if len(set(ranks)) > 1 else str(ranks[0])
    found = [
        f"{result['how']}: {counted(len(ranks), 'layer')} of rank {of_rank}, {result['off']:.1%} of ‖Σ w ΔW‖ off the "
        f"sum; the least that these ranks allow is {result['least']:.1%}."
    ]
    for pair in result["cosines"]:
        layers = dict(pair["layers"])
        total, (a, b) = layers.pop(""), pair["adapters"]
        between = f", from {min(layers.values()):.3f} to {max(layers.values()):.3f} by layer" if layers else ""
        found += [f"cos(ΔW of {a}, ΔW of {b}) = {total:.3f}{between}."]
    return found
