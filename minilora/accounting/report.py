"""Accounts for people and for programs: tables with a formula beside each number, several side by side, JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..display.tables import fits, numbers_right, wide_console
from ..nn import KeptArray
from ..nn.costs import Shape
from .count import Account, count
from .flops import association_orders, break_even_rank
from .formulas import formulas, letters, low_rank_layers, trained_formula
from .named import PRINTED

# ---- many layers of one kind, as one row ----


@dataclass(frozen=True)
class KeptArrays:
    """Arrays of one kind and shape, as of all the blocks."""

    layer: str
    what: str
    shape: Shape
    count: int
    nbytes: int
    why: str


def without_number(path: str) -> str:
    """block_3.mlp.up_proj -> block_*.mlp.up_proj"""
    return ".".join("block_*" if part.startswith("block_") else part for part in path.split("."))


def grouped(arrays: Iterable[KeptArray]) -> list[KeptArrays]:
    """The ledger, a row for all the blocks' arrays of one kind, the largest first."""
    rows: dict[tuple[str, str, Shape], KeptArrays] = {}
    for array in arrays:
        key = without_number(array.layer), array.what, array.shape
        before = rows.get(key)
        n, nbytes = (before.count, before.nbytes) if before else (0, 0)
        rows[key] = KeptArrays(*key, n + 1, nbytes + array.nbytes, array.why)
    return sorted(rows.values(), key=lambda row: -row.nbytes)


def count_alike(tensors: Mapping[str, Shape]) -> dict[tuple[str, Shape], int]:
    """{(path without its block number, shape): how many}; of PEFT's long names only the last parts count."""
    counts: dict[tuple[str, Shape], int] = {}
    for path, shape in tensors.items():
        parts = path.split(".")
        ending = ".".join(parts[-3 if parts[-1] in ("weight", "bias") else -2 :])
        key = (ending if parts[0] == "base_model" else without_number(path)), shape
        counts[key] = counts.get(key, 0) + 1
    return counts


def shape_product(n: int, shape: Shape) -> str:
    """96 × 4 × 12,288"""
    return " × ".join(f"{factor:,}" for factor in ([n] if n > 1 else []) + list(shape)) or "1"


def readable_bytes(nbytes: float) -> str:
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
        "model": account.name,
        "family": account.model.family,
        "head": account.model.config.head,
        "method": account.method,
        "batch": account.batch,
        "tokens": account.tokens,
        **({"source_tokens": account.source_tokens} if account.source_tokens else {}),
        "dtype": account.dtype,
        "recompute": account.recompute,
        "total": account.total,
        "total_printed": PRINTED.get(account.name),
        "groups": account.groups(),
        "trainable": account.trainable,
        "share": account.share,
        "adapter_bytes": account.adapter_bytes,
        "memory": account.memory(),
        "weights": {kind: held.nbytes for kind, held in account.weights().items()},
        "decoded": account.decoded,
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


def show_account(account: Account) -> None:
    """The account as tables: each number, and beside it the formula that gives it."""
    console = wide_console()
    for table in (parameters_table(account), trained_table(account), memory_table(account)):
        console.print(table)
    console.print(flops_table(account))
    console.print(letters(account), soft_wrap=True)


def formula_table(title: str) -> Any:
    """A rich Table of names, formulas and numbers; where it is narrow the formulas are folded, never the numbers."""
    return numbers_right(title, "", "formula", "", words=(0, 1), min_width=78)


def add_tensors(rows: Any, tensors: Mapping[str, Shape]) -> None:
    for (path, shape), n in count_alike(tensors).items():
        rows.add_row(path, shape_product(n, shape), f"{n * math.prod(shape):,}")
    rows.add_section()


def parameters_table(account: Account) -> Any:
    name = account.name
    rows = formula_table(f"Parameters of {name}")
    add_tensors(rows, account.tensors)
    rows.add_row("total", "", f"{account.total:,}")
    if name in PRINTED:
        printed, where = PRINTED[name]
        rows.add_row("printed", where, printed)
    return rows


def trained_table(account: Account) -> Any:
    rows = formula_table(f"Trained by {account.method}: {trained_formula(account)}")
    add_tensors(rows, account.trained)
    rows.add_row("trained", "", f"{account.trainable:,}")
    rows.add_row("share", "trained / total", f"{account.share:.4%}")
    name, formula = ("adapter_model.safetensors", "a header, and the numbers")
    if not account.has_file:
        name, formula = "a file of it", "the numbers: PEFT writes no such file"
    rows.add_row(name, formula, f"{account.adapter_bytes:,} B")
    return rows


def about(account: Account) -> str:
    computed = f", computed in {account.computed}" * (account.computed != account.dtype)
    read = f" from {account.source_tokens}" if account.source_tokens else ""
    return f"batch {account.batch} × {account.tokens} tokens{read}, {account.dtype}{computed}"


