"""Classifying texts: a head and LoRA on a pretrained model, learned from labelled rows; and what it then says."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..accounting import count_parameters
from ..adapters.attach import attach_lora
from ..adapters.base import Adapter
from ..adapters.peft import adapter_files, locate_adapter, read_adapter
from ..backend import to_numpy
from ..data import Batch, in_batches, in_order, shuffled, take
from ..data.records import label_ids, label_names, read_records, stratified_split
from ..display.plots import classification_figure
from ..display.tables import fits, numbers_right, wide_console
from ..files import to_json, write_files
from ..models.pretrained import CLASSIFIER_DRAWN, base_hash, labels_of, load_pretrained, load_tokenizer, name_labels
from ..models.tokenizer import Tokenizer, check_matches
from ..models.transformer import Transformer
from ..nn import Inputs, recompute
from ..nn.optim import linear_schedule, penalty
from ..spelling import counted
from ..training import History, fit
from ..training.metrics import confusion_matrix, scores
from .data import MOST, Numbers, of_texts, shared, warn
from .runs import (
    CHECKPOINT,
    HISTORY,
    SETTINGS,
    base_for,
    base_settings,
    data_hash,
    load_adapted,
    read_settings,
    tokenizer_hash,
    training_folder,
)

SCORES, FIGURE = "scores.json", "curves.png"
EVALUATION_BATCH = 16  # texts; small, because a forward keeps what a backward would need
NEXT = "predict"  # what to do with an adapter
CLASSIFIER = "classifier", "classifier_transform"  # what learns whole, as in PEFT: RoBERTa's is two layers


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained."""

    targets: str | Sequence[str] = "all-linear"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False
    lr: float = 2e-3
    l1: float = 0.0  # λ₁ and λ₂ of optim.penalty, on A and B
    l2: float = 0.0
    epochs: int = 3
    batch: int = 32
    accumulate: int = 1
    recompute: bool = False
    length: int = 128  # tokens of a text that are read
    patience: int = 0
    evaluate_every: int = 50
    seed: int = 0
    shards: int = 2

    def steps(self, texts: int) -> int:
        return -(-self.epochs * -(-texts // self.batch) // self.accumulate)


OPTIONS = [field.name for field in fields(Recipe)]  # what finetune() passes on


def finetune(
    base: str,
    data: str,
    out: str | Path,
    *,
    text: str = "text",
    label: str = "label",
    held_out: str | None = None,
    encoding: str = "utf-8",
    skip_empty: bool = False,
    checkpoint_every: int = 50,
    resume: bool = False,
    tell: Callable[[Numbers], None] | None = None,
    backend: ModuleType = np,
    **recipe: Any,
) -> dict[str, Any]:
    """Fine-tune a classifier on `base` with LoRA, as Recipe(**recipe) says, on the rows of `data`, into folder `out`.

    A tenth of each label's rows is held out for evaluation, or the rows of the file `held_out` are. With `patience`
    they also choose the step: evaluate then on a file that the run has not seen, with `predict`. `out` then holds the
    adapter in PEFT's format (task SEQ_CLS), settings.json, with the labels' names, history.json, scores.json,
    curves.png and checkpoint.safetensors. All that can be wrong with the input is found before the folder is made. With
    `resume`, the run in `out` goes on from its checkpoint. `tell` is called before the training with the numbers of the
    data, which data.show prints. Returns scores.json.
    """
    how = Recipe(**recipe)
    records = read_records(data, text, label, encoding, skip_empty)
    names = label_names(records.labels)
    targets = label_ids(records.labels, names, data)
    source = base_for(Path(out), base) or base
    tokenizer = load_tokenizer(source)
    model = classifier(source, names, how.seed)
    examples, lengths = encode(tokenizer, records.texts, targets, how.length, model)
    data_read = [records.texts, records.labels]
    if held_out is None:
        rows, others = stratified_split(records.labels, 0.1, how.seed)
        train, held = take(examples, rows), take(examples, others)
        read = [records.texts[i] for i in rows], [records.texts[i] for i in others]
        counts = lengths[rows], lengths[others]
    else:
        more = read_records(held_out, text, label, encoding, skip_empty)
        data_read += [more.texts, more.labels]
        train, read = examples, (records.texts, more.texts)
        held, others = encode(tokenizer, more.texts, label_ids(more.labels, names, held_out), how.length, model)
        counts = lengths, others
    parts = {
        name: of_texts(texts, n, tokenizer, how.length)
        for name, texts, n in zip(("to learn from", "held out"), (train, held), counts, strict=True)
    }
    warn(parts)
    labels = dict(Counter(names[i] for i in train.targets))
    numbers = {"length": how.length, "parts": parts, "labels": labels, "shared": shared(*read)}
    truncated = sum(int((n > how.length).sum()) for n in counts)
    model.to(backend)
    adapted = prepare(model, how)
    settings = {
        "task": "classify",
        **base_settings(model, base),
        "base_sha256": base_hash(model, [path for path in model.state_dict() if path.startswith("classifier")]),
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "data": data,
        "data_sha256": data_hash(*data_read),
        "text": text,
        "label": label,
        "labels": names,
        **{key: value for key, value in asdict(how).items() if key != "recompute"},  # which changes no byte
        "steps": how.steps(len(train.ids)),
    }
    with training_folder(out, settings, resume) as folder:
        if tell:
            tell(numbers)
        history = tune(
            model, train, held, how, checkpoint=folder / CHECKPOINT, checkpoint_every=checkpoint_every, resume=resume
        )
        matrix = confusion(model, held, len(names))
        report = {
            "labels": names,
            "confusion": matrix.tolist(),
            **scores(matrix),
            "losses": history.evaluations,
            "steps": len(history.loss),
            "stopped_early": history.stopped_early,
            "texts": {"train": len(train.ids), "held_out": len(held.ids), "truncated": truncated},
            "data": numbers,
            "adapted": len(adapted),
            "trainable": count_parameters(model)["trainable"],
        }
        write_files(folder, adapter_files(model) | {HISTORY: to_json(asdict(history)), SCORES: to_json(report)})
        write_files(folder, {FIGURE: classification_figure(history.loss, report)})
    return report


def classifier(base: str | Path, names: Sequence[str], seed: int = 0) -> Transformer:
    """`base` with an output for each label, drawn from `seed` where it has no classifier yet."""
    with warnings.catch_warnings():  # as is to be expected here; but a pooler that is missing stays as it is drawn
        warnings.filterwarnings("ignore", CLASSIFIER_DRAWN)
        model = load_pretrained(base, head="classify", labels=len(names), rng=np.random.default_rng(seed))
    name_labels(model, names)
    return model


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], targets: np.ndarray | None, length: int, model: Transformer
) -> tuple[Batch, np.ndarray]:
    """All texts as one Batch, cut to `length` tokens, and (N,) their tokens before they were cut. Raises ValueError for
    a length that is longer than the model's context, and for a tokenizer with more ids than the model's embedding."""
    if length > model.config.max_length:
        raise ValueError(f"length = {length} is more than the model's {model.config.max_length} positions: give less")
    check_matches(tokenizer, model.config.vocab_size)
    found = tokenizer.batch(list(texts), length)
    targets = np.zeros(len(texts), np.int64) if targets is None else targets
    return Batch(found.ids, targets, found.padding), found.lengths


