"""Accounts for people and for programs: tables with a formula beside each number, several side by side, JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..display.tables import fits, numbers_right, wide_console
from .architecture import Attention, Linear, Shape, Table
from .count import Account, count
from .flops import association_orders, break_even_rank, unread
from .memory import Entry, lowest_stage, size
from .methods import ADDED
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
    """{(kind of path, shape): how many}; of PEFT's long names the last parts are the kind."""
    counts: dict[tuple[str, Shape], int] = {}
    for path, shape in tensors.items():
        parts = path.split(".")
        ending = ".".join(parts[-3 if parts[-1] in ("weight", "bias") else -2 :])
        key = (ending if parts[0] == "base_model" else kind(path)), shape
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
    console = wide_console()
    for table in (parameters_table(account), trained_table(account), memory_table(account)):
        console.print(table)
    console.print(flops_table(account))
    console.print(letters(account), soft_wrap=True)


def formula_table(title: str) -> Any:
    """A rich Table of names, formulas and numbers; where it is narrow the formulas are folded, never the numbers."""
    return numbers_right(title, "", "formula", "", words=(0, 1), min_width=78)


def add_tensors(rows: Any, tensors: Mapping[str, Shape]) -> None:
    for (path, shape), n in kinds(tensors).items():
        rows.add_row(path, product(n, shape), f"{n * size(shape):,}")
    rows.add_section()


def parameters_table(account: Account) -> Any:
    name = account.model.name
    rows = formula_table(f"Parameters of {name}")
    add_tensors(rows, account.model.tensors())
    rows.add_row("total", "", f"{account.total:,}")
    if name in PRINTED:
        printed, where = PRINTED[name]
        rows.add_row("printed", where, printed)
    return rows


def trained_table(account: Account) -> Any:
    rows = formula_table(f"Trained by {account.plan.method}: {account.plan.formula}")
    add_tensors(rows, account.trained)
    rows.add_row("trained", "", f"{account.trainable:,}")
    rows.add_row("share", "trained / total", f"{account.share:.4%}")
    name, formula = ("adapter_model.safetensors", "a header, and the numbers")
    if not account.plan.in_peft:
        name, formula = "a file of it", "the numbers: PEFT writes no such file"
    rows.add_row(name, formula, f"{account.adapter_bytes:,} B")
    return rows


def about(account: Account) -> str:
    return f"batch {account.batch} × {account.tokens} tokens, {account.dtype}"


def memory_table(account: Account) -> Any:
    memory = account.memory()
    rows = formula_table(f"Memory of one training step, {about(account)}{', recomputing blocks' * account.recompute}")
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
    return rows


def flops_table(account: Account) -> Any:
    """letters() says what the letters of its formulas are."""
    model, plan = account.model, account.plan
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
    full = sum(part.products for part in count(model, "full", batch=account.batch, tokens=account.tokens).flops())
    rows.add_row("step", f"{whole / full:.3f} of full fine-tuning's", f"{whole:.4g}")
    adapted = [(i.layer, i.trained["lora_A.weight"][0]) for i in plan.inserts if "lora_A.weight" in i.trained]
    if plan.method == "lora" and adapted:
        layers = [layer for layer, _ in adapted if isinstance(layer, Linear)]
        ranks = sorted({break_even_rank(layer.n_in, layer.n_out) for layer in layers})
        words = " to ".join(f"{rank:,.0f}" for rank in dict.fromkeys((ranks[0], ranks[-1])))
        orders = (
            association_orders(layer.n_in, layer.n_out, r, (layer.rows or account.tokens) * account.batch)
            for layer, r in adapted
            if isinstance(layer, Linear)
        )
        formed = sum(order["y"]["x (B A)ᵀ"] for order in orders)
        rows.add_row("were B A formed", "2 Σ (r + n) in·out   forward", f"{formed:.4g}")
        rows.add_row("break-even rank", "in·out / 3 (in + out): above it LoRA's layer costs more", words)
    return rows


