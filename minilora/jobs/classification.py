"""The task "classify": a head and an adapter on a pretrained model, learned from labelled rows; and its predictions."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..adapters.peft import locate_adapter, read_adapter
from ..backend import to_numpy
from ..data import Batch, in_batches, in_order, shuffled, take
from ..data.records import Records, label_ids, label_names, read_records, stratified_split
from ..display.tables import fits, numbers_right, wide_console
from ..files import to_json
from ..models.labels import labels_of, name_labels
from ..models.pretrained import CLASSIFIER_DRAWN, load_pretrained, load_tokenizer
from ..models.tokenizer import Tokenizer, check_matches
from ..models.transformer import Transformer
from ..nn import Inputs
from ..nn.optim import linear_schedule, penalty
from ..spelling import counted
from ..training import History
from ..training.metrics import confusion_matrix, scores
from .classification_figure import classification_figure
from .data import WARN_ABOVE, count_shared, numbers_of_rows, warn_of_unreadable
from .finetuning import FineTuning, adapter_parameters, fit_adapter
from .runs import SETTINGS, base_for, data_hash, load_adapted, read_settings
from .settings import ClassifierSettings

SCORES, FIGURE = "scores.json", "curves.png"
EVALUATION_BATCH = 16  # texts; small, because a forward keeps what a backward would need


class Task(FineTuning):
    """Adds scores.json and curves.png; the adapter is of PEFT's task SEQ_CLS.

    A tenth of each label's rows is held out for evaluation, or the rows of the file `held_out` are. With `patience`
    they also choose the step: evaluate then on a file that the run has not seen, with `predict`.
    """

    settings_type = ClassifierSettings
    next_command = "predict"

    def load(self, source: str | Path, data: str) -> None:
        settings = self.settings
        columns = settings.text, settings.label, settings.encoding, settings.skip_empty
        records = read_records(data, *columns)
        self.names = label_names(records.labels)
        self.tokenizer = load_tokenizer(source)
        self.model = classifier(source, self.names, settings.seed)
        if settings.held_out is None:
            split = stratified_split(records.labels, 0.1, settings.seed)
            train, held_out = (Records(*([column[i] for i in rows] for column in records)) for rows in split)
            self.data_sha256 = data_hash(*records)
        else:
            train, held_out = records, read_records(settings.held_out, *columns)
            self.data_sha256 = data_hash(*train, *held_out)
        encoded = [
            encode(self.tokenizer, part.texts, label_ids(part.labels, self.names, file), settings.length, self.model)
            for part, file in ((train, data), (held_out, settings.held_out or data))
        ]
        self.train, self.held_out = (batch for batch, _ in encoded)
        self.saved |= {"task": "classify", "labels": self.names, "steps": settings.steps_for(len(train.texts))}
        self.truncated = sum(int((lengths > settings.length).sum()) for _, lengths in encoded)
        parts = [numbers_of_rows(*part, self.tokenizer, settings.length) for part in encoded]
        self.numbers = {
            "length": settings.length,
            "parts": dict(zip(("to learn from", "held out"), parts, strict=True)),
            "labels": dict(Counter(train.labels)),
            "shared": count_shared(train.texts, held_out.texts),
        }

    def fit(self, **options: Any) -> History:
        return fit_classifier(self.model, self.train, self.held_out, self.settings, **options)

    def results(self, history: History) -> tuple[dict[str, Any], dict[str, bytes]]:
        report, files = super().results(history)
        matrix = confusion(self.model, self.held_out, len(self.names))
        texts = {"train": len(self.train.ids), "held_out": len(self.held_out.ids), "truncated": self.truncated}
        report |= {"labels": self.names, "confusion": matrix.tolist(), **scores(matrix), "texts": texts}
        report |= {"losses": history.evaluations, "stopped_early": history.stopped_early}
        return report, files | {SCORES: to_json(report), FIGURE: classification_figure(history.loss, report)}

    @classmethod
    def print_report(cls, report: dict[str, Any]) -> None:
        super().print_report(report)
        texts = report["texts"]
        print(f"{texts['train']} texts to train on, {texts['held_out']} held out; {texts['truncated']} truncated")
        for step, loss in report["losses"]:
            print(f"step {step:>5}: {loss:.4f} nats on what is held out")
        print_scores(report)


def classifier(base: str | Path, names: Sequence[str], seed: int = 0) -> Transformer:
    """`base` with an output for each label, drawn from `seed` where it has no classifier yet."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", CLASSIFIER_DRAWN)  # that is the purpose; of a missing pooler it still warns
        model = load_pretrained(base, head="classify", labels=len(names), rng=np.random.default_rng(seed))
    name_labels(model, names)
    return model


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], targets: np.ndarray | None, length: int, model: Transformer
) -> tuple[Batch, np.ndarray]:
    """All texts as one Batch, cut to `length` tokens, and (N,) their tokens before they were cut. Raises ValueError for
    a length above the model's positions, and for a tokenizer with more ids than the model's embedding."""
    if length > model.config.max_length:
        raise ValueError(f"length = {length} is more than the model's {model.config.max_length} positions: give less")
    check_matches(tokenizer, model.config.vocab_size)
    found = tokenizer.batch(list(texts), length)
    targets = np.zeros(len(texts), np.int64) if targets is None else targets
    return Batch(found.ids, targets, found.padding), found.lengths