def prepare(model: Transformer, how: Recipe) -> list[str]:
    """Attach the adapters, and let the classifier learn whole; the paths adapted."""
    rng, head = np.random.default_rng(how.seed), [name for name in CLASSIFIER if name in model.layers]
    adapted = attach_lora(
        model, how.targets, how.rank, how.alpha, rng=rng, dropout=how.dropout, rslora=how.rslora, train=head
    )
    if how.recompute:
        recompute(model)
    return adapted


def tune(model: Transformer, train: Batch, held_out: Batch | None, how: Recipe, **options: Any) -> History:
    """Train what is trainable in `model`, whether adapters or all of it; `options` are those of fit()."""
    steps = how.steps(len(train.ids))
    adapters = (module for _, module in model.named_modules() if isinstance(module, Adapter))
    pairs = [parameter for adapter in adapters for parameter in adapter.own_parameters().values()]
    extra = penalty(pairs, how.l1, how.l2) if how.l1 or how.l2 else None
    return fit(
        model, shuffled(train, how.batch, how.seed), steps, lr=how.lr,
        schedule=linear_schedule(steps, steps // 20), penalty=extra,
        accumulate=how.accumulate, shards=how.shards, seed=how.seed,
        held_out=None if held_out is None else lambda: in_batches(held_out, EVALUATION_BATCH),
        evaluate_every=how.evaluate_every, patience=how.patience, **options,
    )  # fmt: skip


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
    """What `finetune` made, or PEFT: the adapter in `folder` on its base. `labels` names the outputs, as the adapter
    does, or else its run or its base; where no one does they are "0", "1", ..., and a warning says so.

    `folder` and `base` may be names on the Hub. Raises ValueError for an adapter that brings no classifier, and what
    load_pretrained and load_adapter raise.
    """

    def __init__(self, folder: str | Path, base: str | None = None, backend: ModuleType = np) -> None:
        folder = locate_adapter(folder)
        read_adapter(folder)  # so that what is no adapter is refused as such
        settings = read_settings(folder) if (folder / SETTINGS).is_file() else {}
        source = base_for(folder, base)
        if source is None:
            raise ValueError(f"{folder} does not say what its base is: give --base")
        self.model, note = load_adapted(source, folder)
        if self.model.config.head != "classify":
            raise ValueError(f"{folder} holds no classifier of texts: make one with minilora finetune --task classify")
        self.tokenizer = load_tokenizer(source)
        self.length: int = settings.get("length", min(Recipe.length, self.model.config.max_length))
        names = labels_of(self.model)
        self.labels = names or [str(i) for i in range(self.model.config.labels)]
        unnamed = "" if names else f"label names are not known: {folder} has only their numbers"
        for said in filter(None, (note, unnamed)):
            warnings.warn(said, stacklevel=2)
        self.model.to(backend)

    def __call__(self, texts: Sequence[str], description: str | None = None) -> np.ndarray:
        """(N, labels) probabilities of `texts`. Warns of texts that the tokenizer cannot read."""
        examples, lengths = encode(self.tokenizer, texts, None, self.length, self.model)
        numbers = of_texts(examples, lengths, self.tokenizer, self.length)
        warn({"texts": numbers})
        if numbers["truncated"] > MOST:
            cut = f"{numbers['truncated']:.1%} of {counted(len(texts), 'text')}"
            warnings.warn(f"{cut} are longer than the {self.length} tokens that are read, and cut", stacklevel=2)
        return probabilities(self.model, examples, description)


def show(report: dict[str, Any]) -> None:
    """The report of finetune() for a person."""
    texts = report["texts"]
    print(f"{report['adapted']} layers adapted, {report['trainable']:,} parameters trained for {report['steps']} steps")
    print(f"{texts['train']} texts to train on, {texts['held_out']} held out; {texts['truncated']} truncated")
    for step, loss in report["losses"]:
        print(f"step {step:>5}: {loss:.4f} nats on what is held out")
    show_scores(report)


def show_scores(report: dict[str, Any]) -> None:
    """Accuracy beside that of the commonest label, the confusion matrix, and precision, recall and F1 of each label."""
    names = report["labels"]
    most = repr(names[int(np.argmax(report["support"]))])
    print(f"accuracy {report['accuracy']:.4f}, macro F1 {report['macro_f1']:.4f}")
    print(f"accuracy of always saying {most}: {report['majority']:.4f}")
    if report["accuracy"] <= report["majority"]:
        print(f"the classifier is no better than always saying {most}")
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
