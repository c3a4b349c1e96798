"""Fine-tuning, from settings to an adapter in a folder: read finetune() first.

What all tasks share is here. A task is a file of its own (settings.TASKS): it reads the data, and knows what to report.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from ..accounting import count_parameters
from ..adapters import DEFAULT
from ..adapters.attach import attach as attach_variant
from ..adapters.attach import attach_tokens, check_options, fit_options
from ..adapters.initialisations import inits
from ..adapters.peft import adapter_files, locate_adapter, read_adapter
from ..adapters.registry import classes_of
from ..data import Batch
from ..files import to_json, weights_hash, write_files
from ..models.pretrained import load_tokenizer
from ..models.quantized import quantize
from ..models.saving import base_hash
from ..models.tokenizer import Tokenizer
from ..models.tokenizer_files import TOKENIZER
from ..models.transformer import Transformer
from ..models.vocabulary import add_rows, read_tokens, with_tokens
from ..nn import recompute
from ..nn.optim import SCHEDULES, AdamW, Schedule
from ..spelling import choose_from
from ..training import History, fit
from .bases import base_for, base_of_run, tokenizer_for
from .data import Numbers, warn_of_unreadable
from .distillation import loss_of
from .going_on import go_on, settings_from
from .runs import CHECKPOINT, HISTORY, tokenizer_hash, training_folder
from .settings import OF_METHOD, TASKS, Settings

ShowData = Callable[[Numbers], None]
FIRST = 8  # batches, from which an adapter may start
CLASSIFIER = "classifier", "classifier_transform"  # trained whole, as in PEFT: RoBERTa's is two layers


def finetune(
    base: str | None,
    data: str,
    out: str | Path,
    *,
    task: str = "text",
    start: str | Path | None = None,
    resume: bool = False,
    show_data: ShowData | None = None,
    backend: ModuleType = np,
    **options: Any,
) -> dict[str, Any]:
    """Fine-tune `base` on `data` into the folder `out`; `options` are fields of the task's settings. Returns a report.

    `out` then holds the adapter in PEFT's format, settings.json, history.json (losses in nats), checkpoint.safetensors
    and what the task adds. `start` is an adapter to continue from, a folder or a name on the Hub: the run takes its
    weights and options (going_on.py), and `base` may be None, for the base that the adapter names. Without either the
    base is "builtin". All that can be wrong with the input is found before the folder is made. With `resume` the
    run in `out` continues from its checkpoint, with the same settings or at another `lr`. `show_data` is called before
    the training with statistics of the data, which data.print_data prints. Raises ValueError and OSError for bad
    input, FloatingPointError for a loss that is not finite, KeyboardInterrupt after Ctrl-C.
    """
    kind = task_named(task)
    folder = locate_adapter(start) if start else None
    if folder:
        options = settings_from(folder, options)
    source = (base_for(folder, base) if folder else base) or "builtin"
    run = kind(str(source), data, settings_of(kind.settings_type, **options), Path(out), backend, folder)
    with training_folder(out, run.saved, resume) as folder:
        if show_data:
            show_data(run.numbers)
        history = run.fit(loss=run.loss, checkpoint=folder / CHECKPOINT, resume=resume)
        trainable = count_parameters(run.model)["trainable"]
        report = {"adapted": len(run.adapted), "trainable": trainable, "data": run.numbers, "steps": len(history.loss)}
        files = run.results(history, report)
        files |= run.tokenizer.files() if run.has_own_tokenizer else {}
        write_files(folder, files | adapter_files(run.model) | {HISTORY: to_json(asdict(history))})
    return report


def task_named(name: str) -> type[FineTuning]:
    """The class of --task `name`. Raises KeyError."""
    task: type[FineTuning] = import_module(f".{TASKS[name]}", __package__).Task
    return task


class FineTuning(ABC):
    """A run, ready to train: the pretrained model `base` with a new adapter on it, and `data`. Each task is a subclass.

    If the folder `out` holds a run, a base from the Hub is loaded at that run's commit. Raises ValueError and OSError
    for what cannot be used.
    """

    settings_type: ClassVar[type[Settings]]
    next_command: ClassVar[str]  # one that uses the adapter
    settings: Any  # a settings_type
    saved: dict[str, Any]  # the content of settings.json
    model: Transformer
    tokenizer: Tokenizer
    numbers: Numbers  # statistics of the data, for print_data
    data_sha256: str

    def __init__(
        self,
        base: str,
        data: str,
        settings: Settings,
        out: Path | None = None,
        backend: ModuleType = np,
        start: Path | None = None,
    ) -> None:
        self.settings, self.saved, self.start = settings, settings.saved(), start
        self.new_ids: list[int] = []  # of the tokens that are added
        self.load(base_for(out, base) or base, data)
        warn_of_unreadable(self.numbers["parts"])
        self.model.to(backend)
        if start:
            self.adapted = go_on(self.model, start, settings.targets)
            self.saved |= {"from": str(start), "from_sha256": weights_hash(read_adapter(start)[1])}
            if settings.recompute:
                recompute(self.model)
        else:
            self.adapted = attach(self.model, settings, self.batches(), self.new_ids)
        schedule_for(settings, self.saved["steps"])  # raises
        self.loss, of_teacher = loss_of(settings, self.model, self.tokenizer, backend)
        adapter_files(self.model)  # raises, before any training, for what a file cannot hold
        classifier = [path for path in self.model.state_dict() if path.startswith("classifier")]
        hub = self.model.hub
        self.saved |= {"base": hub[0], "revision": hub[1]} if hub else {"base": base}
        self.saved |= {"data": data, "data_sha256": self.data_sha256} | of_teacher
        self.saved["base_sha256"] = base_hash(self.model, classifier)
        self.saved["tokenizer_sha256"] = tokenizer_hash(self.tokenizer)

    @abstractmethod
    def load(self, source: str | Path, data: str) -> None:
        """Set model and tokenizer, to load_base(), and numbers and data_sha256."""

    @abstractmethod
    def new_model(self, source: str | Path) -> Transformer:
        """The model in `source` with the task's head, held as base_format() says."""

    def load_base(self, source: str | Path) -> tuple[Transformer, Tokenizer]:
        """The model in `source` and its tokenizer, with the tokens that are added; if the run continues
        an adapter, with the head and the vocabulary of that adapter."""
        file = self.settings.add_tokens
        if self.start:
            if file:
                raise ValueError(f"tokens are added to a new adapter, and {self.start} has its vocabulary: leave out "
                                 "--add-tokens")  # fmt: skip
            config, tensors, _ = read_adapter(self.start)
            model = base_of_run(source, self.start, config, tensors, self.settings.quantize)
            return model, tokenizer_for(source, self.start)
        model, tokenizer = self.new_model(source), load_tokenizer(source)
        if file:
            tokens = read_tokens(file, self.settings.encoding)
            tokenizer = with_tokens(tokenizer, tokens)
            self.new_ids = [*range(tokenizer.vocab - len(tokens), tokenizer.vocab)]
            if tokenizer.vocab > model.config.vocab_size:  # many embeddings have spare rows
                add_rows(model, tokenizer.vocab - model.config.vocab_size)
        return model, tokenizer

    @property
    def has_own_tokenizer(self) -> bool:
        """Whether its tokens differ from the base's, so that its files are saved with the adapter."""
        return bool(self.new_ids or (self.start and (self.start / TOKENIZER).is_file()))

    @abstractmethod
    def batches(self) -> Callable[[int], Batch]:
        """The i-th batch of the training data."""

    @abstractmethod
    def fit(self, **options: Any) -> History:
        """Train the model with fit_adapter(), which gets the `options` of a run with a checkpoint."""

    @abstractmethod
    def results(self, history: History, report: dict[str, Any]) -> dict[str, bytes]:
        """Add to `report` what the task measures; return {file name: content} of the files that it adds."""

    @classmethod
    def print_report(cls, report: dict[str, Any]) -> None:
        trained = f"{report['trainable']:,} parameters trained for {report['steps']} steps"
        print(f"{report['adapted']} layers adapted, {trained}")


