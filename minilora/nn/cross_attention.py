"""Two streams: a decoder that reads what an encoder has made of another text.

The encoder's output, the memory m (B, S, C), acts like a weight that all blocks of the decoder share: it is not the
block's own input, every block reads the same, and its gradient is the sum of theirs:

    dm = Σ_l (dk_l Wk_l + dv_l Wv_l)            l: the blocks of the decoder (ops/attention.py)

So the blocks keep the contract of one stream, x in and dx out. Inputs carry the memory to them, Gradients collect its
gradient, and when the decoder's backward has ended, the encoder's begins with it (models/encoder_decoder.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import ops
from ..backend import Array
from .attention import Attention, AttentionCache
from .blocks import Block
from .costs import Costs, MetaArray
from .inputs import Inputs, Pass
from .module import Gradients, Module, Parameter


@dataclass(eq=False)
class Memory(Parameter):
    """The output of an encoder, `data` (B, S, C). It is `trainable` if something in the encoder is.

    A Parameter only so that Gradients can hold its gradient: it belongs to no module.
    """

    padding: Array | None = None  # (B, S) bool, True for a real token of the source; None: all are real

    def take(self, rows: Sequence[int]) -> Memory:
        """A copy of these rows."""
        padding = None if self.padding is None else self.padding[rows]
        return Memory(self.data[rows], self.trainable, padding)


class CrossAttention(Attention):
    """y = o_proj(softmax(q kᵀ/√D + mask) v),  q = q_proj(x), k, v = k_proj(m), v_proj(m)

    x and y (B, T, C) of the decoder, m (B, S, C) the memory. The mask hides the padding of the source. With
    run.kv_cache, k and v are computed once for a memory.
    """

    def __init__(
        self, q_proj: Module, k_proj: Module, v_proj: Module, o_proj: Module, head_dim: int, root: float | None = None
    ) -> None:
        super().__init__(q_proj, k_proj, v_proj, o_proj, head_dim, causal=False, root=root)

    def project(self, x: Array, inputs: Inputs, run: Pass) -> tuple[Sequence[Array], Any]:
        memory, kv_cache = inputs.memory, run.kv_cache
        q, cq = self.q_proj.forward(x, inputs, run)
        if kv_cache is not None and (self, memory) in kv_cache.arrays:
            return (q, *kv_cache.arrays[self, memory]), None
        of_source, run = inputs._replace(text=None), run._replace(needs_dx=memory.trainable)  # text: the decoder's
        k, ck = self.k_proj.forward(memory.data, of_source, run)
        v, cv = self.v_proj.forward(memory.data, of_source, run)
        if kv_cache is not None:
            kv_cache.arrays[self, memory] = k, v
        return (q, k, v), (cq, ck, cv, memory if memory.trainable else None)

    def project_backward(self, dq: Array, dk: Array, dv: Array, cache: Any, grads: Gradients) -> Array | None:
        cq, ck, cv, memory = cache
        dm, dm_v = self.k_proj.backward(dk, ck, grads), self.v_proj.backward(dv, cv, grads)
        if memory is not None:
            grads.add(memory, dm + dm_v)
        return self.q_proj.backward(dq, cq, grads)

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, AttentionCache]:
        if inputs.memory is None:
            raise ValueError("cross-attention reads the output of an encoder: Inputs(memory=Memory(m))")
        (q, k, v), projections = self.project(x, inputs, run)
        padding, mask = inputs.memory.padding, None
        if padding is not None:
            mask = run.once("the source's padding", ops.padding_mask, padding, x.dtype)
        o, attention = ops.attention_forward(q, k, v, mask, self.head_dim, self.root)
        y, o_proj = self.o_proj.forward(o, inputs, run.with_dx())
        return y, AttentionCache(projections, (None, None), None, attention, o_proj)

    def project_costs(self, x: MetaArray, costs: Costs) -> list[tuple[str, MetaArray, str]]:
        self.q_proj.costs(x, costs)
        k, v = self.k_proj.costs(costs.memory, costs), self.v_proj.costs(costs.memory, costs)
        return [("k", k, "dq = dS k/√D"), ("v", v, "dP = do vᵀ")]

    def keys(self, T: int, costs: Costs) -> int:
        return costs.memory.shape[1]


class DecoderBlockCache(NamedTuple):
    norm_1: Any
    attention: Any
    norm_cross: Any
    cross_attention: Any
    norm_2: Any
    mlp: Any


class DecoderBlock(Block):
    """x₁ = x + attention(norm_1(x))    x₂ = x₁ + cross_attention(norm_cross(x₁), m)    y = x₂ + mlp(norm_2(x₂))"""

    def __init__(
        self,
        norm_1: Module,
        attention: Module,
        norm_cross: Module,
        cross_attention: Module,
        norm_2: Module,
        mlp: Module,
    ) -> None:
        self.norm_1, self.attention = norm_1, attention  # in this order, which is that of the parameters
        self.norm_cross, self.cross_attention = norm_cross, cross_attention
        self.norm_2, self.mlp = norm_2, mlp

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, DecoderBlockCache]:
        h, c1 = self.norm_1.forward(x, inputs, run)
        h, c2 = self.attention.forward(h, inputs, self.norm_1.above(run))
        x, run = x + h, run.with_dx()
        h, c3 = self.norm_cross.forward(x, inputs, run)
        h, c4 = self.cross_attention.forward(h, inputs, run)
        x = x + h
        h, c5 = self.norm_2.forward(x, inputs, run)
        h, c6 = self.mlp.forward(h, inputs, run)
        return x + h, DecoderBlockCache(c1, c2, c3, c4, c5, c6)

    def backward(self, dy: Array, cache: DecoderBlockCache, grads: Gradients) -> Array | None:
        dh = self.mlp.backward(dy, cache.mlp, grads)
        dx = dy + self.norm_2.backward(dh, cache.norm_2, grads)
        dh = self.cross_attention.backward(dx, cache.cross_attention, grads)
        dx = dx + self.norm_cross.backward(dh, cache.norm_cross, grads)
        dh = self.attention.backward(dx, cache.attention, grads)
        dh = None if dh is None else self.norm_1.backward(dh, cache.norm_1, grads)
        return None if dh is None else dx + dh

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        h = self.attention.costs(self.norm_1.costs(x, costs), costs)
        h = self.cross_attention.costs(self.norm_cross.costs(costs.array(*h.shape), costs), costs)
        h = self.mlp.costs(self.norm_2.costs(costs.array(*h.shape), costs), costs)
        return costs.array(*h.shape)
