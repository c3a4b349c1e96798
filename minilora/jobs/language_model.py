"""Fine-tuning a language model: all of the tasks "text" and "instruct" but how they read their data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data import Batch, bits, perplexity
from ..display.tables import visible
from ..files import to_json
from ..models.generation import check_continues, stream
from ..models.pretrained import load_pretrained
from ..models.tokenizer import Tokenizer
from ..models.transformer import Transformer
from ..training import History
from .data import Numbers
from .finetuning import FineTuning, base_format, fit_adapter
from .forgetting_figure import forgetting_figure
from .runs import FORGETTING, SAMPLES
from .settings import LanguageModelSettings
from .watching import Watched, read_watched

SAMPLE = 48  # tokens of a sample


class Dataset(NamedTuple):
    """The data of a file, for training and for evaluation."""

    batches: Callable[[int], Batch]  # the i-th of them
    held_out: Callable[[], Iterable[Batch]]
    tokens_per_byte: float  # of the held-out text: turns nats per token into nats per byte
    prompt: str  # a held-out one, for the samples
    special: bool  # whether the tokenizer is to add its special tokens to the prompt
    sha256: str  # of what the file holds
    summary: str  # how much it holds, for a person
    parts: dict[str, Numbers]  # the numbers of what is learned from and of what is held out
    shared: int = 0  # rows that are in both
    dropped: int = 0  # rows without a label within the length


class LanguageModelTask(FineTuning):
    """Adds samples.json: how the model continues a held-out prompt, before the training and after; and the figure
    forgetting.png where another text is watched."""

    settings_type = LanguageModelSettings
    watched: Watched | None

    @staticmethod
    @abstractmethod
    def read(data: str, tokenizer: Tokenizer, batch: int, length: int, seed: int, encoding: str) -> Dataset: ...

    def load(self, source: str | Path, data: str) -> None:
        self.model, self.tokenizer = self.load_base(source)
        check_continues(self.model, self.tokenizer)
        how, most = self.settings, self.model.config.max_length
        if how.length > most:
            raise ValueError(f"windows of {how.length} tokens are longer than the model's {most} positions")
        self.dataset = self.read(data, self.tokenizer, how.batch, how.length, how.seed, how.encoding)
        self.data_sha256, self.watched = self.dataset.sha256, None
        if how.watch:
            self.watched = read_watched(how.watch, self.tokenizer, how.batch, how.length, how.encoding)
            self.saved |= {"watch": how.watch, "watch_sha256": self.watched.sha256}
        self.numbers = {
            "length": how.length,
            "parts": self.dataset.parts,
            "shared": self.dataset.shared,
            "dropped": self.dataset.dropped,
        }

    def new_model(self, source: str | Path) -> Transformer:
        return load_pretrained(source, quantize=base_format(self.settings))

    def batches(self) -> Callable[[int], Batch]:
        return self.dataset.batches

    def fit(self, **options: Any) -> History:
        self.before, steps = self.sample(), self.settings.steps
        options |= {"held_out": self.dataset.held_out, "description": "fine-tuning"}
        options["watch"] = self.watched and self.watched.batches
        return fit_adapter(self.model, self.dataset.batches, steps, self.settings, **options)

    def results(self, history: History, report: dict[str, Any]) -> dict[str, bytes]:
        samples = {"prompt": self.dataset.prompt, "before": self.before, "after": self.sample()}
        report |= {
            "summary": self.dataset.summary,
            "perplexity": {step: perplexity(loss) for step, loss in history.evaluations},
            "bits_per_byte": {step: bits(loss * self.dataset.tokens_per_byte) for step, loss in history.evaluations},
            "samples": samples,
        }
        files = {SAMPLES: to_json(samples)}
        if self.watched:
            report["watched"] = {step: bits(loss * self.watched.tokens_per_byte) for step, loss in history.watched}
            report["names"] = self.saved["data"], self.saved["watch"]
            files[FORGETTING] = forgetting_figure(report)
        return files

    @np.errstate(all="ignore")  # a loss that blew up has been reported
    def sample(self) -> str:
        """How the model continues the held-out prompt, with the most probable token each time."""
        tokens = stream(self.model, self.dataset.prompt, SAMPLE, tokenizer=self.tokenizer, special=self.dataset.special)
        return "".join(tokens)

    @classmethod
    def print_report(cls, report: dict[str, Any]) -> None:
        print(report["summary"])
        super().print_report(report)
        watched = "watched" in report
        for step, value in report["bits_per_byte"].items():
            perplexity = report["perplexity"][step]
            other = f"; {report['watched'][step]:.3f} bits per byte of {report['names'][1]}" if watched else ""
            print(f"step {step:>5}: {value:.3f} bits per byte held out, perplexity {perplexity:.4g} per token{other}")
        for name in ("before", "after"):
            print(f"\n{name}: {visible(report['samples']['prompt'] + report['samples'][name])}")
        print()
