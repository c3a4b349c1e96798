"""The parser, and the options that several commands share."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from ..display.tables import printable
from ..jobs.arguments import natural_int, positive_int, quantized, share
from ..jobs.settings import OPTIONS
from ..quantization import format_names
from ..spelling import choose_from

Add = Callable[..., Any]  # argparse's add_argument, of the parser of a command
Options = argparse.Namespace

MODEL = "a folder, a .gguf file, builtin, minilm, smollm2, or a name on the Hugging Face Hub: ORG/NAME[@REVISION]"
ADAPTER = "an adapter folder, or ORG/NAME[@REVISION] on the Hugging Face Hub"
CLUSTER = "address of a Dask scheduler, such as tcp://HOST:8786: its workers do the runs, and --jobs is ignored"
JSON = "print the result as JSON"
SHARED: dict[str, dict[str, Any]] = {
    "--base": {"default": "builtin", "metavar": "MODEL", "help": f"{MODEL} (default builtin)"},
    "--out": {"required": True, "metavar": "DIR", "help": "a new folder"},
    "--resume": {"action": "store_true", "help": "continue from the checkpoint in --out"},
    "--device": {"choices": ["cpu", "cuda"], "default": "cpu", "help": "where to compute (cuda needs CuPy)"},
    **{
        f"--{name}": OPTIONS[name].metadata["argument"] | {"default": OPTIONS[name].default}
        for name in ("seed", "shards")
    },
    "--threads": {"type": positive_int, "default": 1, "metavar": "N", "help": "BLAS threads (default 1)"},
}

# Fields of jobs.settings that commands take: of every task, of a language model too, of a classifier alone.
ADAPTING = "method", "init", "option", "targets", "alpha", "rslora", "dropout"
LEARNING = (
    *(*ADAPTING, "quantize", "lr", "schedule", "warmup", "weight_decay", "clip"),
    *("batch", "length", "accumulate", "recompute"),
)
DISTILLING = "teacher", "temperature", "reverse_kl"
TUNING = "encoding", *LEARNING, *DISTILLING, "steps", "evaluate_every", "patience", "checkpoint_every"
CLASSIFYING = "epochs", "l1", "l2"
COLUMNS = "text", "label", "skip_empty"


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, with a similar name for a mistyped one."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse an unknown option before argparse reports that a required one is missing."""
        known = self._option_string_actions
        for word in sys.argv[1:] if args is None else args:
            option = word.partition("=")[0]
            if word == "--" or (self._subparsers and not word.startswith("-")):  # a command reads the rest
                break
            if re.fullmatch(r"--\w[\w-]*", option) and not any(name.startswith(option) for name in known):
                self.error(f"no option is called {option}: {choose_from(option, known)}")
        return super().parse_known_args(args, namespace)

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse would hide a broken pipe

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if value == "" and action.dest not in ("prompt", "only"):  # such as a shell variable that is not set
            raise argparse.ArgumentError(action, "is empty")
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"{value!r} is not known: {choose_from(value, action.choices)}")


class AgainstParser(Parser):
    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentTypeError(message)


def against(text: str) -> dict[str, Any]:
    """'--rank 2 --lr 1e-3' as {"rank": 2, "lr": 0.001}."""
    parser = AgainstParser(add_help=False)
    add_settings(parser.add_argument, "rank", *LEARNING, *CLASSIFYING)
    return vars(parser.parse_args(shlex.split(text)))


def add_settings(add: Add, *names: str) -> None:
    """Add fields of jobs.settings. One that is not given is absent from the result: the default is in the task's
    settings."""
    for name in names:
        add(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, **OPTIONS[name].metadata["argument"])


def add_base_of_adapter(add: Add, otherwise: str = ", or builtin") -> None:
    add("--base", metavar="MODEL", help=f"{MODEL} (default: the base that the adapter names{otherwise})")
    held = f"hold the base in fewer bits: {', '.join(format_names())}, or none (default: the format used in training)"
    add("--quantize", type=quantized, default=argparse.SUPPRESS, metavar="FORMAT", help=held)


def add_generation(add: Add) -> None:
    """Options of generate and chat."""
    add_base_of_adapter(add)
    add("--adapter", metavar="ADAPTER", help=ADAPTER)
    add("--tokens", type=positive_int, default=200, metavar="N", help="generate at most N tokens (default 200)")
    add("--temperature", type=float, default=0.0, metavar="X", help="0: always the most probable token (default)")
    add("--top-k", type=natural_int, default=0, metavar="N", help="sample from the N most probable tokens; 0: from all")
    add("--top-p", type=share, default=1.0, metavar="P", help="sample from the likeliest of probability P (default 1)")


def job_options(options: Options, *without: str) -> dict[str, Any]:
    """The options as keyword arguments of a job, without those of the command line itself and those in `without`."""
    return {key: value for key, value in vars(options).items() if key not in ("run", "threads", "device", *without)}