def options_of(method: str) -> dict[str, Any]:
    """{option: default} of a method's adapters; None for an argument of start() that is not stored as an option."""
    classes = classes_of(method)
    at_start: dict[str, Any] = dict.fromkeys(name for cls in classes for name in cls.start_options)
    return at_start | {name: value for cls in classes for name, value in cls.defaults().items()}


def settings_of(kind: type[Any], **given: Any) -> Any:
    """Settings of this kind. What is not given is the method's default: its rank, or its own targets if it has no
    rank. A field that the method lacks is None. Raises ValueError if such a field is given."""
    method = given.get("method", DEFAULT)
    own = options_of(method)
    for field, name in OF_METHOD.items():
        if name not in own:
            if given.get(field) is not None:
                raise ValueError(f"{method} has no {field}: leave it out")
            given[field] = None
    if "r" in own:
        given.setdefault("rank", own["r"])
    else:
        given.setdefault("targets", None)
    option = given.get("option") or {}
    check_options(method, None, option)
    if twice := next((field for field, name in OF_METHOD.items() if name in option), None):
        raise ValueError(f"option {OF_METHOD[twice]!r} is set by {twice!r}: give that instead")
    if "quantize" in option:
        raise ValueError("option 'quantize' is set by --quantize: give that instead")
    return kind(**given)


