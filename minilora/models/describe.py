"""What `minilora info` shows of a model."""

from __future__ import annotations

from pathlib import Path

from ..ops import SCALINGS
from ..quantization import STORED, Quantized
from ..spelling import counted
from .labels import labels_of, list_labels
from .pretrained import load_pretrained
from .saving import base_hash


def describe_model(source: str | Path) -> dict[str, str]:
    """{title: a line about the model}. Raises as load_pretrained does."""
    model = load_pretrained(source, quantize=STORED)
    config = model.config
    scaled = next((f", scaled: {kind}" for kind, rule in SCALINGS.items() if isinstance(config.rope_scaling, rule)), "")
    factor = f" by {config.rope_scaling.factor:g}" if config.rope_scaling else ""
    without = counted(config.rotary_layers.count(False), "layer") if config.rotary_layers else ""
    rotary = f"rotary with theta {config.rope_theta:g}{scaled}{factor}{f', none in {without}' * bool(without)}"
    positions = "learned" if getattr(model["embed"], "position", None) else rotary
    classifier = f"a classifier of {config.labels} labels{list_labels(labels_of(model))}"
    heads = {"lm": f"{'tied' if config.tied else 'untied'} head", "classify": classifier}
    heads["tokens"] = f"{classifier} for each token"
    held: dict[str, int] = {}
    for p in model.named_parameters().values():
        kind = p.data.name if isinstance(p.data, Quantized) else str(p.data.dtype)
        held[kind] = held.get(kind, 0) + p.data.nbytes
    windowed = sum(config.window(i) is not None for i in range(config.n_layers))
    window = f", a window of {config.sliding_window} in {counted(windowed, 'layer')}" if windowed else ""
    size = f"{config.channels} x {config.image_size} x {config.image_size}"
    reads = f"none: images of {size}, in patches of {config.patch_size}" if config.image_size else config.vocab_size
    return {
        "model": f"{model.family}, {sum(p.data.size for p in model.named_parameters().values()):,} parameters",
        "weights": ", ".join(f"{n / 1e6:.1f} MB in {kind}" for kind, n in held.items()),
        "layers": f"{config.n_layers} of width {config.d_model}, hidden {config.d_ff}",
        "heads": f"{config.n_heads} of width {config.head_dim}, {config.n_kv_heads} for keys and values",
        "vocabulary": f"{reads}, {heads.get(config.head, 'no head')}",
        "positions": f"{config.max_length}, {positions}{window}",
        "base sha256": base_hash(model),
    }
