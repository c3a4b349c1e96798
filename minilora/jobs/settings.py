"""The options of a fine-tuning run, each declared once: for Python, the command line and settings.json.

Nothing here imports NumPy, for which --help need not wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

from ..adapters import DEFAULT, variant_names
from ..adapters.initialisations import descriptions
from ..quantization import format_names
from .arguments import (
    Collect,
    natural_float,
    natural_int,
    positive_float,
    positive_int,
    quantized,
    steps_or_share,
    targets,
)

TASKS = {"text": "text", "instruct": "instruction", "classify": "classification"}  # {--task: its file in jobs/}

SCHEDULES = "constant", "linear", "cosine"  # by their names in Transformers; nn/optim.py has them

# {field: the option of adapters that it sets}; a field is None if the method has no such option.
OF_METHOD = {"rank": "r", "alpha": "alpha", "rslora": "rslora", "dropout": "dropout", "init": "init"}

ENCODING = "encoding of all texts, such as cp1252 or utf-16 (default utf-8); a byte order mark decides"
SKIP_EMPTY = "leave out the rows whose text or label is empty"


def setting(default: Any, help: str, *, saved: bool = True, **argument: Any) -> Any:
    """A field, with its help text and what else argparse needs.

    saved=False keeps it out of settings.json, so that a run may be resumed with another value: for options that do not
    change the result, or only through the data, whose hash settings.json holds.
    """
    return field(default=default, metadata={"saved": saved, "argument": {"help": help, **argument}})


POSITIVE: dict[str, Any] = {"type": positive_int, "metavar": "N"}
NATURAL: dict[str, Any] = {"type": natural_int, "metavar": "N"}
PENALTY: dict[str, Any] = {"type": natural_float, "metavar": "X"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an adapter is trained, whatever the task. `method` is a variant of adapters, `option` its own options."""

    method: str = setting(DEFAULT, f"{', '.join(variant_names())} (default {DEFAULT})", metavar="NAME")
    option: Mapping[str, Any] | None = setting(
        None, "an option of the method, such as d_initial=0.5; may be repeated", action=Collect, metavar="NAME=VALUE"
    )
    init: str | None = setting(None, f"how LoRA's adapters start: {', '.join(descriptions())}", metavar="NAME")
    rank: int | None = setting(8, "rank of the adapters (default: the method's own, 8 for most)", **POSITIVE)
    targets: str | Sequence[str] | None = setting(
        "all-linear", "layers to adapt (default: all-linear; for a method without a rank, its own)",
        type=targets, metavar="A,B",
    )  # fmt: skip
    alpha: float | None = setting(16.0, "the adapter is scaled by alpha/rank (default 16)", type=float, metavar="X")
    rslora: bool | None = setting(False, "scale by alpha/sqrt(rank) instead", action="store_true")
    dropout: float | None = setting(0.0, "dropout on the adapter's input (default 0)", type=float, metavar="P")
    quantize: str | None = setting(
        None, f"hold the base's matrices in fewer bits: {', '.join(format_names())}, or none, the default",
        type=quantized, metavar="FORMAT",
    )  # fmt: skip
    lr: float = setting(8e-3, "peak learning rate; to classify 2e-3 (default 8e-3)", type=positive_float, metavar="X")
    schedule: str = setting(
        "cosine", f"how the rate falls after the warm-up: {', '.join(SCHEDULES)} (default cosine, to classify linear)",
        choices=SCHEDULES, metavar="NAME",
    )  # fmt: skip
    warmup: float | None = setting(
        None, "steps over which the rate rises to --lr, or a share of all below 1 (default: a tenth, 10 at most, and "
        "to classify 0.05)", type=steps_or_share, metavar="N",
    )  # fmt: skip
    weight_decay: float = setting(0.0, "AdamW's λ, on all that is trained (default 0)", type=natural_float, metavar="X")
    clip: float = setting(1.0, "the largest norm of a step's gradients (default 1)", type=positive_float, metavar="X")
    batch: int = setting(16, "windows, or examples, in a batch; to classify 32 (default 16)", **POSITIVE)
    length: int = setting(128, "tokens in a window or example, at most (default 128)", **POSITIVE)
    accumulate: int = setting(1, "batches in a step (default 1)", **POSITIVE)
    teacher: str | None = setting(
        None, "learn from this model's outputs, or the base's with this adapter, instead of labels: distillation",
        metavar="MODEL",
    )  # fmt: skip
    temperature: float = setting(
        1.0, "with --teacher: softmax(logits/X) is compared (default 1)", type=positive_float, metavar="X"
    )
    reverse_kl: bool = setting(
        False, "with --teacher: KL(student ‖ teacher) instead of KL(teacher ‖ student)", action="store_true"
    )
    recompute: bool = setting(
        False, "compute blocks again in their backward: less memory, the same result", saved=False, action="store_true"
    )
    evaluate_every: int = setting(50, "steps between evaluations (default 50)", **POSITIVE)
    patience: int = setting(0, "stop after N evaluations without a new best; 0: never", **NATURAL)
    checkpoint_every: int = setting(50, "steps between checkpoints (default 50)", saved=False, **POSITIVE)
    seed: int = setting(0, "same seed, same bytes (default 0)", **NATURAL)
    shards: int = setting(2, "split each batch over N threads (default 2)", **POSITIVE)
    add_tokens: str | None = setting(
        None, "a file of new tokens, one a line; their embedding rows are trained too", saved=False, metavar="FILE"
    )
    encoding: str = setting("utf-8", ENCODING, saved=False, metavar="NAME")

    def saved(self) -> dict[str, Any]:
        """The fields that settings.json holds."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.metadata.get("saved", True)}

    def warmup_steps(self, steps: int) -> int:
        """The number of warm-up steps of a run of `steps`. Raises ValueError for more than these."""
        if self.warmup is None:
            return min(10, steps // 10)
        if self.warmup > steps:
            raise ValueError(f"warmup = {self.warmup:g} is more than the {steps} steps of the run")
        return int(self.warmup * steps if self.warmup < 1 else self.warmup)


@dataclass(frozen=True, kw_only=True)
class LanguageModelSettings(Settings):
    steps: int = setting(100, "number of steps (default 100)", **POSITIVE)
    watch: str | None = setting(
        None, "a second text whose loss is reported: a file, builtin, or english (which the built-in model has read)",
        saved=False, metavar="FILE",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings(Settings):
    lr: float = 2e-3
    schedule: str = "linear"
    warmup: float | None = 0.05
    batch: int = 32
    epochs: int = setting(3, "to classify: passes over the rows (default 3)", **POSITIVE)
    l1: float = setting(0.0, "to classify: penalty on |A| and |B| (default 0)", **PENALTY)
    l2: float = setting(0.0, "to classify: penalty on A²/2 and B²/2 (default 0)", **PENALTY)
    text: str = setting("text", "to classify: the column of the text (default text)", metavar="NAME")
    label: str = setting("label", "to classify: the column of the label (default label)", metavar="NAME")
    skip_empty: bool = setting(False, f"to classify: {SKIP_EMPTY}", saved=False, action="store_true")
    held_out: str | None = setting(
        None, "to classify: rows for evaluation (default: a tenth of --data)", saved=False, metavar="FILE"
    )

    def steps_for(self, texts: int) -> int:
        """The number of steps for `epochs` passes over `texts` rows."""
        return -(-self.epochs * -(-texts // self.batch) // self.accumulate)


OPTIONS: dict[str, Field[Any]] = {
    each.name: each for settings in (ClassifierSettings, LanguageModelSettings) for each in fields(settings)
}