def rounds_W(settings: Settings) -> bool:
    """Whether the init itself quantizes the layers that it adapts (LoftQ)."""
    return settings.init in inits() and inits()[settings.init].quantizes


def base_format(settings: Settings) -> str | None:
    """The format to load the base in: that of --quantize, unless the init needs W in full precision."""
    return None if rounds_W(settings) else settings.quantize


def attach(
    model: Transformer,
    settings: Settings,
    batches: Callable[[int], Batch] | None = None,
    new_ids: Sequence[int] = (),
) -> list[str]:
    """Attach adapters to `model`; a classifier is trained whole. Returns the paths of the adapted layers.

    The first of `batches` are for an init that depends on data. The embedding rows of the tokens `new_ids` are trained
    too; with method "token-rows" and no option, they alone. After an init that quantizes the layers it adapts (LoftQ),
    the other matrices are quantized as well."""
    chosen = {name: value for field, name in OF_METHOD.items() if (value := getattr(settings, field)) is not None}
    if batches and settings.init is not None and "data" in options_of(settings.method):
        chosen["data"] = [batches(i) for i in range(FIRST)]
    held_in = settings.quantize if rounds_W(settings) else None
    if held_in:
        chosen["quantize"] = held_in
    train = [name for name in CLASSIFIER if name in model.layers]
    of_rows, adapted = attach_tokens(model, new_ids, train) if new_ids else ("", [])
    if of_rows != settings.method or settings.option:
        adapted += attach_variant(
            model, settings.method, settings.targets, rng=np.random.default_rng(settings.seed), train=train,
            **chosen, **settings.option or {},
        )  # fmt: skip
    if held_in:
        quantize(model, held_in)  # the others
    if settings.recompute:
        recompute(model)
    return adapted


def schedule_for(settings: Settings, steps: int) -> Schedule:
    """The schedule of a run of so many steps. Raises ValueError for one that does not exist, or a longer warm-up."""
    if settings.schedule not in SCHEDULES:
        raise ValueError(f"no schedule is called {settings.schedule!r}: {choose_from(settings.schedule, SCHEDULES)}")
    return SCHEDULES[settings.schedule](steps, settings.warmup_steps(steps))


def fit_adapter(
    model: Transformer, batches: Callable[[int], Batch], steps: int, settings: Settings, **more: Any
) -> History:
    """training.fit with the numbers of `settings`, and what the adapters need; `more` are further options of it."""
    more |= fit_options(model, steps, more.get("penalty"))
    optimizer = AdamW(model.trainable_parameters(), settings.lr, weight_decay=settings.weight_decay)
    return fit(
        model, batches, steps, lr=settings.lr, optimizer=optimizer, schedule=schedule_for(settings, steps),
        clip=settings.clip, accumulate=settings.accumulate, evaluate_every=settings.evaluate_every,
        patience=settings.patience, checkpoint_every=settings.checkpoint_every, shards=settings.shards,
        seed=settings.seed, **more,
    )  # fmt: skip
