"""Reports of a demo and of a sweep with round numbers, and a model of which rank makes one."""

import io
from typing import Any

import numpy as np
from PIL import Image  # Matplotlib brings it

import minilora
from minilora.jobs import sweep


def in_color(png: bytes, colors: list[str]) -> list[bool]:
    """Whether more than 50 pixels of a picture have the color, for each of them."""
    counts, pixels = map(np.array, zip(*Image.open(io.BytesIO(png)).convert("RGB").getcolors(1 << 24), strict=True))
    wanted = [[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in colors]
    return [bool(counts[np.abs(pixels - rgb).max(axis=-1) <= 2].sum() > 50) for rgb in wanted]


def demo_report() -> dict[str, Any]:
    """A report with the shape of a real one and round numbers."""

    def method(label: str, trainable: int, size: int) -> dict[str, Any]:
        return {
            "label": label,
            "trainable": trainable,
            "step_seconds": 0.1,
            "memory": {"weights": 4_000_000, "cache": 50_000_000, "gradients": size, "optimizer": 2 * size},
            "curve": {"train": [4.0, 3.0, 2.5], "held_out": [(0, 4.0), (3, 2.4)]},
        }

    spectrum = {"effective_rank": 5.0, "mean_spectrum": [1.0, 0.5, 0.2], "energy_kept": {1: 0.5, 2: 0.9}}
    return {
        "base": {"params": 1000, "english": {"model": 1.7, "zlib": 2.6, "lzma": 1.9, "bigram": 3.7}},
        "target": {"bits_per_byte": {"base": 4.0, "lora": 2.4, "full": 2.0}},
        "lora": method("LoRA, r = 8", 80, 1000) | {"rank": 8, "by_formula": 80, "share_of_gain": 0.8},
        "full": method("full fine-tuning", 1000, 12_500),
        "rank": {"lora": spectrum, "full": spectrum},
        "gradcheck": {"tensors": 4, "groups": {"lora_A": 1e-10}},
        "samples": {"before": "x [1]", "after": "y"},
        "merge": {"max_abs_diff": 1e-6, "max_abs_logit": 20.0},
        "unmerge": {"bit_exact": True},
        "frozen_unchanged": True,
        "seconds": 30.0,
    }


def rows_of(means: list[float | None], errors: list[float | None]) -> list[dict[str, Any]]:
    """The rows of ranks 1, 2, 4, ..., of two seeds each; where the mean is None, the second has failed."""
    return [
        {
            "rank": 2**i,
            "trainable": 100 * 2**i,
            "mean": mean,
            "standard_error": None if mean is None else error,
            "standard_deviation": None,
            "seeds": [{"bits_per_byte": mean}, {"failed": "x"} if mean is None else {"bits_per_byte": mean}],
        }
        for i, (mean, error) in enumerate(zip(means, errors, strict=True))
    ]


def sweep_report(means: list[float | None], error: float | None, seeds: int = 2) -> dict[str, Any]:
    rows = rows_of(means, [error] * len(means))
    for row in rows:
        del row["seeds"][seeds:]
    settings = {"ranks": [row["rank"] for row in rows], "seeds": seeds}
    return {"settings": settings, "base_bits_per_byte": 3.0, "ranks": rows, **sweep.choose(rows)}


SHAPE = {"vocab_size": 40, "n_layers": 2, "d_model": 16, "n_heads": 4, "n_kv_heads": 2, "d_ff": 24, "max_length": 32}


def base_model(tied=True):
    """A small llama whose weights are not as small as those of a new one."""
    rng = np.random.default_rng(1)
    model = minilora.llama(minilora.Config(**SHAPE, tied=tied), rng)
    for parameter in model.named_parameters().values():
        parameter.data = (parameter.data + 0.2 * rng.standard_normal(parameter.data.shape)).astype("f4")
    return model


def adapted(seed=3, targets="all-linear", **words):
    """The same with an adapter whose B is not 0."""
    model, rng = base_model(), np.random.default_rng(seed)
    minilora.attach_lora(model, targets, rng=rng, **({"r": 3, "alpha": 5} | words))
    for parameter in model.trainable_parameters().values():
        parameter.data = 0.3 * rng.standard_normal(parameter.data.shape, dtype="f4")
    return model
