"""Accounts for people and for programs: tables with a formula beside each number, several side by side, JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..tables import numbers_right, wide_console
from .architecture import Linear, Shape
from .count import Account, count
from .flops import association_orders, break_even_rank
from .memory import Entry, size
from .named import PRINTED

# ---- many layers of one kind, as one row ----


@dataclass(frozen=True)
class Grouped:
    layer: str
    what: str
    shape: Shape
    count: int
    nbytes: int
    why: str


def kind(path: str) -> str:
    """block_3.mlp.up_proj -> block_*.mlp.up_proj"""
    return ".".join("block_*" if part.startswith("block_") else part for part in path.split("."))


def grouped(entries: Iterable[Entry]) -> list[Grouped]:
    """The ledger, a row for all the blocks' arrays of one kind, the largest first."""
    rows: dict[tuple[str, str, Shape], Grouped] = {}
    for e in entries:
        key = kind(e.layer), e.what, e.shape
        before = rows.get(key)
        n, nbytes = (before.count, before.nbytes) if before else (0, 0)
        rows[key] = Grouped(key[0], e.what, e.shape, n + 1, nbytes + e.nbytes, e.why)
    return sorted(rows.values(), key=lambda row: -row.nbytes)


def kinds(tensors: Mapping[str, Shape]) -> dict[tuple[str, Shape], int]:
    """{(kind of path, shape): how many}"""
    counts: dict[tuple[str, Shape], int] = {}
    for path, shape in tensors.items():
        key = kind(path), shape
        counts[key] = counts.get(key, 0) + 1
    return counts


def product(n: int, shape: Shape) -> str:
    """96 × 4 × 12,288"""
    return " × ".join(f"{factor:,}" for factor in ([n] if n > 1 else []) + list(shape)) or "1"


def readable(nbytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:,.0f} B" if unit == "B" else f"{nbytes:,.2f} {unit}"
        nbytes /= 1024
    return f"{nbytes:,.2f} TiB"


# ---- for programs ----


def to_dict(account: Account) -> dict[str, Any]:
    """What --json prints."""
    forward, backward = account.flops()
    N = account.batch * account.tokens
    return {
        "model": account.model.name,
        "family": account.model.family,
        "head": account.model.head,
        "method": account.plan.method,
        "batch": account.batch,
        "tokens": account.tokens,
        "dtype": account.dtype,
        "recompute": account.recompute,
        "total": account.total,
        "total_printed": PRINTED.get(account.model.name),
        "groups": account.groups(),
        "trainable": account.trainable,
        "share": account.share,
        "adapter_bytes": account.adapter_bytes,
        "memory": account.memory(),
        "ledger": [
            {
                "what": row.what,
                "layer": row.layer,
                "arrays": row.count,
                "shape": row.shape,
                "bytes": row.nbytes,
                "why": row.why,
            }
            for row in grouped(account.ledger())
        ],
        "flops": {
            "forward": forward.products,
            "backward": backward.products,
            "per_token": {"forward": forward.products / N, "backward": backward.products / N},
            "parts": {"forward": forward._asdict(), "backward": backward._asdict()},
        },
    }


# ---- for people ----


