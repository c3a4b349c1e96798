"""FLOPs of matrix products: a multiplication and an addition count 2.

A Linear costs 2·in·out a token for y = x Wᵀ, as much for dx = dy W, and as much again for dW = dyᵀ x, which a frozen
layer never computes. The low-rank path costs 2 r (in + out) forward, and for dh, dx, dA and dB twice that:

    full fine-tuning    6 in out                        LoRA    4 in out + 6 r (in + out)

so LoRA's step costs 2/3 of full fine-tuning's and a little more, and breaks even at r = in·out / 3 (in + out), which
for in = out = N is N/6 (Schulman et al., 2025, "LoRA Without Regret"). Attention's two products a head, S = q kᵀ and
o = E v, cost 4 T D a token forward and twice that backward, whatever is trained; all T keys are counted, those
that a mask hides too, since they are computed. In blocks (long sequences) backward makes S again, and costs 2.5 times
forward; and where a causal mask or a sliding window hides a block, nothing of it is computed. Sums written as products
(row sums, means) are counted apart.

Backward stops at the lowest layer that learns: what lies below is not entered, and the first layers in it make no dx.
"""

from __future__ import annotations

from typing import NamedTuple

from .architecture import Architecture, Attention, Linear, Norm
from .memory import lowest_stage
from .methods import Plan


class Flops(NamedTuple):
    """Of one pass over a batch."""

    linear: int = 0  # the base's matrices
    adapter: int = 0  # what the method adds
    attention: int = 0  # S = q kᵀ and o = E v, quadratic in the number of tokens
    sums: int = 0  # means and row sums, written as products

    @property
    def products(self) -> int:
        return self.linear + self.adapter + self.attention

    def plus(self, other: Flops) -> Flops:
        return Flops(*(a + b for a, b in zip(self, other, strict=True)))


def unread(model: Architecture, plan: Plan) -> str:
    """The array that the first layers which can learn read: nothing below it learns, so its gradient is never made.

    "" where a norm comes first that learns itself.
    """
    lowest = list(model.stages.values())[lowest_stage(model, plan) :]
    first, *rest = lowest[0] if lowest else [None]
    if isinstance(first, Linear):
        return first.x
    return first.path if isinstance(first, Norm) and rest and not plan.trained.intersection(first.tensors()) else ""


def flops(model: Architecture, plan: Plan, batch: int, tokens: int, *, recompute: bool = False) -> tuple[Flops, Flops]:
    """Forward and backward of one step over `batch` sequences of `tokens`."""
    T = (model.tokens or tokens) + plan.virtual_tokens
    inserts = {insert.layer.path: insert for insert in plan.inserts}
    lowest, forward, backward, no_dx = lowest_stage(model, plan), Flops(), Flops(), unread(model, plan)
    for i, (name, ops) in enumerate(model.stages.items()):
        there = back = Flops()
        for op in ops:
            N = batch * T
            if isinstance(op, Linear):
                N = batch * (op.rows or T)
                y, dW = 2 * N * op.n_in * op.n_out, op.weight in plan.trained
                there = there.plus(Flops(linear=y))
                back = back.plus(Flops(linear=y * (dW + (op.x != no_dx))))
            elif isinstance(op, Attention):
                H, D, M = op.heads, op.head_dim, batch * op.scores(T)
                quadratic = 4 * M * H * D
                # the distances pass through q_proj and k_proj, and multiply q and k: no batch in the first
                quadratic += 2 * op.relative * (2 * (H * D) ** 2 + 2 * N * H * D) if op.relative else 0
                S_again = 2 * M * H * D if op.blockwise(T) else 0
                there = there.plus(Flops(attention=quadratic, sums=2 * M * H))
                back = back.plus(Flops(attention=2 * quadratic + S_again, sums=2 * N * H * D))
            elif isinstance(op, Norm):
                sums = 2 * N * op.width * (2 if op.bias else 1)  # the mean of squares, and of a layer norm the mean
                there = there.plus(Flops(sums=sums))
                back = back.plus(Flops(sums=sums * (op.path != no_dx)))
            if insert := inserts.get(op.path):
                there = there.plus(Flops(adapter=N * insert.forward + insert.once))
                back = back.plus(Flops(adapter=N * insert.backward))
        forward = forward.plus(there)
        if i >= lowest:
            again = there if recompute and name in model.blocks() else Flops()
            backward = backward.plus(back).plus(again)
    return forward, backward


def break_even_rank(n_in: int, n_out: int) -> float:
    """The rank at which a LoRA step costs what a step of full fine-tuning costs: in·out / 3 (in + out)."""
    return n_in * n_out / (3 * (n_in + n_out))


def association_orders(n_in: int, n_out: int, r: int, N: int) -> dict[str, dict[str, int]]:
    """FLOPs of the low-rank products over N tokens, by the order in which they are taken.

    The first of each pair is what ops/lora.py does; the second forms a matrix (out, in).
    """
    dense, thin = 2 * N * n_in * n_out, 2 * r * n_in * n_out
    return {
        "y": {"(x Aᵀ) Bᵀ": 2 * N * r * (n_in + n_out), "x (B A)ᵀ": thin + dense},
        "dx": {"(dy B) A": 2 * N * r * (n_in + n_out), "dy (B A)": thin + dense},
        "dA": {"(dy B)ᵀ x": 2 * N * r * (n_in + n_out), "Bᵀ (dyᵀ x)": dense + thin},
        "dB": {"dyᵀ (x Aᵀ)": 2 * N * r * (n_in + n_out), "(dyᵀ x) Aᵀ": dense + thin},
    }
