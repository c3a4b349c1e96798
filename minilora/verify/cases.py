"""Every op, module, adapter and family as something that can be checked: CHECKS."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from .. import ops
from ..adapters import DEFAULT
from ..adapters.attach import adaptable, attach, attach_lora
from ..adapters.base import Adapter
from ..adapters.merge import MergedEmbedding, merged_layer
from ..adapters.peft import Adapters
from ..adapters.recording import Latest, Recorder
from ..adapters.registry import variants
from ..backend import Array
from ..models.config import LABELLED, Config
from ..models.encoder_decoder import EncoderDecoder
from ..models.families import FAMILIES
from ..models.families.bert import bert
from ..models.families.gpt2 import gpt2
from ..models.families.llama import llama
from ..models.parts import LayerFactory
from ..models.transformer import Transformer
from ..nn import (
    Checkpointed,
    Conv1d,
    Conv2d,
    Convolution,
    Embedding,
    Flatten,
    Gelu,
    Gradients,
    Identity,
    Inputs,
    Labelled,
    LayerNorm,
    Linear,
    MeanTokens,
    Memory,
    Module,
    Parameter,
    Pass,
    PatchEmbeddings,
    Relu,
    Rope,
    Select,
    Sequential,
    Tanh,
)
from ..quantization import Quantized
from .check import Report, check_model
from .op import EPS, THETA, Rng
from .op_cases import OPS, at_every_size
from .op_cases.tokens import pad

# ---- the modules: each with its input as one more parameter, so that dx is checked as any gradient is ----

# B, T, C, F and the side of the padding; three heads
SHAPES = ((1, 3, 6, 5, "none"), (3, 2, 12, 7, "left"), (2, 5, 6, 1, "right"))


class Fed(Module):
    """A module with the x that it is called with; a float x is a parameter, but that of a whole model."""

    def __init__(self, module: Module, x: np.ndarray) -> None:
        self.module, self.ids = module, x
        self.x = Parameter(x) if x.dtype.kind == "f" and not isinstance(module, Sequential) else None

    def forward(self, _: Any = None, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Any]:
        return self.module.forward(self.ids if self.x is None else self.x.data, inputs, run)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> None:
        dx = self.module.backward(dy, cache, grads)
        if self.x is not None:
            grads.add(self.x, dx)


def check(module: Module, x: np.ndarray, side: str, rng: Rng, adapters: Sequence[str | None] | None = None) -> Report:
    """Every gradient of Σ dy ∘ module(x), where the outputs of padding have no dy; dropout is drawn the same again."""
    B, T = x.shape[:2]
    real = pad(side, T, [T, *rng.integers(1, T + 1, B - 1)]) if side != "none" else np.ones((B, T), dtype=bool)
    padding, segments = None if side == "none" else real, rng.integers(0, 2, (B, T)) if x.ndim < 4 else None
    inputs = Inputs(padding, segments, adapters=adapters)
    if isinstance(module, EncoderDecoder):
        hidden = None if side == "none" else pad(side, T + 1, [T + 1, *rng.integers(1, T + 2, B - 1)])
        inputs = inputs._replace(source=source_of(module, B, T, rng), source_padding=hidden)
    fed = Fed(module, x)

    def run() -> tuple[Array, Any]:
        return fed.forward(inputs=inputs, run=Pass(np.random.default_rng(0)))

    y, cache = run()
    dy, grads = rng.standard_normal(y.shape) * (real[..., None] if y.ndim == 3 and side != "none" else 1), Gradients()
    fed.backward(dy, cache, grads)
    # a constant as large as the terms: where they cancel, the loss would look too small for what they round
    offset = math.copysign(np.abs(dy * y).sum(), (dy * y).sum())
    # the softmax ignores what is added to all the scores of a query: a bias of the keys, unless positions turn it
    rotary = any(getattr(part, "rope", None) for _, part in module.named_modules())
    zero = [] if rotary else [name for name in fed.named_parameters() if name.endswith("k_proj.bias")]
    return check_model(fed, lambda: offset + (dy * run()[0]).sum(), grads, rng=rng, zero=zero)


def shake(parameters: Iterable[Parameter], rng: Rng) -> None:
    """Move every weight, gain, bias or lora_B away from where it starts, as from 0 or 1; what is quantised stays."""
    for parameter in parameters:
        if not isinstance(parameter.data, Quantized):
            parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.data.shape)


def shaken(module: Any, rng: Rng) -> Any:
    shake(module.named_parameters().values(), rng)
    return module


class Reading(Module):
    """Two cross-attentions, one on the other, and the memory that both read, as a parameter."""

    def __init__(self, new: LayerFactory) -> None:
        assert new.rng is not None
        self.first, self.second = new.cross_attention(bias=True), new.cross_attention(bias=False, root=1.3)
        self.m = Parameter(new.rng.standard_normal((5, new.config.d_model)))

    def memory(self, x: Array, inputs: Inputs) -> Memory:
        """The same m for every sequence; of its last tokens the padding of x hides some."""
        B, (S, C) = len(x), self.m.data.shape
        real = np.arange(S) < 2 + np.arange(B)[:, None] % (S - 1)
        padding = None if inputs.padding is None else real
        return Memory(np.broadcast_to(self.m.data, (B, S, C)), self.m.trainable, padding)

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Any]:
        memory = self.memory(x, inputs)
        inputs = inputs._replace(memory=memory)
        h, c1 = self.first.forward(x, inputs, run)
        h, c2 = self.second.forward(x + h, inputs, run)
        return h, (c1, c2, memory)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> Array:
        c1, c2, memory = cache
        dh: Array = self.second.backward(dy, c2, grads)  # type: ignore[assignment]
        dx: Array = dh + self.first.backward(dh, c1, grads)
        grads.add(self.m, grads.pop(memory).sum(axis=0))
        return dx


def attention_part(new: LayerFactory, **options: Any) -> Module:
    return LayerFactory(replace(new.config, n_kv_heads=options.pop("n_kv_heads", 3)), new.rng).attention(**options)


def block(family: Callable[[Config, Rng | None], Transformer]) -> Callable[[LayerFactory], Module]:
    return lambda new: family(new.config, new.rng)["block_0"]


def adapter(cls: type[Adapter], options: Mapping[str, Any], new: LayerFactory) -> Adapter:
    """A new adapter on a layer of the class's base type."""
    assert new.rng is not None
    wide = new.config.d_model + new.config.d_ff
    bases: dict[Any, Callable[[], Any]] = {
        Embedding: lambda: new.embedding(new.config.vocab_size),
        LayerNorm: new.layer_norm,
        Linear: lambda: new.linear(new.config.d_model, wide, True),
        Conv1d: lambda: convolution(Conv1d, new),
        Conv2d: lambda: convolution(Conv2d, new),
    }
    return cls.start(bases[cls.base_type](), rng=new.rng, **options)


