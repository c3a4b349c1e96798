"""The parts of a transformer: attention, MLPs, blocks, embeddings, what a head is made of, and the whole.

Dims: B batch, T tokens, C width, H heads, G key/value heads, D head width, F hidden width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import ops
from .backend import Array, get_array_module
from .modules import Context, Embedding, Gradients, Module, Sequential

HEADS = "lm", "classify", "tokens", "none"
LABELLED = "classify", "tokens"  # the heads whose outputs are labels: of a sequence, or of each token (encoders)
HUGE = 1e300  # no number of a config is so large; Python's whole numbers have no end
ACTIVATIONS = "gelu", "gelu_tanh"
LAYER_TYPES = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Config:
    """The shape of a model. 0 means: derive it from the others."""

    vocab_size: int  # V
    n_layers: int
    d_model: int  # C
    n_heads: int  # H
    n_kv_heads: int = 0  # G, of keys and values; 0: H
    d_ff: int = 0  # F; 0: 4 C
    max_length: int = 1024  # the longest sequence, in tokens
    segments: int = 2  # BERT
    rope_theta: float = 10000.0  # Llama
    eps: float = 1e-5  # of the norms
    tied: bool = True  # the head shares the token embedding's weight
    dtype: str = "float32"
    head: str = "lm"  # one of HEADS
    labels: int = 2  # of a classifier, of sequences or of tokens
    head_dim: int = 0  # D; 0: C/H
    activation: str = "gelu_tanh"  # GPT-2, BERT: one of ACTIVATIONS
    qkv_bias: bool = False  # Llama: Qwen2 has biases on q, k and v
    rope_scaling: ops.RopeScaling | None = None  # Llama 3.1
    offset: int = 0  # rows of the position table before the first position (RoBERTa: 2)
    sliding_window: int | None = None  # Llama: the keys that a query sees, its own the last; None: all before it
    max_window_layers: int = 0  # Qwen2: layers before the first that has the window
    layer_types: tuple[str, ...] = ()  # Qwen2: for each layer one of LAYER_TYPES, in the place of max_window_layers

    def __post_init__(self) -> None:
        derived = "n_kv_heads", "d_ff", "head_dim", "offset", "max_window_layers"
        for name in (*derived, "vocab_size", "n_layers", "d_model", "n_heads", "max_length", "segments", "labels"):
            least, value = int(name not in derived), getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} = {value!r:.80} is not a whole number from {least} up")
        for name in ("rope_theta", "eps"):
            if type(getattr(self, name)) not in (int, float) or not 0 < getattr(self, name) < HUGE:
                raise ValueError(f"{name} = {getattr(self, name)!r:.80} is not a positive number")
        for name in ("tied", "qkv_bias"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} = {getattr(self, name)!r:.80} is not True or False")
        for name, known in (("head", HEADS), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r:.80} is not one of {', '.join(known)}")
        window, types = self.sliding_window, self.layer_types
        if window is not None and (type(window) is not int or window < 1):
            raise ValueError(f"sliding_window = {window!r:.80} is not a whole number from 1 up")
        if types and (len(types) != self.n_layers or not set(types) <= set(LAYER_TYPES)):
            raise ValueError(f"layer_types = {types!r:.80} is not {' or '.join(LAYER_TYPES)} for each layer")
        if "sliding_attention" in types and window is None:
            raise ValueError(f"layer_types = {types!r:.80} needs a sliding_window")
        if (types or self.max_window_layers) and not self.qkv_bias:
            raise ValueError("max_window_layers and layer_types are for qkv_bias=True: only Qwen2's files have them")
        object.__setattr__(self, "n_kv_heads", self.n_kv_heads or self.n_heads)
        object.__setattr__(self, "d_ff", self.d_ff or 4 * self.d_model)
        if self.n_heads % self.n_kv_heads or (self.d_model % self.n_heads and not self.head_dim):
            raise ValueError(
                f"d_model {self.d_model} does not divide into {self.n_heads} heads, or those into "
                f"{self.n_kv_heads} for keys"
            )
        object.__setattr__(self, "head_dim", self.head_dim or self.d_model // self.n_heads)

    def window(self, layer: int) -> int | None:
        """The sliding window of the attention in block `layer`; None where it has none."""
        if self.layer_types:
            return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None
        return self.sliding_window if layer >= self.max_window_layers else None


class Rope(NamedTuple):
    theta: float
    scaling: ops.RopeScaling | None = None

    def tables(self, x: Array, D: int, start: int) -> tuple[Array, Array]:
        """cos and sin for the positions of x, the first of them `start`."""
        xp = get_array_module(x)
        return ops.rope_tables(xp, x.shape[1], ops.rope_frequencies(xp, D, *self), x.dtype, start)


class AttentionCache(NamedTuple):
    projections: Any  # of q_proj, k_proj, v_proj
    rope: tuple[Array, Array] | None  # cos and sin
    attention: Any  # ops.attention.AttentionCache, or ops.BlockwiseAttentionCache
    o_proj: Any


class Attention(Module):
    """y = o_proj(softmax(q kᵀ/√D + mask) v),  q, k, v = q_proj(x), k_proj(x), v_proj(x), q and k rotated if rope

    With context.kv_cache, the keys and values of earlier tokens come before those of x. With a `window`, a query sees
    only the last `window` keys, its own among them.
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
    ) -> None:
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = q_proj, k_proj, v_proj, o_proj
        self.head_dim, self.causal, self.rope, self.window = head_dim, causal, rope, window

    def project(self, x: Array, context: Context) -> tuple[Sequence[Array], Any]:
        q, cq = self.q_proj.forward(x, context)
        k, ck = self.k_proj.forward(x, context)
        v, cv = self.v_proj.forward(x, context)
        return (q, k, v), (cq, ck, cv)

    def project_backward(self, dq: Array, dk: Array, dv: Array, cache: Any, grads: Gradients) -> Array:
        cq, ck, cv = cache
        dx = self.q_proj.backward(dq, cq, grads)
        dx_k, dx_v = self.k_proj.backward(dk, ck, grads), self.v_proj.backward(dv, cv, grads)
        if dx is not None:
            dx += dx_k
            dx += dx_v
        return dx

    def forward(self, x: Array, context: Context = Context()) -> tuple[Array, AttentionCache]:
        xp, T, rope, kv_cache = get_array_module(x), x.shape[1], None, context.kv_cache
        start = kv_cache.length if kv_cache else 0
        (q, k, v), projections = self.project(x, context)
        if self.rope:
            rope = context.once((self.rope, self.head_dim, T), self.rope.tables, x, self.head_dim, start)
            q, k = ops.rope_forward(q, *rope), ops.rope_forward(k, *rope)
        if kv_cache:
            k, v = kv_cache.extend(self, k, v, self.window)
        attention: Any
        if self.causal and self.blockwise_from <= T and not kv_cache:
            o, attention = ops.blockwise_attention_forward(
                q, k, v, self.head_dim, True, context.padding, window=self.window
            )
        else:
            earlier = k.shape[1] - T
            shape = T, self.causal, context.padding, x.dtype, earlier, self.window
            mask = context.once((self.causal, T, self.window), ops.attention_mask, xp, *shape)
            o, attention = ops.attention_forward(q, k, v, mask, self.head_dim)
        y, o_proj = self.o_proj.forward(o, context.above())
        return y, AttentionCache(projections, rope, attention, o_proj)

    def backward(self, dy: Array, cache: AttentionCache, grads: Gradients) -> Array:
        do = self.o_proj.backward(dy, cache.o_proj, grads)
        blockwise = isinstance(cache.attention, ops.BlockwiseAttentionCache)
        backward = ops.blockwise_attention_backward if blockwise else ops.attention_backward
        dq, dk, dv = backward(do, cache.attention)
        if cache.rope is not None:
            dq, dk = ops.rope_backward(dq, *cache.rope), ops.rope_backward(dk, *cache.rope)
        return self.project_backward(dq, dk, dv, cache.projections, grads)


