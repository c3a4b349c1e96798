"""The teacher of a fine-tuning run that distils: --teacher."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from ..adapters.peft import CONFIG
from ..files import weights_hash
from ..models.config import LABELLED
from ..models.pretrained import load_pretrained
from ..models.tokenizer import Tokenizer
from ..models.transformer import Transformer
from ..training import distillation
from ..training.gradients import Loss, cross_entropy
from .bases import base_for, load_adapted, tokenizer_for
from .runs import tokenizer_hash
from .settings import Settings


def loss_of(
    settings: Settings, model: Transformer, tokenizer: Tokenizer, backend: ModuleType
) -> tuple[Loss, dict[str, Any]]:
    """The loss that a run with these `settings` trains `model` by, and what settings.json says of its teacher.

    Raises ValueError for a teacher of another tokenizer, or with other outputs, and for options that need one; what
    load_pretrained and load_adapted raise.
    """
    if settings.teacher is None:
        given = [name for name in ("temperature", "reverse_kl") if getattr(settings, name) != getattr(Settings, name)]
        if given:
            raise ValueError(f"{given[0]} needs a teacher: give --teacher MODEL, or leave it out")
        return cross_entropy, {}
    folder = Path(settings.teacher) if (Path(settings.teacher) / CONFIG).is_file() else None  # of an adapter
    source = (base_for(folder, None) or "builtin") if folder else settings.teacher
    if tokenizer_hash(tokenizer_for(source, folder)) != tokenizer_hash(tokenizer):
        raise ValueError(f"the teacher {settings.teacher} has another tokenizer than the base: their tokens differ")
    teacher = load_adapted(source, folder)[0] if folder else load_pretrained(source)
    (theirs, of_teacher), (ours, of_model) = outputs(teacher), outputs(model)
    if (theirs, of_teacher) != (ours, of_model):
        raise ValueError(
            f"the teacher {settings.teacher} has {of_teacher} outputs of a head {theirs!r}, and the model {of_model} "
            f"of a head {ours!r}: they must be the same"
        )
    if teacher.config.max_length < settings.length:
        raise ValueError(f"the teacher {settings.teacher} reads {teacher.config.max_length} tokens, at most")
    sha256 = weights_hash(teacher.state_dict())
    teacher.freeze()
    teacher.to(backend)
    return distillation(teacher, settings.temperature, settings.reverse_kl), {"teacher_sha256": sha256}


def outputs(model: Transformer) -> tuple[str, int]:
    """The head of a model, and the number of its logits."""
    config = model.config
    return config.head, config.labels if config.head in LABELLED else config.vocab_size
