"""Instruction data in the usual forms, read as conversations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..spelling import choose_from, did_you_mean
from .records import is_empty, json_rows, shortened, where_empty

Message = dict[str, str]  # {"role": "system", "user" or "assistant", "content": a text}
Row = Mapping[str, Any]
Turn = tuple[str, str, Any]  # (the key of a text in its row, the role of its speaker, the text)

ROLES = {role: role for role in ("system", "user", "assistant")} | {"human": "user", "gpt": "assistant"}
WITHOUT = "tools", "functions", "history", "system_prompt"  # keys of a row that would change what is learned, ...
WITHOUT_IN_TURN = "tool_calls", "function_call", "reasoning_content", "thinking", "weight"  # ... and of a turn


def answered(question: str, answer: str, more: str | None = None) -> Callable[[Row], Iterator[Turn]]:
    """One question and its answer, by their keys; the text of the key `more`, if any, is put below the question."""

    def read(row: Row) -> Iterator[Turn]:
        asked = row[question]
        if more and isinstance(asked, str) and not is_empty(row.get(more)):
            asked = f"{asked}\n\n{check_text(more, row[more])}"
        yield question, "user", asked
        yield answer, "assistant", row[answer]

    return read


def listed(key: str) -> Callable[[Row], Iterator[Turn]]:
    """The list at `key` of {"role": ..., "content": ...} or {"from": ..., "value": ...}."""

    def read(row: Row) -> Iterator[Turn]:
        if not isinstance(row[key], list):
            raise ValueError(f"{key!r} is {row[key]!r:.80}, and not a list of turns")
        for number, turn in enumerate(row[key], 1):
            if not isinstance(turn, dict):
                raise ValueError(f"turn {number} is {turn!r:.80}, and not an object, {{...}}")
            role, content = ("from", "value") if {"from", "value"} & set(turn) else ("role", "content")
            for needed in (role, content):
                if needed not in turn:
                    meant = did_you_mean(needed, turn)
                    raise ValueError(f"turn {number} has no {needed!r}: {meant}write {EXAMPLES[key]}")
            if turn[role] not in [*ROLES]:  # of any type
                known = choose_from(turn[role], ROLES)
                raise ValueError(f"turn {number} has the role {turn[role]!r:.40}: {known}; turns of tools are not read")
            check_without(turn, WITHOUT_IN_TURN)
            yield content, ROLES[turn[role]], turn[content]

    return read


class Form(NamedTuple):
    """A way to write a conversation as an object of JSON."""

    needs: tuple[str, ...]  # the keys that tell it from the others
    example: str
    turns: Callable[[Row], Iterator[Turn]]


EXAMPLES = {
    "messages": '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "conversations": '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
}
FORMS = (
    Form(("prompt", "answer"), '{"prompt": "...", "answer": "..."}', answered("prompt", "answer")),
    Form(("prompt", "completion"), '{"prompt": "...", "completion": "..."}', answered("prompt", "completion")),
    Form(
        ("instruction", "output"),  # Alpaca's
        '{"instruction": "...", "input": "...", "output": "..."}',
        answered("instruction", "output", "input"),
    ),
    *(Form((key,), example, listed(key)) for key, example in EXAMPLES.items()),  # ... and ShareGPT's
)


def read_conversations(path: str | Path, encoding: str = "utf-8") -> list[tuple[int, list[Message]]]:
    """(line, conversation) for each row of a file of JSON lines, or of a .json file with an array.

    All rows have the same of FORMS, found by their keys. A row's text at "system" is a system prompt before the others.
    Raises OSError for a file that cannot be read; ValueError, with the line, for a row that is malformed, of no form,
    of two, or of another form than the first, for turns of tools, and for empty texts, except a system prompt.
    """
    path = Path(path)
    conversations: list[tuple[int, list[Message]]] = []
    empty: dict[str, list[int]] = {}
    first: tuple[int, Form] | None = None
    for line, row in json_rows(path, encoding):
        try:
            form = form_of(row)
            first = first or (line, form)
            if form is not first[1]:
                raise ValueError(f"it is written as {form.example}, and line {first[0]} as {first[1].example}: use one")
            turns = turns_in(row, form)
        except ValueError as error:
            raise ValueError(f"{path} line {line}: {error}") from None
        for key in {key for key, role, text in turns if role != "system" and is_empty(text)}:
            empty.setdefault(key, []).append(line)
        conversations.append((line, [{"role": role, "content": text} for _, role, text in turns]))
    if empty:
        raise ValueError(f"{path}: {where_empty(empty)}: fill them in, or take these lines out")
    return conversations


def turns_in(row: Row, form: Form) -> list[Turn]:
    """The texts of a row, its system prompt first. Raises ValueError for what cannot be learned from."""
    check_without(row, WITHOUT)
    system = [] if is_empty(row.get("system")) else [("system", "system", row["system"])]
    turns = [*system, *form.turns(row)]
    roles = [role for _, role, _ in turns]
    if "system" in roles[1:]:
        raise ValueError("there may be one system prompt, and only as the first turn: move it there, or leave it out")
    if "assistant" not in roles:
        raise ValueError("there is no turn of the assistant to learn from")
    for key, role, text in turns:
        if text is not None or role == "system":  # others that are None count as empty
            check_text(key, text)
    return turns


def forms_of(keys: Collection[str]) -> list[Form]:
    """The forms whose keys are among these."""
    return [form for form in FORMS if set(form.needs) <= set(keys)]


def form_of(row: Row) -> Form:
    """The form of a row. Raises ValueError for a row of none, with the nearest, and for one of two."""
    found = forms_of(row)
    if len(found) > 1:
        both = " and ".join(", ".join(map(repr, form.needs)) for form in found)
        raise ValueError(f"it has the keys of {len(found)} forms, {both}: leave one of them")
    if found:
        return found[0]
    nearest = max(FORMS, key=lambda form: similarity(form, row))
    if not similarity(nearest, row):
        keys = shortened(", ".join(map(repr, row))) or "no keys"
        raise ValueError(f"it has {keys}, which is not a form of conversation: write {' or '.join(EXAMPLES.values())}")
    missing = next(key for key in nearest.needs if key not in row)
    raise ValueError(f"there is no {missing!r}: {did_you_mean(missing, row)}write {nearest.example}")


def similarity(form: Form, keys: Collection[str]) -> float:
    """The share of a form's keys that are among these, misspelt ones included."""
    return sum(key in keys or bool(did_you_mean(key, keys)) for key in form.needs) / len(form.needs)


def check_text(key: str, value: Any) -> str:
    """`value`. Raises ValueError for anything but a text."""
    if not isinstance(value, str):
        raise ValueError(f"{key!r} is {value!r:.80}, and not a text")
    return value


def check_without(found: Row, keys: Collection[str]) -> None:
    """Raise ValueError if one of these keys has a value that would be left out."""
    for key in keys:
        if found.get(key) not in (None, "", [], {}, 1):
            raise ValueError(f"{key!r} is not read, and without it the answer could differ: take it out of the data")
