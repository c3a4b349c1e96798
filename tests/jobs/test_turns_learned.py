"""Which tokens of a conversation are learned: the assistant's, as transformers masks them, whatever the template."""

import io
import json
import re
from pathlib import Path

import examples
import numpy as np
import pytest
from commands import assert_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokenizers import CHATML, NAMES, byte_level

from minilora.cli import main
from minilora.data.conversations import read_conversations
from minilora.jobs.instruction import encode, read_answers
from minilora.models.config import Config
from minilora.models.families.llama import llama
from minilora.models.saving import save_pretrained
from minilora.models.subword_tokenizer import SubwordTokenizer
from minilora.ops import IGNORE

few = settings(max_examples=examples.count(30), deadline=None, derandomize=True)
words = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n'é👩日ab."), min_size=1, max_size=20)
texts = words.filter(str.strip)


@st.composite
def talks(draw):
    system = draw(st.none() | texts)
    said = [text for pair in draw(st.lists(st.tuples(texts, texts), min_size=1, max_size=3)) for text in pair]
    return ([] if system is None else [{"role": "system", "content": system}]) + [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)
    ]


# As those of ChatML, of SmolLM2 with its own system prompt, of Llama 2, and of Llama 3.
TEMPLATES = {
    "chatml": """{% for m in messages %}{{ bos_token }}{{ m.role }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}
{{- m.content }}{{ eos_token }}{% endif %}

{% endfor %}{% if add_generation_prompt %}{{ bos_token }}assistant
{% endif %}""",
    "own system prompt": """{% for m in messages %}
{%- if loop.first and m.role != 'system' %}{{ bos_token + 'system\nYou are kind.' + eos_token }}{% endif %}
{{- bos_token + m.role + '\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}
{%- else %}{{ m.content + eos_token }}{% endif %}{{ '\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ bos_token + 'assistant\n' }}{% endif %}""",
    "llama 2": """{% if messages[0].role == 'system' %}{% set system = '<<SYS>>' + messages[0].content + '<</SYS>>' %}
{%- set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}
{%- for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' }}{% if loop.first %}{{ system }}{% endif %}
{{- m.content.strip() + ' [/INST]' }}{% else %}
{%- generation %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endgeneration %}{% endif %}{% endfor %}""",
    "llama 3": """{% macro turn(role) %}{{ bos_token + role + '<|end|>\n\n' }}{% endmacro %}
{%- for m in messages %}{{ turn(m.role) }}{% if m.role == 'assistant' %}
{%- generation %}{{ m.content | trim + eos_token }}{% endgeneration %}
{%- else %}{{ m.content | trim + eos_token }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ turn('assistant') }}{% endif %}""",
}


def unmarked(template):
    return re.sub(r"\{%-? (end)?generation %\}", "", template)


def tokenizer_of(template):
    return SubwordTokenizer(byte_level(), NAMES["byte_level"], template)


TOKENIZERS = {
    (name, marks): tokenizer_of(t if marks else unmarked(t)) for name, t in TEMPLATES.items() for marks in (0, 1)
}


@pytest.mark.parametrize("name", TEMPLATES)
@few
@given(messages=talks())
def test_what_is_learned_is_what_the_assistant_says_with_its_ends_whether_the_template_marks_it_or_not(name, messages):
    by_marks, by_prefix = TOKENIZERS[name, 1], TOKENIZERS[name, 0]
    assert by_marks.chat(messages) == by_prefix.chat(messages)
    assert by_marks.generated(messages).any()
    assert by_prefix.generated(messages) is None
    found, again = encode(by_marks, messages), encode(by_prefix, messages)
    assert np.array_equal(found.ids, again.ids)
    assert np.array_equal(found.targets, again.targets)
    labels = found.targets[found.targets != IGNORE]
    ends = np.flatnonzero(labels == by_marks.eos)
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    assert [by_marks.decode(part).strip() for part in np.split(labels, ends + 1)] == [*map(str.strip, said), ""]
    assert np.array_equal(found.ids[1:][found.targets[:-1] != IGNORE], labels[:-1])  # each is the token that comes next


@pytest.mark.parametrize("name", TEMPLATES)
@few
@given(messages=talks(), data=st.data())
def test_what_is_learned_does_not_depend_on_what_the_user_says(name, messages, data):
    others = [m if m["role"] == "assistant" else {**m, "content": data.draw(texts)} for m in messages]
    one, other = (encode(TOKENIZERS[name, 0], each).targets for each in (messages, others))
    assert np.array_equal(one[one != IGNORE], other[other != IGNORE])


