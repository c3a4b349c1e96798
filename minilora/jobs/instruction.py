"""The task "instruct": prompts and answers in the model's chat template, with the loss on the answers alone.

The template is rendered each time that a run begins or is resumed. One that prints the date (strftime_now, as those of
Llama 3.1) gives other tokens on another day: two runs of one seed on two days end with different adapters, and a run
that is resumed on another day goes on with that day's prompts. The held-out examples and the order of the others stay
the same, unless a longer date leaves an answer no room within the length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data import Batch, in_batches, shuffled
from ..data.records import is_empty, json_rows, where_empty
from ..models.tokenizer import Tokenizer
from ..ops import IGNORE
from ..spelling import did_you_mean
from .data import count_shared, numbers_of_rows
from .language_model import Dataset, LanguageModelTask
from .runs import data_hash

HELD_OUT = 64  # examples, at most


class Example(NamedTuple):
    ids: np.ndarray  # (T,) int64: the chat, but for its last token
    targets: np.ndarray  # (T,) int64: the next token, if it belongs to the answer or ends it; else IGNORE


def read_answers(
    data: str, tokenizer: Tokenizer, batch: int, length: int, seed: int, encoding: str = "utf-8"
) -> Dataset:
    """Examples from lines of {"prompt": ..., "answer": ...}, each truncated to `length` tokens.

    `seed` chooses a tenth of them, 64 at most, to be held out. Raises ValueError for lines of another form, with
    their numbers, and for a tokenizer whose chat template does not show where an answer begins and ends.
    """
    try:
        tokenizer.chat(user_turn("?"))
    except ValueError as error:
        raise ValueError(f"{error}: take an instruct model such as smollm2, or --task text") from None
    rows = list(json_rows(Path(data), encoding))
    empty = {key: [line for line, row in rows if key in row and is_empty(row[key])] for key in ("prompt", "answer")}
    if any(empty.values()):
        raise ValueError(f"{data}: {where_empty(empty)}: fill them in, or take these lines out")
    pairs, examples, lengths = [], [], []
    for line, row in rows:
        try:
            pairs.append(read_pair(row))
            ids, targets = encode(tokenizer, *pairs[-1])
        except ValueError as error:
            raise ValueError(f"{data} line {line}: {error}") from None
        examples.append(Example(ids[:length], targets[:length]))
        lengths.append(len(ids))
    answered = [i for i, example in enumerate(examples) if (example.targets != IGNORE).any()]
    if len(answered) < 2:
        raise ValueError(
            f"{data} holds {len(pairs)} examples, and {len(answered)} have an answer within {length} tokens: 2 are "
            "needed, one to learn from and one to hold out; give more, or a larger --length"
        )
    order = np.random.default_rng(seed).permutation(answered).tolist()
    n = min(HELD_OUT, -(-len(order) // 10))
    split = {"to learn from": order[n:], "held out": order[:n]}
    train, held_out = (padded_batch([examples[i] for i in part]) for part in split.values())
    counts, cut = np.array(lengths), sum(n > length for n in lengths)
    labels = held_out.targets[held_out.targets != IGNORE]
    return Dataset(
        shuffled(train, batch, seed),
        lambda: in_batches(held_out, batch),
        tokens_per_byte=len(labels) / max(1, len(tokenizer.decode(labels).encode())),
        prompt=tokenizer.chat(user_turn(pairs[order[0]][0])),
        special=False,
        sha256=data_hash(*zip(*pairs, strict=True)),
        summary=f"{len(order) - n:,} examples to learn from, {n} held out; of all {len(pairs):,}, {cut:,} were cut to "
        f"{length} tokens, and {len(pairs) - len(order):,} of these, with no answer left, dropped",
        parts={
            name: numbers_of_rows(texts, counts[part], tokenizer, length)
            for (name, part), texts in zip(split.items(), (train, held_out), strict=True)
        },
        shared=count_shared(*([pairs[i] for i in part] for part in split.values())),
    )


def read_pair(row: Mapping[str, Any]) -> tuple[str, str]:
    """(prompt, answer). Raises ValueError for a row without such a pair."""
    for key in ("prompt", "answer"):
        if key not in row:
            meant = did_you_mean(key, row)
            raise ValueError(f'there is no {key!r}: {meant}write {{"prompt": "...", "answer": "..."}}')
        if not isinstance(row[key], str):
            raise ValueError(f"{key!r} is {row[key]!r:.80}, and not a text")
    return row["prompt"], row["answer"]


def user_turn(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def encode(tokenizer: Tokenizer, prompt: str, answer: str) -> Example:
    """A prompt and its answer, up to the token that ends the turn.

    The tokens before the answer must be those of the prompt alone, which is what the model will see in a chat. Raises
    ValueError if the answer changes them, and if no token ends the answer.
    """
    if np.isin(tokenizer.encode(answer, special=False), list(tokenizer.stop)).any():
        raise ValueError("the answer holds a token that ends an answer: take it out")
    start = tokenizer.encode(tokenizer.chat(user_turn(prompt)), special=False)
    chat = [*user_turn(prompt), {"role": "assistant", "content": answer}]
    ids = tokenizer.encode(tokenizer.chat(chat, reply=False), special=False)
    if not np.array_equal(ids[: len(start)], start):
        raise ValueError("in the chat template the prompt's tokens are others when an answer follows")
    ends = np.flatnonzero(np.isin(ids[len(start) :], list(tokenizer.stop)))
    if not len(ends):
        raise ValueError("the chat template ends an answer with no token of its own: the model would not learn to stop")
    ids = ids[: len(start) + ends[0] + 1]
    targets = ids[1:].copy()
    targets[: len(start) - 1] = IGNORE
    return Example(ids[:-1], targets)


def padded_batch(examples: Sequence[Example]) -> Batch:
    """Examples as the rows of a Batch, padded on the right with targets IGNORE."""
    shape = len(examples), max(len(example.ids) for example in examples)
    ids, targets, padding = np.zeros(shape, np.int64), np.full(shape, IGNORE), np.zeros(shape, bool)
    for row, example in enumerate(examples):
        T = len(example.ids)
        ids[row, :T], targets[row, :T], padding[row, :T] = *example, True
    return Batch(ids, targets, padding)


class Task(LanguageModelTask):
    read = staticmethod(read_answers)
    next_command = "chat"
