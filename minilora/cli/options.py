"""The words that each command takes, and what they may be."""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from .. import __doc__ as minilora_doc
from .. import __version__
from ..display.tables import printable
from ..spelling import choose_from
from .commands import (
    TASKS,
    audit,
    chat,
    compare,
    count,
    demo,
    finetune,
    generate,
    info,
    merge,
    predict,
    pretrain,
    rank,
    sweep,
    verify,
)

# accounting.METHODS, which is not imported here: --help need not wait for NumPy
COUNTED = """full, top2, bitfit, prefix-embed, prefix-layer, lora, qlora, lora-fa, dora, vera, lora-xs, ia3,
adapter-houlsby, adapter-pfeiffer or adapter-lin"""

ENCODING = "of --data: cp1252, utf-16, ... (default utf-8); a byte order mark says it by itself"
SKIP = "leave out the rows whose text or label is empty"


MODEL = "a folder, a .gguf file, builtin, minilm, smollm2, or a name on the Hugging Face Hub: ORG/NAME[@REVISION]"
ADAPTER = "an adapter folder, or ORG/NAME[@REVISION] on the Hugging Face Hub"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and what may have been meant."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Before a word that is not known is taken for the reason that another is missing."""
        known = self._option_string_actions
        for word in sys.argv[1:] if args is None else args:
            option = word.partition("=")[0]
            if word == "--" or (self._subparsers and not word.startswith("-")):  # a command reads the rest
                break
            if re.fullmatch(r"--\w[\w-]*", option) and not any(name.startswith(option) for name in known):
                self.error(f"no option is called {option}: {choose_from(option, known)}")
        return super().parse_known_args(args, namespace)

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse would hide that no one reads it

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if value == "" and action.dest not in ("prompt", "only"):  # a variable of the shell that is not set
            raise argparse.ArgumentError(action, "is empty")
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"{value!r} is not known: {choose_from(value, action.choices)}")


