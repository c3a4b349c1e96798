"""Neural-network modules: parameters, gradients, layers, attention, blocks, optimizers and schedules."""

from .attention import Attention, AttentionCache, FusedAttention, Rope
from .blocks import (
    MLP,
    Block,
    BlockCache,
    Checkpointed,
    FusedGatedMLP,
    GatedMLP,
    Gelu,
    PostNormBlock,
    PreNormBlock,
    SandwichNormBlock,
    recompute,
)
from .convolution import Conv1d, Conv2d, Convolution, Flatten
from .costs import Costs, KeptArray, MetaArray, Product
from .cross_attention import CrossAttention, DecoderBlock, Memory
from .embeddings import TABLES, Embeddings, PatchEmbeddings, positions
from .fused import FusedLinear, Part
from .heads import Labelled, MeanTokens, Relu, Scale, Select, Tanh
from .inputs import AdapterRows, Inputs, Pass
from .kv_cache import KVCache
from .layers import (
    Embedding,
    Identity,
    LayerNorm,
    Linear,
    LinearCache,
    NormModuleCache,
    RMSNorm,
    ZeroCentredRMSNorm,
)
from .module import Gradients, Module, Parameter, Sequential, check_fit, check_names, converted, join, shapes_of
from .relative_attention import RelativeAttention, RelativeBias
