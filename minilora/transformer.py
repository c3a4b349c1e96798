"""Parts, blocks, and three families wired from them: gpt2(), llama() and bert().

Dims: B batch, T tokens, C width, H heads, G key/value heads, D head width, F hidden width, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from . import ops
from .backend import Array, get_array_module
from .modules import Chain, Context, Embedding, Gradients, LayerNorm, Linear, Module, RMSNorm


class AttentionCache(NamedTuple):
    projections: Any  # of q_proj, k_proj, v_proj
    rope: tuple[Array, Array] | None  # cos and sin
    attention: Any  # ops.attention.AttentionCache
    o_proj: Any


class Attention(Module):
    """y = o_proj(softmax(q kᵀ/√D + mask) v),  q, k, v = q_proj(x), k_proj(x), v_proj(x), rotated if rope_theta"""

    def __init__(
        self,
        q_proj: Module,
        k_proj: Module,
        v_proj: Module,
        o_proj: Module,
        head_dim: int,
        *,
        causal: bool,
        rope_theta: float | None = None,
    ) -> None:
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = q_proj, k_proj, v_proj, o_proj
        self.head_dim, self.causal, self.rope_theta = head_dim, causal, rope_theta

    def project(self, x: Array, context: Context) -> tuple[Sequence[Array], Any]:
        q, cq = self.q_proj.forward(x, context)
        k, ck = self.k_proj.forward(x, context)
        v, cv = self.v_proj.forward(x, context)
        return (q, k, v), (cq, ck, cv)

    def project_backward(self, dq: Array, dk: Array, dv: Array, cache: Any, grads: Gradients) -> Array:
        cq, ck, cv = cache
        dx = self.q_proj.backward(dq, cq, grads)
        dx += self.k_proj.backward(dk, ck, grads)
        dx += self.v_proj.backward(dv, cv, grads)
        return dx

    def forward(self, x: Array, context: Context = Context()) -> tuple[Array, AttentionCache]:
        xp, T, rope = get_array_module(x), x.shape[1], None
        (q, k, v), projections = self.project(x, context)
        if self.rope_theta:
            rope = ops.rope_tables(xp, T, self.head_dim, self.rope_theta, x.dtype)
            q, k = ops.rope_forward(q, *rope), ops.rope_forward(k, *rope)
        mask = ops.attention_mask(xp, T, self.causal, context.padding, x.dtype)
        o, attention = ops.attention_forward(q, k, v, mask, self.head_dim)
        y, o_proj = self.o_proj.forward(o, context)
        return y, AttentionCache(projections, rope, attention, o_proj)

    def backward(self, dy: Array, cache: AttentionCache, grads: Gradients) -> Array:
        do = self.o_proj.backward(dy, cache.o_proj, grads)
        dq, dk, dv = ops.attention_backward(do, cache.attention)
        if cache.rope is not None:
            dq, dk = ops.rope_backward(dq, *cache.rope), ops.rope_backward(dk, *cache.rope)
        return self.project_backward(dq, dk, dv, cache.projections, grads)


class FusedAttention(Attention):
    """GPT-2: one layer makes q, k and v,        [q | k | v] = qkv_proj(x)"""

    def __init__(self, qkv_proj: Module, o_proj: Module, head_dim: int, *, causal: bool) -> None:
        self.qkv_proj, self.o_proj = qkv_proj, o_proj
        self.head_dim, self.causal, self.rope_theta = head_dim, causal, None

    def project(self, x: Array, context: Context) -> tuple[Sequence[Array], Any]:
        qkv, cache = self.qkv_proj.forward(x, context)
        return get_array_module(x).split(qkv, 3, axis=-1), cache

    def project_backward(self, dq: Array, dk: Array, dv: Array, cache: Any, grads: Gradients) -> Array:
        return self.qkv_proj.backward(get_array_module(dq).concatenate([dq, dk, dv], axis=-1), cache, grads)


class MLP(Module):
    """GPT-2, BERT:     y = down_proj(gelu(up_proj(x)))"""

    def __init__(self, up_proj: Module, down_proj: Module) -> None:
        self.up_proj, self.down_proj = up_proj, down_proj

    def forward(self, x: Array, context: Context = Context()) -> tuple[Array, Any]:
        h, c1 = self.up_proj.forward(x, context)
        h, c2 = ops.gelu_forward(h)
        y, c3 = self.down_proj.forward(h, context)
        return y, (c1, c2, c3)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> Array:
        c1, c2, c3 = cache
        dh = self.down_proj.backward(dy, c3, grads)
        dh = ops.gelu_backward(dh, c2)
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
        h, c2 = self.attention.forward(h, context)
        x = x + h
        h, c3 = self.norm_2.forward(x, context)
        h, c4 = self.mlp.forward(h, context)
        return x + h, BlockCache(c1, c2, c3, c4)

    def backward(self, dy: Array, cache: BlockCache, grads: Gradients) -> Array:
        dh = self.mlp.backward(dy, cache.mlp, grads)
        dx = dy + self.norm_2.backward(dh, cache.norm_2, grads)
        dh = self.attention.backward(dx, cache.attention, grads)
        return dx + self.norm_1.backward(dh, cache.norm_1, grads)


class PostNormBlock(Block):
    """BERT:            x₁ = norm_1(x + attention(x))       y = norm_2(x₁ + mlp(x₁))"""

    def forward(self, x: Array, context: Context = Context()) -> tuple[Array, BlockCache]:
        h, c1 = self.attention.forward(x, context)
        x, c2 = self.norm_1.forward(x + h, context)
        h, c3 = self.mlp.forward(x, context)
        y, c4 = self.norm_2.forward(x + h, context)
        return y, BlockCache(norm_1=c2, attention=c1, norm_2=c4, mlp=c3)

    def backward(self, dy: Array, cache: BlockCache, grads: Gradients) -> Array:
        dh = self.norm_2.backward(dy, cache.norm_2, grads)
        dx = dh + self.mlp.backward(dh, cache.mlp, grads)
        dh = self.norm_1.backward(dx, cache.norm_1, grads)
        return dh + self.attention.backward(dh, cache.attention, grads)


class Recomputed(Module):
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
        replayed = context._replace(rng=copy.deepcopy(context.rng))  # dropout is to draw the same again
        return self.block.forward(x, context)[0], (x, replayed)

    def backward(self, dy: Array, cache: tuple[Array, Context], grads: Gradients) -> Any:
        x, context = cache
        _, cache = self.block.forward(x, context._replace(rng=copy.deepcopy(context.rng)))
        return self.block.backward(dy, cache, grads)


class Embeddings(Module):
    """y = norm(token[ids] + position[0..T-1] + segment[segments]); a family may lack all but the first."""

    def __init__(
        self,
        token: Embedding,
        position: Embedding | None = None,
        segment: Embedding | None = None,
        norm: Module | None = None,
    ) -> None:
        self.token, self.position, self.segment, self.norm = token, position, segment, norm

    def forward(self, ids: Array, context: Context = Context()) -> tuple[Array, Any]:
        xp = get_array_module(ids)
        x, ct = self.token.forward(ids)
        cp = cs = cn = None
        if self.position is not None:
            p, cp = self.position.forward(positions(ids, context.padding))
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


def positions(ids: Array, padding: Array | None) -> Array:
    """(B, T): real tokens count 0, 1, 2, ... on whichever side the padding is."""
    xp = get_array_module(ids)
    if padding is None:
        return xp.broadcast_to(xp.arange(ids.shape[1]), ids.shape)
    return xp.maximum(xp.cumsum(padding, axis=1) - 1, 0)


class Transformer(Chain):
    """embed, block_0, ..., norm, lm_head: token ids (B, T) in, logits (B, T, V) out."""

    def __init__(self, family: str, config: Config, layers: dict[str, Module]) -> None:
        super().__init__(layers)
        self.family, self.config = family, config

    def forward(self, ids: Array, context: Context = Context()) -> tuple[Array, list[Any]]:
        """Host ids are checked, then moved to where the weights are; ids on a GPU were checked before they moved.

        Raises ValueError for ids that are not (B, T) integers in 0..V-1, a T above config.context, and a padding or
        segments that are not (B, T) too, of the dtype and in the range that Context says.
        """
        xp = get_array_module(next(iter(self.named_parameters().values())).data)
        if get_array_module(ids) is np:
            check_ids(ids, self.config)
        segment = getattr(self.layers["embed"], "segment", None)
        check_context(context, np.shape(ids), None if segment is None else len(segment.weight.data))
        if context.padding is not None:
            context = context._replace(padding=xp.asarray(context.padding))
        if context.segments is not None:
            context = context._replace(segments=xp.asarray(context.segments))
        return super().forward(xp.asarray(ids), context)


def recompute(model: Transformer) -> None:
    """Have every block keep its input alone, and compute the rest again for its backward."""
    for name, layer in model.layers.items():
        if isinstance(layer, Block):
            model.layers[name] = Recomputed(layer)


def check_ids(ids: Any, config: Config) -> None:
    """Raise ValueError unless `ids` (a host array, or nested lists) can be fed to a model of this config."""
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise ValueError(f"token ids are integers of shape (batch, tokens), not {ids.dtype} of shape {ids.shape}")
    if ids.shape[1] > config.context:
        raise ValueError(f"{ids.shape[1]} tokens are more than the model's {config.context} positions")
    if ids.min() < 0 or ids.max() >= config.vocab:
        wrong = ids[(ids < 0) | (ids >= config.vocab)][0]
        raise ValueError(f"token id {wrong} is outside the vocabulary 0..{config.vocab - 1}")


def check_context(context: Context, shape: tuple[int, ...], segments: int | None) -> None:
    """Raise ValueError unless padding and segments fit ids of this shape, in a model of so many segments, or of none.

    Values on a GPU are not looked at.
    """
    padding, s = context.padding, context.segments
    for name, x, kind, kinds in (("padding", padding, "bool", "b"), ("segments", s, "integers", "iu")):
        if x is not None and (x.shape != shape or x.dtype.kind not in kinds):
            raise ValueError(f"{name} is {kind} of the ids' shape {shape}, not {x.dtype} of shape {x.shape}")
    if segments and s is not None and get_array_module(s) is np and not 0 <= s.min() <= s.max() < segments:
        raise ValueError(f"segments from {s.min()} to {s.max()} are outside 0..{segments - 1}")


# ---- three families, wired from the parts ----


@dataclass(frozen=True)
class Config:
    """The shape of a model. 0 means: derive it from the others."""

    vocab: int  # V
    layers: int
    width: int  # C
    heads: int  # H
    kv_heads: int = 0  # G; 0: one per query head
    hidden: int = 0  # F; 0: 4 C
    context: int = 1024  # the longest sequence, in tokens
    segments: int = 2  # BERT
    rope_theta: float = 10000.0  # Llama
    eps: float = 1e-5  # of the norms
    tied: bool = True  # the head shares the token embedding's weight
    dtype: str = "float32"
    head_dim: int = field(init=False)  # D

    def __post_init__(self) -> None:
        for name in ("vocab", "layers", "width", "heads", "kv_heads", "hidden", "context", "segments"):
            least, value = int(name not in ("kv_heads", "hidden")), getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} = {value!r} is not a whole number from {least} up")
        for name in ("rope_theta", "eps"):
            if type(getattr(self, name)) not in (int, float) or not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)!r} is not a positive number")
        if type(self.tied) is not bool:
            raise ValueError(f"tied = {self.tied!r} is not True or False")
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "hidden", self.hidden or 4 * self.width)
        object.__setattr__(self, "head_dim", self.width // self.heads)
        if self.width % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"width {self.width} does not divide into {self.heads} heads, or those into {self.kv_heads} for keys"
            )


class New:
    """Fresh parts for one config, their weights drawn in order from one generator: N(0, 0.02²), all of them.

    Without a generator each is a single number, shown in its shape: a state dict takes its place.
    """

    def __init__(self, config: Config, rng: np.random.Generator | None) -> None:
        self.config, self.rng = config, rng

    def normal(self, *shape: int) -> Array:
        if self.rng is None:
            return np.broadcast_to(np.zeros((), self.config.dtype), shape)
        return (0.02 * self.rng.standard_normal(shape)).astype(self.config.dtype)

    def full(self, value: float, n: int) -> Array:
        x = np.broadcast_to(np.asarray(value, self.config.dtype), n)
        return x if self.rng is None else x.copy()

    def linear(self, n_in: int, n_out: int, bias: bool) -> Linear:
        return Linear(self.normal(n_out, n_in), self.full(0, n_out) if bias else None)

    def embedding(self, rows: int) -> Embedding:
        return Embedding(self.normal(rows, self.config.width))

    def layer_norm(self) -> LayerNorm:
        C = self.config.width
        return LayerNorm(self.full(1, C), self.full(0, C), self.config.eps)

    def rms_norm(self) -> RMSNorm:
        return RMSNorm(self.full(1, self.config.width), self.config.eps)

    def attention(self, *, bias: bool, causal: bool, rope_theta: float | None = None) -> Attention:
        C, D = self.config.width, self.config.head_dim
        KV = self.config.kv_heads * D
        q_proj, k_proj, v_proj, o_proj = (self.linear(C, n_out, bias) for n_out in (C, KV, KV, C))
        return Attention(q_proj, k_proj, v_proj, o_proj, D, causal=causal, rope_theta=rope_theta)

    def fused_attention(self) -> FusedAttention:
        C = self.config.width
        return FusedAttention(self.linear(C, 3 * C, True), self.linear(C, C, True), self.config.head_dim, causal=True)

    def mlp(self) -> MLP:
        C, F = self.config.width, self.config.hidden
        return MLP(self.linear(C, F, True), self.linear(F, C, True))

    def gated_mlp(self) -> GatedMLP:
        C, F = self.config.width, self.config.hidden
        return GatedMLP(self.linear(C, F, False), self.linear(C, F, False), self.linear(F, C, False))

    def lm_head(self, token: Embedding) -> Linear:
        """A tied head holds the embedding's own Parameter: one key in the gradients, two contributions."""
        return Linear(token.weight) if self.config.tied else self.linear(self.config.width, self.config.vocab, False)


