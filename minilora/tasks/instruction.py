"""Instruction tuning: prompts and their answers in the model's chat template, with the loss on the answers alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from .. import text
from ..ops import IGNORE
from ..text import Batch
from ..tokenizer import Tokenizer
from . import language_model
from .language_model import Lesson

NEXT = "chat"  # what to do with an adapter
HELD_OUT = 64  # examples, at most


class Example(NamedTuple):
    ids: np.ndarray  # (T,) int64: the chat, but for its last token
    targets: np.ndarray  # (T,) int64: the token after each, where it is of the answer or ends it; else IGNORE


def read_answers(data: str, tokenizer: Tokenizer, batch: int, length: int, seed: int) -> Lesson:
    """Lines of {"prompt": ..., "answer": ...}, cut to at most `length` tokens each.

    `seed` chooses the tenth of them, 64 at most, that is held out. Raises ValueError, with the number of the line, for
    what is no such line, and for a tokenizer whose chat template does not say where an answer begins and ends.
    """
    try:
        tokenizer.chat([{"role": "user", "content": "?"}])
    except ValueError as error:
        raise ValueError(f"{error}: take an instruct model such as smollm2, or --task text") from None
    content = text.read_whole(data)
    pairs, examples, cut = [], [], 0
    for number, line in enumerate(content.decode().split("\n"), 1):  # splitlines() knows more ends than JSON does
        if line.strip():
            try:
                pairs.append(read_pair(line))
                ids, targets = encode(tokenizer, *pairs[-1])
            except ValueError as error:
                raise ValueError(f"{data}, line {number}: {error}") from None
            examples.append(Example(ids[:length], targets[:length]))
            cut += len(ids) > length
    answered = [i for i, example in enumerate(examples) if (example.targets != IGNORE).any()]
    if len(answered) < 2:
        raise ValueError(
            f"{data} holds {len(pairs)} examples, and {len(answered)} have an answer within {length} tokens: 2 are "
            "needed, one to learn from and one to hold out; give more, or a larger --length"
        )
    order = np.random.default_rng(seed).permutation(answered).tolist()
    n = min(HELD_OUT, -(-len(order) // 10))
    held_out = sorted((examples[i] for i in order[:n]), key=lambda example: len(example.ids))
    labels = np.concatenate([example.targets for example in held_out])
    labels = labels[labels != IGNORE]
    return Lesson(
        batches_of([examples[i] for i in order[n:]], batch, seed),
        lambda: (side_by_side(held_out[i : i + batch]) for i in range(0, n, batch)),
        tokens_per_byte=len(labels) / max(1, len(tokenizer.decode(labels).encode())),
        prompt=tokenizer.chat(asked(pairs[order[0]][0])),
        special=False,
        sha256=hashlib.sha256(content).hexdigest(),
        said=f"{len(order) - n:,} examples to learn from, {n} held out; of all {len(pairs):,}, {cut:,} were cut to "
        f"{length} tokens, and {len(pairs) - len(order):,} of these, with no answer left, dropped",
    )


def read_pair(line: str) -> tuple[str, str]:
    """Prompt and answer. Raises ValueError for a line that holds no such pair."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is not JSON: {error}") from None
    for key in ("prompt", "answer"):
        if not isinstance(row, dict) or key not in row:
            raise ValueError(f'there is no {key!r}: write {{"prompt": "...", "answer": "..."}}')
        if not isinstance(row[key], str) or not row[key].strip():
            raise ValueError(f"{key!r} is {row[key]!r}, and not a text")
    return row["prompt"], row["answer"]


def asked(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def encode(tokenizer: Tokenizer, prompt: str, answer: str) -> Example:
    """A prompt and its answer, up to the token that ends the turn.

    The tokens of the chat up to the answer are those that the model will see when it is asked: a text may fall into
    other tokens when another follows it, and the labels would then not be what the model is to say. Raises ValueError
    where that is so, and where nothing ends the answer.
    """
    start = tokenizer.encode(tokenizer.chat(asked(prompt)), special=False)
    chat = [*asked(prompt), {"role": "assistant", "content": answer}]
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


def batches_of(examples: Sequence[Example], batch: int, seed: int) -> Callable[[int], Batch]:
    """step -> a Batch of `batch` examples of about the same length; each example once in a round through all, but for
    a rest smaller than a batch, another each time.

    A batch depends on seed and step alone. Raises ValueError for fewer examples than a batch.
    """
    if len(examples) < batch:
        raise ValueError(f"{len(examples)} examples to learn from are less than a batch of {batch}: a smaller --batch")
    lengths, in_a_round = np.array([len(example.ids) for example in examples]), len(examples) // batch

    def at(step: int) -> Batch:
        rng = np.random.default_rng([seed, step // in_a_round])
        drawn = rng.permutation(len(examples))[: in_a_round * batch]
        by_length = drawn[np.argsort(lengths[drawn] * rng.uniform(0.9, 1.1, len(drawn)))]  # other neighbours each time
        i = rng.permutation(in_a_round)[step % in_a_round]
        return side_by_side([examples[j] for j in by_length[i * batch : (i + 1) * batch]])

    return at


def side_by_side(examples: Sequence[Example]) -> Batch:
    """Examples as rows, padded on the right: no real token looks there, and no label stands there."""
    shape = len(examples), max(len(example.ids) for example in examples)
    ids, targets, padding = np.zeros(shape, np.int64), np.full(shape, IGNORE), np.zeros(shape, bool)
    for row, example in enumerate(examples):
        T = len(example.ids)
        ids[row, :T], targets[row, :T], padding[row, :T] = *example, True
    return Batch(ids, targets, padding)


finetune = partial(language_model.finetune, read=read_answers)  # all else is as for a text
show = language_model.show
