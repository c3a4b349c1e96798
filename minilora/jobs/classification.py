"""The task "classify": a classifier of texts, and an adapter, learned from labelled rows."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Batch, in_batches, shuffled
from ..data.labels import label_ids, label_names
from ..data.records import Records, read_records
from ..data.splits import stratified_split
from ..display.tables import fits, numbers_right, wide_console
from ..files import to_json
from ..models.labels import labels_of, name_labels
from ..models.pretrained import CLASSIFIER_DRAWN, load_pretrained
from ..models.transformer import Transformer
from ..nn import Parameter
from ..nn.optim import penalty
from ..training import History
from ..training.metrics import confusion_matrix, scores
from .classification_figure import classification_figure
from .data import count_shared, numbers_of_rows
from .finetuning import FineTuning, base_format, fit_adapter
from .prediction import EVALUATION_BATCH, encode, probabilities
from .runs import data_hash
from .settings import ClassifierSettings


class Task(FineTuning):
    """Adds scores.json and curves.png; the adapter is of PEFT's task SEQ_CLS.

    A tenth of each label's rows is held out for evaluation, or the rows of the file `held_out` are. With `patience`
    they also choose the step: then measure the accuracy on other rows, with `predict`.
    """

    settings_type = ClassifierSettings
    next_command = "predict"

    def load(self, source: str | Path, data: str) -> None:
        settings = self.settings
        columns = settings.text, settings.label, settings.encoding, settings.skip_empty
        records = read_records(data, *columns)
        self.names = label_names(records.labels)
        self.model, self.tokenizer = self.load_base(source)
        check_labels(self.model, self.names, data)
        if settings.held_out is None:
            split = stratified_split(records.labels, 0.1, settings.seed)
            train, held_out = (Records(*([column[i] for i in rows] for column in records)) for rows in split)
            self.data_sha256 = data_hash(*records)
        else:
            train, held_out = records, read_records(settings.held_out, *columns)
            self.data_sha256 = data_hash(*train, *held_out)
        parts = {"to learn from": (train, data), "held out": (held_out, settings.held_out or data)}
        encoded = {}
        for name, (part, file) in parts.items():
            targets = label_ids(part.labels, self.names, file)
            encoded[name] = encode(self.tokenizer, part.texts, targets, settings.length, self.model)
        (self.train, lengths), (self.held_out, more) = encoded.values()
        self.truncated = sum(int((n > settings.length).sum()) for n in (lengths, more))
        self.saved |= {"task": "classify", "labels": self.names, "steps": settings.steps_for(len(train.texts))}
        self.numbers = {
            "length": settings.length,
            "parts": {name: numbers_of_rows(*part, self.tokenizer, settings.length) for name, part in encoded.items()},
            "labels": dict(Counter(train.labels)),
            "shared": count_shared(train.texts, held_out.texts),
        }

    def new_model(self, source: str | Path) -> Transformer:
        return classifier(source, self.names, self.settings.seed, base_format(self.settings))

    def batches(self) -> Callable[[int], Batch]:
        return shuffled(self.train, self.settings.batch, self.settings.seed)

    def fit(self, **options: Any) -> History:
        return fit_classifier(self.model, self.train, self.held_out, self.settings, **options)

    def results(self, history: History, report: dict[str, Any]) -> dict[str, bytes]:
        matrix = confusion(self.model, self.held_out)
        texts = {"train": len(self.train.ids), "held_out": len(self.held_out.ids), "truncated": self.truncated}
        report |= {"labels": self.names, "confusion": matrix.tolist(), **scores(matrix), "texts": texts}
        report |= {"losses": history.evaluations, "stopped_early": history.stopped_early}
        return {"scores.json": to_json(report), "curves.png": classification_figure(history.loss, report)}

    @classmethod
    def print_report(cls, report: dict[str, Any]) -> None:
        super().print_report(report)
        texts = report["texts"]
        print(f"{texts['train']} texts to train on, {texts['held_out']} held out; {texts['truncated']} truncated")
        for step, loss in report["losses"]:
            print(f"step {step:>5}: {loss:.4f} nats on what is held out")
        print_scores(report)


def classifier(base: str | Path, names: Sequence[str], seed: int = 0, quantize: str | None = None) -> Transformer:
    """`base` with an output for each label, held as load_pretrained's `quantize` says; weights that it lacks are drawn
    from `seed`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", CLASSIFIER_DRAWN)  # on purpose; a missing pooler still gives a warning
        model = load_pretrained(
            base, quantize=quantize, head="classify", labels=len(names), rng=np.random.default_rng(seed)
        )
    name_labels(model, names)
    return model


def check_labels(model: Transformer, names: Sequence[str], data: str) -> None:
    """Raise ValueError unless the model is a classifier with these labels; where its own have no names, these become
    them."""
    has = labels_of(model) or names
    if model.config.head != "classify" or model.config.labels != len(names) or [*has] != [*names]:
        what = f"has the labels {', '.join(has)}" if model.config.head == "classify" else "is not a classifier"
        raise ValueError(f"{data} has the labels {', '.join(names)}, and the adapter to go on from {what}")
    name_labels(model, names)


def fit_classifier(
    model: Transformer, train: Batch, held_out: Batch | None, settings: ClassifierSettings, **options: Any
) -> History:
    """Train the trainable parameters of `model`; `options` are those of training.fit."""
    steps, batches = settings.steps_for(len(train.ids)), shuffled(train, settings.batch, settings.seed)
    if settings.l1 or settings.l2:
        options["penalty"] = penalty(penalised(model), settings.l1, settings.l2)
    if held_out is not None:
        options["held_out"] = lambda: in_batches(held_out, EVALUATION_BATCH)
    return fit_adapter(model, batches, steps, settings, **options)


def penalised(model: Transformer) -> list[Parameter]:
    """The trained parameters of the adapters, without those of the classifier."""
    adapters = [module for _, module in model.named_modules() if module.is_adapter]
    return [parameter for adapter in adapters for parameter in adapter.trainable_parameters().values()]


def confusion(model: Transformer, texts: Batch) -> np.ndarray:
    """(labels, labels) confusion matrix of the model on labelled texts."""
    return confusion_matrix(
        texts.targets, probabilities(model, texts, "evaluating").argmax(axis=1), model.config.labels
    )


def print_scores(report: dict[str, Any]) -> None:
    """Accuracy beside that of the commonest label, the confusion matrix, and precision, recall and F1 of each label."""
    names = report["labels"]
    commonest = repr(names[int(np.argmax(report["support"]))])
    print(f"accuracy {report['accuracy']:.4f}, macro F1 {report['macro_f1']:.4f}")
    print(f"accuracy of always predicting {commonest}: {report['majority']:.4f}")
    if report["accuracy"] <= report["majority"]:
        print(f"the classifier is no better than always predicting {commonest}")
    rates = numbers_right("", "", "texts", "precision", "recall", "F1")
    matrix = numbers_right("", "true \\ predicted", *names)
    for i, name in enumerate(names):
        row = (f"{report[key][i]:.4f}" for key in ("precision", "recall", "f1"))
        rates.add_row(name, str(report["support"][i]), *row)
        matrix.add_row(name, *map(str, report["confusion"][i]))
    console = wide_console()
    console.print(rates)
    if fits(console, matrix):  # one with many labels is only in scores.json
        console.print(matrix)