def memory_table(account: Account) -> Any:
    memory = account.memory()
    rows = formula_table(f"Memory of one training step, {about(account)}{', recomputing blocks' * account.recompute}")
    for what, held in account.weights().items():
        rows.add_row(what, f"{8 * held.nbytes / held.weights:.4g} bits × {held.weights:,}", readable_bytes(held.nbytes))
    rows.add_section()
    for name, formula in (
        ("weights", "the rows above"),
        ("gradients", "trained × its bytes"),
        ("optimizer", "2 × trained × its bytes: Adam's m and v"),
    ):
        rows.add_row(name, formula, readable_bytes(memory[name]))
    rows.add_section()
    for row in grouped(account.ledger()):
        rows.add_row(
            f"{row.layer}: {row.what}",
            f"{shape_product(row.count, row.shape)}   for {row.why}",
            readable_bytes(row.nbytes),
        )
    rows.add_section()
    rows.add_row("activations", "the rows above", readable_bytes(memory["activations"]))
    rows.add_row("in all", "", readable_bytes(sum(memory.values())))
    if account.decoded:
        rows.add_row("decoded", "rows of one Ŵ at a time, for a product", readable_bytes(account.decoded))
    return rows


def flops_table(account: Account) -> Any:
    """letters() says what the letters of its formulas are."""
    rows, N = formula_table(f"FLOPs of one training step, {about(account)}"), account.batch * account.tokens
    passes = dict(zip(("forward", "backward"), account.flops(), strict=True))
    for name, part in passes.items():
        linear, added, attention = formulas(account, name)
        rows.add_row(f"{name}: linear", linear, f"{part.linear:.4g}")
        rows.add_row(f"{name}: added", added, f"{part.adapter:.4g}")
        rows.add_row(f"{name}: attention", attention, f"{part.attention:.4g}")
        rows.add_row(name, f"{part.products / N:.4g} a token", f"{part.products:.4g}")
        rows.add_section()
    whole = sum(part.products for part in passes.values())
    full = count(account.model, "full", batch=account.batch, tokens=account.tokens, source_tokens=account.source_tokens)
    share = whole / sum(part.products for part in full.flops())
    rows.add_row("step", f"{share:.3f} of full fine-tuning's", f"{whole:.4g}")
    layers = low_rank_layers(account)
    if layers:
        ranks = sorted({break_even_rank(n_in, n_out) for n_in, n_out, _ in layers})
        words = " to ".join(f"{rank:,.0f}" for rank in dict.fromkeys((ranks[0], ranks[-1])))
        formed = sum(association_orders(n_in, n_out, r, N)["y"]["x (B A)ᵀ"] for n_in, n_out, r in layers)
        if not account.source_tokens:  # else the rows of x are not the same in all layers
            rows.add_row("if B A were formed", "2 Σ (r + n) in·out   forward", f"{formed:.4g}")
        rows.add_row("break-even rank", "in·out / 3 (in + out): above it an adapted layer costs more", words)
    return rows


def show_comparison(accounts: Mapping[str, Account]) -> None:
    """Several methods on one model, a column each; where they do not all fit, in several tables."""
    console, names = wide_console(), list(accounts)
    while names:
        fitting = max(
            n for n in range(1, len(names) + 1) if n == 1 or fits(console, comparison_table(accounts, names[:n]))
        )
        console.print(comparison_table(accounts, names[:fitting]))
        names = names[fitting:]


def comparison_table(accounts: Mapping[str, Account], names: list[str]) -> Any:
    facts = [accounts[name] for name in names]
    first, memories, steps = facts[0], [a.memory() for a in facts], [a.flops() for a in facts]
    title = f"{first.name}, one training step, batch {first.batch} × {first.tokens} tokens"
    rows = numbers_right(title, "", *names)
    rows.add_row("parameters of the base", *(f"{a.total:,}" for a in facts))
    rows.add_row("held in", *(a.dtype for a in facts))
    rows.add_row("trained parameters", *(f"{a.trainable:,}" for a in facts))
    rows.add_row("share", *(f"{a.share:.4%}" for a in facts))
    rows.add_row("file of what is trained", *(readable_bytes(a.adapter_bytes) for a in facts))
    rows.add_section()
    for name in memories[0]:
        rows.add_row(name, *(readable_bytes(memory[name]) for memory in memories))
    rows.add_row("memory in all", *(readable_bytes(sum(memory.values())) for memory in memories))
    rows.add_section()
    for i, name in enumerate(("forward FLOPs", "backward FLOPs")):
        rows.add_row(name, *(f"{step[i].products:.4g}" for step in steps))
    return rows
