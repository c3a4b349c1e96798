"""The run that the notebooks compare: the built-in model, which knows English, learns Python source."""

from functools import cache
from typing import Any

import minilora
from minilora.data import Split, all_windows, bits, english, excerpts, python_source, random_windows
from minilora.nn import Sequential

ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]


def adapt(
    lr: float,
    seed: int,
    rank: int = 0,
    *,
    targets: str | list[str] = "all-linear",
    alpha: float = 16,
    rslora: bool = False,
    batch: int = 16,
    length: int = 64,
    steps: int = 60,
) -> Sequential:
    """The built-in model after `steps` steps of AdamW on Python source: by LoRA of a rank, or in full at rank 0."""
    model = minilora.load_pretrained("builtin")
    if rank:
        minilora.attach_lora(model, targets, r=rank, alpha=alpha, rslora=rslora, rng=seed)
    batches = random_windows(source().train, batch=batch, length=length, seed=seed)
    schedule = minilora.cosine_schedule(steps, warmup=max(1, steps // 12))
    minilora.fit(model, batches, steps, lr=lr, schedule=schedule, seed=seed, description=None)
    return model


def losses(model: Sequential) -> dict[str, float]:
    """Bits per byte of text that it has not seen: Python source, the new task, and English, the old one."""
    texts = {"new": source().validation, "old": english().validation}
    return {
        name: bits(minilora.evaluate(model, all_windows(excerpts(text, 4096), 16, 128))) for name, text in texts.items()
    }


@cache
def source() -> Split:
    return python_source()


def run(**how: Any) -> dict[str, float]:
    """Adapt and evaluate. A run that diverges has the losses of nothing learned and all forgotten: infinity."""
    try:
        return losses(adapt(**how))
    except FloatingPointError:
        return {"new": float("inf"), "old": float("inf")}
