"""BERT. Devlin et al. (2018), "BERT: Pre-training of Deep Bidirectional Transformers"."""

from __future__ import annotations

from ...backend import Rng
from ...nn import Embeddings, Gelu, Labelled, Module, PostNormBlock, Select, Tanh
from ..config import Config
from ..parts import LayerFactory, layers_by_name
from ..transformer import Transformer
from .family import Family, encoder_classes


def bert(config: Config, rng: Rng | None) -> Transformer:
    """Post-norm, learned positions and segments, GELU; every token sees every other."""
    new = LayerFactory(config, rng)
    return encoder("bert", new, transform="pooler", head_gelu=new.gelu(), segments=config.segments)


def encoder(
    family: str, new: LayerFactory, transform: str, head_gelu: Gelu, segments: int, act: Module | None = None
) -> Transformer:
    """What BERT, RoBERTa and DistilBERT share. `segments`: the number of segment embeddings, 0 for none.

    A classifier of texts reads tanh(W h + b) of the first token h, where W and b are the layer `transform`, or another
    `act` in the place of tanh. A classifier of tokens reads each h. A language model's head predicts masked tokens:

    logits = E norm(gelu(W h + b)) + c          E the token embedding
    """
    config, C = new.config, new.config.d_model
    token, position = new.embedding(config.vocab_size), new.embedding(config.offset + config.max_length)
    segment = new.embedding(segments) if segments else None
    embed = Embeddings(token, position, segment, new.layer_norm(), config.offset)
    blocks = [
        PostNormBlock(new.layer_norm(), new.attention(causal=False, bias=True), new.layer_norm(), new.mlp())
        for _ in range(config.n_layers)
    ]
    head: dict[str, Module] = {}
    if config.head == "classify":
        head = {"first": Select(last=False), transform: new.linear(C, C, True), f"{transform}_act": act or Tanh()}
        head["classifier"] = new.classifier(bias=True)
    elif config.head == "tokens":
        head["classifier"] = new.classifier(bias=True)
    elif config.head == "lm":
        head = {"labelled": Labelled(), "head_transform": new.linear(C, C, True), "head_gelu": head_gelu}
        head["head_norm"] = new.layer_norm()
        head["lm_head"] = new.lm_head(token, bias=True)
    return Transformer(family, config, layers_by_name(embed, blocks, **head))


BODY_NAMES = [
    ("embed.token", "bert.embeddings.word_embeddings"),
    ("embed.position", "bert.embeddings.position_embeddings"),
    ("embed.segment", "bert.embeddings.token_type_embeddings"),
    ("embed.norm", "bert.embeddings.LayerNorm"),
    ("block_{}.attention.q_proj", "bert.encoder.layer.{}.attention.self.query"),
    ("block_{}.attention.k_proj", "bert.encoder.layer.{}.attention.self.key"),
    ("block_{}.attention.v_proj", "bert.encoder.layer.{}.attention.self.value"),
    ("block_{}.attention.o_proj", "bert.encoder.layer.{}.attention.output.dense"),
    ("block_{}.norm_1", "bert.encoder.layer.{}.attention.output.LayerNorm"),
    ("block_{}.mlp.up_proj", "bert.encoder.layer.{}.intermediate.dense"),
    ("block_{}.mlp.down_proj", "bert.encoder.layer.{}.output.dense"),
    ("block_{}.norm_2", "bert.encoder.layer.{}.output.LayerNorm"),
    ("pooler", "bert.pooler.dense"),
]
FAMILY = Family(
    bert,
    classes=encoder_classes("Bert"),
    config_keys={
        "vocab_size": "vocab_size",
        "n_layers": "num_hidden_layers",
        "d_model": "hidden_size",
        "n_heads": "num_attention_heads",
        "d_ff": "intermediate_size",
        "max_length": "max_position_embeddings",
        "segments": "type_vocab_size",
        "eps": "layer_norm_eps",
        "activation": "hidden_act",
        "tied": "tie_word_embeddings",
    },
    config_fixed={
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "chunk_size_feed_forward": 0,
    },
    config_defaults={"tie_word_embeddings": True},
    base_model_prefix="bert",
    hf_names=[
        *BODY_NAMES,
        ("head_transform", "cls.predictions.transform.dense"),
        ("head_norm", "cls.predictions.transform.LayerNorm"),
        ("lm_head.bias", "cls.predictions.bias"),
        ("lm_head.unused", "cls.predictions.decoder"),  # of an untied head, which has two biases and adds one
        ("lm_head", "cls.predictions.decoder"),
        ("classifier", "classifier"),
    ],
    unused={"none": ("pooler.dense",)},
    default_tokenizer="BertTokenizer",
)
