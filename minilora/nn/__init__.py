"""The structure: parameters, gradients, modules, layers, blocks, optimizers."""

from .attention import Attention, AttentionCache, FusedAttention, KVCache, Rope
from .blocks import MLP, Block, BlockCache, Checkpointed, GatedMLP, Gelu, PostNormBlock, PreNormBlock, recompute
from .context import Context
from .embeddings import Embeddings, positions
from .heads import Labelled, Select, Tanh
from .layers import Embedding, LayerNorm, Linear, LinearCache, NormModuleCache, RMSNorm
from .module import Gradients, Module, Parameter, Sequential, check_fit, check_names, join, shapes_of
