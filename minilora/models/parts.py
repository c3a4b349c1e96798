"""The layers that families are built from.

A model is a sequence of layers: embed, block_0, block_1, ..., then those of its head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..backend import Array, Rng, generator
from ..nn import (
    MLP,
    Attention,
    CrossAttention,
    Embedding,
    FusedAttention,
    FusedGatedMLP,
    FusedLinear,
    GatedMLP,
    Gelu,
    Labelled,
    LayerNorm,
    Linear,
    Module,
    RelativeAttention,
    RelativeBias,
    RMSNorm,
    Rope,
    Select,
    ZeroCentredRMSNorm,
)
from .config import Config


class LayerFactory:
    """Makes the layers of one model, of the sizes in `config`, with weights from N(0, 0.02²).

    Weights are drawn in the order of the calls. Without an rng each array is one number broadcast to its shape, and
    takes no memory: load_state_dict replaces it.
    """

    def __init__(self, config: Config, rng: Rng | None) -> None:
        self.config, self.rng = config, None if rng is None else generator(rng)

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
        return Embedding(self.normal(rows, self.config.d_model))

    def layer_norm(self, bias: bool = True) -> LayerNorm:
        C = self.config.d_model
        return LayerNorm(self.full(1, C), self.full(0, C) if bias else None, self.config.eps)

    def rms_norm(self, n: int = 0) -> RMSNorm:
        """A norm of vectors of n numbers; n = 0 means d_model."""
        return RMSNorm(self.full(1, n or self.config.d_model), self.config.eps)

    def zero_centred_rms_norm(self, n: int = 0) -> ZeroCentredRMSNorm:
        """A norm of vectors of n numbers; n = 0 means d_model."""
        return ZeroCentredRMSNorm(self.full(0, n or self.config.d_model), self.config.eps)

    def attention(
        self, *, causal: bool, bias: bool, o_bias: bool | None = None, rope: Rope | None = None,
        window: int | None = None, qk_norm: bool | Callable[[int], RMSNorm] = False, root: float | None = None,
    ) -> Attention:  # fmt: skip
        """`qk_norm`: what makes the norms of q and k, or True for rms_norm."""
        C, D = self.config.d_model, self.config.head_dim
        HD, GD = self.config.n_heads * D, self.config.n_kv_heads * D
        q_proj, k_proj, v_proj = (self.linear(C, n_out, bias) for n_out in (HD, GD, GD))
        o_proj = self.linear(HD, C, bias if o_bias is None else o_bias)
        norm = self.rms_norm if qk_norm is True else qk_norm
        q_norm, k_norm = (norm(D), norm(D)) if norm else (None, None)
        return Attention(
            q_proj, k_proj, v_proj, o_proj, D, causal=causal, rope=rope, window=window, q_norm=q_norm, k_norm=k_norm,
            root=root,
        )  # fmt: skip

    def relative_bias(self, both_ways: bool) -> RelativeBias:
        config = self.config
        return RelativeBias(self.normal(config.relative_buckets, config.n_heads), config.relative_distance, both_ways)

    def relative_attention(self, *, causal: bool, bias: RelativeBias) -> RelativeAttention:
        """As many heads of keys as of queries, no biases of projections, and scores that are not divided by √D."""
        plain, D = self.attention(causal=causal, bias=False), self.config.head_dim
        projections = plain.q_proj, plain.k_proj, plain.v_proj, plain.o_proj
        return RelativeAttention(*projections, head_dim=D, causal=causal, root=1.0, bias=bias)

    def cross_attention(self, *, bias: bool, root: float | None = None) -> CrossAttention:
        plain = self.attention(causal=False, bias=bias)
        return CrossAttention(plain.q_proj, plain.k_proj, plain.v_proj, plain.o_proj, self.config.head_dim, root)

    def fused_linear(self, n_in: int, bias: bool, **parts: int) -> FusedLinear:
        n_out = sum(parts.values())
        return FusedLinear(self.normal(n_out, n_in), self.full(0, n_out) if bias else None, parts)

    def fused_attention(
        self, *, bias: bool, causal: bool = True, rope: Rope | None = None, window: int | None = None
    ) -> FusedAttention:
        C, D = self.config.d_model, self.config.head_dim
        HD, GD = self.config.n_heads * D, self.config.n_kv_heads * D
        qkv_proj = self.fused_linear(C, bias, q_proj=HD, k_proj=GD, v_proj=GD)
        return FusedAttention(qkv_proj, self.linear(HD, C, bias), D, causal=causal, rope=rope, window=window)

    def gelu(self) -> Gelu:
        return Gelu(approximate=self.config.activation == "gelu_tanh")

    def mlp(self, act: Module | None = None, bias: bool = True) -> MLP:
        """With a GELU, or `act` in its place."""
        C, F = self.config.d_model, self.config.d_ff
        return MLP(self.linear(C, F, bias), act or self.gelu(), self.linear(F, C, bias))

    def gated_mlp(self, gelu: Gelu | None = None) -> GatedMLP:
        C, F = self.config.d_model, self.config.d_ff
        return GatedMLP(self.linear(C, F, False), self.linear(C, F, False), self.linear(F, C, False), gelu)

    def fused_gated_mlp(self, gelu: Gelu | None = None) -> FusedGatedMLP:
        C, F = self.config.d_model, self.config.d_ff
        return FusedGatedMLP(self.fused_linear(C, False, gate_proj=F, up_proj=F), self.linear(F, C, False), gelu)

    def lm_head(self, token: Embedding, bias: bool = False) -> Linear:
        """The output layer. A tied one shares the embedding's Parameter, whose gradient sums those of both."""
        C, V = self.config.d_model, self.config.vocab_size
        return Linear(token.weight, self.full(0, V) if bias else None) if self.config.tied else self.linear(C, V, bias)

    def classifier(self, bias: bool) -> Linear:
        return self.linear(self.config.d_model, self.config.labels, bias)


def layers_by_name(embed: Module, blocks: Sequence[Module], **rest: Module) -> dict[str, Module]:
    """{name: layer} for Transformer: embed, block_0, block_1, ..., and the rest."""
    return {"embed": embed, **{f"block_{i}": block for i, block in enumerate(blocks)}, **rest}


def decoder_head(new: LayerFactory, token: Embedding) -> dict[str, Module]:
    """The layers of a decoder's head. A language model's reads every token, a classifier's the last one."""
    if new.config.head == "tokens":
        raise ValueError("head 'tokens' is for encoders such as bert, whose tokens see what comes after them too")
    if new.config.head == "classify":
        return {"last": Select(last=True), "classifier": new.classifier(bias=False)}
    return {"labelled": Labelled(), "lm_head": new.lm_head(token)} if new.config.head == "lm" else {}
