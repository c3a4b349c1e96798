"""What each command does with its words: one function of the library, then what a person reads.

The functions import as they run: --help need not wait for NumPy.
"""

from __future__ import annotations

import argparse
import inspect
import io
import math
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from ..display.tables import visible
from ..process import keep_freed_memory

AT_ONCE = 4096  # lines of standard input that are read before the first is answered
TASKS = {  # what finetune learns from -> the file in tasks/ that knows how
    "text": "language_model",
    "instruct": "instruction",
    "classify": "classification",
}


def backend(options: argparse.Namespace) -> ModuleType:
    from ..backend import load_backend

    return load_backend({"cpu": "numpy", "cuda": "cupy"}[options.device])


def demo(options: argparse.Namespace) -> None:
    """Adapt the built-in model to Python source, by LoRA and by full fine-tuning, and show what was learned."""
    keep_freed_memory()
    from ..jobs import demo as job

    out = options.out or ("runs/grid" if options.grid else "runs/demo")
    words: dict[str, Any] = {"seed": options.seed, "shards": options.shards, "backend": backend(options)}
    if options.grid:
        job.search(out, **words)
    else:
        job.show(job.demo(out, **words), out)


def pretrain(options: argparse.Namespace) -> None:
    """Pretrain the built-in base model on English prose, from nothing."""
    keep_freed_memory()
    from ..jobs import language_model

    changes: dict[str, Any] = {"seed": options.seed, "shards": options.shards}
    if options.steps:
        changes["steps"] = options.steps
    note = language_model.pretrain(options.out, resume=options.resume, backend=backend(options), **changes)
    for name, value in note["bits_per_byte"].items():
        print(f"{name:<8} {value:.3f} bits per byte of test text")
    print(f"written to {options.out}")


def finetune(options: argparse.Namespace) -> None:
    """Fine-tune a model with LoRA: on a text, on answers to prompts, or to classify."""
    keep_freed_memory()
    task = import_module(f"..jobs.{TASKS[options.task]}", __package__)
    words = {key: value for key, value in vars(options).items() if key not in ("run", "task", "device", "threads")}
    reads = {*inspect.signature(task.finetune).parameters, *getattr(task, "OPTIONS", ())}
    unread = next((key for key in words if key not in reads), None)
    if unread:
        raise ValueError(f"--task {options.task} does not read --{unread.replace('_', '-')}: leave it out")
    from ..jobs.data import show as tell

    task.show(task.finetune(backend=backend(options), tell=tell, **words))
    print(f"written to {options.out}; now try")
    print(f"  minilora {task.NEXT} --adapter {shlex.quote(options.out)}")


def compare(options: argparse.Namespace) -> None:
    """Compare two settings of a classifier on the same folds, by a test that knows how folds overlap."""
    keep_freed_memory()
    import json

    from ..jobs.crossvalidation import cross_validate, show
    from ..jobs.data import show as tell

    words = {key: value for key, value in vars(options).items() if key not in ("run", "device", "threads", "json")}
    report = cross_validate(backend=backend(options), tell=partial(tell, file=sys.stderr), **words)
    if options.json:
        finite = report["t"] if math.isfinite(report["t"]) else None  # JSON knows no infinity
        print(json.dumps(report | {"t": finite}, indent=1, allow_nan=False))
    else:
        show(report)


def predict(options: argparse.Namespace) -> None:
    """Classify the rows of a file, or the lines of standard input: label, probability and text, separated by tabs.

    There is a line of output for each line of input, as `paste` needs it: for an empty one, with nothing between the
    tabs. (At a terminal an empty line is passed over.)
    """
    import json

    from ..data import check_encoding, lines_of
    from ..data.records import label_ids, read_records
    from ..jobs.classification import Classifier, show_scores
    from ..training.metrics import confusion_matrix, scores

    check_encoding(options.encoding)
    words = options.text, options.label, options.encoding, options.skip_empty
    rows = read_records(options.data, *words) if options.data else None
    if rows is None and options.label:
        raise ValueError("--label names a column of --data: give both")
    classify = Classifier(options.adapter, options.base, backend(options))
    true = label_ids(rows.labels, classify.labels, options.data) if rows and options.label else None

    def tell(texts: list[str], description: str | None = None) -> Any:
        some = list(filter(None, texts))
        p: Any = classify(some, description) if some else []
        rows = iter(p)
        for line in texts:
            row = next(rows) if line else None
            label = None if row is None else classify.labels[row.argmax()]
            if options.json:
                found = None if row is None else dict(zip(classify.labels, row.tolist(), strict=True))
                print(json.dumps({"text": line, "label": label, "probabilities": found}))
            else:
                share = "" if row is None else f"{row.max():.4f}"
                cells = (" ".join(cell.split()) for cell in (label or "", share, line))
                print(*map(shown, cells), sep="\t", flush=True)
        return p

    if rows is None:
        if isinstance(sys.stdin, io.TextIOWrapper):
            given = None if options.encoding == "utf-8" else options.encoding
            sys.stdin.reconfigure(encoding=given, errors="strict")
        terminal = sys.stdin.isatty()
        lines = (line for line in map(str.strip, lines_of(sys.stdin)) if line or not terminal)
        while texts := list(islice(lines, 1 if terminal else AT_ONCE)):
            tell(texts)
        return
    p = tell(rows.texts, "classifying")
    if true is not None:
        matrix = confusion_matrix(true, p.argmax(axis=1), len(classify.labels))
        report = {"labels": classify.labels, "confusion": matrix.tolist(), **scores(matrix)}
        if options.json:
            print(json.dumps(report))
        else:
            show_scores(report)