def show(account: Account) -> None:
    """The account as tables: each number, and beside it the formula that gives it."""
    from rich.table import Table

    console, model, laid_out = wide_console(), account.model, account.plan

    def table(title: str) -> Table:
        made = Table("", "formula", "", title=title, title_justify="left", min_width=78)
        made.columns[2].justify = "right"
        return made

    rows = table(f"Parameters of {model.name}")
    for (path, shape), n in kinds(model.tensors()).items():
        rows.add_row(path, product(n, shape), f"{n * size(shape):,}")
    rows.add_section()
    rows.add_row("total", "", f"{account.total:,}")
    if model.name in PRINTED:
        printed, where = PRINTED[model.name]
        rows.add_row("printed", where, printed)
    console.print(rows)

    rows = table(f"Trained by {laid_out.method}: {laid_out.formula}")
    for (path, shape), n in kinds_by_end(account.trained).items():
        rows.add_row(path, product(n, shape), f"{n * size(shape):,}")
    rows.add_section()
    rows.add_row("trained", "", f"{account.trainable:,}")
    rows.add_row("share", "trained / total", f"{account.share:.4%}")
    name, formula = ("adapter_model.safetensors", "a header, and the numbers")
    if not laid_out.in_peft:
        name, formula = "a file of it", "the numbers: PEFT has no format for this method"
    rows.add_row(name, formula, f"{account.adapter_bytes:,} B")
    console.print(rows)

    memory, forward_backward = account.memory(), account.flops()
    N = account.batch * account.tokens
    about = f"batch {account.batch} × {account.tokens} tokens, {account.dtype}"
    rows = table(f"Memory of one training step, {about}{', recomputing blocks' * account.recompute}")
    for name, formula in (
        ("weights", f"base in {account.dtype} + added × {account.added_itemsize} B"),
        ("gradients", "trained × its bytes"),
        ("optimizer", "2 × trained × its bytes: Adam's m and v"),
    ):
        rows.add_row(name, formula, readable(memory[name]))
    rows.add_section()
    for row in grouped(account.ledger()):
        rows.add_row(
            f"{row.layer}: {row.what}", f"{product(row.count, row.shape)}   for {row.why}", readable(row.nbytes)
        )
    rows.add_section()
    rows.add_row("activations", "the rows above", readable(memory["activations"]))
    rows.add_row("in all", "", readable(sum(memory.values())))
    console.print(rows)

    rows = table(f"FLOPs of one training step, {about}")
    for name, part in zip(("forward", "backward"), forward_backward, strict=True):
        rows.add_row(f"{name}: linear", LINEAR[name], f"{part.linear:.4g}")
        rows.add_row(
            f"{name}: added", ADDED[name] if laid_out.method in ("lora", "qlora") else "", f"{part.adapter:.4g}"
        )
        rows.add_row(f"{name}: attention", "4 H D T N" if name == "forward" else "8 H D T N", f"{part.attention:.4g}")
        rows.add_row(f"{name}", f"{part.products / N:.4g} a token", f"{part.products:.4g}")
        rows.add_section()
    whole = sum(part.products for part in forward_backward)
    full = sum(part.products for part in count(model, "full", batch=account.batch, tokens=account.tokens).flops())
    rows.add_row("step", f"{whole / full:.3f} of full fine-tuning's", f"{whole:.4g}")
    adapted = [i.layer for i in laid_out.inserts if isinstance(i.layer, Linear)]
    if laid_out.method == "lora" and adapted:
        ranks = sorted({break_even_rank(layer.n_in, layer.n_out) for layer in adapted})
        words = " to ".join(f"{rank:,.0f}" for rank in dict.fromkeys((ranks[0], ranks[-1])))
        r = laid_out.inserts[0].trained["lora_A.weight"][0]
        formed = sum(
            association_orders(i.n_in, i.n_out, r, (i.rows or account.tokens) * account.batch)["y"]["x (B A)ᵀ"]
            for i in adapted
        )
        rows.add_row("were B A formed", "2 (r + N) in·out, in place of 2 r (in + out) N forward", f"{formed:.4g}")
        rows.add_row("break-even rank", "in·out / 3 (in + out): above it LoRA's layer costs more", words)
    console.print(rows)


ADDED = {
    "forward": "2 r (in + out) N   as (x Aᵀ) Bᵀ",
    "backward": "4 r (in + out) N   as dh = dy B, dh A, dhᵀ x, dyᵀ h",
}
LINEAR = {"forward": "2 N Σ in·out", "backward": "2 N Σ in·out for dx, and again for every trained matrix"}


def kinds_by_end(tensors: Mapping[str, Shape]) -> dict[tuple[str, Shape], int]:
    """As kinds(), PEFT's long names by their last two parts."""
    counts: dict[tuple[str, Shape], int] = {}
    for path, shape in tensors.items():
        parts = path.split(".")
        name = ".".join(parts[-3 if parts[-1] in ("weight", "bias") else -2 :]) if "base_model" in path else kind(path)
        counts[name, shape] = counts.get((name, shape), 0) + 1
    return counts


def show_side_by_side(accounts: Mapping[str, Account]) -> None:
    """Several methods on one model, a column each."""
    facts = list(accounts.values())
    model, memories, steps = facts[0].model, [a.memory() for a in facts], [a.flops() for a in facts]
    about = f"batch {facts[0].batch} × {facts[0].tokens} tokens"
    rows = numbers_right(f"{model.name}, one training step, {about}", "", *accounts)
    rows.add_row("parameters of the base", *(f"{a.total:,}" for a in facts))
    rows.add_row("held in", *(a.dtype for a in facts))
    rows.add_row("trained parameters", *(f"{a.trainable:,}" for a in facts))
    rows.add_row("share", *(f"{a.share:.4%}" for a in facts))
    rows.add_row("file of what is trained", *(readable(a.adapter_bytes) for a in facts))
    rows.add_section()
    for name in memories[0]:
        rows.add_row(name, *(readable(memory[name]) for memory in memories))
    rows.add_row("memory in all", *(readable(sum(memory.values())) for memory in memories))
    rows.add_section()
    for i, name in enumerate(("forward FLOPs", "backward FLOPs")):
        rows.add_row(name, *(f"{step[i].products:.4g}" for step in steps))
    wide_console().print(rows)
