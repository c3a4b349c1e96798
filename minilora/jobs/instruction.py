"""The task "instruct": conversations in the model's chat template, with the loss on what the assistant says.

A turn of the assistant is learned up to and including the token that ends it. Where the template marks these turns
itself, with {% generation %}, its marks hold, as in `transformers`. Otherwise a turn begins where the tokens of the
conversation before it end, with those that ask for an answer, and ends with the first of Tokenizer.stop.

The template is rendered each time that a run begins or is resumed. One that prints the date (strftime_now, as those of
Llama 3.1) gives other tokens on another day: two runs of one seed on two days end with different adapters, and a run
that is resumed on another day goes on with that day's prompts. The held-out examples and the order of the others stay
the same, unless a longer date leaves an answer no room within the length.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..data import Batch, in_batches, shuffled
from ..data.conversations import Message, read_conversations
from ..models.tokenizer import Tokenizer
from ..ops import IGNORE
from .data import Numbers, count_shared, numbers_of_rows
from .language_model import Dataset, LanguageModelTask
from .runs import data_hash

HELD_OUT = 64  # examples, at most
QUESTION: list[Message] = [{"role": "user", "content": "?"}]


class Example(NamedTuple):
    ids: np.ndarray  # (T,) int64: the conversation up to the end of its last answer, but for the last token
    targets: np.ndarray  # (T,) int64: the next token, if it belongs to an answer or ends it; else IGNORE


def read_answers(
    data: str, tokenizer: Tokenizer, batch: int, length: int, seed: int, encoding: str = "utf-8"
) -> Dataset:
    """Examples from a file of conversations (data/conversations.py), each truncated to `length` tokens.

    `seed` chooses a tenth of them, 64 at most, to be held out. Raises ValueError for rows of another form, with
    their lines, and for a tokenizer whose chat template does not show where an answer begins and ends.
    """
    try:
        tokenizer.chat(QUESTION)
    except ValueError as error:
        raise ValueError(f"{error}: take an instruct model such as smollm2, or --task text") from None
    talks, examples = [], []
    for line, messages in read_conversations(data, encoding):
        try:
            examples.append(encode(tokenizer, messages))
        except ValueError as error:
            raise ValueError(f"{data} line {line}: {error}") from None
        talks.append(messages)
    if any(len(answers_in(messages)) > 1 for messages in talks):
        check_turns(tokenizer)
    whole = examples
    examples = [Example(ids[:length], targets[:length]) for ids, targets in whole]
    answered = [i for i, example in enumerate(examples) if (example.targets != IGNORE).any()]
    if len(answered) < 2:
        raise ValueError(
            f"{data} holds {len(talks)} examples, and {len(answered)} have an answer within {length} tokens: 2 are "
            "needed, one to learn from and one to hold out; give more, or a larger --length"
        )
    order = np.random.default_rng(seed).permutation(answered).tolist()
    n = min(HELD_OUT, -(-len(order) // 10))
    split = {"to learn from": order[n:], "held out": order[:n]}
    train, held_out = (padded_batch([examples[i] for i in part]) for part in split.values())
    texts, cut = [json.dumps(messages) for messages in talks], sum(len(ids) > length for ids, _ in whole)
    labels, first = held_out.targets[held_out.targets != IGNORE], talks[order[0]]
    return Dataset(
        shuffled(train, batch, seed),
        lambda: in_batches(held_out, batch),
        tokens_per_byte=len(labels) / max(1, len(tokenizer.decode(labels).encode())),
        prompt=tokenizer.chat(first[: answers_in(first)[0]]),
        special=False,
        sha256=data_hash(texts),
        summary=f"{len(order) - n:,} examples to learn from, {n} held out; of all {len(talks):,}, {cut:,} were cut to "
        f"{length} tokens, and {len(talks) - len(order):,} of these, with no answer left, dropped",
        parts={
            name: numbers_of_rows(rows, np.array([len(whole[i].ids) for i in part]), tokenizer, length)
            | numbers_of_answers([whole[i].targets for i in part], length)
            for (name, part), rows in zip(split.items(), (train, held_out), strict=True)
        },
        shared=count_shared(*([texts[i] for i in part] for part in split.values())),
        dropped=len(talks) - len(order),
    )


def numbers_of_answers(targets: Sequence[np.ndarray], length: int) -> Numbers:
    """learned (tokens that are learned, those within `length`) and lost (the share of the answers' tokens after it)."""
    total, learned = (sum(int((row[:end] != IGNORE).sum()) for row in targets) for end in (None, length))
    return {"learned": learned, "lost": 1 - learned / total}


def answers_in(messages: Sequence[Message]) -> list[int]:
    """The indices of the assistant's turns."""
    return [i for i, message in enumerate(messages) if message["role"] == "assistant"]


def encode(tokenizer: Tokenizer, messages: Sequence[Message]) -> Example:
    """A conversation, up to the token that ends its last answer.

    Raises ValueError for a template that leaves out the system prompt, or with no token that ends an answer, and where
    `answer_tokens` does.
    """
    answers = answers_in(messages)
    messages = messages[: answers[-1] + 1]
    stop = list(tokenizer.stop)
    if any(np.isin(tokenizer.encode(messages[i]["content"], special=False), stop).any() for i in answers):
        raise ValueError("the answer holds a token that ends an answer: take it out")
    text = tokenizer.chat(messages, reply=False)
    system = messages[0]["content"].strip() if messages[0]["role"] == "system" else ""
    if system not in text and tokenizer.chat(messages[1:], reply=False) == text:
        raise ValueError("the chat template leaves the system prompt out: put it before the first question")
    ids, learned = tokenizer.encode(text, special=False), tokenizer.generated(messages)
    if learned is None:
        learned = answer_tokens(tokenizer, messages, ids)
    if np.isin(ids[learned], stop).sum() < len(answers):
        raise ValueError("the chat template ends an answer with no token of its own: the model would not learn to stop")
    end = np.flatnonzero(learned)[-1] + 1
    return Example(ids[: end - 1], np.where(learned, ids, IGNORE)[1:end])


def answer_tokens(tokenizer: Tokenizer, messages: Sequence[Message], ids: np.ndarray) -> np.ndarray:
    """(N,) bool: which tokens of a conversation, `ids` (N,), are the assistant's, up to the one that ends each turn.

    The tokens before an answer must be those of the conversation before it, which is what the model will see in a chat.
    Raises ValueError where a template gives others once the answer follows.
    """
    found, ends = np.zeros(len(ids), bool), np.flatnonzero(np.isin(ids, list(tokenizer.stop)))
    for i in answers_in(messages):
        before = tokenizer.encode(tokenizer.chat(messages[:i]), special=False)
        if not np.array_equal(ids[: len(before)], before):
            raise ValueError(
                f"the chat template renders the prompt differently when an answer follows, turn {i + 1}: mark the "
                "assistant's turns in it with {% generation %}"
            )
        found[len(before) : 1 + min(ends[ends >= len(before)], default=-1)] = True
    return found


def check_turns(tokenizer: Tokenizer) -> None:
    """Raise ValueError for a chat template that ends only the last answer with a token: of the others, the loss would
    go on into the user's next turn."""
    talk = [*QUESTION, {"role": "assistant", "content": "yes"}]
    _, targets = encode(tokenizer, talk * 2)
    if QUESTION[0]["content"] in tokenizer.decode(targets[targets != IGNORE]):
        raise ValueError("the chat template does not end an answer that is not the last: give one answer in each row")


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
