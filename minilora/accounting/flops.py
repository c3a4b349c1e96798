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

Backward stops at the lowest block with a trained parameter: layers below it are not visited, and in that block no dx
is computed that nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..models.transformer import Transformer
from ..nn import Product
from .memory import step_costs


class Flops(NamedTuple):
    """Of one pass over a batch."""

    linear: int = 0  # the base's matrices
    adapter: int = 0  # what the method adds
    attention: int = 0  # S = q kᵀ and o = E v, quadratic in the number of tokens
    sums: int = 0  # means and row sums, written as products

    @property
    def products(self) -> int:
        return self.linear + self.adapter + self.attention


def total(products: Iterable[Product]) -> Flops:
    sums = dict.fromkeys(Flops._fields, 0)
    for product in products:
        sums[product.kind] += product.flops
    return Flops(**sums)


def flops(model: Transformer, batch: int, tokens: int, source_tokens: int | None = None) -> tuple[Flops, Flops]:
    """Forward and backward of one step over `batch` sequences of `tokens`, of what is trainable now. `source_tokens`:
    of each source that an encoder reads; None: `tokens` too."""
    costs = step_costs(model, batch, tokens, source_tokens=source_tokens)
    return total(costs.forward), total(costs.backward + costs.again)


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
