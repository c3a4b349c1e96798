"""Talk with an instruct model, a line at a time, until the input ends.

At a terminal, Ctrl-C ends an answer, and at the prompt the chat.
"""

import os
import sys
from collections.abc import Iterator

from ...display.tables import visible
from ..models import load_model, located, sampling, shown
from ..options import Add, Options, add_generation

EXAMPLE = "minilora chat --base smollm2 --temperature 0.7"
SHARED = "--device", "--seed"


def arguments(add: Add) -> None:
    add_generation(add)
    add("--system", metavar="TEXT", help="a system prompt before the conversation (default: the chat template's own)")


def run(options: Options) -> None:
    from ...jobs.bases import tokenizer_for
    from ...models.generation import answer

    base, adapter = located(options)
    tokenizer = tokenizer_for(base, adapter)
    messages = [] if options.system is None else [{"role": "system", "content": options.system}]
    tokenizer.chat([*messages, {"role": "user", "content": "?"}])  # raises, before the model is read, where it cannot
    model, choices, terminal = load_model(base, adapter, options), sampling(options), sys.stdin.isatty()
    if terminal:
        leave = "Ctrl-Z and Enter end" if os.name == "nt" else "Ctrl-D ends"
        print(f"minilora: {leave} the chat, Ctrl-C an answer", file=sys.stderr)
    for line in lines(terminal):
        asked, reply = [*messages, {"role": "user", "content": line}], ""
        try:
            for piece in answer(model, asked, options.tokens, tokenizer=tokenizer, **choices):
                reply += piece
                print(shown(piece), end="", flush=True)
        except KeyboardInterrupt:
            if not terminal:
                raise
        except ValueError as error:  # this message is too long: another may not be
            if not terminal:
                raise
            print(f"minilora: {visible(str(error))}", file=sys.stderr)
            continue
        print()
        messages = [*asked, {"role": "assistant", "content": reply}]


def lines(terminal: bool) -> Iterator[str]:
    """The lines of standard input that are not empty; a terminal shows a prompt for each."""
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