@pytest.fixture(scope="module")
def theirs():
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(), **NAMES["byte_level"])


@pytest.mark.oracle
@pytest.mark.parametrize("marks", [0, 1])
@pytest.mark.parametrize("name", TEMPLATES)
@few
@given(messages=talks(), after=st.booleans())
def test_the_tokens_learned_are_those_of_the_assistant_mask_of_transformers(theirs, name, marks, messages, after):
    messages = [*messages, {"role": "user", "content": "Thanks."}] if after else messages
    how = {"chat_template": TEMPLATES[name], "return_dict": True, "return_assistant_tokens_mask": True}
    expected = theirs.apply_chat_template(messages, **how)
    ids, mask = np.array(expected["input_ids"]), np.array(expected["assistant_masks"], bool)
    found = encode(TOKENIZERS[name, marks], messages)
    T = len(found.ids)
    assert np.array_equal(found.ids, ids[:T])
    assert np.array_equal(found.targets, np.where(mask, ids, IGNORE)[1 : T + 1])
    assert not mask[T + 1 :].any()


def test_marks_inside_a_macro_or_a_filter_are_where_its_text_is():
    generation = "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    macro = "{% macro said(m) %}{{ m.role }}{{ bos_token }}" + generation + "{% endmacro %}"
    tokenizer = tokenizer_of(
        macro + "{% for m in messages %}{% filter trim %}  {{ said(m) }}{% endfilter %}{% endfor %}"
    )
    messages = [{"role": "assistant", "content": "well"}, {"role": "assistant", "content": "no"}]
    ids = tokenizer.encode(tokenizer.chat(messages, reply=False), special=False)
    assert tokenizer.chat(messages, reply=False) == "assistant<|turn|>well<|done|>assistant<|turn|>no<|done|>"
    assert tokenizer.decode(ids[tokenizer.generated(messages)]) == "wellno"


@pytest.mark.parametrize("marks", [0, 1])
def test_a_template_that_shows_the_thinking_of_the_last_answer_alone_is_learned_as_it_shows_it(marks):
    thinking = TEMPLATES["chatml"].replace("{% generation %}", "{% generation %}{% if loop.last %}<think>{% endif %}")
    tokenizer = tokenizer_of(thinking if marks else unmarked(thinking))  # as Qwen3's
    _, targets = encode(tokenizer, TALK)
    assert tokenizer.decode(targets[targets != IGNORE]) == "n b<think>d"


# ---- what is refused ----

TALK = [
    {"role": role, "content": text}
    for role, text in zip(("user", "assistant") * 2, ("a", "n b", "c", "d"), strict=True)
]
WITH_SYSTEM = [{"role": "system", "content": "Be brief."}, *TALK]
MOVING = """{% set last = messages | selectattr('role', 'eq', 'user') | list | last %}
{%- for m in messages %}{% if m.role == 'user' %}{{ '[INST]' }}
{%- if messages[0].role == 'system' and m is sameas last %}{{ messages[0].content }}{% endif %}
{{- m.content + '[/INST]' }}{% elif m.role == 'assistant' %}
{%- generation %}{{ m.content + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"""
REFUSED = {
    "no system prompts": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML,
        "line 2: the chat template does not accept these messages: System role not supported",
    ),
    "a system prompt left out": (
        CHATML.replace(
            "{{ bos_token }}{{ message",
            "{% if message.role == 'system' %}{% continue %}{% endif %}{{ bos_token }}{{ message",
        ),
        "line 2: the chat template leaves the system prompt out: put it before the first question",
    ),
    "a system prompt for a question without an answer": (  # as Mistral's
        "{% for m in messages %}{% if m.role == 'user' %}[INST]{% if messages[0].role == 'system' and loop.last %}"
        "{{ messages[0].content }}{% endif %}{{ m.content }}[/INST]"
        "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
        "line 2: the chat template leaves the system prompt out",
    ),
    "a system prompt that moves": (
        unmarked(MOVING),
        "line 2: the chat template renders the prompt differently .* turn 3: mark",
    ),
    "marks without an end": (
        CHATML.replace("{{ message.content }}", "{% generation %}{{ message.content }}{% endgeneration %}"),
        "line 1: the chat template ends an answer with no token of its own",
    ),
    "an end for the last answer alone": (
        CHATML.replace(
            "{{ eos_token }}", "{% if loop.last or message.role != 'assistant' %}{{ eos_token }}{% endif %}"
        ),
        "does not end an answer that is not the last: give one answer in each row",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_under_which_a_turn_would_be_learned_wrongly_is_refused(name, tmp_path):
    template, says = REFUSED[name]
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in (TALK, WITH_SYSTEM)))
    with pytest.raises(ValueError, match=says):
        read_answers(str(path), tokenizer_of(template), 1, 99, 0)


