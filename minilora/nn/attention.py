"""Attention: projections, rotary positions, and the keys and values of earlier tokens.

Dims: B batch, T tokens, C width, H heads, G key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import ops
from ..backend import Array, get_array_module
from .inputs import Inputs, Pass
from .module import Gradients, Module


class Rope(NamedTuple):
    theta: float
    scaling: ops.RopeScaling | None = None

    def tables(self, x: Array, D: int, start: int) -> tuple[Array, Array]:
        """cos and sin for the positions of x, the first of them `start`."""
        xp = get_array_module(x)
        return ops.rope_tables(xp, x.shape[1], ops.rope_frequencies(xp, D, *self), x.dtype, start)


class AttentionCache(NamedTuple):
    projections: Any  # of q_proj, k_proj, v_proj
    norms: tuple[Any, Any]  # of q_norm and k_norm; None where there is none
    rope: tuple[Array, Array] | None  # cos and sin
    attention: Any  # ops.attention.AttentionCache, or ops.BlockwiseAttentionCache
    o_proj: Any


class Attention(Module):
    """y = o_proj(softmax(q kᵀ/√D + mask) v),  q, k, v = q_proj(x), k_proj(x), v_proj(x)

    With q_norm and k_norm (Qwen3) each head of q and of k is normalised; with `rope` it is then rotated. With
    run.kv_cache, the keys and values of earlier tokens come before those of x. With a `window`, a query sees only the
    last `window` keys, its own among them.
    """

    # With a causal mask and without a KV cache, from so many tokens on, attention is computed in blocks: no array is
    # T x T. On a CPU that is faster too, by a fifth at 512 tokens, a third at 1024; at 256 not always. Without a mask,
    # where no block can be skipped, it would take up to a fifth longer.
    blockwise_from: float = 512

    def __init__(
        self,
        q_proj: Module,
        k_proj: Module,
        v_proj: Module,
        o_proj: Module,
        head_dim: int,
        *,
        causal: bool,
        rope: Rope | None = None,
        window: int | None = None,
        q_norm: Module | None = None,
        k_norm: Module | None = None,
    ) -> None:
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = q_proj, k_proj, v_proj, o_proj
        self.head_dim, self.causal, self.rope, self.window = head_dim, causal, rope, window
        self.q_norm, self.k_norm = q_norm, k_norm

    def project(self, x: Array, inputs: Inputs, run: Pass) -> tuple[Sequence[Array], Any]:
        q, cq = self.q_proj.forward(x, inputs, run)
        k, ck = self.k_proj.forward(x, inputs, run)
        v, cv = self.v_proj.forward(x, inputs, run)
        return (q, k, v), (cq, ck, cv)

    def project_backward(self, dq: Array, dk: Array, dv: Array, cache: Any, grads: Gradients) -> Array | None:
        cq, ck, cv = cache
        dx = self.q_proj.backward(dq, cq, grads)
        dx_k, dx_v = self.k_proj.backward(dk, ck, grads), self.v_proj.backward(dv, cv, grads)
        if dx is not None:
            dx += dx_k
            dx += dx_v
        return dx

    def normalise(self, norm: Module | None, x: Array) -> tuple[Array, Any]:
        """`norm` of the D numbers of each head of x (B, T, H·D)."""
        if norm is None:
            return x, None
        y, cache = norm.forward(x.reshape(*x.shape[:-1], -1, self.head_dim))
        return y.reshape(x.shape), cache

    def normalise_backward(self, norm: Module | None, dy: Array, cache: Any, grads: Gradients) -> Array:
        if norm is None:
            return dy
        dx: Array = norm.backward(dy.reshape(*dy.shape[:-1], -1, self.head_dim), cache, grads)
        return dx.reshape(dy.shape)

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, AttentionCache]:
        xp, T, rope, kv_cache = get_array_module(x), x.shape[1], None, run.kv_cache
        start = kv_cache.length if kv_cache else 0
        (q, k, v), projections = self.project(x, inputs, run)
        q, q_norm = self.normalise(self.q_norm, q)
        k, k_norm = self.normalise(self.k_norm, k)
        if self.rope:
            rope = run.once((self.rope, self.head_dim, T), self.rope.tables, x, self.head_dim, start)
            q, k = ops.rope_forward(q, *rope), ops.rope_forward(k, *rope)
        if kv_cache:
            k, v = kv_cache.extend(self, k, v, self.window)
        attention: Any
        if self.causal and self.blockwise_from <= T and not kv_cache:
            o, attention = ops.blockwise_attention_forward(
                q, k, v, self.head_dim, True, inputs.padding, window=self.window
            )
        else:
            earlier = k.shape[1] - T
            shape = T, self.causal, inputs.padding, x.dtype, earlier, self.window
            mask = run.once((self.causal, T, self.window), ops.attention_mask, xp, *shape)
            o, attention = ops.attention_forward(q, k, v, mask, self.head_dim)
        y, o_proj = self.o_proj.forward(o, inputs, run.with_dx())
        return y, AttentionCache(projections, (q_norm, k_norm), rope, attention, o_proj)

    def backward(self, dy: Array, cache: AttentionCache, grads: Gradients) -> Array | None:
        do = self.o_proj.backward(dy, cache.o_proj, grads)
        blockwise = isinstance(cache.attention, ops.BlockwiseAttentionCache)
        backward = ops.blockwise_attention_backward if blockwise else ops.attention_backward
        dq, dk, dv = backward(do, cache.attention)
        if cache.rope is not None:
            dq, dk = ops.rope_backward(dq, *cache.rope), ops.rope_backward(dk, *cache.rope)
        dq = self.normalise_backward(self.q_norm, dq, cache.norms[0], grads)
        dk = self.normalise_backward(self.k_norm, dk, cache.norms[1], grads)
        return self.project_backward(dq, dk, dv, cache.projections, grads)


class FusedAttention(Attention):
    """GPT-2: one layer makes q, k and v,        [q | k | v] = qkv_proj(x)"""

    def __init__(self, qkv_proj: Module, o_proj: Module, head_dim: int, *, causal: bool) -> None:
        self.qkv_proj, self.o_proj = qkv_proj, o_proj
        self.head_dim, self.causal, self.rope, self.window = head_dim, causal, None, None
        self.q_norm = self.k_norm = None

    def project(self, x: Array, inputs: Inputs, run: Pass) -> tuple[Sequence[Array], Any]:
        qkv, cache = self.qkv_proj.forward(x, inputs, run)
        C = qkv.shape[-1] // 3
        return (qkv[..., :C], qkv[..., C : 2 * C], qkv[..., 2 * C :]), cache

    def project_backward(self, dq: Array, dk: Array, dv: Array, cache: Any, grads: Gradients) -> Array | None:
        return self.qkv_proj.backward(get_array_module(dq).concatenate([dq, dk, dv], axis=-1), cache, grads)
