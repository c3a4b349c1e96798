"""The commands. Each parses its words, calls one function, and prints; NumPy is loaded only after parsing."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from . import __version__

# accounting.METHODS, which cannot be imported here: NumPy is, once --threads has been read
COUNTED = """full, top2, bitfit, prefix-embed, prefix-layer, lora, qlora, lora-fa, dora, vera, lora-xs, ia3,
adapter-houlsby, adapter-pfeiffer or adapter-lin"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: 0 when it is done, 1 when `verify` finds something wrong, 2 (and one line on stderr) for what a
    person can mend, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(options.threads)  # BLAS reads these when NumPy is loaded, and never again
    with warnings.catch_warnings():
        warnings.showwarning = note
        return run(options)


def run(options: argparse.Namespace) -> int:
    try:
        return options.run(options) or 0
    except BrokenPipeError:  # whoever reads has seen enough: minilora audit | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError, RuntimeError, ArithmeticError, MemoryError) as error:
        print(f"minilora: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"minilora: {one_line(stop) if stop.args else 'stopped'}", file=sys.stderr)
        return 130


def note(message: Any, *_: Any, **__: Any) -> None:
    """A warning, as a line for people."""
    print(f"minilora: note: {message}", file=sys.stderr)


def one_line(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        wanted = f" ({error})" if error.args else ""
        return f"out of memory{wanted}: give smaller numbers, such as --batch, or a smaller model"
    if isinstance(error, OSError) and error.strerror:
        return ": ".join(map(str, filter(None, (error.strerror, error.filename))))
    return " ".join(str(error).split()) or type(error).__name__


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser() -> Parser:
    top = Parser(prog="minilora", description=sys.modules[__package__].__doc__)
    top.add_argument("--version", action="version", version=f"minilora {__version__}")
    commands = top.add_subparsers(required=True, metavar="command")
    shared: dict[str, dict[str, Any]] = {
        "--base": {
            "default": "builtin",
            "metavar": "MODEL",
            "help": "a folder, a .gguf file, builtin, minilm, smollm2",
        },
        "--out": {"required": True, "metavar": "DIR", "help": "a new folder"},
        "--resume": {"action": "store_true", "help": "go on from the checkpoint in --out"},
        "--device": {"choices": ["cpu", "cuda"], "default": "cpu", "help": "where to compute (cuda needs CuPy)"},
        "--seed": {"type": from_zero, "default": 0, "metavar": "N", "help": "same seed, same bytes (default 0)"},
        "--shards": {"type": positive, "default": 2, "metavar": "N", "help": "cut batches for N threads (default 2)"},
        "--threads": {"type": positive, "default": 1, "metavar": "N", "help": "BLAS threads (default 1)"},
    }

    def command(run: Any, example: str, holds: str, *options: str) -> Callable[..., Any]:
        holds = f"\n\n--out will contain\n  {holds}" if holds else ""
        sub = commands.add_parser(
            run.__name__,
            help=run.__doc__.splitlines()[0],
            description=run.__doc__,
            epilog=f"example\n  {example}{holds}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        for option in (*options, "--threads"):
            sub.add_argument(option, **shared[option])
        return sub.add_argument

    def tuning(add: Callable[..., Any]) -> None:
        """How to fine-tune: what finetune and the runs of a sweep are told alike."""
        add("--data", required=True, metavar="FILE", help="a text file, or 'builtin': Python's own source")
        add("--targets", type=names, default="all-linear", metavar="A,B", help="layers to adapt (default all-linear)")
        add("--alpha", type=float, default=16.0, metavar="X", help="the adapter is scaled by alpha/rank (default 16)")
        add("--rslora", action="store_true", help="scale by alpha/sqrt(rank) instead")
        add("--dropout", type=float, default=0.0, metavar="P", help="on the adapter's input (default 0)")
        add("--lr", type=above_zero, default=8e-3, metavar="X", help="peak learning rate (default 8e-3)")
        add("--steps", type=positive, default=100, metavar="N", help="(default 100)")
        add("--batch", type=positive, default=16, metavar="N", help="windows in a batch (default 16)")
        add("--length", type=positive, default=128, metavar="N", help="bytes in a window (default 128)")
        add("--accumulate", type=positive, default=1, metavar="N", help="batches in a step (default 1)")
        add("--evaluate-every", type=positive, default=50, metavar="N", help="steps (default 50)")
        add("--patience", type=from_zero, default=0, metavar="N", help="stop after N evaluations in vain; 0: never")
        add("--checkpoint-every", type=positive, default=50, metavar="N", help="steps (default 50)")

    def drawing(add: Callable[..., Any]) -> None:
        """How to continue a text: what generate and chat are told alike."""
        add("--adapter", metavar="DIR", help="an adapter folder")
        add("--tokens", type=positive, default=200, metavar="N", help="add up to N, bytes or pieces (default 200)")
        add("--temperature", type=float, default=0.0, metavar="X", help="0: the most probable (default)")
        add("--top-k", type=from_zero, default=0, metavar="N", help="draw from the N most probable; 0: from all")
        add("--top-p", type=share, default=1.0, metavar="P", help="draw from the fewest of probability P (default 1)")

    add = command(
        demo,
        "minilora demo",
        "report.json, report.png, adapter_config.json, adapter_model.safetensors",
        *("--device", "--seed", "--shards"),
    )
    add("--out", metavar="DIR", help="(default runs/demo; runs/grid with --grid)")
    add("--grid", action="store_true", help="search the learning rates again, in minutes; --out gets grid.json")

    add = command(
        pretrain,
        "minilora pretrain --out runs/base",
        "config.json, model.safetensors, pretraining.json (recipe, losses)",
        *("--out", "--resume", "--device", "--seed", "--shards"),
    )
    add("--steps", type=positive, metavar="N", help="(default 1600)")

    add = command(
        finetune,
        "minilora finetune --base builtin --data notes.txt --targets q_proj,v_proj --rank 8 --out runs/notes",
        "adapter_config.json, adapter_model.safetensors, settings.json, history.json, checkpoint.safetensors",
        *("--base", "--out", "--resume", "--device", "--seed", "--shards"),
    )
    add("--rank", type=int, default=8, metavar="N", help="(default 8)")
    tuning(add)

    add = command(
        sweep,
        "minilora sweep --ranks 1,2,4,8,16 --seeds 3 --jobs 2 --data builtin --out runs/sweep",
        "sweep.json, sweep.png, and of each rank R and seed S, in rank-R/seed-S, what finetune makes",
        *("--base", "--out", "--resume", "--device"),
    )
    same = "ranks to try, at the same alpha: each has the scale alpha/rank (with --rslora alpha/sqrt(rank))"
    add("--ranks", type=ranks, required=True, metavar="N,N", help=same)
    add("--seeds", type=positive, default=3, metavar="N", help="runs of each rank, seeds 0 to N-1 (default 3)")
    add("--jobs", type=positive, default=2, metavar="N", help="runs at a time; changes no byte (default 2)")
    add("--shards", type=positive, default=1, metavar="N", help="cut batches for N threads in each run (default 1)")
    tuning(add)

    add = command(
        generate,
        "minilora generate --adapter runs/demo --prompt 'def main(' --temperature 0.7",
        "",
        *("--base", "--device", "--seed"),
    )
    drawing(add)
    add("--prompt", required=True, metavar="TEXT")

    add = command(chat, "minilora chat --base smollm2 --temperature 0.7", "", *("--base", "--device", "--seed"))
    drawing(add)

    example = "minilora merge --adapter runs/demo --out runs/merged"
    add = command(
        merge, example, "config.json, model.safetensors, the tokenizer's files", "--base", "--out", "--device"
    )
    add("--adapter", required=True, metavar="DIR", help="an adapter folder")

    add = command(info, "minilora info runs/demo", "")
    add("folder", metavar="DIR", help="a folder with a model, an adapter or a run; or a model as --base")

    add = command(
        rank,
        "minilora rank builtin runs/merged --energy 0.9 --out runs/small --plot runs/small.png",
        "adapter_config.json, adapter_model.safetensors",
    )
    add("folder", metavar="DIR", help="an adapter folder; or, with TUNED_DIR, the checkpoint before ('builtin')")
    add("tuned", metavar="TUNED_DIR", nargs="?", help="the checkpoint after: any family, matrices are matched by name")
    add("--base", metavar="DIR", help="the base of an adapter ('builtin'): to look at W too")
    add("--compare", metavar="DIR", help="another adapter: how much of its directions is shared")
    add("--rank", type=positive, metavar="N", help="write the best adapter of this rank to --out")
    add("--energy", type=share, metavar="X", help="or of the least ranks that keep this share of ‖ΔW‖², such as 0.9")
    add("--out", metavar="DIR", help="a new folder for that adapter")
    add("--plot", metavar="FILE", help="NAME.png: figures NAME-energy.png, NAME-layers.png, ...")
    add("--json", action="store_true", help="print the result as JSON")

    add = command(count, "minilora count --model gpt3-175b --method lora --targets q_proj,v_proj --rank 4", "")
    add("--model", default="builtin", metavar="NAME", help="a name, a config.json or its folder (default builtin)")
    add("--method", metavar="NAME", help=f"{COUNTED} (default lora)")
    add("--compare", type=methods, metavar="A,B", help="several methods side by side: full,lora,qlora")
    add("--targets", type=names, metavar="A,B", help="layers to adapt, lm_head and embed too (default: the method's)")
    add("--rank", type=positive, default=8, metavar="N", help="or the width of a bottleneck (default 8)")
    add("--virtual-tokens", type=positive, default=8, metavar="N", help="of prefix methods (default 8)")
    add("--head", metavar="NAME", help="lm, classify or none (default: the family's usual one)")
    add("--labels", type=positive, metavar="N", help="outputs of the head classify (default: the config's, or 2)")
    add("--batch", type=positive, default=1, metavar="N", help="sequences (default 1)")
    add("--tokens", type=positive, metavar="N", help="in a sequence (default 512, or what the model can)")
    add("--dtype", metavar="NAME", help="of the base: float32 (default), float16, bfloat16, nf4, nf4-dq, float64")
    add("--recompute", action="store_true", help="blocks keep their input alone, and run again for backward")
    add("--json", action="store_true", help="print the result as JSON")
    add("--plot", metavar="FILE", help="a bar chart of --compare: NAME.png")

    add = command(audit, "minilora audit", "")
    add("--json", action="store_true", help="print the rows as JSON")

    add = command(verify, "minilora verify --only attention", "", "--seed")
    add("--only", default="", metavar="NAME", help="what has NAME in its name")
    add("--json", action="store_true", help="print the result as JSON")
    add("--mutants", action="store_true", help="instead, break each gradient and see the checks fail")
    add("--sample", type=positive, metavar="N", help="with --mutants: N of them (default all)")
    return top


def names(text: str) -> str | list[str]:
    return text if text == "all-linear" else words(text)


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def methods(text: str) -> list[str]:
    found = [word.strip() for word in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} lacks a name, as in full,lora,qlora")
    return found


def ranks(words: str) -> list[int]:
    return [positive(word.strip()) for word in words.split(",")]


def positive(word: str) -> int:
    if not word.isdecimal() or len(word) > 9 or int(word) == 0:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number above 0, of 9 digits at most")
    return int(word)


def from_zero(word: str) -> int:
    if not word.isdecimal() or len(word) > 18:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from 0 up, of 18 digits at most")
    return int(word)


def above_zero(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number above 0")
    return number


def share(word: str) -> float:
    if above_zero(word) > 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a share above 0 and up to 1")
    return float(word)


def backend(options: argparse.Namespace) -> ModuleType:
    from .backend import load_backend

    return load_backend({"cpu": "numpy", "cuda": "cupy"}[options.device])


def demo(options: argparse.Namespace) -> None:
    """Adapt the built-in model to Python source, by LoRA and by full fine-tuning, and show what was learned."""
    keep_freed_memory()
    from . import demo as job

    out = options.out or ("runs/grid" if options.grid else "runs/demo")
    words: dict[str, Any] = {"seed": options.seed, "shards": options.shards, "backend": backend(options)}
    if options.grid:
        job.search(out, **words)
    else:
        job.show(job.demo(out, **words), out)


def pretrain(options: argparse.Namespace) -> None:
    """Pretrain the built-in base model on English prose, from nothing."""
    keep_freed_memory()
    from .tasks import language_model

    changes: dict[str, Any] = {"seed": options.seed, "shards": options.shards}
    if options.steps:
        changes["steps"] = options.steps
    note = language_model.pretrain(options.out, resume=options.resume, backend=backend(options), **changes)
    for name, value in note["bits_per_byte"].items():
        print(f"{name:<8} {value:.3f} bits per byte of test text")
    print(f"written to {options.out}")


def finetune(options: argparse.Namespace) -> None:
    """Fine-tune a model with LoRA on a text."""
    keep_freed_memory()
    from .tasks import language_model

    words = {key: value for key, value in vars(options).items() if key not in ("run", "device", "threads")}
    done = language_model.finetune(backend=backend(options), **words)
    print(f"{done['adapted']} layers adapted, {done['trainable']:,} parameters trained for {done['steps']} steps")
    for step, value in done["bits_per_byte"].items():
        print(f"step {step:>5}: {value:.3f} bits per byte of validation text")
    print(f"written to {options.out}; now try")
    base, adapter = shlex.quote(options.base), shlex.quote(options.out)
    print(f"  minilora generate --base {base} --adapter {adapter} --prompt 'The '")


def sweep(options: argparse.Namespace) -> None:
    """Fine-tune at each of several ranks, with several seeds, and say which rank is enough."""
    keep_freed_memory()
    from . import sweep as job

    words = {key: value for key, value in vars(options).items() if key not in ("run", "device", "threads")}
    job.show(job.sweep(backend=backend(options), **words), options.out)


def generate(options: argparse.Namespace) -> None:
    """Continue a prompt."""
    answer = answerer(options)
    pieces = answer(options.prompt, True)
    print(options.prompt.encode(errors="surrogateescape").decode(errors="replace"), end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def chat(options: argparse.Namespace) -> None:
    """Talk with an instruct model, a line at a time, until the input ends."""
    from .pretrained import load_tokenizer

    tokenizer = load_tokenizer(options.base)
    tokenizer.chat([{"role": "user", "content": "?"}])  # a model that does not chat says so here
    answer, messages = answerer(options), []
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            messages.append({"role": "user", "content": input(prompt)})
        except EOFError:
            return
        said = []
        for piece in answer(tokenizer.chat(messages), False):
            said.append(piece)
            print(piece, end="", flush=True)
        print()
        messages.append({"role": "assistant", "content": "".join(said)})


def answerer(options: argparse.Namespace) -> Callable[[str, bool], Iterator[str]]:
    """What streams a continuation of a text, by the options of generate and chat."""
    import numpy as np

    from .generation import stream
    from .pretrained import load_tokenizer

    model, tokenizer, rng = adapted(options), load_tokenizer(options.base), np.random.default_rng(options.seed)

    def answer(text: str, special: bool) -> Iterator[str]:
        return stream(
            model, text, options.tokens, tokenizer=tokenizer, temperature=options.temperature, top_k=options.top_k,
            top_p=options.top_p, rng=rng, special=special,
        )  # fmt: skip

    return answer


def merge(options: argparse.Namespace) -> None:
    """Write base and adapter as one model."""
    from .checkpoint import check_free
    from .lora import merge as merge_model
    from .pretrained import load_tokenizer, save_pretrained

    check_free(options.out)
    model, tokenizer = adapted(options), None
    with suppress(FileNotFoundError):  # a base without one has none to take along
        tokenizer = load_tokenizer(options.base)
    paths = merge_model(model)
    save_pretrained(model, options.out, tokenizer)
    print(f"{len(paths)} adapters merged; written to {options.out}")


def info(options: argparse.Namespace) -> None:
    """What a folder holds: family, shapes, adapter, hash of the base, a run and how far it is."""
    from .peft import CONFIG, describe_adapter
    from .pretrained import describe_model, locate
    from .tasks.language_model import SETTINGS, describe_run

    folder = locate(options.folder)
    found: dict[str, str] = {}
    if folder.is_file() or (folder / "config.json").is_file():
        found |= describe_model(options.folder)
    if (folder / CONFIG).is_file():
        found |= describe_adapter(folder)
    if (folder / SETTINGS).is_file():
        found |= describe_run(folder)
    if not found:
        raise FileNotFoundError(f"{folder} holds no model (config.json), adapter ({CONFIG}) or run ({SETTINGS})")
    for name, value in found.items():
        print(f"{name:<12} {value}")


def rank(options: argparse.Namespace) -> None:
    """What rank is enough: the singular values of an adapter, or of the difference of two checkpoints."""
    import json

    from .tasks.rank import show, study

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

    from .accounting import architecture, to_dict
    from .accounting import count as count_one
    from .accounting.memory import QUANTISED
    from .accounting.methods import TARGETED
    from .accounting.report import show, show_side_by_side
    from .checkpoint import write_whole
    from .plots import check_png, cost_figure

    if options.compare and options.method:
        raise ValueError("--compare names the methods: leave --method out")
    if options.plot and not options.compare:
        raise ValueError("--plot draws several methods: say --compare full,lora,qlora")
    if options.plot:
        check_png(options.plot)
    methods = options.compare or [options.method or "lora"]
    model = architecture(options.model, options.head, options.labels)
    words = {"r": options.rank, "virtual_tokens": options.virtual_tokens, "batch": options.batch}
    words |= {"tokens": options.tokens, "recompute": options.recompute}
    accounts = {}
    for name in methods:  # of several, those that choose their layers get the targets; one alone must take them
        targets = options.targets if name in TARGETED or not options.compare else None
        dtype = options.dtype  # of several, that of a base that is not in 4 bits
        if name == "qlora" and options.compare and dtype not in QUANTISED:
            dtype = None
        accounts[name] = count_one(model, name, targets=targets, dtype=dtype, **words)
    results = {name: to_dict(account) for name, account in accounts.items()}
    if options.plot:
        write_whole(Path(options.plot), cost_figure(results))
    if options.json:
        said = results if options.compare else results[methods[0]]
        print(json.dumps(said, indent=1, ensure_ascii=False, allow_nan=False))
    elif options.compare:
        show_side_by_side(accounts)
    else:
        show(accounts[methods[0]])


def audit(options: argparse.Namespace) -> None:
    """Papers' printed numbers against their own formulas: which follow, and why the others may not."""
    import json

    from .accounting.audit import rows, show

    found = list(rows())
    if options.json:
        print(json.dumps([row.to_dict() for row in found], indent=1, ensure_ascii=False, allow_nan=False))
    else:
        show(found)


def verify(options: argparse.Namespace) -> int:
    """Check every gradient and every law of the library. The exit code is 1 if one is wrong."""
    import json

    from .verify.mutation import mutation_run, show_mutants, unexplained
    from .verify.suite import show, wrong
    from .verify.suite import verify as run

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


def adapted(options: argparse.Namespace) -> Any:
    """The model of --base, with --adapter if one is given, on --device."""
    from .peft import load_adapter
    from .pretrained import load_pretrained

    model = load_pretrained(options.base)
    if options.adapter:
        note = load_adapter(model, options.adapter)
        if note:
            print(f"note: {note}", file=sys.stderr)
    model.to(backend(options))
    return model


def keep_freed_memory() -> None:
    """Have malloc keep what is freed, for training: ops allocate their results, and fresh pages cost time.

    A setting of the whole process, so a command makes it and the library never does. Only glibc has it.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    mallopt(M_MMAP_THRESHOLD, 2**30)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
