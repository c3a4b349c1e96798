"""Is one setting better than another? Both on the same folds, and a test that knows how folds overlap."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from ..data import Batch, take
from ..data.records import label_ids, label_names, read_records, stratified_folds
from ..display.tables import numbers_right, wide_console
from ..models.pretrained import load_tokenizer
from ..training.metrics import paired_test, scores, student_t
from .classification import Recipe, classifier, confusion, encode, prepare, tune
from .data import Numbers, of_texts, warn
from .runs import base_for


def cross_validate(
    base: str,
    data: str,
    against: dict[str, Any],
    *,
    folds: int = 5,
    text: str = "text",
    label: str = "label",
    encoding: str = "utf-8",
    skip_empty: bool = False,
    tell: Callable[[Numbers], None] | None = None,
    backend: ModuleType = np,
    **recipe: Any,
) -> dict[str, Any]:
    """Accuracy of Recipe(**recipe), and of the same but for `against`, on each of `folds` stratified folds.

    Each is trained on the other folds, in the same order and from the same seed. `tell` is called before with the
    numbers of the data, which data.show prints. Returns for each fold (first, second) accuracies, the mean accuracy of
    its commonest label, and metrics.paired_test of first - second. Raises ValueError for bad input, before anything is
    trained.
    """
    student_t()  # whether it is there is to be known before the work
    hows = Recipe(**recipe), Recipe(**recipe | against)
    if hows[0] == hows[1]:
        raise ValueError("the two settings are the same: say in --against what is to differ, as '--rank 2'")
    records = read_records(data, text, label, encoding, skip_empty)
    names = label_names(records.labels)
    source = base_for(None, base) or base
    targets, tokenizer = label_ids(records.labels, names, data), load_tokenizer(source)
    split = stratified_folds(records.labels, folds, hows[0].seed)
    encoded: list[Batch] = []
    numbers: list[Numbers] = []
    labels, again = dict(Counter(records.labels)), len(records.texts) - len(set(records.texts))
    for how in hows:  # what is wrong with either is to be found at once
        model = classifier(source, names, how.seed)
        examples, lengths = encode(tokenizer, records.texts, targets, how.length, model)
        encoded.append(examples)
        prepare(model, how)
        parts = {"all rows": of_texts(examples, lengths, tokenizer, how.length)}
        numbers.append({"length": how.length, "parts": parts, "labels": labels, "repeated": again})
        warn(parts)
    if tell:
        for number in numbers if hows[0].length != hows[1].length else numbers[:1]:
            tell(number)
    accuracies, majority = [], []
    for fold, (train, test) in enumerate(split, 1):
        pair = []
        for which, how, examples in zip(("first", "second"), hows, encoded, strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they were shown above
                model = classifier(source, names, how.seed)
                prepare(model, how)
            model.to(backend)
            tune(model, take(examples, train), None, how, description=f"fold {fold} of {folds}, {which} setting")
            matrix = confusion(model, take(examples, test), len(names))
            pair.append(scores(matrix)["accuracy"])
        majority.append(scores(matrix)["majority"])
        accuracies.append(pair)
    sizes = len(split[0][0]), len(split[0][1])
    return {
        "folds": accuracies,
        "majority": float(np.mean(majority)),
        "against": against,
        "texts": {"train": sizes[0], "test": sizes[1]},
        **paired_test([a - b for a, b in accuracies], *sizes),
    }


def show(report: dict[str, Any]) -> None:
    """The report of cross_validate() for a person."""
    changes = ", ".join(f"{name} = {value}" for name, value in report["against"].items())
    print(f"accuracy on each fold; the second setting has {changes}")
    table = numbers_right("", "fold", "first", "second", "difference")
    for fold, (a, b) in enumerate(report["folds"], 1):
        table.add_row(str(fold), f"{a:.4f}", f"{b:.4f}", f"{a - b:+.4f}")
    a, b = np.mean(report["folds"], axis=0)
    table.add_section()
    table.add_row("mean", f"{a:.4f}", f"{b:.4f}", f"{report['mean']:+.4f}")
    wide_console().print(table)
    print(f"always giving the commonest label of a fold: {report['majority']:.4f}")
    if max(a, b) <= report["majority"]:
        print("neither setting is better than that: nothing was learned that shows here")
    print(f"95% interval of the difference: {report['low']:+.4f} to {report['high']:+.4f}")
    if len({a - b for a, b in report["folds"]}) == 1:
        print("all folds have the same difference: they are too few, or too small, to say more")
        return
    verdict = "a difference beyond chance" if report["p"] < 0.05 else "no difference that chance would not make"
    print(f"t = {report['t']:.2f}, p = {report['p']:.3f}, corrected for training sets that overlap: {verdict}")
