"""Models by name, or from a config.json, built without weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_json
from ..models.config_json import read_config
from ..models.families import FAMILIES
from ..models.hub import fetch, name_on_hub
from ..models.names import hub_name
from ..models.transformer import Transformer
from ..nn import Attention, Block, FusedAttention, Linear, Module, Parameter, Select, Tanh
from ..spelling import choose_from

LAYERS = "n_layer", "n_layers", "num_hidden_layers", "num_layers", "num_decoder_layers"
BUILTIN = Path(__file__).parent.parent / "data" / "builtin"
MOST_LAYERS, MOST = 10_000, 2**28  # of a config's numbers: every layer is built, the rest only multiplies


def gpt2_sizes(width: int, layers: int, heads: int, **rest: Any) -> dict[str, Any]:
    usual = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024}
    usual |= {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
    return usual | {"n_embd": width, "n_layer": layers, "n_head": heads, **rest}


def bert_sizes(width: int, layers: int, heads: int, **rest: Any) -> dict[str, Any]:
    usual = {"model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}
    usual |= {"architectures": ["BertModel"], "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return usual | sizes | {"intermediate_size": 4 * width, **rest}


def llama_sizes(width: int, layers: int, heads: int, kv_heads: int, hidden: int, **rest: Any) -> dict[str, Any]:
    usual = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return usual | sizes | {"num_key_value_heads": kv_heads, "intermediate_size": hidden, **rest}


def t5_sizes(width: int, layers: int, heads: int, hidden: int, **rest: Any) -> dict[str, Any]:
    usual = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 32128, "d_kv": 64}
    return usual | {"d_model": width, "num_layers": layers, "num_heads": heads, "d_ff": hidden, **rest}


T5_1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
ROBERTA = {"model_type": "roberta", "architectures": ["RobertaModel"], "vocab_size": 50265,
           "max_position_embeddings": 514, "type_vocab_size": 1}  # fmt: skip
DISTILBERT = {"model_type": "distilbert", "architectures": ["DistilBertModel"], "vocab_size": 30522, "dim": 768,
              "n_layers": 6, "n_heads": 12, "hidden_dim": 3072, "max_position_embeddings": 512}  # fmt: skip


def modernbert_sizes(width: int, layers: int, heads: int, hidden: int) -> dict[str, Any]:
    usual = {"model_type": "modernbert", "architectures": ["ModernBertModel"], "vocab_size": 50368}
    usual |= {"max_position_embeddings": 8192, "norm_eps": 1e-5}
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return usual | sizes | {"intermediate_size": hidden}


GEMMA_3 = {"model_type": "gemma3_text", "vocab_size": 262144, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
           "head_dim": 256, "sliding_window": 512, "tie_word_embeddings": True}  # fmt: skip
LLAMA_3 = {"vocab_size": 128256, "max_position_embeddings": 131072}
NAMED: dict[str, dict[str, Any]] = {
    "gpt2": gpt2_sizes(768, 12, 12),
    "gpt2-medium": gpt2_sizes(1024, 24, 16),
    "gpt2-large": gpt2_sizes(1280, 36, 20),
    "gpt2-xl": gpt2_sizes(1600, 48, 25),
    # Brown et al. (2020), table 2.1; q, k and v apart, as the LoRA paper adapts them
    "gpt3-175b": gpt2_sizes(12288, 96, 96, n_positions=2048, fused=False),
    "bert-base": bert_sizes(768, 12, 12),
    "bert-large": bert_sizes(1024, 24, 16),
    "roberta-base": bert_sizes(768, 12, 12, **ROBERTA),
    "roberta-large": bert_sizes(1024, 24, 16, **ROBERTA),
    "distilbert-base": DISTILBERT,
    "modernbert-base": modernbert_sizes(768, 22, 12, 1152),
    "modernbert-large": modernbert_sizes(1024, 28, 16, 2624),
    "llama-2-7b": llama_sizes(4096, 32, 32, 32, 11008),
    "llama-2-13b": llama_sizes(5120, 40, 40, 40, 13824),
    "llama-2-70b": llama_sizes(8192, 80, 64, 8, 28672),
    "llama-3.1-8b": llama_sizes(4096, 32, 32, 8, 14336, **LLAMA_3),
    "llama-3.1-70b": llama_sizes(8192, 80, 64, 8, 28672, **LLAMA_3),
    "mistral-7b": llama_sizes(
        4096, 32, 32, 8, 14336, model_type="mistral", max_position_embeddings=32768, sliding_window=4096
    ),
    "smollm2-135m": llama_sizes(
        576, 30, 9, 3, 1536, vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True
    ),
    "gemma-3-270m": llama_sizes(640, 18, 4, 1, 2048, **GEMMA_3),
    "gemma-3-1b": llama_sizes(1152, 26, 4, 1, 6912, **GEMMA_3),
    "t5-small": t5_sizes(512, 6, 8, 2048),
    "t5-base": t5_sizes(768, 12, 12, 3072),
    "t5-large": t5_sizes(1024, 24, 16, 4096),
    "t5-3b": t5_sizes(1024, 24, 32, 16384, d_kv=128),
    "t5-11b": t5_sizes(1024, 24, 128, 65536, d_kv=128),
    "flan-t5-small": t5_sizes(512, 8, 6, 1024, **T5_1_1),  # the sizes of T5 1.1
    "flan-t5-base": t5_sizes(768, 12, 12, 2048, **T5_1_1),
    "flan-t5-large": t5_sizes(1024, 24, 16, 2816, **T5_1_1),
    "flan-t5-xl": t5_sizes(2048, 24, 32, 5120, **T5_1_1),
    "flan-t5-xxl": t5_sizes(4096, 24, 64, 10240, **T5_1_1),
    "builtin": {},  # read from its folder
}  # fmt: skip

PRINTED = {  # another total than ours, or a rounder one, and where it stands
    "gpt3-175b": ("175,255.8M", "Hu et al. (2021), table 4; 175B in Brown et al. (2020)"),
    "gpt2-medium": ("354.92M", "Hu et al. (2021), table 3"),
    "gpt2-large": ("774.03M", "Hu et al. (2021), table 3"),
}


def without_weights(
    source: str | Path | Mapping[str, Any], head: str | None = None, labels: int | None = None
) -> tuple[str, Transformer]:
    """A name for it, and the model, whose arrays have shapes and take no memory.

    `source`: a name in NAMED, a config.json or the folder that holds one, a name on the Hugging Face Hub, or what such
    a file says. `head`: "lm", "classify" (with `labels` outputs, or as many as the config says, or 2), "tokens" (so
    many for each token) or "none"; without it that of the config's `architectures`, or a language model's. What the
    class in `transformers` has beside what load_pretrained builds is there too. Raises FileNotFoundError for a name or
    file that is not there, and ValueError for a config that load_pretrained refuses.
    """
    name, values = read(source)
    for key, value in values.items():
        most = MOST_LAYERS if key in LAYERS else MOST
        if type(value) is int and value > most:
            raise ValueError(f"{name}: {key} = {value!r:.80} is more than {most:,}")
    # float16, because 32-bit NumPy refuses shapes above 2 GiB, even of one number. Bytes are counted elsewhere.
    family, config = read_config(values, name, "float16", head, labels)
    model = FAMILIES[family].build(config, None)
    if values.get("fused") is False:
        split_projections(model)
    if config.head == "none" and has_pooler(family):
        C = config.d_model
        model.layers |= {"first": Select(last=False), "pooler": Linear(zeros(C, C), zeros(C)), "pooler_tanh": Tanh()}
    lm_head = model.layers.get("lm_head")
    two = hub_name(family, "lm_head.bias") != f"{hub_name(family, 'lm_head')}.bias" if lm_head else False
    if isinstance(lm_head, Linear) and lm_head.bias is not None and two and not config.tied:
        unused = Module()  # transformers has two biases here, and adds one of them
        unused.bias = Parameter(zeros(config.vocab_size))  # type: ignore[attr-defined]
        lm_head.unused = unused  # type: ignore[attr-defined]
    return name, model


def has_pooler(family: str) -> bool:
    """Whether the class without a head ends in a pooler all the same."""
    try:
        return bool(hub_name(family, "pooler"))
    except ValueError:
        return False


def split_projections(model: Transformer) -> None:
    """Give each of q, k and v a matrix of its own."""
    for block in model.layers.values():
        if isinstance(block, Block) and isinstance(block.attention, FusedAttention):
            fused: Any = block.attention.qkv_proj
            n = len(fused.weight.data) // 3
            rows = [slice(i * n, (i + 1) * n) for i in range(3)]
            q, k, v = (Linear(fused.weight.data[part], fused.bias.data[part]) for part in rows)
            o, D = block.attention.o_proj, block.attention.head_dim
            block.attention = Attention(q, k, v, o, D, causal=block.attention.causal)


def zeros(*shape: int) -> Any:
    return np.broadcast_to(np.zeros((), np.float16), shape)


def read(source: str | Path | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """A name for it, and what its config.json says."""
    if isinstance(source, Mapping):
        return str(source.get("model_type", "config")), source
    if source == "builtin":
        return "builtin", read_json(BUILTIN / "config.json")
    if str(source) in NAMED:
        return str(source), NAMED[str(source)]
    hub = name_on_hub(source)
    path = fetch(hub, ["config.json"], known=NAMED) if hub else Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} holds no config.json: it is not a model folder")
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"no model is called {str(source)!r} and no such file is there: {choose_from(str(source), NAMED)}"
        )
    return str(source), read_json(path)