class FusedAttention(Attention):
    """GPT-2: one layer makes q, k and v,        [q | k | v] = qkv_proj(x)"""

    def __init__(self, qkv_proj: Module, o_proj: Module, head_dim: int, *, causal: bool) -> None:
        self.qkv_proj, self.o_proj = qkv_proj, o_proj
        self.head_dim, self.causal, self.rope, self.window = head_dim, causal, None, None

    def project(self, x: Array, context: Context) -> tuple[Sequence[Array], Any]:
        qkv, cache = self.qkv_proj.forward(x, context)
        C = qkv.shape[-1] // 3
        return (qkv[..., :C], qkv[..., C : 2 * C], qkv[..., 2 * C :]), cache

    def project_backward(self, dq: Array, dk: Array, dv: Array, cache: Any, grads: Gradients) -> Array:
        return self.qkv_proj.backward(get_array_module(dq).concatenate([dq, dk, dv], axis=-1), cache, grads)


class Gelu(Module):
    """y = gelu(x), in the form of BERT, or (approximate) in the tanh form of GPT-2"""

    def __init__(self, approximate: bool) -> None:
        self.approximate = approximate

    def forward(self, x: Array, context: Context = Context()) -> tuple[Array, Array]:
        return ops.gelu_tanh_forward(x) if self.approximate else ops.gelu_forward(x)

    def backward(self, dy: Array, slope: Array, grads: Gradients) -> Array:
        return ops.gelu_backward(dy, slope)


