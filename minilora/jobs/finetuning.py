"""The skeleton of a training job: settings, folder, table of the data, training, results. What fine-tuning adds to it
is an adapter; what a task adds is a file of its own (settings.TASKS)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from ..accounting import count_parameters
from ..adapters.attach import attach_lora
from ..adapters.peft import adapter_files
from ..data import Batch
from ..files import to_json, write_files
from ..models.saving import base_hash
from ..models.tokenizer import Tokenizer
from ..models.transformer import Transformer
from ..nn import Parameter, recompute
from ..nn.optim import Schedule
from ..training import History, fit
from .data import Numbers, warn_of_unreadable
from .runs import CHECKPOINT, HISTORY, base_for, base_settings, tokenizer_hash, training_folder
from .settings import TASKS, Settings

ShowData = Callable[[Numbers], None]
CLASSIFIER = "classifier", "classifier_transform"  # trained whole, as in PEFT: RoBERTa's is two layers


class Job(ABC):
    """A training run. `saved` is the content of settings.json, `numbers` are those of the data, for print_data."""

    model: Transformer
    saved: dict[str, Any]
    numbers: Numbers

    @abstractmethod
    def fit(self, **options: Any) -> History:
        """Train the model; `options` are those of training.fit for a run with a checkpoint."""

    @abstractmethod
    def results(self, history: History) -> tuple[dict[str, Any], dict[str, bytes]]:
        """(the report, {name: content} of the files to write)."""

    def run(self, out: str | Path, *, resume: bool = False, show_data: ShowData | None = None) -> dict[str, Any]:
        """Train into the folder `out`, or with `resume` go on there, and return the report.

        `show_data` is called before the training. Raises as training_folder and training.fit do.
        """
        with training_folder(out, self.saved, resume) as folder:
            if show_data:
                show_data(self.numbers)
            history = self.fit(checkpoint=folder / CHECKPOINT, resume=resume)
            report, files = self.results(history)
            self.write(folder, files)
        return report

    def write(self, folder: Path, files: dict[str, bytes]) -> None:
        write_files(folder, files)


class FineTuning(Job):
    """An adapter on the pretrained model `base`, trained on `data`. A task is a subclass, called Task.

    A base that is a name on the Hub is the commit with which the run in the folder `out` began, if there is one.
    """

    settings_type: ClassVar[type[Settings]]
    next_command: ClassVar[str]  # what to do with the adapter
    settings: Any  # of settings_type
    tokenizer: Tokenizer
    data_sha256: str

    def __init__(
        self, base: str, data: str, settings: Settings, out: Path | None = None, backend: ModuleType = np
    ) -> None:
        self.settings, self.saved = settings, settings.saved()
        self.load(base_for(out, base) or base, data)
        warn_of_unreadable(self.numbers["parts"])
        self.model.to(backend)
        self.adapted = attach(self.model, settings)
        classifier = [path for path in self.model.state_dict() if path.startswith("classifier")]
        self.saved |= base_settings(self.model, base) | {"data": data, "data_sha256": self.data_sha256}
        self.saved["base_sha256"] = base_hash(self.model, classifier)
        self.saved["tokenizer_sha256"] = tokenizer_hash(self.tokenizer)

    @abstractmethod
    def load(self, source: str | Path, data: str) -> None:
        """Set model, tokenizer, numbers and data_sha256. Raises ValueError and OSError for what cannot be used."""

    def results(self, history: History) -> tuple[dict[str, Any], dict[str, bytes]]:
        report = {
            "adapted": len(self.adapted),
            "trainable": count_parameters(self.model)["trainable"],
            "data": self.numbers,
            "steps": len(history.loss),
        }
        return report, adapter_files(self.model) | {HISTORY: to_json(asdict(history))}

    @classmethod
    def print_report(cls, report: dict[str, Any]) -> None:
        trained = f"{report['trainable']:,} parameters trained for {report['steps']} steps"
        print(f"{report['adapted']} layers adapted, {trained}")


def task_named(name: str) -> type[FineTuning]:
    """The task of --task `name`. Raises KeyError."""
    task: type[FineTuning] = import_module(f".{TASKS[name]}", __package__).Task
    return task


def finetune(
    base: str,
    data: str,
    out: str | Path,
    *,
    task: str = "text",
    resume: bool = False,
    show_data: ShowData | None = None,
    backend: ModuleType = np,
    **options: Any,
) -> dict[str, Any]:
    """Fine-tune `base` on `data` into the folder `out`; `options` are fields of the task's settings. Returns a report.

    `out` then holds the adapter in PEFT's format, settings.json, history.json (losses in nats), checkpoint.safetensors
    and what the task adds. All that can be wrong with the input is found before the folder is made. With `resume` the
    run in `out` goes on from its checkpoint, with the same settings or at another `lr`. `show_data` is called before
    the training with the numbers of the data, which data.print_data prints. Raises ValueError and OSError for bad
    input, FloatingPointError for a loss that is not finite, KeyboardInterrupt after Ctrl-C.
    """
    kind = task_named(task)
    job = kind(base, data, kind.settings_type(**options), Path(out), backend)
    return job.run(out, resume=resume, show_data=show_data)


def attach(model: Transformer, settings: Settings) -> list[str]:
    """Put the adapters on `model`, whose classifier, if it has one, is trained whole; return the paths adapted."""
    adapted = attach_lora(
        model, settings.targets, settings.rank, settings.alpha, rng=np.random.default_rng(settings.seed),
        dropout=settings.dropout, rslora=settings.rslora, train=[name for name in CLASSIFIER if name in model.layers],
    )  # fmt: skip
    if settings.recompute:
        recompute(model)
    return adapted


def fit_adapter(
    model: Transformer, batches: Callable[[int], Batch], steps: int, schedule: Schedule, settings: Settings, **more: Any
) -> History:
    """training.fit with what `settings` say; `more` are further options of it."""
    return fit(
        model, batches, steps, lr=settings.lr, schedule=schedule, accumulate=settings.accumulate,
        evaluate_every=settings.evaluate_every, patience=settings.patience, checkpoint_every=settings.checkpoint_every,
        shards=settings.shards, seed=settings.seed, **more,
    )  # fmt: skip


def adapter_parameters(model: Transformer) -> list[Parameter]:
    """Those that are trained in adapters."""
    adapters = [module for _, module in model.named_modules() if module.is_adapter]
    return [parameter for adapter in adapters for parameter in adapter.trainable_parameters().values()]
