"""Self-attention with a relative position bias (T5)."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..backend import Array
from .attention import Attention, AttentionCache
from .costs import Costs, MetaArray
from .inputs import Inputs, Pass
from .module import Gradients, Module, Parameter


class RelativeBias(Module):
    """b (H, Tq, Tk), b_hij = W[bucket(j - i), h]       W (n, H)

    It has no forward of its own: the attentions that share it add it to their scores (ops/relative_bias.py).
    """

    def __init__(self, weight: Array, max_distance: int, both_ways: bool) -> None:
        self.weight, self.max_distance, self.both_ways = Parameter(weight), max_distance, both_ways

    def buckets(self, Tq: int, Tk: int) -> Any:
        """(Tq, Tk), for queries that are the last Tq of the Tk tokens."""
        n = len(self.weight.data)
        return self.weight.xp.asarray(ops.relative_buckets(Tq, Tk, Tk - Tq, self.both_ways, n, self.max_distance))


class RelativeAttention(Attention):
    """Attention whose scores have the bias of a RelativeBias, which several share. As many key heads as query heads."""

    def __init__(self, *projections: Module, head_dim: int, causal: bool, root: float, bias: RelativeBias) -> None:
        q_proj, k_proj, v_proj, o_proj = projections
        super().__init__(q_proj, k_proj, v_proj, o_proj, head_dim, causal=causal, root=root)
        self.relative_bias = bias

    def blockwise(self, T: int) -> bool:
        return False

    def mask(self, x: Array, keys: int, inputs: Inputs, run: Pass) -> Array:
        def biased() -> Array:
            mask = super(RelativeAttention, self).mask(x, keys, inputs, run)
            buckets = self.relative_bias.buckets(x.shape[1], keys)
            b, _ = ops.relative_bias_forward(self.relative_bias.weight.data, buckets)
            return b if mask is None else b + mask

        return run.once((self.relative_bias, x.shape[1]), biased)

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, AttentionCache | None]:
        y, cache = super().forward(x, inputs, run)
        return y, cache and cache._replace(needs_db=self.relative_bias.weight.trainable)

    def attend_backward(self, do: Array, cache: AttentionCache, grads: Gradients) -> tuple[Array, Array, Array]:
        if cache.needs_db:
            db, W = ops.attention_bias_gradients(do, cache.attention), self.relative_bias.weight
            buckets = self.relative_bias.buckets(*db.shape[1:])
            grads.add(W, ops.relative_bias_gradients(db, buckets, len(W.data)))
        return super().attend_backward(do, cache, grads)

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        if self.relative_bias.weight.trainable:
            (B, T, _), HD = x.shape, self.heads * self.head_dim
            costs.multiply(self, "attention", {}, {"dP again": 2 * B * T * T * HD})
            costs.multiply(self, "sums", {}, {"rowsum(do ∘ o) again": 2 * B * T * HD})
        return super().costs(x, costs)
