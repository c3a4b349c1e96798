"""Multi-head attention: projections, rotary positions, KV cache.

Dims: B batch, T tokens, C width, H heads, G key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import ops
from ..backend import Array, get_array_module
from ..ops.blockwise_attention import BLOCK, seen_keys
from .costs import Costs, MetaArray
from .inputs import Inputs, Pass
from .kv_cache import KVCache
from .module import Gradients, Module


class Rope(NamedTuple):
    """Rotary position embeddings (ops/rope.py)."""

    theta: float
    scaling: ops.RopeScaling | None = None

    def tables(self, x: Array, D: int, kv_cache: KVCache | None = None) -> tuple[Array, Array]:
        """cos and sin, each (T, 1, D), for the tokens of x (B, T, ...) behind those of a KV cache; each (B, T, 1, D) if
        that has padding."""
        xp, T, start = get_array_module(x), x.shape[1], kv_cache.length if kv_cache else 0
        n: Any = start + T
        of_rows = kv_cache.positions(T) if kv_cache else None
        if of_rows is not None:
            of_rows = xp.asarray(of_rows)
            n = of_rows[:, -1:, None, None] + 1
        omega = ops.rope_frequencies(xp, D, *self, n)
        return ops.rope_tables(xp, T, omega, x.dtype, start, getattr(self.scaling, "amplitude", 1), of_rows)


class AttentionCache(NamedTuple):
    projections: Any  # the caches of q_proj, k_proj, v_proj, or of qkv_proj
    norms: tuple[Any, Any]  # the caches of q_norm and k_norm; None where there is none
    rope: tuple[Array, Array] | None  # cos and sin
    attention: Any  # ops.attention.AttentionCache, or ops.BlockwiseAttentionCache
    o_proj: Any
    needs_db: bool = False  # of a trained bias of the scores (relative_attention.py)


class Attention(Module):
    """y = o_proj(softmax(q kᵀ/√D + mask) v),  q, k, v = q_proj(x), k_proj(x), v_proj(x)

    x and y (B, T, C). With q_norm and k_norm (Qwen3) each head of q and of k is normalised; with `rope` both are then
    rotated. With run.kv_cache, the keys and values of earlier tokens come before those of x. With a `window`, a query
    attends only to the last `window` keys, its own included. A `causal` mask hides later keys; without one a window
    reaches as far ahead as back. `root` replaces √D.
    """

    # From this number of tokens on, causal attention without a KV cache is computed in blocks, without T x T arrays. On
    # a CPU that is also faster, from 1024 tokens on (docs/speed.md); at 512 it depends on the processor. Without a
    # causal mask or a window no block can be skipped, and it would take up to a fifth longer.
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
        root: float | None = None,
    ) -> None:
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = q_proj, k_proj, v_proj, o_proj
        self.head_dim, self.causal, self.rope, self.window = head_dim, causal, rope, window
        self.q_norm, self.k_norm, self.root = q_norm, k_norm, root

    def project(self, x: Array, inputs: Inputs, run: Pass) -> tuple[Sequence[Array], Any]:
        """(q, k, v) and the caches of their projections."""
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

    def normalise(self, norm: Module | None, x: Array, inputs: Inputs, run: Pass) -> tuple[Array, Any]:
        """`norm` of the D entries of each head of x (B, T, H·D)."""
        if norm is None:
            return x, None
        y, cache = norm.forward(x.reshape(*x.shape[:-1], -1, self.head_dim), inputs, run)
        return y.reshape(x.shape), cache

    def normalise_backward(self, norm: Module | None, dy: Array, cache: Any, grads: Gradients) -> Array:
        if norm is None:
            return dy
        dx: Array = norm.backward(dy.reshape(*dy.shape[:-1], -1, self.head_dim), cache, grads)
        return dx.reshape(dy.shape)

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, AttentionCache | None]:
        T, rope, kv_cache = x.shape[1], None, run.kv_cache
        (q, k, v), projections = self.project(x, inputs, run)
        q, q_norm = self.normalise(self.q_norm, q, inputs, run)
        k, k_norm = self.normalise(self.k_norm, k, inputs, run)
        if self.rope:
            rope = run.once((self.rope, self.head_dim, T), self.rope.tables, x, self.head_dim, kv_cache)
            q, k = ops.rope_forward(q, *rope), ops.rope_forward(k, *rope)
        if kv_cache:
            k, v = kv_cache.extend(self, k, v, self.window)
        attention: Any
        if self.blockwise(T) and not kv_cache:
            o, attention = ops.blockwise_attention_forward(
                q, k, v, self.head_dim, self.causal, inputs.padding, window=self.window, root=self.root
            )
        else:
            mask = self.mask(x, k.shape[1], inputs, run)
            o, attention = ops.attention_forward(q, k, v, mask, self.head_dim, self.root)
        y, o_proj = self.o_proj.forward(o, inputs, run.with_dx())
        if not run.needs_cache:
            return y, None
        return y, AttentionCache(projections, (q_norm, k_norm), rope, attention, o_proj)

    def mask(self, x: Array, keys: int, inputs: Inputs, run: Pass) -> Array | None:
        """The additive mask for the T queries of x (B, T, C) against `keys` keys, the last T of which are x's own."""

        def made() -> Array | None:
            xp, padding, kv_cache = get_array_module(x), inputs.padding, run.kv_cache
            if kv_cache:
                end = kv_cache.length + T
                real = kv_cache.real(end - keys, end)
                padding = None if real is None else xp.asarray(real)
            return ops.attention_mask(xp, T, self.causal, padding, x.dtype, keys - T, self.window)

        T = x.shape[1]
        return run.once((self.causal, T, self.window), made)

    def backward(self, dy: Array, cache: AttentionCache, grads: Gradients) -> Array | None:
        do = self.o_proj.backward(dy, cache.o_proj, grads)
        dq, dk, dv = self.attend_backward(do, cache, grads)
        if cache.rope is not None:
            dq, dk = ops.rope_backward(dq, *cache.rope), ops.rope_backward(dk, *cache.rope)
        dq = self.normalise_backward(self.q_norm, dq, cache.norms[0], grads)
        dk = self.normalise_backward(self.k_norm, dk, cache.norms[1], grads)
        return self.project_backward(dq, dk, dv, cache.projections, grads)

    def attend_backward(self, do: Array, cache: AttentionCache, grads: Gradients) -> tuple[Array, Array, Array]:
        blockwise = isinstance(cache.attention, ops.BlockwiseAttentionCache)
        backward = ops.blockwise_attention_backward if blockwise else ops.attention_backward
        return backward(do, cache.attention, self.root)

    @property
    def heads(self) -> int:
        return self.o_proj.weight.data.shape[1] // self.head_dim  # type: ignore[attr-defined]

    @property
    def kv_heads(self) -> int:
        return self.k_proj.weight.data.shape[0] // self.head_dim  # type: ignore[attr-defined]

    def blockwise(self, T: int) -> bool:
        """Whether a forward over T tokens takes them in blocks."""
        skips = self.causal or (self.window is not None and self.window < T)
        return skips and self.blockwise_from <= T

    def scores(self, T: int) -> int:
        """The number of scores of one head for T tokens: T², or those of the blocks that are not skipped."""
        if not self.blockwise(T):
            return T * T
        seen = {t: seen_keys(t, BLOCK, T, self.causal, self.window) for t in range(0, T, BLOCK)}
        return sum(min(BLOCK, T - t) * (end - begin) for t, (begin, end) in seen.items())

    def project_costs(self, x: MetaArray, costs: Costs) -> list[tuple[str, MetaArray, str]]:
        """Add the costs of the projections. Returns (name, array, formula that reads it) of the arrays of k and v."""
        _, k, v = (layer.costs(x, costs) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return [("k", k, "dq = dS k/√D"), ("v", v, "dP = do vᵀ")]

    def keys(self, T: int, costs: Costs) -> int:
        """The number of keys for T queries."""
        return T

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        (B, T, _), H, D = x.shape, self.heads, self.head_dim
        keys_and_values, Tk = self.project_costs(x, costs), self.keys(T, costs)
        for norm, tokens, heads in ((self.q_norm, T, H), (self.k_norm, Tk, self.kv_heads)):
            if norm is not None:
                norm.costs(costs.array(B, tokens, heads, D), costs)
        if self.rope:
            tables = costs.once((self.rope, D), 2, T, 1, D)
            costs.keep(self, "cos, sin", tables, "turning dq and dk back")
        costs.keep(self, "q/√D", costs.array(B, T, H * D), "dk = dSᵀ q/√D")
        for what, array, why in keys_and_values:
            costs.keep(self, what, array, why)
        merged = H == 1 or T == 1  # merging the heads of o copies nothing: o_proj reads the same array
        if self.blockwise(T):
            costs.keep(self, "L", costs.array(B, H, T, 1), "P = exp(S - L), S made again")
            merged = merged or self.kv_heads in (1, H)  # there the heads of a group are side by side
        else:
            costs.keep(self, "E", costs.array(B, H, T, Tk), "dS = E ∘ (...), dv = Eᵀ do/Z")
            costs.keep(self, "Z", costs.array(B, H, T, 1), "do_Z = do / Z")
        o = costs.array(B, T, H * D)
        costs.keep(self, "o", o if merged else costs.array(B, T, H * D), "rowsum(do ∘ o)", shape=(B, H, T, D))
        scores = self.scores(T) if self.blockwise(T) else T * Tk
        S = 2 * B * scores * H * D
        again = S * self.blockwise(T)
        forward, backward = {"S = q kᵀ": S, "o = E v": S}, {"dP, dv": 2 * S, "dq, dk": 2 * S, "S again": again}
        costs.multiply(self, "attention", forward, backward)
        costs.multiply(self, "sums", {"Z": 2 * B * scores * H}, {"rowsum(do ∘ o)": 2 * B * T * H * D})
        return self.o_proj.costs(o, costs)


class FusedAttention(Attention):
    """GPT-2, Phi-3, ModernBERT: one projection for q, k and v,      [q | k | v] = qkv_proj(x)      of H, G, G heads"""

    def __init__(
        self, qkv_proj: Module, o_proj: Module, head_dim: int, *, causal: bool, rope: Rope | None = None,
        window: int | None = None,
    ) -> None:  # fmt: skip
        self.qkv_proj, self.o_proj = qkv_proj, o_proj
        self.head_dim, self.causal, self.rope, self.window = head_dim, causal, rope, window
        self.q_norm = self.k_norm = self.root = None

    def project(self, x: Array, inputs: Inputs, run: Pass) -> tuple[Sequence[Array], Any]:
        qkv, cache = self.qkv_proj.forward(x, inputs, run)
        k, v = self.heads * self.head_dim, (self.heads + self.kv_heads) * self.head_dim
        return (qkv[..., :k], qkv[..., k:v], qkv[..., v:]), cache

    def project_backward(self, dq: Array, dk: Array, dv: Array, cache: Any, grads: Gradients) -> Array | None:
        return self.qkv_proj.backward(get_array_module(dq).concatenate([dq, dk, dv], axis=-1), cache, grads)

    @property
    def kv_heads(self) -> int:
        rows: int = self.qkv_proj.weight.data.shape[0]  # type: ignore[attr-defined]
        return (rows // self.head_dim - self.heads) // 2

    def project_costs(self, x: MetaArray, costs: Costs) -> list[tuple[str, MetaArray, str]]:
        qkv = self.qkv_proj.costs(x, costs)
        if not self.rope:
            return [("q, k, v", qkv, "dq = dS k/√D, dP = do vᵀ: k and v are views")]
        k = costs.array(*x.shape[:-1], self.kv_heads * self.head_dim)
        return [("k", k, "dq = dS k/√D"), ("q, k, v", qkv, "dP = do vᵀ: v is a view")]
