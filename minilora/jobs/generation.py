"""Continuing the prompts of a file: `minilora generate --data`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..models.generation import BATCH, Sampling, check_continues, check_prompts, continuations, for_each
from ..models.tokenizer import Tokenizer
from ..models.transformer import Transformer
from ..spelling import counted

POOL = 16  # batches whose prompts are sorted by length; as many are lost, at most, when a run is stopped


class Continuation(NamedTuple):
    """A line of the output."""

    prompt: str
    continuation: str
    tokens: int  # of the continuation
    end: str  # "stop": the model ended it; "length": it has all the tokens that were asked for


def encode(prompts: Iterable[str], tokenizer: Tokenizer, chat: bool = False) -> list[np.ndarray]:
    """The ids of each prompt; with `chat` as the user's message in the model's chat template (Tokenizer.chat)."""
    if not chat:
        return [tokenizer.encode(prompt) for prompt in prompts]
    texts = (tokenizer.chat([{"role": "user", "content": prompt}]) for prompt in prompts)
    return [tokenizer.encode(text, special=False) for text in texts]


def continued(
    model: Transformer,
    prompts: Sequence[str],
    ids: Sequence[np.ndarray],
    tokens: int,
    tokenizer: Tokenizer,
    sampling: Sampling,
    batch: int = BATCH,
    done: int = 0,
) -> Iterator[Continuation]:
    """The continuation of each of the `prompts`, of which encode() made `ids`, in their order: see generate(). The
    first `done` are left out; what is drawn for the others is the same. Shows a progress bar.

    Raises ValueError as generate does, before the first.
    """
    check_continues(model, tokenizer)
    check_prompts(model, ids)
    samplings = for_each(sampling, len(ids))

    def in_pools() -> Iterator[Continuation]:
        from tqdm import tqdm

        with tqdm(total=len(ids), initial=done, desc="generating", disable=None, leave=False) as bar:
            for start in range(done, len(ids), POOL * batch):
                pool, new = slice(start, start + POOL * batch), dict[int, list[int]]()
                for row, found in continuations(model, ids[pool], tokens, tokenizer, samplings[pool], batch=batch):
                    new[row] = found
                    bar.update()
                bar.clear()  # the lines may go to the same terminal
                for row, prompt in enumerate(prompts[pool]):
                    end = "length" if len(new[row]) == tokens else "stop"
                    yield Continuation(prompt, tokenizer.decode(new[row]), len(new[row]), end)

    return in_pools()


def as_line(continuation: Continuation) -> str:
    return json.dumps(continuation._asdict(), ensure_ascii=False) + "\n"


def partial_of(out: Path) -> Path:
    """Where the lines are until the last one is there."""
    return out.with_name(f"{out.name}.partial")


def lines_done(out: Path, prompts: Sequence[str], resume: bool) -> int:
    """The number of lines that an earlier run left behind for `out`; a line that it had not ended is cut off.

    Raises ValueError where `out` is there already, without `resume` where there are such lines, and where they are not
    of these prompts.
    """
    partial = partial_of(out)
    if os.path.lexists(out):
        raise ValueError(f"{out} is there already: choose another name, or move it away")
    if not partial.exists():
        return 0
    with open(partial, "rb+") as file:
        whole = [line for line in file if line.endswith(b"\n")]
        if whole and not resume:
            n = counted(len(whole), "line")
            raise ValueError(f"{partial} holds {n} of an earlier run: go on with --resume, or move it away")
        for number, line in enumerate(whole, 1):
            if number > len(prompts) or prompt_in(line) != prompts[number - 1]:
                raise ValueError(f"{partial} line {number} is not of prompt {number}: --resume is for the same command")
        file.truncate(sum(map(len, whole)))
    return len(whole)


def prompt_in(line: bytes) -> str | None:
    """The prompt of a line; None if it has none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value.get("prompt") if isinstance(value, dict) else None


def write_lines(out: Path, found: Iterable[Continuation], done: int, of: int) -> int:
    """Append each of `found` to the lines that are `done`, and give the file its name when it is whole. Returns the
    number of tokens. Of a run that is stopped the lines stay: the error says so, and how it goes on."""
    tokens, partial = 0, partial_of(out)
    try:
        with open(partial, "a", encoding="utf-8", newline="\n") as file:
            for one in found:
                file.write(as_line(one))
                file.flush()
                done, tokens = done + 1, tokens + one.tokens
            os.fsync(file.fileno())
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped; {done} of {counted(of, 'prompt')} are in {partial}; the same command with --resume goes on"
        ) from None
    os.replace(partial, out)
    return tokens
