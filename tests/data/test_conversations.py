"""Instruction data: the same conversation in every form, arrays and lines, and what is refused with its line."""

import contextlib
import io
import json
import re
from pathlib import Path

import examples
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora.data.conversations import EXAMPLES, FORMS, read_conversations
from minilora.data.records import read_records

few = settings(max_examples=examples.count(40), deadline=None, derandomize=True)
written = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from(" \n'\"[]{},é"))
texts = written.filter(str.strip)
exchanges = st.lists(st.tuples(texts, texts), min_size=1, max_size=3)


def talk(*said, system=None):
    """A conversation of texts by turns, the user first."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def in_forms(system, question, answer):
    """One question and its answer, in every form."""
    messages, theirs = talk(question, answer, system=system), {"system": "system", "user": "human", "assistant": "gpt"}
    column = {} if system is None else {"system": system}
    return {
        "pair": {"prompt": question, "answer": answer, **column},
        "completion": {"prompt": question, "completion": answer, **column},
        "alpaca": {"instruction": question, "input": "", "output": answer, **column},
        "alpaca without input": {"instruction": question, "output": answer, "text": "as it was rendered", **column},
        "messages": {"messages": messages, "source": "a forum", "prompt": question},
        "sharegpt": {"conversations": [{"from": theirs[m["role"]], "value": m["content"]} for m in messages]},
        "sharegpt with a column": {
            "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        }
        | column,
        "conversations of messages": {"conversations": messages},
    }


def file_of(folder, rows, name="talks.jsonl"):
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("form", in_forms(None, "a", "b"))
@few
@given(system=st.none() | texts, question=texts, answer=texts)
def test_a_conversation_is_the_same_in_every_form(form, system, question, answer, tmp_path_factory):
    row, folder = in_forms(system, question, answer)[form], tmp_path_factory.getbasetemp()
    for name in ("talks.jsonl", "talks.json"):
        assert read_conversations(file_of(folder, [row] * 2, name)) == [
            (line, talk(question, answer, system=system)) for line in ((1, 2) if name == "talks.jsonl" else (1, 1))
        ]


@few
@given(
    system=st.none() | written, said=st.lists(exchanges, min_size=1, max_size=4), indent=st.sampled_from([None, 0, 2])
)
def test_every_turn_is_kept_and_a_row_of_an_array_has_the_line_on_which_it_begins(
    system, said, indent, tmp_path_factory
):
    talks = [talk(*(text for pair in pairs for text in pair), system=system) for pairs in said]
    path = tmp_path_factory.getbasetemp() / "talks.json"
    text = "\n " + json.dumps([{"messages": messages} for messages in talks], indent=indent, ensure_ascii=False)
    path.write_bytes(text.encode())
    found = read_conversations(path)
    assert [messages for _, messages in found] == talks
    assert len({line for line, _ in found}) == (1 if indent is None else len(talks))
    for line, messages in found:  # from that line on, there is this row
        rest = "\n".join(text.split("\n")[line - 1 :])
        begins = rest.index("{")
        assert indent is None or json.JSONDecoder().raw_decode(rest, begins)[0] == {"messages": messages}


def test_alpacas_input_stands_below_its_instruction(tmp_path):
    path = file_of(tmp_path, [{"instruction": "Translate.", "input": "chat", "output": "cat"}])
    assert read_conversations(path) == [(1, talk("Translate.\n\nchat", "cat"))]


def test_a_json_file_may_hold_lines_or_be_empty_and_labelled_rows_are_read_from_arrays_too(tmp_path):
    lines = file_of(tmp_path, [{"text": "a", "label": 1}] * 2)
    (tmp_path / "lines.json").write_bytes(lines.read_bytes())
    array = file_of(tmp_path, [{"text": "a", "label": 1}] * 2, "array.json")
    assert read_records(tmp_path / "lines.json") == read_records(array) == (["a", "a"], ["1", "1"])
    for content in ("", "[]", " [ ] "):
        array.write_text(content)
        assert read_conversations(array) == []


def said(*turns, **more):
    return {"messages": [{"role": role, "content": text} for role, text in turns], **more}


PAIR, TALK = {"prompt": "a", "answer": "b"}, said(("user", "a"), ("assistant", "b"))
BAD = {
    "two forms": (
        [{**PAIR, **TALK}],
        "line 1: it has the keys of 2 forms, 'prompt', 'answer' and 'messages': leave one",
    ),
    "other forms in one file": ([PAIR, TALK], 'line 2: it is written as {"messages": .*, and line 1 as {"prompt": '),
    "a misspelt key": ([{"mesages": []}], "line 1: there is no 'messages': did you mean 'mesages'\\? write"),
    "a misspelt column": (
        [{"instruction": "a", "outptu": "b"}],
        "no 'output': did you mean 'outptu'\\? write .*\"input\"",
    ),
    "no form": (
        [{"foo": "a", "bar": "b"}],
        "it has 'foo', 'bar', which is not a form of conversation: write .*messages",
    ),
    "no keys": ([PAIR, {}], "line 2: it has no keys, which is not a form"),
    "no list": ([{"messages": "a"}], "line 1: 'messages' is 'a', and not a list of turns"),
    "no turns": ([TALK, {"messages": []}], "line 2: there is no turn of the assistant to learn from"),
    "no answer": ([said(("user", "a"))], "line 1: there is no turn of the assistant"),
    "a turn of text": ([{"messages": ["a"]}], "line 1: turn 1 is 'a', and not an object"),
    "a turn without its role": (
        [{"messages": [{"rol": "user", "content": "a"}]}],
        "turn 1 has no 'role': did you mean 'rol'",
    ),
    "a turn without its text": (
        [{"conversations": [{"from": "gpt", "text": "a"}]}],
        "turn 1 has no 'value': write .*gpt",
    ),
    "a misspelt role": ([said(("usr", "a"))], "turn 1 has the role 'usr': did you mean 'user'\\? choose from system"),
    "a tool": ([TALK, said(("user", "a"), ("tool", "b"))], "line 2: turn 2 has the role 'tool': .*tools are not read"),
    "a role that is none": ([said((["user"], "a"))], r"turn 1 has the role \['user'\]: "),
    "a call": (
        [{"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}],
        "'tool_calls' is not read, and",
    ),
    "a weight of 0": ([{"messages": [{"role": "assistant", "content": "a", "weight": 0}]}], "'weight' is not read"),
    "tools": (
        [{**TALK, "tools": [{"name": "f"}]}],
        "line 1: 'tools' is not read, and without it the answer could differ",
    ),
    "a system prompt in the middle": ([said(("user", "a"), ("system", "b"), ("assistant", "c"))], "as the first turn"),
    "two system prompts": (
        [{**said(("system", "a"), ("assistant", "b")), "system": "c"}],
        "there may be one system prompt, and only as the first turn",
    ),
    "a system prompt that is none": ([{**PAIR, "system": 3}], "line 1: 'system' is 3, and not a text"),
    "a system prompt of null": ([said(("system", None), ("assistant", "a"))], "'content' is None, and not a text"),
    "a list of parts": (
        [said(("user", [{"type": "text"}]), ("assistant", "a"))],
        r"'content' is \[\{.*\}\], and not a text",
    ),
    "an input that is none": ([{"instruction": "a", "input": 3, "output": "b"}], "'input' is 3, and not a text"),
    "empty turns": (
        [said(("user", "a"), ("assistant", " "))] * 2,
        "'content' is empty in 2 rows, on lines 1, 2: fill them in",
    ),
    "a turn of null": ([TALK, said(("user", None), ("assistant", "a"))], "'content' is empty in 1 row, on line 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_learned_from_is_refused_with_the_line_and_what_to_do(name, tmp_path):
    rows, says = BAD[name]
    with pytest.raises(ValueError, match=says) as caught:
        read_conversations(file_of(tmp_path, rows))
    assert str(tmp_path / "talks.jsonl") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[\n{"prompt": "a", "answer": "b"},\n{"prompt": "a"}\n]', r"talks\.json line 3: there is no 'answer'"),
        ('[\n{"prompt": "a", "answer": "b"},\n  {"prompt": a}\n]', r"talks\.json line 3 is not JSON: .*column 14"),
        ('[\n{"prompt": "a", "answer": "b"}', r"talks\.json line 2 is not JSON"),
        ('[\n{"prompt": "a", "answer": "b"}\n]\n[]', r"talks\.json line 4 is not JSON: Extra data"),
        ('[\n{"prompt": "a", "answer": "b"},\n[1]]', r"talks\.json line 3 is not a JSON object, .*each row is one"),
        ("[" * 100_000, r"talks\.json is not JSON: "),
        ('{"prompt":\n"a"}', r"talks\.json line 1 is not JSON: .*each line is one object"),
    ],
)
def test_an_array_that_cannot_be_read_is_refused_with_the_line(content, says, tmp_path):
    (tmp_path / "talks.json").write_text(content)
    with pytest.raises(ValueError, match=says):
        read_conversations(tmp_path / "talks.json")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.needs[0])
def test_the_example_that_an_error_shows_is_of_its_form(form, tmp_path):
    row = json.loads(form.example)
    assert len(read_conversations(file_of(tmp_path, [row]))[0][1]) == 2
    assert set(form.needs) <= set(row)
    assert len(EXAMPLES) == sum(len(form.needs) == 1 for form in FORMS)


def test_the_example_of_the_documents_makes_conversations_and_its_table_names_every_form(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text(encoding="utf-8")
    section = page.partition("## Conversations")[2].partition("\n## ")[0]
    program = re.search(r"cat > pirate.py <<'END'\n(.*?)^    END", section, re.MULTILINE | re.DOTALL)[1]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(re.sub("^    ", "", program, flags=re.MULTILINE))
    (tmp_path / "pirate.jsonl").write_text(printed.getvalue())
    found = read_conversations(tmp_path / "pirate.jsonl")
    assert [[m["role"] for m in messages] for _, messages in found] == [["system", *("user", "assistant") * 2]] * 6
    assert all(f'"{key}"' in section for form in FORMS for key in form.needs)
