"""Four families, wired from the parts: gpt2(), llama(), bert() and roberta(), each with a head or without.

A model is a chain: embed, block_0, block_1, ..., then what its head needs, one layer after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..backend import Array
from ..nn import (
    MLP,
    Attention,
    Embedding,
    Embeddings,
    FusedAttention,
    FusedLinear,
    GatedMLP,
    Gelu,
    Labelled,
    LayerNorm,
    Linear,
    Module,
    PostNormBlock,
    PreNormBlock,
    RMSNorm,
    Rope,
    Select,
    Tanh,
)
from .config import Config
from .transformer import Transformer


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
        return Embedding(self.normal(rows, self.config.d_model))

    def layer_norm(self) -> LayerNorm:
        C = self.config.d_model
        return LayerNorm(self.full(1, C), self.full(0, C), self.config.eps)

    def rms_norm(self) -> RMSNorm:
        return RMSNorm(self.full(1, self.config.d_model), self.config.eps)

    def attention(
        self, *, causal: bool, bias: bool, o_bias: bool | None = None, rope: Rope | None = None,
        window: int | None = None,
    ) -> Attention:  # fmt: skip
        C, D = self.config.d_model, self.config.head_dim
        HD, GD = self.config.n_heads * D, self.config.n_kv_heads * D
        q_proj, k_proj, v_proj = (self.linear(C, n_out, bias) for n_out in (HD, GD, GD))
        o_proj = self.linear(HD, C, bias if o_bias is None else o_bias)
        return Attention(q_proj, k_proj, v_proj, o_proj, D, causal=causal, rope=rope, window=window)

    def fused_attention(self) -> FusedAttention:
        C = self.config.d_model
        qkv_proj = FusedLinear(self.normal(3 * C, C), self.full(0, 3 * C), ("q_proj", "k_proj", "v_proj"))
        return FusedAttention(qkv_proj, self.linear(C, C, True), self.config.head_dim, causal=True)

    def gelu(self) -> Gelu:
        return Gelu(approximate=self.config.activation == "gelu_tanh")

    def mlp(self) -> MLP:
        C, F = self.config.d_model, self.config.d_ff
        return MLP(self.linear(C, F, True), self.gelu(), self.linear(F, C, True))

    def gated_mlp(self) -> GatedMLP:
        C, F = self.config.d_model, self.config.d_ff
        return GatedMLP(self.linear(C, F, False), self.linear(C, F, False), self.linear(F, C, False))

    def lm_head(self, token: Embedding, bias: bool = False) -> Linear:
        """A tied head holds the embedding's own Parameter: one key in the gradients, two contributions."""
        C, V = self.config.d_model, self.config.vocab_size
        return Linear(token.weight, self.full(0, V) if bias else None) if self.config.tied else self.linear(C, V, bias)

    def classifier(self, bias: bool) -> Linear:
        return self.linear(self.config.d_model, self.config.labels, bias)


def chain(embed: Module, blocks: Sequence[Module], **rest: Module) -> dict[str, Module]:
    return {"embed": embed, **{f"block_{i}": block for i, block in enumerate(blocks)}, **rest}


# ---- decoders: the head reads every token, or the last ----


def gpt2(config: Config, rng: np.random.Generator | None) -> Transformer:
    """Radford et al. (2019): pre-norm, learned positions, GELU, one fused projection for q, k and v."""
    new = New(config, rng)
    token, position = new.embedding(config.vocab_size), new.embedding(config.max_length)
    blocks = [
        PreNormBlock(new.layer_norm(), new.fused_attention(), new.layer_norm(), new.mlp())
        for _ in range(config.n_layers)
    ]
    layers = chain(Embeddings(token, position), blocks, norm=new.layer_norm(), **decoder_head(new, token))
    return Transformer("gpt2", config, layers)


def llama(config: Config, rng: np.random.Generator | None) -> Transformer:
    """Touvron et al. (2023), "Llama 2": pre-norm with RMS norm, rotary positions, SwiGLU, grouped queries, no biases.

    Mistral (Jiang et al., 2023) has a sliding_window, and Qwen2 qkv_bias, and a window perhaps in some of the layers.
    Raises ValueError for an odd width of a head.
    """
    if config.head_dim % 2:
        raise ValueError(f"rotary positions turn pairs: a head's width must be even, and {config.head_dim} is not")
    new, rope = New(config, rng), Rope(config.rope_theta, config.rope_scaling)
    token = new.embedding(config.vocab_size)
    blocks = [
        PreNormBlock(
            new.rms_norm(),
            new.attention(causal=True, bias=config.qkv_bias, o_bias=False, rope=rope, window=config.window(i)),
            new.rms_norm(),
            new.gated_mlp(),
        )
        for i in range(config.n_layers)
    ]
    layers = chain(Embeddings(token), blocks, norm=new.rms_norm(), **decoder_head(new, token))
    return Transformer("llama", config, layers)


def decoder_head(new: New, token: Embedding) -> dict[str, Module]:
    if new.config.head == "tokens":
        raise ValueError("head 'tokens' is for bert and roberta, whose tokens see what comes after them too")
    if new.config.head == "classify":
        return {"last": Select(last=True), "classifier": new.classifier(bias=False)}
    return {"labelled": Labelled(), "lm_head": new.lm_head(token)} if new.config.head == "lm" else {}


# ---- encoders: every token sees every other; the head reads every token, or the first ----


def bert(config: Config, rng: np.random.Generator | None) -> Transformer:
    """Devlin et al. (2018): post-norm, learned positions and segments, GELU."""
    return encoder("bert", "pooler", config, rng)


def roberta(config: Config, rng: np.random.Generator | None) -> Transformer:
    """Liu et al. (2019): BERT, whose first position is row config.offset of the table."""
    return encoder("roberta", "classifier_transform", config, rng)


def encoder(family: str, transform: str, config: Config, rng: np.random.Generator | None) -> Transformer:
    """A classifier reads tanh of a transform of the first token, or every token as it is (head "tokens"); a language
    model's head guesses masked tokens:

    logits = E norm(gelu(W h + b)) + c          E the token embedding
    """
    new, C = New(config, rng), config.d_model
    token, position = new.embedding(config.vocab_size), new.embedding(config.offset + config.max_length)
    embed = Embeddings(token, position, new.embedding(config.segments), new.layer_norm(), config.offset)
    blocks = [
        PostNormBlock(new.layer_norm(), new.attention(causal=False, bias=True), new.layer_norm(), new.mlp())
        for _ in range(config.n_layers)
    ]
    head: dict[str, Module] = {}
    if config.head == "classify":
        head = {"first": Select(last=False), transform: new.linear(C, C, True), f"{transform}_tanh": Tanh()}
        head["classifier"] = new.classifier(bias=True)
    elif config.head == "tokens":
        head["classifier"] = new.classifier(bias=True)
    elif config.head == "lm":
        gelu = new.gelu() if family == "bert" else Gelu(approximate=False)  # RoBERTa's head has one of its own
        head = {"labelled": Labelled(), "head_transform": new.linear(C, C, True), "head_gelu": gelu}
        head["head_norm"] = new.layer_norm()
        head["lm_head"] = new.lm_head(token, bias=True)
    return Transformer(family, config, chain(embed, blocks, **head))


FAMILIES: dict[str, Callable[[Config, np.random.Generator | None], Transformer]] = {
    "gpt2": gpt2,
    "llama": llama,
    "bert": bert,
    "roberta": roberta,
}
