"""Is one setting better than another? Cross-validation of both on the same folds, and a corrected paired t-test."""

from __future__ import annotations

import warnings
from collections import Counter
from types import ModuleType
from typing import Any

import numpy as np

from ..adapters import DEFAULT
from ..data import shuffled, take
from ..data.labels import label_ids, label_names
from ..data.records import read_records
from ..data.splits import stratified_folds
from ..display.tables import numbers_right, wide_console
from ..models.pretrained import load_tokenizer
from ..training.metrics import paired_test, scores, student_t
from .bases import base_for
from .classification import classifier, confusion, fit_classifier
from .data import numbers_of_rows, warn_of_unreadable
from .finetuning import ShowData, attach, base_format, options_of, settings_of
from .prediction import encode
from .settings import OF_METHOD, ClassifierSettings


def cross_validate(
    base: str,
    data: str,
    against: dict[str, Any],
    *,
    folds: int = 5,
    show_data: ShowData | None = None,
    backend: ModuleType = np,
    **options: Any,
) -> dict[str, Any]:
    """Compare ClassifierSettings(**options) with the same changed by `against`, on each of stratified `folds`.

    Where `against` says another method, those of the options that it lacks are left out.
    Both are trained on the other folds, in the same order and from the same seed. `show_data` is called before with the
    statistics of the data, which data.print_data prints. Returns the (first, second) accuracies on each fold, the mean
    accuracy of always giving the commonest label, and metrics.paired_test of first - second. Raises ValueError for bad
    input, before anything is trained.
    """
    student_t()  # raises where SciPy is missing
    first = settings_of(ClassifierSettings, **options)
    both = {"first": first, "second": settings_of(ClassifierSettings, **second_options(options, against))}
    if first == both["second"]:
        raise ValueError("the two settings are the same: say in --against what is to differ, as '--rank 2'")
    records = read_records(data, first.text, first.label, first.encoding, first.skip_empty)
    names, source = label_names(records.labels), base_for(None, base) or base
    targets, tokenizer = label_ids(records.labels, names, data), load_tokenizer(source)
    split = stratified_folds(records.labels, folds, first.seed)
    labels, repeated = dict(Counter(records.labels)), len(records.texts) - len(set(records.texts))
    encoded, numbers = {}, {}
    for which, settings in both.items():  # what is wrong with either is found before the training
        model = classifier(source, names, settings.seed, base_format(settings))
        encoded[which], lengths = encode(tokenizer, records.texts, targets, settings.length, model)
        attach(model, settings, shuffled(encoded[which], settings.batch, settings.seed))
        parts = {"all rows": numbers_of_rows(encoded[which], lengths, tokenizer, settings.length)}
        warn_of_unreadable(parts)
        numbers[settings.length] = {"length": settings.length, "parts": parts, "labels": labels, "repeated": repeated}
    if show_data:
        for each in numbers.values():
            show_data(each)
    accuracies, majority = [], []
    for fold, (train, test) in enumerate(split, 1):
        pair = []
        for which, settings in both.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they were shown above
                model = classifier(source, names, settings.seed, base_format(settings))
                attach(model, settings, shuffled(take(encoded[which], train), settings.batch, settings.seed))
            model.to(backend)
            description = f"fold {fold} of {folds}, {which} setting"
            fit_classifier(model, take(encoded[which], train), None, settings, description=description)
            found = scores(confusion(model, take(encoded[which], test)))
            pair.append(found["accuracy"])
        majority.append(found["majority"])
        accuracies.append(pair)
    sizes = len(split[0][0]), len(split[0][1])
    return {
        "folds": accuracies,
        "majority": float(np.mean(majority)),
        "against": against,
        "texts": {"train": sizes[0], "test": sizes[1]},
        **paired_test([a - b for a, b in accuracies], *sizes),
    }


def second_options(options: dict[str, Any], against: dict[str, Any]) -> dict[str, Any]:
    """`options` changed by `against`: of another method without what it lacks, and what only the first has."""
    method = against.get("method")
    if method is None or method == options.get("method", DEFAULT):
        return options | against
    lacks = {"option", *(field for field, name in OF_METHOD.items() if name not in options_of(method))}
    return {name: value for name, value in options.items() if name not in lacks} | against


def print_comparison(report: dict[str, Any]) -> None:
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
    verdict = "significant at 5 %" if report["p"] < 0.05 else "not significant at 5 %"
    print(f"t = {report['t']:.2f}, p = {report['p']:.3f}, corrected for training sets that overlap: {verdict}")
