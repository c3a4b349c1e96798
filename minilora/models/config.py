"""Config: the shape of a model."""

from __future__ import annotations

from dataclasses import dataclass

from .. import ops
from ..nn import Rope

HEADS = "lm", "classify", "tokens", "none"
LABELLED = "classify", "tokens"  # heads whose outputs are labels: of a whole text, or of each token (encoders)
HUGE = 1e300  # no number of a config is as large; a Python int may be larger than any float
ACTIVATIONS = "gelu", "gelu_tanh"
LAYER_TYPES = "full_attention", "sliding_attention"
POOLINGS = "cls", "mean"


@dataclass(frozen=True)
class Config:
    """The shape of a model. A field that says "0: ..." is derived from others if it is 0."""

    vocab_size: int  # V; 0 of a model that reads images
    n_layers: int
    d_model: int  # C
    n_heads: int  # H
    n_kv_heads: int = 0  # G, of keys and values; 0: H
    d_ff: int = 0  # F; 0: 4 C
    max_length: int = 1024  # the longest sequence, in tokens; of images derived: their patches and a class token
    segments: int = 2  # number of segment embeddings (encoders)
    rope_theta: float = 10000.0  # of rotary positions
    eps: float = 1e-5  # of the norms
    tied: bool = True  # the head shares the token embedding's weight
    dtype: str = "float32"
    head: str = "lm"  # one of HEADS
    labels: int = 2  # number of labels, if the head is one of LABELLED
    head_dim: int = 0  # D; 0: C/H
    activation: str = "gelu_tanh"  # of an MLP that is not gated: one of ACTIVATIONS
    rope_scaling: ops.RopeScaling | None = None  # one of ops.SCALINGS
    offset: int = 0  # rows of the position table before the first position (RoBERTa: 2)
    sliding_window: int | None = None  # the number of keys that a query sees, its own the last; None: all. An encoder's
    # query sees as many after its own
    max_window_layers: int = 0  # Qwen: the first layer with a window
    layer_types: tuple[str, ...] = ()  # Qwen: one of LAYER_TYPES for each layer, instead of max_window_layers
    local_rope_theta: float = 0.0  # of the layers with a window, whose frequencies are not scaled; 0: as the others
    rotary_layers: tuple[bool, ...] = ()  # which layers have rotary positions; (): all
    query_pre_attn_scalar: int = 0  # Gemma: the scores are divided by its root; 0: by that of head_dim
    classifier_pooling: str = "cls"  # what a ModernBERT classifier reads: the first token, or the mean (POOLINGS)
    image_size: int = 0  # height and width of the images that it reads in the place of words (ViT); 0: none
    patch_size: int = 16  # height and width of a patch of them
    channels: int = 3  # of the images
    gated: bool = True  # T5: whether its MLPs are gated, by a GELU (1.1), or have a ReLU (1.0)
    decoder_layers: int = 0  # T5: blocks of the decoder, where n_layers are the encoder's; 0: as many
    decoder_start: int = 0  # T5: the id that the decoder begins with
    relative_buckets: int = 32  # T5: rows of a table of relative positions
    relative_distance: int = 128  # T5: the distance from which on all are in one bucket

    def __post_init__(self) -> None:
        derived = ["n_kv_heads", "d_ff", "head_dim", "offset", "max_window_layers", "query_pre_attn_scalar"]
        derived += ["decoder_layers", "decoder_start", "image_size"] + ["vocab_size"] * bool(self.image_size)
        sizes = "patch_size", "channels", "vocab_size", "relative_buckets", "relative_distance"
        for name in (*derived, *sizes, "n_layers", "d_model", "n_heads", "max_length", "segments", "labels"):
            least, value = int(name not in derived), getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} = {value!r:.80} is not a whole number from {least} up")
        for name in ("rope_theta", "eps"):
            if type(getattr(self, name)) not in (int, float) or not 0 < getattr(self, name) < HUGE:
                raise ValueError(f"{name} = {getattr(self, name)!r:.80} is not a positive number")
        for name in ("tied", "gated"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} = {getattr(self, name)!r:.80} is not True or False")
        for name, known in (("head", HEADS), ("activation", ACTIVATIONS), ("classifier_pooling", POOLINGS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r:.80} is not one of {', '.join(known)}")
        if type(self.local_rope_theta) not in (int, float) or not 0 <= self.local_rope_theta < HUGE:
            raise ValueError(f"local_rope_theta = {self.local_rope_theta!r:.80} is not a number from 0 up")
        scaling = self.rope_scaling
        if isinstance(scaling, ops.DynamicScaling) and self.max_length != scaling.max_length:
            raise ValueError(f"rope_scaling = {scaling} needs max_length = {scaling.max_length}, not {self.max_length}")
        rotary = self.rotary_layers
        if rotary and (len(rotary) != self.n_layers or not all(type(has) is bool for has in rotary)):
            raise ValueError(f"rotary_layers = {rotary!r:.80} is not True or False for each layer")
        window, types = self.sliding_window, self.layer_types
        if window is not None and (type(window) is not int or window < 1):
            raise ValueError(f"sliding_window = {window!r:.80} is not a whole number from 1 up")
        if types and (len(types) != self.n_layers or not set(types) <= set(LAYER_TYPES)):
            raise ValueError(f"layer_types = {types!r:.80} is not {' or '.join(LAYER_TYPES)} for each layer")
        if "sliding_attention" in types and window is None:
            raise ValueError(f"layer_types = {types!r:.80} needs a sliding_window")
        object.__setattr__(self, "rotary_layers", () if all(rotary) else rotary)
        object.__setattr__(self, "n_kv_heads", self.n_kv_heads or self.n_heads)
        object.__setattr__(self, "decoder_layers", self.decoder_layers or self.n_layers)
        object.__setattr__(self, "d_ff", self.d_ff or 4 * self.d_model)
        if self.image_size:
            if self.patch_size > self.image_size:
                raise ValueError(f"patch_size = {self.patch_size} is more than an image of {self.image_size}")
            object.__setattr__(self, "max_length", (self.image_size // self.patch_size) ** 2 + 1)
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

    def rope(self, layer: int) -> Rope | None:
        """The rotary positions of the attention in block `layer`; None where it has none."""
        if self.rotary_layers and not self.rotary_layers[layer]:
            return None
        if self.local_rope_theta and self.window(layer) is not None:
            return Rope(self.local_rope_theta)
        return Rope(self.rope_theta, self.rope_scaling)