class MLP(Module):
    """GPT-2, BERT:     y = down_proj(gelu(up_proj(x)))"""

    def __init__(self, up_proj: Module, gelu: Gelu, down_proj: Module) -> None:
        self.up_proj, self.gelu, self.down_proj = up_proj, gelu, down_proj

    def forward(self, x: Array, context: Context = Context()) -> tuple[Array, Any]:
        h, c1 = self.up_proj.forward(x, context)
        h, c2 = self.gelu.forward(h, context)
        y, c3 = self.down_proj.forward(h, context)
        return y, (c1, c2, c3)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> Array:
        c1, c2, c3 = cache
        dh = self.down_proj.backward(dy, c3, grads)
        dh = self.gelu.backward(dh, c2, grads)
        return self.up_proj.backward(dh, c1, grads)


class GatedMLP(Module):
    """Llama:           y = down_proj(silu(gate_proj(x)) ∘ up_proj(x))      (Shazeer, 2020, equation 6)"""

    def __init__(self, gate_proj: Module, up_proj: Module, down_proj: Module) -> None:
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj

    def forward(self, x: Array, context: Context = Context()) -> tuple[Array, Any]:
        gate, c1 = self.gate_proj.forward(x, context)
        up, c2 = self.up_proj.forward(x, context)
        h, c3 = ops.swiglu_forward(gate, up)
        y, c4 = self.down_proj.forward(h, context)
        return y, (c1, c2, c3, c4)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> Array:
        c1, c2, c3, c4 = cache
        dh = self.down_proj.backward(dy, c4, grads)
        dgate, dup = ops.swiglu_backward(dh, c3)
        dx = self.gate_proj.backward(dgate, c1, grads)
        dx += self.up_proj.backward(dup, c2, grads)
        return dx


class BlockCache(NamedTuple):
    norm_1: Any
    attention: Any
    norm_2: Any
    mlp: Any


class Block(Module):
    def __init__(self, norm_1: Module, attention: Module, norm_2: Module, mlp: Module) -> None:
        self.norm_1, self.attention, self.norm_2, self.mlp = norm_1, attention, norm_2, mlp