def test_a_template_that_moves_the_prompt_is_learned_where_it_marks_the_answers():
    _, targets = encode(tokenizer_of(MOVING), WITH_SYSTEM)
    assert tokenizer_of(MOVING).decode(targets[targets != IGNORE]) == "n bd"


# ---- a run ----


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small base with ChatML, and conversations in ShareGPT's form, in the working directory."""
    config = Config(vocab_size=400, n_layers=1, d_model=16, n_heads=2, max_length=128)
    folder = tmp_path / "here"
    save_pretrained(llama(config, np.random.default_rng(1)), folder / "base", tokenizer_of(CHATML))
    rows = [
        {
            "conversations": [{"from": "human", "value": f"{i}?"}, {"from": "gpt", "value": "Yes."}] * (1 + i % 3),
            "system": "Be brief.",
        }
        for i in range(24)
    ]
    (folder / "talks.json").write_text(json.dumps(rows, indent=1))
    monkeypatch.chdir(folder)
    return folder


RUN = ["finetune", "--task", "instruct", "--base", "base", "--data", "talks.json", "--out", "out", "--rank", "2"]
RUN += ["--steps", "2", "--batch", "2"]


@pytest.mark.filterwarnings("default")
def test_what_is_learned_is_shown_before_the_training_and_what_is_cut_is_said(here, capfd):
    whole = [encode(tokenizer_of(CHATML), messages) for _, messages in read_conversations("talks.json")]
    length = min(len(ids) for ids, _ in whole) + 4  # of a conversation of two answers the first
    assert main([*RUN, "--length", str(length)]) == 0
    out, err = capfd.readouterr()
    assert re.search(r"┃ learned +┃\n", out)
    learned = re.findall(r"│ (?:to learn from|held out) .* ([\d,]+) │\n", out)
    assert sum(map(int, learned)) == sum((targets[:length] != IGNORE).sum() for _, targets in whole)
    assert re.search(r"\d\d\.\d% of the answers' tokens are cut off and not learned: give a larger --length", err)
    rows = json.loads(Path("talks.json").read_text())
    rows[5]["system"] = "Be brief. " * 40
    Path("talks.json").write_text(json.dumps(rows))
    assert main([*RUN, "--out", "other", "--length", "100"]) == 0
    out, err = capfd.readouterr()
    assert "rows whose answers begin after the first 100 tokens, left out: 1" in out
    assert "cut off" not in err


def test_the_sample_is_asked_as_a_chat_with_the_system_prompt_would_ask(here, capfd, monkeypatch):
    assert main(RUN) == 0
    asked = json.loads(Path("out", "samples.json").read_text())["prompt"]
    assert re.fullmatch(
        r"<\|turn\|>system\nBe brief\.<\|done\|>\n<\|turn\|>user\n\d+\?<\|done\|>\n<\|turn\|>assistant\n", asked
    )
    seen: list[str] = []

    def continuation(model, ids, tokens, tokenizer, sampling, adapter):
        seen.append(tokenizer.backend.decode(ids.tolist(), skip_special_tokens=False))
        return iter(())

    monkeypatch.setattr("minilora.models.generation.continuation", continuation)
    for words, begins in ((["--system", "Be brief."], "<|turn|>system\nBe brief.<|done|>\n"), ([], "")):
        monkeypatch.setattr("sys.stdin", io.StringIO("3?\nAnd?\n"))
        assert main(["chat", "--adapter", "out", *words]) == 0
        first, second = seen
        assert first == f"{begins}<|turn|>user\n3?<|done|>\n<|turn|>assistant\n"
        assert second.startswith(first)
        seen.clear()


def test_a_system_prompt_that_the_template_refuses_is_one_line(here, capfd):
    path = here / "base" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": REFUSED["no system prompts"][0]}))
    assert_refused(here, capfd, ["chat", "--base", "base", "--system", "Be brief."], "System role not supported")