def sweep(options: argparse.Namespace) -> None:
    """Fine-tune at each of several ranks, with several seeds, and say which rank is enough."""
    keep_freed_memory()
    from ..jobs import sweep as job
    from ..jobs.data import show as tell

    words = {key: value for key, value in vars(options).items() if key not in ("run", "device")}
    job.show(job.sweep(backend=backend(options), tell=tell, **words), options.out)


def generate(options: argparse.Namespace) -> None:
    """Continue a prompt."""
    from ..models.generation import stream
    from ..models.pretrained import load_tokenizer

    base, adapter = chosen(options)
    model, tokenizer = adapted(base, adapter, options), load_tokenizer(base)
    pieces = stream(model, options.prompt, options.tokens, tokenizer=tokenizer, **drawing(options))
    print(shown(options.prompt.encode(errors="surrogateescape").decode(errors="replace")), end="", flush=True)
    try:
        for piece in pieces:
            print(shown(piece), end="", flush=True)
    finally:
        print()


def chat(options: argparse.Namespace) -> None:
    """Talk with an instruct model, a line at a time, until the input ends.

    At a terminal, Ctrl-C ends an answer, and at the prompt the chat.
    """
    from ..models.generation import answer
    from ..models.pretrained import load_tokenizer

    base, adapter = chosen(options)
    tokenizer = load_tokenizer(base)
    tokenizer.chat([{"role": "user", "content": "?"}])  # a model that does not chat says so here
    model, how, terminal = adapted(base, adapter, options), drawing(options), sys.stdin.isatty()
    if terminal:
        leave = "Ctrl-Z and Enter end" if os.name == "nt" else "Ctrl-D ends"
        print(f"minilora: {leave} the chat, Ctrl-C an answer", file=sys.stderr)
    messages: list[dict[str, str]] = []
    for line in lines(terminal):
        asked, said = [*messages, {"role": "user", "content": line}], ""
        try:
            for piece in answer(model, asked, options.tokens, tokenizer=tokenizer, **how):
                said += piece
                print(shown(piece), end="", flush=True)
        except KeyboardInterrupt:
            if not terminal:
                raise
        except ValueError as error:  # this message is too much: another may do
            if not terminal:
                raise
            print(f"minilora: {visible(str(error))}", file=sys.stderr)
            continue
        print()
        messages = [*asked, {"role": "assistant", "content": said}]


def lines(terminal: bool) -> Iterator[str]:
    """What a person types, or a file holds, but for empty lines."""
    while True:
        try:
            line = input("> " if terminal else "")
        except (EOFError, KeyboardInterrupt) as end:
            if terminal:
                print()
            if isinstance(end, KeyboardInterrupt):
                raise
            return
        if line.strip():
            yield line


def shown(text: str) -> str:
    """A text of a model or a file for standard output: as it is, but for what a terminal would obey."""
    return visible(text) if sys.stdout.isatty() else text


def drawing(options: argparse.Namespace) -> dict[str, Any]:
    """How the next token is chosen, as stream() takes it."""
    import numpy as np

    how = {key: getattr(options, key) for key in ("temperature", "top_k", "top_p")}
    return how | {"rng": np.random.default_rng(options.seed)}


def merge(options: argparse.Namespace) -> None:
    """Write base and adapter as one model."""
    from ..adapters.merge import merge as merge_model
    from ..files import check_free, write_folder
    from ..models.pretrained import load_tokenizer, model_files, reads_last_token, tokenizer_files

    check_free(options.out)
    base, adapter = chosen(options)
    model, tokenizer = adapted(base, adapter, options), None
    if reads_last_token(model):
        with suppress(FileNotFoundError):  # a base without one
            tokenizer = load_tokenizer(base)
    paths = merge_model(model)
    write_folder(options.out, model_files(model, tokenizer) | tokenizer_files(base))
    print(f"{len(paths)} adapters merged; written to {options.out}")