def convolution(kind: type[Convolution], new: LayerFactory) -> Convolution:
    """Of d_model channels, with another window along each axis."""
    C, kernel = new.config.d_model, (3, 2)[: kind.axes]
    return kind(new.normal(C + 1, C, *kernel), new.full(0, C + 1), (1, 2)[: kind.axes], (2, 0)[: kind.axes], 2)


def patch_embeddings(new: LayerFactory) -> PatchEmbeddings:
    """Of the images that some_x() gives, in patches of 2 x 3."""
    C, T = new.config.d_model, new.config.max_length
    positions = 1 + ((T + 3) // 2) * ((T + 4) // 3)
    projection = Conv2d(new.normal(C + 1, C, 2, 3), new.full(0, C + 1), stride=(2, 3))
    return PatchEmbeddings(projection, new.normal(1, 1, C + 1), new.normal(1, positions, C + 1))


def some_x(module: Module, B: int, T: int, C: int, rng: Rng) -> np.ndarray:
    """What it reads: ids of 5 words, signals or images of C channels, or rows."""
    parts = [part for _, part in module.named_modules()]
    axes = next((part.axes for part in parts if isinstance(part, Convolution)), 0)
    if any(type(part) is Embedding for part in parts):
        return rng.integers(0, 5, (B, T))
    return rng.standard_normal((B, C, *(T + 3, T + 4)[:axes]) if axes else (B, T, C))


def recorder(new: LayerFactory) -> Module:
    """The Linear that stands for another while an initialisation looks at W's gradient."""
    made = Recorder(new.linear(new.config.d_model, new.config.d_ff, True), Latest())
    made.weight.trainable = True
    return made


MODULES: dict[str, Callable[[LayerFactory], Module]] = {
    "Linear": lambda new: new.linear(new.config.d_model, new.config.d_ff, True),
    "Linear without bias": lambda new: new.linear(new.config.d_model, new.config.d_ff, False),
    "LayerNorm": LayerFactory.layer_norm,
    "LayerNorm without bias": partial(LayerFactory.layer_norm, bias=False),
    "RMSNorm": LayerFactory.rms_norm,
    "ZeroCentredRMSNorm": LayerFactory.zero_centred_rms_norm,
    "Identity": lambda new: Identity(),
    "Embedding": lambda new: new.embedding(new.config.vocab_size),
    "Embeddings": lambda new: bert(new.config, new.rng)["embed"],
    "MLP": LayerFactory.mlp,
    "MLP, exact GELU": lambda new: LayerFactory(replace(new.config, activation="gelu"), new.rng).mlp(),
    "GatedMLP": LayerFactory.gated_mlp,
    "GatedMLP, GELU": lambda new: new.gated_mlp(Gelu(approximate=True)),
    "FusedGatedMLP": lambda new: new.fused_gated_mlp(),
    "FusedGatedMLP, exact GELU": lambda new: new.fused_gated_mlp(Gelu(approximate=False)),
    "Attention": partial(attention_part, bias=True, causal=False),
    "Attention, causal, rotary": partial(attention_part, bias=False, causal=True, rope=Rope(THETA)),
    "Attention, sliding window": partial(attention_part, bias=False, causal=True, rope=Rope(THETA), window=2),
    "Attention, norms on q and k": partial(attention_part, bias=False, causal=True, rope=Rope(THETA), qk_norm=True),
    "Attention, grouped": partial(attention_part, bias=False, causal=True, n_kv_heads=1),
    "Attention, symmetric window": partial(attention_part, bias=False, causal=False, rope=Rope(THETA), window=2),
    "Attention, another root": partial(attention_part, bias=False, causal=True, root=1.7),
    "CrossAttention, two of one memory": Reading,
    "FusedAttention": partial(LayerFactory.fused_attention, bias=True),
    "FusedAttention, grouped, rotary": lambda new: LayerFactory(
        replace(new.config, n_kv_heads=1), new.rng
    ).fused_attention(bias=False, rope=Rope(THETA, ops.YarnScaling(3.0, 7))),
    "FusedAttention, rotary, symmetric window": partial(
        LayerFactory.fused_attention, bias=False, causal=False, rope=Rope(THETA), window=2
    ),
    "Select, first": lambda new: Select(last=False),
    "Select, last": lambda new: Select(last=True),
    "Labelled": lambda new: Labelled(),
    "MeanTokens": lambda new: MeanTokens(),
    "Tanh": lambda new: Tanh(),
    "Relu": lambda new: Relu(),
    "Conv1d": partial(convolution, Conv1d),
    "Conv2d": partial(convolution, Conv2d),
    "Flatten": lambda new: Flatten(),
    "PatchEmbeddings": patch_embeddings,
    "PreNormBlock of gpt2": block(gpt2),
    "PreNormBlock of llama": block(llama),
    "PostNormBlock of bert": block(bert),
    "SandwichNormBlock of gemma3_text": block(FAMILIES["gemma3_text"].build),
    "Recorder": recorder,
    "Checkpointed block of llama": lambda new: Checkpointed(block(llama)(new)),
}
CLASSES = [cls for classes in variants().values() for cls in classes]  # of every variant of adapters
ADAPTERS: dict[str, Callable[[LayerFactory], Adapter]] = {
    f"{cls.__name__}{what}": partial(adapter, cls, options) for cls in CLASSES for what, options in cls.examples.items()
}


def of_op(op: str, rng: Rng) -> Iterator[Report]:
    return (OPS[op].check(case, rng) for case in at_every_size(op, rng))


def first_on(base_type: type[Module]) -> Callable[[LayerFactory], Adapter]:
    """A maker of an adapter for this type of layer: of the default variant, if it has one."""
    return next(ADAPTERS[cls.__name__] for cls in (*variants()[DEFAULT], *CLASSES) if cls.base_type is base_type)


def merged_embedding(new: LayerFactory) -> Module:
    """In the place of a token embedding, as it has no gradient of its own."""
    embeddings = bert(new.config, new.rng)["embed"]
    made = first_on(Embedding)(new)
    for parameter in made.own_parameters().values():
        parameter.data = parameter.data if parameter.data.any() else parameter.data + 0.3
    embeddings.replace("token", MergedEmbedding(made))
    return embeddings


def of_part(make: Callable[[LayerFactory], Module], rng: Rng, merged: bool = False) -> Iterator[Report]:
    for B, T, C, F, side in SHAPES:
        config = Config(vocab_size=5, n_layers=1, d_model=C, n_heads=3, d_ff=F, max_length=T, eps=EPS, dtype="float64")
        module = shaken(make(LayerFactory(config, rng)), rng)
        x = some_x(module, B, T, C, rng)
        side = side if x.ndim < 4 and x.shape[1] == T else "none"  # signals and images have no padding
        yield check(merged_layer(module) if merged else module, x, side, rng)


# ---- the models: two layers, three heads ----

VOCABULARY = 11
SPECIAL: dict[str, dict[str, Any]] = {
    "mistral": {"n_kv_heads": 1, "rope_theta": THETA, "sliding_window": 3, "rope_scaling": ops.YarnScaling(2.0, 6)},
    "qwen2": {"n_kv_heads": 1, "rope_theta": THETA, "sliding_window": 3, "max_window_layers": 1},
    "qwen3": {"n_kv_heads": 1, "head_dim": 6, "rope_theta": THETA},
    "llama": {"n_kv_heads": 1, "head_dim": 6, "rope_theta": THETA,
              "rope_scaling": ops.Llama3Scaling(4.0, 0.2, 1.5, 9)},
    "smollm3": {"n_kv_heads": 1, "rope_theta": THETA, "rotary_layers": (False, True)},
    "phi3": {"n_kv_heads": 1, "rope_theta": THETA, "sliding_window": 3},
    "roberta": {"offset": 2, "activation": "gelu"},
    "gemma3_text": {"n_kv_heads": 1, "head_dim": 6, "rope_theta": THETA, "local_rope_theta": 2.0, "sliding_window": 2,
                    "layer_types": ("sliding_attention", "full_attention"), "query_pre_attn_scalar": 3},
    "modernbert": {"rope_theta": THETA, "local_rope_theta": 2.0, "sliding_window": 2, "classifier_pooling": "mean",
                   "layer_types": ("full_attention", "sliding_attention")},
    "vit": {"activation": "gelu", "vocab_size": 0, "image_size": 5, "patch_size": 2, "channels": 2},
    "t5": {"d_ff": 23, "head_dim": 5, "decoder_layers": 3, "gated": False, "relative_buckets": 6,
           "relative_distance": 4},  # of 7 hidden numbers all may be below 0, where ReLU has no gradient
}  # fmt: skip
BODIES = {name: "lm" if "lm" in family.classes else "none" for name, family in FAMILIES.items()}  # a head for each
CLASSIFIERS = [name for name, family in FAMILIES.items() if "classify" in family.classes]
ENCODERS = [name for name, family in FAMILIES.items() if "tokens" in family.classes]


def model(family: str, rng: Rng, adapted: bool = True, head: str = "") -> Transformer:
    """A model off its start, with `adapted` one that has LoRA on every linear layer, and on patches."""
    config = Config(VOCABULARY, n_layers=2, d_model=12, n_heads=3, d_ff=7, max_length=9, eps=EPS, dtype="float64")
    config = replace(config, head=head or BODIES[family], labels=4, **SPECIAL.get(family, {}))
    made = FAMILIES[family].build(config, rng)
    if adapted:
        attach_lora(made, "all-linear", r=2, alpha=3, rng=rng)
    if adapted and config.image_size:
        attach_lora(made, ["projection"], r=2, alpha=3, rng=rng)
    return shaken(made, rng)


def checked(made: Transformer, shape: tuple[int, int, int, int, str], rng: Rng, word: Sequence[int] = ()) -> Report:
    """Every gradient of the model's output for random token ids, those of `word` among them, or images."""
    B, T, _, _, side = shape
    x = read_by(made, B, T + 2, rng)
    if word:
        x[:, T - 1 : T - 1 + len(word)] = word
    return check(made, x, side if x.ndim == 2 else "none", rng)


def read_by(made: Transformer, B: int, T: int, rng: Rng) -> np.ndarray:
    """Random token ids (B, T), or B images."""
    c = made.config
    if c.image_size:
        return rng.standard_normal((B, c.channels, c.image_size, c.image_size))
    return rng.integers(0, VOCABULARY, (B, T))


def source_of(made: Transformer, B: int, T: int, rng: Rng) -> np.ndarray | None:
    """For a model of two texts the ids of the other, of another length: (B, T + 1)."""
    return rng.integers(0, made.config.vocab_size, (B, T + 1)) if made.reads_source else None


def of_family(family: str, adapted: bool, head: str, rng: Rng) -> Iterator[Report]:
    shapes = SHAPES[1:] if head in LABELLED else SHAPES  # with padding; below are the layers of the other head
    return (checked(model(family, rng, adapted, head), shape, rng) for shape in shapes)


def of_tied(rng: Rng) -> Iterator[Report]:
    """A tied head that has the adapter of the embedding: two uses of one A and one B."""
    for shape in SHAPES:
        made = model("bert", rng, adapted=False)
        attach_lora(made, ["embed", "q_proj"], r=2, alpha=3, dropout=0.4, rng=rng, ensure_weight_tying=True)
        yield checked(shaken(made, rng), shape, rng)


def of_variant(variant: str, rng: Rng) -> Iterator[Report]:
    """In llama shared slots serve layers of several sizes; in gpt2 fused layers are adapted by parts. Llama has no
    biases, so what needs one is not in it."""
    cls = variants()[variant][0]
    options = cls.examples[""]
    word = next((options[option.name] for option in cls.options if option.in_a_row), ())
    for family, those, shape in (("llama", "all-linear", SHAPES[0]), ("gpt2", None, SHAPES[1])):
        made = model(family, rng, adapted=False)
        targets = those and adaptable(made, variant, those, **options)
        if targets == []:
            continue
        for path in attach(made, variant, targets, rng=rng, **options):
            shake(made[path].own_parameters().values(), rng)
        yield checked(made, shape, rng, word)


def of_many(rng: Rng) -> Iterator[Report]:
    """Rows with adapters of their own: two beside one product of the base, one that changes it, and the base itself."""
    on_linear = [cls for cls in CLASSES if cls.base_type is Linear and cls.variant != DEFAULT]
    beside, changing = (next(c for c in on_linear if c.acts_on_some_tokens == kind) for kind in (True, False))
    classes = {"a": variants()[DEFAULT][0], "b": beside, "c": changing}
    batches: tuple[list[str | None], ...] = ["b"], ["a", None, "b"], ["c", "a"]
    for names in batches:
        adapters = Adapters(model("gpt2", rng, adapted=False))
        for name in filter(None, names):
            targets, options = ["o_proj", "up_proj", "down_proj"], classes[name].examples[""]
            adapters.attach(name, classes[name].variant, targets, rng=rng, **options)
        adapters.activate_by_row()
        ids = rng.integers(0, VOCABULARY, (len(names), 5))
        yield check(shaken(adapters.model, rng), ids, "none", rng, names)


CHECKS: dict[str, Callable[[Rng], Iterable[Report]]] = {
    **{f"op {name}": partial(of_op, name) for name in OPS},
    **{f"module {name}": partial(of_part, make) for name, make in MODULES.items()},
    **{f"adapter {name}": partial(of_part, make) for name, make in ADAPTERS.items()},
    "adapter MergedLinear": partial(of_part, first_on(Linear), merged=True),
    "adapter MergedLayerNorm": partial(of_part, first_on(LayerNorm), merged=True),
    "adapter MergedConv1d": partial(of_part, first_on(Conv1d), merged=True),
    "adapter MergedConv2d": partial(of_part, first_on(Conv2d), merged=True),
    "adapter MergedEmbedding": partial(of_part, merged_embedding),
    "adapter TiedLoRALinear": of_tied,
    "adapter Many in a model": of_many,
    **{f"adapter {variant} in a model": partial(of_variant, variant) for variant in variants()},
    **{f"family {name}": partial(of_family, name, False, BODIES[name]) for name in FAMILIES},
    **{f"family {name} with adapters": partial(of_family, name, True, BODIES[name]) for name in FAMILIES},
    **{f"family {name}, classifier with adapters": partial(of_family, name, True, "classify") for name in CLASSIFIERS},
    **{f"family {name}, tokens with adapters": partial(of_family, name, True, "tokens") for name in ENCODERS},
}