class PreNormBlock(Block):
    """GPT-2, Llama:    x₁ = x + attention(norm_1(x))       y = x₁ + mlp(norm_2(x₁))"""

    def forward(self, x: Array, context: Context = Context()) -> tuple[Array, BlockCache]:
        h, c1 = self.norm_1.forward(x, context)
        h, c2 = self.attention.forward(h, context.above() if self.norm_1.trainable else context)
        x, context = x + h, context.above()
        h, c3 = self.norm_2.forward(x, context)
        h, c4 = self.mlp.forward(h, context)
        return x + h, BlockCache(c1, c2, c3, c4)

    def backward(self, dy: Array, cache: BlockCache, grads: Gradients) -> Array:
        dh = self.mlp.backward(dy, cache.mlp, grads)
        dx = dy + self.norm_2.backward(dh, cache.norm_2, grads)
        dh = self.attention.backward(dx, cache.attention, grads)
        return None if dh is None else dx + self.norm_1.backward(dh, cache.norm_1, grads)


class PostNormBlock(Block):
    """BERT:            x₁ = norm_1(x + attention(x))       y = norm_2(x₁ + mlp(x₁))"""

    def forward(self, x: Array, context: Context = Context()) -> tuple[Array, BlockCache]:
        h, c1 = self.attention.forward(x, context)
        context = context.above()
        x, c2 = self.norm_1.forward(x + h, context)
        h, c3 = self.mlp.forward(x, context)
        y, c4 = self.norm_2.forward(x + h, context)
        return y, BlockCache(norm_1=c2, attention=c1, norm_2=c4, mlp=c3)

    def backward(self, dy: Array, cache: BlockCache, grads: Gradients) -> Array:
        dh = self.norm_2.backward(dy, cache.norm_2, grads)
        dx = dh + self.mlp.backward(dh, cache.mlp, grads)
        dh = self.norm_1.backward(dx, cache.norm_1, grads)
        dx = self.attention.backward(dh, cache.attention, grads)
        return None if dx is None else dh + dx


class Checkpointed(Module):
    """A block that keeps its input alone, and runs again when its backward comes: the cache of one block at a time,
    for one more forward (Chen et al., 2016). What is trainable then decides what is learned.
    """

    def __init__(self, block: Module) -> None:
        self.block = block

    def children(self) -> dict[str, Module]:
        return self.block.children()  # it adds nothing to a path

    def replace(self, name: str, module: Module) -> None:
        self.block.replace(name, module)

    def forward(self, x: Array, context: Context = Context()) -> tuple[Array, tuple[Array, Context]]:
        replayed = context._replace(rng=copy.deepcopy(context.rng), made=None)  # dropout is to draw the same again
        return self.block.forward(x, context)[0], (x, replayed)

    def backward(self, dy: Array, cache: tuple[Array, Context], grads: Gradients) -> Any:
        x, context = cache
        _, cache = self.block.forward(x, context._replace(rng=copy.deepcopy(context.rng)))
        return self.block.backward(dy, cache, grads)


class Embeddings(Module):
    """y = norm(token[ids] + position[0..T-1] + segment[segments]); a family may lack all but the first.

    The rows of `position` before `offset` belong to no position (RoBERTa's first is row 2).
    """

    def __init__(
        self,
        token: Embedding,
        position: Embedding | None = None,
        segment: Embedding | None = None,
        norm: Module | None = None,
        offset: int = 0,
    ) -> None:
        self.token, self.position, self.segment, self.norm, self.offset = token, position, segment, norm, offset

    def forward(self, ids: Array, context: Context = Context()) -> tuple[Array, Any]:
        xp = get_array_module(ids)
        x, ct = self.token.forward(ids)
        cp = cs = cn = None
        if self.position is not None:
            start = self.offset + (context.kv_cache.length if context.kv_cache else 0)
            p, cp = self.position.forward(positions(ids, context.padding, start))
            x = x + p
        if self.segment is not None:
            s, cs = self.segment.forward(xp.zeros_like(ids) if context.segments is None else context.segments)
            x = x + s
        if self.norm is not None:
            x, cn = self.norm.forward(x, context)
        return x, (ct, cp, cs, cn)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> None:
        ct, cp, cs, cn = cache
        if self.norm is not None:
            dy = self.norm.backward(dy, cn, grads)
        if self.segment is not None:
            self.segment.backward(dy, cs, grads)
        if self.position is not None:
            self.position.backward(dy, cp, grads)
        self.token.backward(dy, ct, grads)