def parser() -> Parser:
    top = Parser(prog="minilora", description=minilora_doc)
    top.add_argument("--version", action="version", version=f"minilora {__version__}")
    commands = top.add_subparsers(required=True, metavar="command")
    shared: dict[str, dict[str, Any]] = {
        "--base": {
            "default": "builtin",
            "metavar": "MODEL",
            "help": f"{MODEL} (default builtin)",
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
        """adapter_config.json, adapter_model.safetensors, settings.json, history.json, checkpoint.safetensors;
  samples.json (before and after), or to classify scores.json and curves.png""",
        *("--base", "--out", "--resume", "--device", "--seed", "--shards"),
    )
    what = """text (default): --data is a text; instruct: lines of {"prompt": "...", "answer": "..."}; classify:
    rows of a table, or JSON lines, with a text and its label"""
    add("--task", choices=[*TASKS], default="text", help=what)
    add("--rank", type=int, default=8, metavar="N", help="(default 8)")
    tuning(add)
    classifying(add)
    columns(add)
    held_out = "to classify: rows for evaluation (default: a tenth of --data)"
    add("--held-out", default=argparse.SUPPRESS, metavar="FILE", help=held_out)

    add = command(predict, "minilora predict --adapter runs/reviews --data new.csv --text review", "", "--device")
    add("--adapter", required=True, metavar="ADAPTER", help=f"{ADAPTER}, that finetune --task classify made, or PEFT")
    add("--base", metavar="MODEL", help=f"{MODEL} (default: what the adapter says that it was made for)")
    add("--data", metavar="FILE", help="a .csv, .tsv or .jsonl (default: lines of standard input)")
    add("--text", default="text", metavar="NAME", help="the column of the text (default text)")
    add("--label", metavar="NAME", help="a column of labels, for evaluation")
    add("--encoding", default="utf-8", metavar="NAME", help=ENCODING)
    add("--skip-empty", action="store_true", help=SKIP)
    add("--json", action="store_true", help="print a line of JSON for each text, with all probabilities")

    add = command(
        compare,
        "minilora compare --base minilm --data reviews.csv --rank 8 --against '--rank 2'",
        "",
        *("--base", "--device", "--seed", "--shards"),
    )
    add("--data", required=True, metavar="FILE", help="a .csv, .tsv or .jsonl, rotten_tomatoes or imdb")
    add("--against", type=changes, required=True, metavar="OPTIONS", help="what is other in the second setting")
    add("--folds", type=positive, default=5, metavar="N", help="(default 5)")
    add("--rank", type=positive, default=8, metavar="N", help="(default 8)")
    reading(add)
    learning(add)
    classifying(add)
    columns(add)
    add("--json", action="store_true", help="print the result as JSON")

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
        *("--device", "--seed"),
    )
    drawing(add)
    add("--prompt", required=True, metavar="TEXT")

    add = command(chat, "minilora chat --base smollm2 --temperature 0.7", "", *("--device", "--seed"))
    drawing(add)

    example = "minilora merge --adapter runs/demo --out runs/merged"
    add = command(merge, example, "config.json, model.safetensors, the tokenizer's files", "--out", "--device")
    add("--adapter", required=True, metavar="ADAPTER", help=ADAPTER)
    based(add)

    add = command(info, "minilora info runs/demo", "")
    add("folder", metavar="DIR", help=f"a folder with a model, an adapter or a run; or {MODEL}")

    add = command(
        rank,
        "minilora rank builtin runs/merged --energy 0.9 --out runs/small --plot runs/small.png",
        "adapter_config.json, adapter_model.safetensors",
    )
    add("folder", metavar="DIR", help=f"{ADAPTER}; or, with TUNED_DIR, the checkpoint before: {MODEL}")
    add("tuned", metavar="TUNED_DIR", nargs="?", help="the checkpoint after: any family, matrices are matched by name")
    add("--base", metavar="MODEL", help=f"the base of an adapter, to look at W too: {MODEL}")
    add("--compare", metavar="ADAPTER", help="another adapter: how much of its directions is shared")
    add("--rank", type=positive, metavar="N", help="write the best adapter of this rank to --out")
    add("--energy", type=share, metavar="X", help="or of the least ranks that keep this share of ‖ΔW‖², such as 0.9")
    add("--out", metavar="DIR", help="a new folder for that adapter")
    add("--plot", metavar="FILE", help="NAME.png: figures NAME-energy.png, NAME-layers.png, ...")
    add("--json", action="store_true", help="print the result as JSON")

    add = command(count, "minilora count --model gpt3-175b --method lora --targets q_proj,v_proj --rank 4", "")
    what = "a name, a config.json or its folder, or ORG/NAME[@REVISION] on the Hugging Face Hub (default builtin)"
    add("--model", "--base", default="builtin", metavar="NAME", help=what)
    add("--method", metavar="NAME", help=f"{COUNTED} (default lora)")
    add("--compare", type=methods, metavar="A,B", help="several methods side by side: full,lora,qlora")
    add("--targets", type=names, metavar="A,B", help="layers to adapt, lm_head and embed too (default: the method's)")
    add("--rank", type=positive, default=8, metavar="N", help="or the width of a bottleneck (default 8)")
    add("--virtual-tokens", type=positive, default=8, metavar="N", help="of prefix methods (default 8)")
    add("--head", metavar="NAME", help="lm, classify, tokens or none (default: the config's, or the family's)")
    add("--labels", type=positive, metavar="N", help="outputs of classify and tokens (default: the config's, or 2)")
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


