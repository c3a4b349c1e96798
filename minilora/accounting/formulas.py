"""The formulas that give the numbers of an account, in the letters of the papers."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..adapters.base import Adapter
from ..nn import Attention, Linear, Product
from .count import Account
from .methods import TRAINED


def low_rank_layers(account: Account) -> list[tuple[int, int, int]]:
    """in, out and r of the layers, if only y += s (x Aᵀ) Bᵀ is trained on them; [] if something else is trained."""
    found = []
    for adapter in adapters(account):
        if isinstance(adapter.base, Linear):
            trained = sorted(slot.shape for slot in adapter.slots if slot.trained)
            if trained != [("n_out", "r"), ("r", "n_in")]:
                return []
            found.append((adapter.sizes["n_in"], adapter.sizes["n_out"], adapter.sizes["r"]))
    return found


def adapters(account: Account) -> list[Adapter]:
    return [m for _, m in account.model.named_modules() if isinstance(m, Adapter) and m.slots]


def trained_formula(account: Account) -> str:
    """What the method trains; of adapters, the shapes of their slots, summed over the layers."""
    shapes = [[" ".join(slot.shape) for slot in m.slots if slot.trained] for m in adapters(account)]
    sums = dict.fromkeys(f"Σ ({' + '.join(named)})" for named in shapes)
    return TRAINED.get(account.method) or readable_formula(" + ".join(sums))


def readable_formula(formula: str) -> str:
    """2 * r * (n_in + n_out) -> 2 r (in + out)"""
    return formula.replace("n_in", "in").replace("n_out", "out").replace(" * ", " ")


def formulas(account: Account, which: str) -> tuple[str, str, str]:
    """Of a pass, "forward" or "backward": what the base's matrices cost, what is added, and attention."""
    forward = which == "forward"
    products = account.costs.forward if forward else account.costs.backward
    counts = Counter(product.formula for product in products)
    over = ", ".join(f"{y} of {counts[y]}" for y in (["y = x Wᵀ"] if forward else ["dx = dy W", "dW = dyᵀ x"]))
    added = Counter(product.formula for product in products if product.kind == "adapter")
    each = (f"Σ {readable_formula(formula)}" + f" of {n}" * (len(added) > 1) for formula, n in added.items())
    sums = " + ".join(each)
    squares = attention_formula(account, products)
    again = " + the blocks' forward" * (account.recompute and not forward)
    return f"2 Σ n in·out{again}   {over}", sums and f"{sums}{again}", squares and f"{squares}{again}"


def attention_formula(account: Account, products: list[Product]) -> str:
    """4 H D T N × 12: the 12 layers of a pass, by how many scores a head of them computes."""
    T, S, B, model = positions(account), account.source_tokens or 0, account.batch, account.model
    made = [p for p in products if p.formula in ("S = q kᵀ", "dP, dv")]
    if not made:
        return ""
    layers: list[Any] = [model[p.layer] for p in made]
    forward = any(p.formula == "S = q kᵀ" for p in made)
    blockwise = any(layer.blockwise(T) for layer in layers)
    names = score_letters(account) if blockwise else {S * S: "S² B", T * S: "S N", T * T: "T N"}
    each = (2 if forward else 4) * B
    scores = [p.flops // (each * layer.heads * layer.head_dim) for p, layer in zip(made, layers, strict=True)]
    terms = [f"{names[n]} × {times}" for n, times in Counter(scores).items()]
    together = terms[0] if len(terms) == 1 else f"({' + '.join(terms)})"
    return f"{4 if forward else 10 if blockwise else 8} H D {together}"


def positions(account: Account) -> int:
    """T, virtual tokens among them."""
    return account.tokens + account.virtual_tokens


def attentions(account: Account) -> list[Attention]:
    return [m for _, m in account.model.named_modules() if isinstance(m, Attention)]


def score_letters(account: Account) -> dict[int, str]:
    """{how many scores a head computes for a sequence: its letter}: with a window in some layers there are two."""
    found = {layer.scores(positions(account)) for layer in attentions(account)}
    return dict(zip(sorted(found, reverse=True), "MW", strict=False))


def letters(account: Account) -> str:
    """What the letters of the formulas of FLOPs stand for."""
    T, layer = positions(account), attentions(account)[0]
    words = [f"N = {account.batch * T:,} tokens in sequences of T = {T:,}", "n: the rows of a layer's x, mostly N"]
    if account.source_tokens:
        words += [f"B = {account.batch} sources of S = {account.source_tokens} tokens"]
    words += [f"H = {layer.heads} heads of width D = {layer.head_dim}"]
    if layer.blockwise(T):
        where = {"M": "", "W": " in a layer with a window"}
        scores = {name: f"{account.batch * n:,}" for n, name in score_letters(account).items()}
        words += [f"{name} = {n} scores of a head{where[name]}" for name, n in scores.items()]
    return "; ".join(words)