def positions(ids: Array, padding: Array | None, start: int) -> Array:
    """(B, T): real tokens count start, start + 1, ... on whichever side the padding is, so that it changes nothing.

    Hugging Face's RoBERTa does the same. Its BERT, and its GPT-2 unless it is given position_ids, as its generate()
    does, count padding on the left too: a text that is padded so has other logits there than the text alone.
    """
    xp, T = get_array_module(ids), ids.shape[1]
    if padding is None:
        return xp.broadcast_to(xp.arange(start, start + T), ids.shape)
    return start + xp.maximum(xp.cumsum(padding, axis=1) - 1, 0)


class Select(Module):
    """y = x at the first or the last real token of each sequence: (B, T, C) -> (B, C)"""

    def __init__(self, last: bool) -> None:
        self.last = last

    def forward(self, x: Array, context: Context = Context()) -> tuple[Array, Any]:
        xp, (B, T, _) = get_array_module(x), x.shape
        real = xp.ones((B, T), dtype=bool) if context.padding is None else context.padding
        t = T - 1 - xp.argmax(real[:, ::-1], axis=1) if self.last else xp.argmax(real, axis=1)
        return ops.select_forward(x, xp.arange(B), t)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> Array:
        return ops.select_backward(dy, cache)


class Labelled(Module):
    """y = x at the positions context.labelled, which alone need logits: (B, T, C) -> (N, C); or x itself, all of it"""

    def forward(self, x: Array, context: Context = Context()) -> tuple[Array, Any]:
        return (x, None) if context.labelled is None else ops.select_forward(x, *context.labelled)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> Array:
        return dy.copy() if cache is None else ops.select_backward(dy, cache)


class Tanh(Module):
    """y = tanh(x)"""

    def forward(self, x: Array, context: Context = Context()) -> tuple[Array, Array]:
        return ops.tanh_forward(x)

    def backward(self, dy: Array, y: Array, grads: Gradients) -> Array:
        return ops.tanh_backward(dy, y)