def chain(embed: Module, blocks: Sequence[Module], **rest: Module) -> dict[str, Module]:
    return {"embed": embed, **{f"block_{i}": block for i, block in enumerate(blocks)}, **rest}


def gpt2(config: Config, rng: np.random.Generator | None) -> Transformer:
    """Radford et al. (2019): pre-norm, learned positions, GELU, one fused projection for q, k and v."""
    new = New(config, rng)
    token, position = new.embedding(config.vocab), new.embedding(config.context)
    blocks = [
        PreNormBlock(new.layer_norm(), new.fused_attention(), new.layer_norm(), new.mlp()) for _ in range(config.layers)
    ]
    layers = chain(Embeddings(token, position), blocks, norm=new.layer_norm(), lm_head=new.lm_head(token))
    return Transformer("gpt2", config, layers)


def llama(config: Config, rng: np.random.Generator | None) -> Transformer:
    """Touvron et al. (2023), "Llama 2": pre-norm with RMS norm, rotary positions, SwiGLU, grouped queries, no biases.

    Raises ValueError for an odd width of a head.
    """
    if config.head_dim % 2:
        raise ValueError(f"rotary positions turn pairs: a head's width must be even, and {config.head_dim} is not")
    new = New(config, rng)
    token = new.embedding(config.vocab)
    blocks = [
        PreNormBlock(
            new.rms_norm(),
            new.attention(bias=False, causal=True, rope_theta=config.rope_theta),
            new.rms_norm(),
            new.gated_mlp(),
        )
        for _ in range(config.layers)
    ]
    return Transformer(
        "llama", config, chain(Embeddings(token), blocks, norm=new.rms_norm(), lm_head=new.lm_head(token))
    )


def bert(config: Config, rng: np.random.Generator | None) -> Transformer:
    """Devlin et al. (2018): post-norm, every token sees every other, learned positions and segments, GELU (tanh form).

    The head is the embedding alone, without the transform that BERT's own has before it.
    """
    new = New(config, rng)
    token, position, segment = (new.embedding(n) for n in (config.vocab, config.context, config.segments))
    blocks = [
        PostNormBlock(new.layer_norm(), new.attention(bias=True, causal=False), new.layer_norm(), new.mlp())
        for _ in range(config.layers)
    ]
    embed = Embeddings(token, position, segment, new.layer_norm())
    return Transformer("bert", config, chain(embed, blocks, lm_head=new.lm_head(token)))