def fit_classifier(
    model: Transformer, train: Batch, held_out: Batch | None, settings: ClassifierSettings, **options: Any
) -> History:
    """Train what is trainable in `model`; `options` are those of training.fit."""
    steps, batches = settings.steps_for(len(train.ids)), shuffled(train, settings.batch, settings.seed)
    if settings.l1 or settings.l2:
        options["penalty"] = penalty(adapter_parameters(model), settings.l1, settings.l2)
    if held_out is not None:
        options["held_out"] = lambda: in_batches(held_out, EVALUATION_BATCH)
    return fit_adapter(model, batches, steps, linear_schedule(steps, steps // 20), settings, **options)


def probabilities(model: Transformer, texts: Batch, description: str | None = None) -> np.ndarray:
    """(N, labels): softmax of the logits, in the order of `texts`. `description` labels a progress bar."""
    from tqdm import tqdm

    p = np.empty((len(texts.ids), model.config.labels))
    groups = in_order(texts, EVALUATION_BATCH)
    for rows in tqdm(groups, description, disable=None if description else True, leave=False):
        batch = take(texts, rows)
        logits = to_numpy(model.forward(batch.ids, Inputs(batch.padding))[0]).astype(np.float64)
        p[rows] = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def confusion(model: Transformer, texts: Batch, labels: int, description: str | None = "evaluating") -> np.ndarray:
    """The confusion matrix of the model on labelled texts."""
    return confusion_matrix(texts.targets, probabilities(model, texts, description).argmax(axis=1), labels)


class Classifier:
    """The classifier that the adapter in `folder` makes of its base, whether this task or PEFT wrote it.

    `folder` and `base` may be names on the Hub. `labels` are the names in the adapter, or else in its run or its base;
    where none has names they are "0", "1", ..., and a warning says so. Raises ValueError for an adapter without a
    classifier, and what load_pretrained and load_adapter raise.
    """

    def __init__(self, folder: str | Path, base: str | None = None, backend: ModuleType = np) -> None:
        folder = locate_adapter(folder)
        read_adapter(folder)  # refuses what is no adapter, before a base is asked for
        settings = read_settings(folder) if (folder / SETTINGS).is_file() else {}
        source = base_for(folder, base)
        if source is None:
            raise ValueError(f"{folder} does not say what its base is: give --base")
        self.model, note = load_adapted(source, folder)
        if self.model.config.head != "classify":
            raise ValueError(f"{folder} holds no classifier of texts: make one with minilora finetune --task classify")
        self.tokenizer = load_tokenizer(source)
        self.length: int = settings.get("length", min(ClassifierSettings.length, self.model.config.max_length))
        names = labels_of(self.model)
        self.labels = names or [str(i) for i in range(self.model.config.labels)]
        unnamed = "" if names else f"label names are not known: {folder} has only their numbers"
        for warning in filter(None, (note, unnamed)):
            warnings.warn(warning, stacklevel=2)
        self.model.to(backend)

    def __call__(self, texts: Sequence[str], description: str | None = None) -> np.ndarray:
        """(N, labels) probabilities of `texts`. Warns of texts that are cut, or that the tokenizer cannot read."""
        examples, lengths = encode(self.tokenizer, texts, None, self.length, self.model)
        numbers = numbers_of_rows(examples, lengths, self.tokenizer, self.length)
        warn_of_unreadable({"texts": numbers})
        if numbers["truncated"] > WARN_ABOVE:
            cut = f"{numbers['truncated']:.1%} of {counted(len(texts), 'text')}"
            warnings.warn(f"{cut} are longer than the {self.length} tokens that are read, and cut", stacklevel=2)
        return probabilities(self.model, examples, description)


def print_scores(report: dict[str, Any]) -> None:
    """Accuracy beside that of the commonest label, the confusion matrix, and precision, recall and F1 of each label."""
    names = report["labels"]
    commonest = repr(names[int(np.argmax(report["support"]))])
    print(f"accuracy {report['accuracy']:.4f}, macro F1 {report['macro_f1']:.4f}")
    print(f"accuracy of always saying {commonest}: {report['majority']:.4f}")
    if report["accuracy"] <= report["majority"]:
        print(f"the classifier is no better than always saying {commonest}")
    rates = numbers_right("", "", "texts", "precision", "recall", "F1")
    matrix = numbers_right("", "true \\ predicted", *names)
    for i, name in enumerate(names):
        row = (f"{report[key][i]:.4f}" for key in ("precision", "recall", "f1"))
        rates.add_row(name, str(report["support"][i]), *row)
        matrix.add_row(name, *map(str, report["confusion"][i]))
    console = wide_console()
    console.print(rates)
    if fits(console, matrix):  # of many labels, scores.json has it
        console.print(matrix)