def info(options: argparse.Namespace) -> None:
    """What a folder holds: family, shapes, adapter, hash of the base, a run or a sweep and how far it is."""
    from ..adapters.peft import CONFIG, describe_adapter, locate_adapter
    from ..jobs.runs import SETTINGS, describe_run
    from ..jobs.sweep import JSON, describe_sweep
    from ..models.pretrained import describe_model
    from ..models.sources import locate

    folder = locate(options.folder, (), ("config.json", CONFIG))
    found: dict[str, str] = {}
    if folder.is_file() or (folder / "config.json").is_file():
        found |= describe_model(options.folder)
    if (folder / CONFIG).is_file():
        found |= describe_adapter(locate_adapter(options.folder))
    if (folder / SETTINGS).is_file():
        found |= describe_run(folder)
    if (folder / JSON).is_file() or any(folder.glob(f"rank-*/seed-*/{SETTINGS}")):
        found |= describe_sweep(folder)
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no model (config.json), adapter ({CONFIG}), run ({SETTINGS}) or sweep ({JSON})"
        )
    for name, value in found.items():
        print(f"{name:<12} {visible(value)}")


def rank(options: argparse.Namespace) -> None:
    """What rank is enough: the singular values of an adapter, or of the difference of two checkpoints."""
    import json

    from ..jobs.rank import show, study

    words = {key: value for key, value in vars(options).items() if key not in ("run", "json", "threads")}
    result = study(**words)
    if options.json:
        print(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        show(result)
        if options.out:
            print(f"written to {options.out}")


def count(options: argparse.Namespace) -> None:
    """What a method costs on a model: parameters, bytes and FLOPs, each with its formula."""
    import json

    from ..accounting import count as count_one
    from ..accounting import to_dict
    from ..accounting.memory import QUANTISED
    from ..accounting.methods import OVER_4_BITS, TARGETED
    from ..accounting.report import show_account, show_comparison
    from ..adapters.base import DEFAULT
    from ..display.plots import check_png, cost_figure
    from ..files import write_whole

    if options.compare and options.method:
        raise ValueError("--compare names the methods: leave --method out")
    if options.plot and not options.compare:
        raise ValueError("--plot draws several methods: say --compare full,lora,qlora")
    if options.plot:
        check_png(options.plot)
    methods = options.compare or [options.method or DEFAULT]
    words = {"r": options.rank, "virtual_tokens": options.virtual_tokens, "batch": options.batch}
    words |= {"tokens": options.tokens, "recompute": options.recompute, "head": options.head, "labels": options.labels}
    accounts = {}
    for name in methods:  # of several, those that choose their layers get the targets; one alone must take them
        targets = options.targets if name in TARGETED or not options.compare else None
        dtype = options.dtype  # of several, that of a base that is not in 4 bits
        if name in OVER_4_BITS and options.compare and dtype not in QUANTISED:
            dtype = None
        accounts[name] = count_one(options.model, name, targets=targets, dtype=dtype, **words)
    results = {name: to_dict(account) for name, account in accounts.items()}
    if options.plot:
        write_whole(Path(options.plot), cost_figure(results))
    if options.json:
        said = results if options.compare else results[methods[0]]
        print(json.dumps(said, indent=1, ensure_ascii=False, allow_nan=False))
    elif options.compare:
        show_comparison(accounts)
    else:
        show_account(accounts[methods[0]])


def audit(options: argparse.Namespace) -> None:
    """Papers' printed numbers against their own formulas: which follow, and why the others may not."""
    import json

    from ..accounting.audit import rows, show_audit

    found = list(rows())
    if options.json:
        print(json.dumps([row.to_dict() for row in found], indent=1, ensure_ascii=False, allow_nan=False))
    else:
        show_audit(found)


def verify(options: argparse.Namespace) -> int:
    """Check every gradient and every law of the library. The exit code is 1 if one is wrong."""
    import json

    from ..verify.mutation import mutation_run, show_mutants, unexplained
    from ..verify.suite import show, wrong
    from ..verify.suite import verify as run

    if options.sample and not options.mutants:
        raise ValueError("--sample is a number of mutants: say --mutants too")
    if options.mutants:
        outcomes = mutation_run(options.sample, options.seed, options.only)
        if options.json:
            print(json.dumps([outcome._asdict() for outcome in outcomes], indent=1))
        else:
            show_mutants(outcomes)
        return int(bool(unexplained(outcomes)))
    result = run(options.only, options.seed)
    if options.json:
        print(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        show(result)
    return int(bool(wrong(result)))


def chosen(options: argparse.Namespace) -> tuple[Any, Path | None]:
    """(--base, or without it the base that the adapter names, or builtin; the folder of --adapter, if one is given)."""
    from ..adapters.peft import locate_adapter
    from ..jobs.runs import base_for

    adapter = locate_adapter(options.adapter) if options.adapter else None
    return base_for(adapter, options.base) or "builtin", adapter


def adapted(base: str | Path, adapter: Path | None, options: argparse.Namespace) -> Any:
    """The model of `base`, with the adapter in a folder if one is given, on --device."""
    from ..jobs.runs import load_adapted
    from ..models.pretrained import load_pretrained

    if adapter is None:
        model = load_pretrained(base)
    else:
        model, note = load_adapted(base, adapter)
        if note:
            print(f"note: {visible(note)}", file=sys.stderr)
    model.to(backend(options))
    return model