def learning(add: Callable[..., Any]) -> None:
    """How an adapter learns: options of finetune, sweep and compare. What is not given has the default
    of the function that does it."""
    add = partial(add, default=argparse.SUPPRESS)
    add("--targets", type=names, metavar="A,B", help="layers to adapt (default all-linear)")
    add("--alpha", type=float, metavar="X", help="the adapter is scaled by alpha/rank (default 16)")
    add("--rslora", action="store_true", help="scale by alpha/sqrt(rank) instead")
    add("--dropout", type=float, metavar="P", help="on the adapter's input (default 0)")
    add("--lr", type=above_zero, metavar="X", help="peak learning rate; to classify 2e-3 (default 8e-3)")
    add("--batch", type=positive, metavar="N", help="windows, or examples, in a batch; to classify 32 (default 16)")
    add("--length", type=positive, metavar="N", help="tokens in a window or example, at most (default 128)")
    add("--accumulate", type=positive, metavar="N", help="batches in a step (default 1)")
    add("--recompute", action="store_true", help="blocks run again for backward: less memory, the same bytes")


def reading(add: Callable[..., Any]) -> None:
    """How a file is read: options of finetune, sweep and compare."""
    add("--encoding", default=argparse.SUPPRESS, metavar="NAME", help=ENCODING)


def tuning(add: Callable[..., Any]) -> None:
    """Options of finetune and of the runs of a sweep."""
    what = "a file; or 'builtin', Python's own source; to classify, rotten_tomatoes or imdb"
    add("--data", required=True, metavar="FILE", help=what)
    reading(add)
    learning(add)
    add = partial(add, default=argparse.SUPPRESS)
    add("--steps", type=positive, metavar="N", help="(default 100)")
    add("--evaluate-every", type=positive, metavar="N", help="steps (default 50)")
    add("--patience", type=from_zero, metavar="N", help="stop after N evaluations in vain; 0: never")
    add("--checkpoint-every", type=positive, metavar="N", help="steps (default 50)")


def classifying(add: Callable[..., Any]) -> None:
    """How a classifier learns, beside."""
    add = partial(add, default=argparse.SUPPRESS)
    add("--epochs", type=positive, metavar="N", help="to classify: how often each row is seen (default 3)")
    add("--l1", type=from_zero_up, metavar="X", help="to classify: penalty on |A| and |B| (default 0)")
    add("--l2", type=from_zero_up, metavar="X", help="to classify: penalty on A²/2 and B²/2 (default 0)")


def columns(add: Callable[..., Any]) -> None:
    add = partial(add, default=argparse.SUPPRESS)
    add("--text", metavar="NAME", help="to classify: the column of the text (default text)")
    add("--label", metavar="NAME", help="to classify: that of the label (default label)")
    add("--skip-empty", action="store_true", help=f"to classify: {SKIP}")


def based(add: Callable[..., Any]) -> None:
    """The base of an adapter, where it need not be given."""
    add("--base", metavar="MODEL", help=f"{MODEL} (default: what the adapter says that it was made for, or builtin)")


def drawing(add: Callable[..., Any]) -> None:
    """How to continue a text: options of generate and chat."""
    based(add)
    add("--adapter", metavar="ADAPTER", help=ADAPTER)
    add("--tokens", type=positive, default=200, metavar="N", help="add up to N, bytes or pieces (default 200)")
    add("--temperature", type=float, default=0.0, metavar="X", help="0: the most probable (default)")
    add("--top-k", type=from_zero, default=0, metavar="N", help="draw from the N most probable; 0: from all")
    add("--top-p", type=share, default=1.0, metavar="P", help="draw from the fewest of probability P (default 1)")


class Changes(Parser):
    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentTypeError(message)


def changes(text: str) -> dict[str, Any]:
    """'--rank 2 --lr 1e-3' as {"rank": 2, "lr": 0.001}."""
    given = Changes(add_help=False)
    given.add_argument("--rank", type=positive, default=argparse.SUPPRESS)
    learning(given.add_argument)
    classifying(given.add_argument)
    return vars(given.parse_args(shlex.split(text)))


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


def from_zero_up(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number from 0 up")
    return number


def share(word: str) -> float:
    if above_zero(word) > 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a share above 0 and up to 1")
    return float(word)