def formulas(account: Account, which: str) -> tuple[str, str, str]:
    """Of a pass, "forward" or "backward": what the base's matrices cost, what is added, and attention."""
    plan, forward = account.plan, which == "forward"
    stages = list(account.model.stages.values())
    ops = [op for stage in (stages if forward else stages[lowest_stage(account.model, plan) :]) for op in stage]
    linears, attentions = [op for op in ops if isinstance(op, Linear)], [op for op in ops if isinstance(op, Attention)]
    no_dx = unread(account.model, plan)
    dx, dW = sum(op.x != no_dx for op in linears), sum(op.weight in plan.trained for op in linears)
    over = f"y = x Wᵀ of {len(linears)}" if forward else f"dx = dy W of {dx}, dW = dyᵀ x of {dW}"
    T = account.tokens + plan.virtual_tokens
    blockwise = any(op.blockwise(T) for op in attentions)
    squares = "(T N + P (N + H D))" if any(op.relative for op in attentions) else "T N"
    layers = f"{squares} × {len(attentions)}"
    if blockwise:
        names = score_letters(account)
        terms = [f"{names[n]} × {times}" for n, times in Counter(op.scores(T) for op in attentions).items()]
        layers = " + ".join(terms) if len(terms) == 1 else f"({' + '.join(terms)})"
    products = 4 if forward else 10 if blockwise else 8
    again = " + the blocks' forward" * (account.recompute and not forward)
    added = ADDED[plan.method].products[not forward] if plan.method in ADDED else ""
    return (
        f"2 Σ n in·out{again}   {over}",
        added and f"{added}{again}",
        f"{products} H D {layers}{again}" if attentions else "",
    )


def score_letters(account: Account) -> dict[int, str]:
    """{how many scores a head computes for a sequence: its letter}: with a window in some layers there are two."""
    T = account.tokens + account.plan.virtual_tokens
    found = {op.scores(T) for op in account.model.ops() if isinstance(op, Attention)}
    return dict(zip(sorted(found, reverse=True), "MW", strict=False))


def letters(account: Account) -> str:
    """What the letters of the formulas of FLOPs stand for."""
    attention = next((op for op in account.model.ops() if isinstance(op, Attention)), None)
    T = account.tokens + account.plan.virtual_tokens
    said = [f"N = {account.batch * T:,} tokens in sequences of T = {T:,}", "n: the rows of a layer's x, mostly N"]
    if attention:
        said += [f"H = {attention.heads} heads of width D = {attention.head_dim}"]
        said += [f"P = {attention.relative} distances"] if attention.relative else []
        if attention.blockwise(T):
            where = {"M": "", "W": " in a layer with a window"}
            scores = {name: f"{account.batch * n:,}" for n, name in score_letters(account).items()}
            said += [f"{name} = {n} scores of a head{where[name]}" for name, n in scores.items()]
    if any(isinstance(insert.layer, Table) for insert in account.plan.inserts):
        said += ["in of an embedding, which is looked up: 0"]
    return "; ".join(said)


def show_side_by_side(accounts: Mapping[str, Account]) -> None:
    """Several methods on one model, a column each; where they do not all fit, in several tables."""
    console, names = wide_console(), list(accounts)
    while names:
        fitting = max(n for n in range(1, len(names) + 1) if n == 1 or fits(console, beside(accounts, names[:n])))
        console.print(beside(accounts, names[:fitting]))
        names = names[fitting:]


def beside(accounts: Mapping[str, Account], names: list[str]) -> Any:
    facts = [accounts[name] for name in names]
    first, memories, steps = facts[0], [a.memory() for a in facts], [a.flops() for a in facts]
    title = f"{first.model.name}, one training step, batch {first.batch} × {first.tokens} tokens"
    rows = numbers_right(title, "", *names)
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
    return rows