class KVCache:
    """Keys and values of the tokens so far, for generation. A forward with context.kv_cache reads them, and adds those
    of its own tokens. It holds up to `capacity` tokens; of a layer with a window only the last ones.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.arrays: dict[Module, tuple[Array, Array]] = {}

    def extend(self, layer: Module, k: Array, v: Array, window: int | None = None) -> tuple[Array, Array]:
        """All keys and values of a layer, (B, length + T, G·D), `k` and `v` at their end; with a window those that one
        of the T queries sees, window - 1 + T at most.
        """
        xp, end = get_array_module(k), self.length + k.shape[1]
        if window is not None:
            last = self.arrays.get(layer, (k[:, :0], v[:, :0]))
            K, V = (xp.concatenate(pair, axis=1) for pair in zip(last, (k, v), strict=True))
            unseen = max(0, K.shape[1] - (window - 1))  # by the next query
            self.arrays[layer] = K[:, unseen:], V[:, unseen:]
            return K, V
        if layer not in self.arrays:
            shape = k.shape[0], self.capacity, k.shape[2]
            self.arrays[layer] = xp.empty(shape, dtype=k.dtype), xp.empty(shape, dtype=v.dtype)
        K, V = self.arrays[layer]
        K[:, self.length : end], V[:, self.length : end] = k, v
        return K[:, :end], V[:, :end]


class Transformer(Sequential):
    """embed, block_0, ..., norm, and a head: token ids (B, T) in, logits (B, T, V) out, or those of the N positions
    context.labelled, (N, V); of a classifier (B, labels), or of tokens (B, T, labels); without a head the hidden states
    (B, T, C)."""

    def __init__(self, family: str, config: Config, layers: dict[str, Module]) -> None:
        super().__init__(layers)
        self.family, self.config = family, config
        self.said: dict[str, Any] = {}  # what else the config.json said that is worth keeping, for save_pretrained
        self.hub: tuple[str, str | None] | None = None  # its name on the Hugging Face Hub, and the commit

    def forward(self, ids: Array, context: Context = Context()) -> tuple[Array, list[Any]]:
        """Host ids are checked, then moved to where the weights are; ids on a GPU were checked before they moved.

        Raises ValueError for ids that are not (B, T) integers in 0..V-1, for more tokens (those of context.kv_cache
        included) than config.max_length, for a KV cache with padding, and for a padding or segments that are not (B, T)
        too, of the dtype and in the range that Context says.
        """
        xp = get_array_module(next(self.parameters()).data)
        kv_cache = context.kv_cache
        if get_array_module(ids) is np:
            check_ids(ids, self.config, kv_cache.length if kv_cache else 0)
        segment = getattr(self.layers["embed"], "segment", None)
        check_context(context, np.shape(ids), None if segment is None else len(segment.weight.data))
        if context.padding is not None:
            context = context._replace(padding=xp.asarray(context.padding))
        if context.segments is not None:
            context = context._replace(segments=xp.asarray(context.segments))
        if context.labelled is not None:
            b, t = context.labelled
            context = context._replace(labelled=(xp.asarray(b), xp.asarray(t)))
        y, caches = super().forward(xp.asarray(ids), context)
        if kv_cache:
            kv_cache.length += ids.shape[1]
        return y, caches


def recompute(model: Transformer) -> None:
    """Have every block keep its input alone, and compute the rest again for its backward."""
    for name, layer in model.layers.items():
        if isinstance(layer, Block):
            model.layers[name] = Checkpointed(layer)


def check_ids(ids: Any, config: Config, start: int = 0) -> None:
    """Raise ValueError unless `ids` (a host array, or nested lists) can be fed to a model of this config, after
    `start` others."""
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise ValueError(f"token ids are integers of shape (batch, tokens), not {ids.dtype} of shape {ids.shape}")
    if start + ids.shape[1] > config.max_length:
        raise ValueError(f"{start + ids.shape[1]} tokens are more than the model's {config.max_length} positions")
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        wrong = ids[(ids < 0) | (ids >= config.vocab_size)][0]
        raise ValueError(f"token id {wrong} is outside the vocabulary 0..{config.vocab_size - 1}")


def check_context(context: Context, shape: tuple[int, ...], segments: int | None) -> None:
    """Raise ValueError unless padding and segments fit ids of this shape, in a model of so many segments, or of none.

    Values on a GPU are not looked at.
    """
    padding, s = context.padding, context.segments
    if context.kv_cache and padding is not None:
        raise ValueError("a KV cache and padding do not go together: generate one sequence at a time")
    for name, x, kind, kinds in (("padding", padding, "bool", "b"), ("segments", s, "integers", "iu")):
        if x is not None and (x.shape != shape or x.dtype.kind not in kinds):
            raise ValueError(f"{name} is {kind} of the ids' shape {shape}, not {x.dtype} of shape {x.shape}")
    if segments and s is not None and get_array_module(s) is np and not 0 <= s.min() <= s.max() < segments:
        raise ValueError(f"segments from {s.min()} to {s.max()} are outside 0..{segments - 1}")
