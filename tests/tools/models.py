"""Small models of each family and batches for them, their gradients, and Hugging Face's model with the same weights."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from minilora import ops
from minilora.backend import Array, get_array_module, to_numpy
from minilora.models.config import Config
from minilora.models.families import FAMILIES
from minilora.models.names import hub_name
from minilora.models.transformer import Transformer
from minilora.nn import Gradients, Inputs, Pass
from minilora.verify.model_cases import SPECIAL  # what each family needs, or has to show

SHAPE: dict[str, Any] = {"vocab_size": 13, "n_layers": 2, "d_model": 12, "d_ff": 10, "max_length": 9, "eps": 0.01}
HEADS: dict[str, dict[str, Any]] = {family: {"n_heads": 3, **SPECIAL.get(family, {})} for family in FAMILIES}
for shape in HEADS.values():
    shape |= {"sliding_window": 5} if "layer_types" in shape else {}  # so wide that padding sees a real token
HEADS |= {
    "gpt2": {"n_heads": 3},
    "llama": {"n_heads": 6, "n_kv_heads": 2, "rope_theta": 50.0},
    "mistral": {"n_heads": 6, "n_kv_heads": 2, "rope_theta": 50.0},
    "qwen2": {"n_heads": 6, "n_kv_heads": 2, "rope_theta": 50.0},
    "qwen3": {"n_heads": 3, "n_kv_heads": 1, "rope_theta": 50.0},
    "smollm3": {"n_heads": 6, "n_kv_heads": 2, "rope_theta": 50.0, "rotary_layers": (True, False)},
    "phi3": {"n_heads": 6, "n_kv_heads": 2, "rope_theta": 50.0},
    "bert": {"n_heads": 4, "segments": 3},
    "roberta": {"n_heads": 3, "segments": 3, "offset": 2, "activation": "gelu"},
}


TEXT = [name for name, family in FAMILIES.items() if "lm" in family.classes]  # what reads images: test_vit.py
FAMILY_HEADS = [(family, head) for family in TEXT for head in FAMILIES[family].classes]

# t5 reads two texts: tests/models/test_encoder_decoder.py has what must hold of it
ONE_TEXT = [name for name in TEXT if not FAMILIES[name].build(Config(8, 1, 4, 1, head="none"), None).reads_source]
each_family = pytest.mark.parametrize("family", ONE_TEXT)


def beside(model: Transformer, ids: np.ndarray) -> Inputs:
    """Inputs beside these ids: for a model of two texts the other one, the same ids backwards."""
    return Inputs(source=ids[:, ::-1]) if model.reads_source else Inputs()


def fresh(family: str, **options: Any) -> Transformer:
    """A small model at its initialization, in float64 unless told otherwise."""
    config = Config(**{**SHAPE, **HEADS[family], "dtype": "float64", **options})
    return FAMILIES[family].build(config, np.random.default_rng(1))


def build(family: str, **options: Any) -> Transformer:
    """A small model in which no weight, gain or bias is where it started."""
    model, rng = fresh(family, **options), np.random.default_rng(2)
    for parameter in model.named_parameters().values():
        parameter.data = (parameter.data + 0.3 * rng.standard_normal(parameter.data.shape)).astype(parameter.data.dtype)
    return model


DECODERS: dict[str, dict[str, Any]] = {  # family, what about it: options of build()
    "gpt2": {},
    "llama": {},
    "llama, scaled": {"rope_scaling": ops.Llama3Scaling(4.0, 0.2, 1.5, 9), "head_dim": 6},
    "mistral": {"sliding_window": 3},
    "qwen2": {"sliding_window": 1, "max_window_layers": 1},
    "qwen3": {"n_kv_heads": 1},
    "qwen3, YaRN": {"n_kv_heads": 1, "rope_scaling": ops.YarnScaling(4.0, 3)},
    "smollm3": {"rotary_layers": (False, True), "sliding_window": 2, "layer_types": ("sliding_attention",) * 2},
    "phi3": {"sliding_window": 3},
    "gemma3_text": {},
}


def decoder(kind: str, **options: Any) -> Transformer:
    """A small one of DECODERS."""
    return build(kind.partition(", ")[0], **{**DECODERS[kind], **options})


class Batch(NamedTuple):
    ids: np.ndarray
    labels: np.ndarray
    inputs: Inputs
    real: np.ndarray
    run: Pass = Pass()


def some_batch(rng: np.random.Generator, side: str = "none") -> Batch:
    """Three sequences, two of which are padded on one side; padding and some real tokens carry no label."""
    T, lengths = 6, np.array([6, 6, 6] if side == "none" else [6, 4, 2])
    real = np.arange(T) < lengths[:, None]
    real = real[:, ::-1].copy() if side == "left" else real
    ids, segments = rng.integers(0, 13, (3, T)), rng.integers(0, 3, (3, T))
    labels = np.where(real, rng.integers(0, 13, (3, T)), ops.IGNORE)
    labels[0, 2:4] = ops.IGNORE
    return Batch(ids, labels, Inputs(None if side == "none" else real, segments), real)


def loss(model: Transformer, batch: Batch) -> Array:
    return forward_loss(model, batch)[0]


def forward_loss(model: Transformer, batch: Batch) -> tuple[Array, Any]:
    logits, caches = model.forward(batch.ids, batch.inputs, batch.run)
    L, cache = ops.cross_entropy_forward(logits, get_array_module(logits).asarray(batch.labels))
    return L, (caches, cache)


def gradients(model: Transformer, batch: Batch) -> Gradients:
    _, (caches, cache) = forward_loss(model, batch)
    grads = Gradients()
    model.backward(ops.cross_entropy_backward(1.0, cache), caches, grads)
    return grads


def named(model: Transformer, grads: Gradients) -> dict[str, np.ndarray]:
    return {name: to_numpy(grads[p]) for name, p in model.named_parameters().items() if p in grads}


def close(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    """Within `tolerance` of the largest number."""
    return a.shape == b.shape and bool(np.abs(a - b).max() <= tolerance * np.abs(b).max())


def hugging_face(model: Transformer) -> Any:
    """The Llama of transformers, in float64, of the shape and with the weights of ours."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    c = model.config
    # not "eager": it takes the softmax in float32, where a token of padding that sees nothing is not a number
    config = transformers.LlamaConfig(
        attn_implementation="sdpa", pad_token_id=None, bos_token_id=None, eos_token_id=None, vocab_size=c.vocab_size,
        hidden_size=c.d_model, intermediate_size=c.d_ff, num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads, max_position_embeddings=c.max_length, rms_norm_eps=c.eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta}, tie_word_embeddings=c.tied,
    )  # fmt: skip
    other = transformers.LlamaForCausalLM(config).double()
    parameters = dict(other.named_parameters())
    with torch.no_grad():
        for name, data in model.state_dict().items():
            parameters.pop(hub_name("llama", name)).copy_(torch.tensor(data))
    assert not parameters, "what is theirs alone"
    return other


def hugging_face_logits(other: Any, batch: Batch) -> Any:
    torch = pytest.importorskip("torch")
    ids, real = torch.tensor(batch.ids), torch.tensor(batch.real)
    positions = torch.clamp(torch.cumsum(real, 1) - 1, min=0)
    return other(input_ids=ids, attention_mask=real.long(), position_ids=positions).logits
