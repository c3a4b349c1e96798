"""Classifying texts with an adapter: `minilora predict`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from ..adapters.peft import locate_adapter, read_adapter
from ..backend import to_numpy
from ..data import Batch, in_order, take
from ..models.labels import labels_of
from ..models.tokenizer import Tokenizer, check_matches
from ..models.transformer import Transformer
from ..nn import Inputs, Pass
from ..spelling import counted
from .arguments import AS_TRAINED
from .bases import base_for, load_adapted, tokenizer_for
from .data import WARN_ABOVE, numbers_of_rows, warn_of_unreadable
from .runs import SETTINGS, read_settings
from .settings import ClassifierSettings

EVALUATION_BATCH = 16  # texts of about one length


class Classifier:
    """A base with the adapter in `folder`, which `minilora finetune --task classify` or PEFT wrote.

    `folder` and `base` may be names on the Hub. `quantize` is the format that the base is held in, by default that of
    the run. `labels` are the names in the adapter, or else in its run or its base; where none has names they are "0",
    "1", ..., and a warning says so. Raises ValueError for an adapter without a classifier, and what load_pretrained and
    load_adapter raise.
    """

    def __init__(
        self, folder: str | Path, base: str | None = None, backend: ModuleType = np, quantize: str | None = AS_TRAINED
    ) -> None:
        folder = locate_adapter(folder)
        read_adapter(folder)  # refuses what is not an adapter, before a base is asked for
        settings = read_settings(folder) if (folder / SETTINGS).is_file() else {}
        source = base_for(folder, base)
        if source is None:
            raise ValueError(f"{folder} does not say what its base is: give --base")
        self.model, note = load_adapted(source, folder, quantize)
        if self.model.config.head != "classify":
            raise ValueError(f"{folder} is not a classifier of texts: make one with minilora finetune --task classify")
        self.tokenizer = tokenizer_for(source, folder)
        self.length: int = settings.get("length", min(ClassifierSettings.length, self.model.config.max_length))
        names = labels_of(self.model)
        self.labels = names or [str(i) for i in range(self.model.config.labels)]
        unnamed = "" if names else f"label names are not known: {folder} has only their numbers"
        for warning in filter(None, (note, unnamed)):
            warnings.warn(warning, stacklevel=2)
        self.model.to(backend)

    def __call__(self, texts: Sequence[str], description: str | None = None) -> np.ndarray:
        """(N, labels) probabilities of `texts`. Warns of texts that are cut, or that the tokenizer cannot read."""
        unknown = np.zeros(len(texts), np.int64)  # targets, which nothing reads
        examples, lengths = encode(self.tokenizer, texts, unknown, self.length, self.model)
        numbers = numbers_of_rows(examples, lengths, self.tokenizer, self.length)
        warn_of_unreadable({"texts": numbers})
        if numbers["truncated"] > WARN_ABOVE:
            cut = f"{numbers['truncated']:.1%} of {counted(len(texts), 'text')}"
            warnings.warn(f"{cut} are longer than {self.length} tokens, and cut there", stacklevel=2)
        return probabilities(self.model, examples, description)


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], targets: np.ndarray, length: int, model: Transformer
) -> tuple[Batch, np.ndarray]:
    """(all texts as one Batch, cut to `length` tokens; (N,) their numbers of tokens before). Raises ValueError for a
    length above the model's positions, and for a tokenizer with more ids than the model's embedding."""
    if length > model.config.max_length:
        raise ValueError(f"length = {length} is more than the model's {model.config.max_length} positions: give less")
    check_matches(tokenizer, model.config.vocab_size)
    found = tokenizer.batch(list(texts), length)
    return Batch(found.ids, targets, found.padding), found.lengths


def probabilities(model: Transformer, texts: Batch, description: str | None = None) -> np.ndarray:
    """(N, labels): softmax of the logits, in the order of `texts`. `description` labels a progress bar."""
    from tqdm import tqdm

    p = np.empty((len(texts.ids), model.config.labels))
    groups = in_order(texts, EVALUATION_BATCH)
    for rows in tqdm(groups, description, disable=None if description else True, leave=False):
        batch = take(texts, rows)
        logits, _ = model.forward(batch.ids, Inputs(batch.padding), Pass(needs_cache=False))
        z = to_numpy(logits).astype(np.float64)
        p[rows] = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)
