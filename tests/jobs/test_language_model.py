"""Fine-tuning a language model on a text or on answers: the data, the files, and what is refused."""

import io
import json
import math
import re
import shlex
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import examples
import numpy as np
import pytest
from commands import WORDS, assert_refused, lines, tree
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokenizers import CHATML, MADE, NAMES, byte_level

import minilora
from minilora.cli import main
from minilora.data import Batch, all_windows, batches, english, excerpts, split_file
from minilora.jobs import language_model, sweep, text
from minilora.jobs.finetuning import finetune
from minilora.jobs.instruction import encode, padded_batch, read_answers
from minilora.models.config import Config
from minilora.models.families.llama import llama
from minilora.models.pretrained import load_tokenizer
from minilora.models.saving import save_pretrained
from minilora.models.subword_tokenizer import SubwordTokenizer
from minilora.nn import Gradients, Inputs
from minilora.ops import IGNORE
from minilora.training import evaluate, loss_and_gradients

CHAT = MADE["byte_level"]  # with a chat template
PAIRS = [{"prompt": f"What is {i} and {i}?", "answer": f"It is {2 * i}." + " Yes." * (i % 5)} for i in range(24)]
TUNE = shlex.split("--rank 2 --steps 6 --batch 2 --evaluate-every 3 --lr 0.05 --checkpoint-every 2")
TEXT = ["finetune", "--base", "base", "--data", "words.txt", "--out", "out", "--length", "8", *TUNE]
INSTRUCT = ["finetune", "--task", "instruct", "--base", "base", "--data", "pairs.jsonl", "--out", "out", *TUNE]
words = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n'é👩日ab."), min_size=1, max_size=20)
few = settings(max_examples=examples.count(40), deadline=None, derandomize=True)


def write_pairs(path: Path, pairs: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")


def talk(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small base with a tokenizer and a chat template, a text and answers, in the working directory."""
    folder = tmp_path / "here"
    config = Config(vocab_size=CHAT.vocab, n_layers=2, d_model=16, n_heads=2, n_kv_heads=1, d_ff=24, max_length=128)
    save_pretrained(llama(config, np.random.default_rng(1)), folder / "base", CHAT)
    (folder / "words.txt").write_bytes(WORDS)
    write_pairs(folder / "pairs.jsonl", PAIRS)
    monkeypatch.chdir(folder)
    return folder


# ---- a text ----


def test_a_text_is_read_in_the_tokens_of_the_base_and_evaluated_per_byte(here, capfd):
    done = finetune("base", "words.txt", "out", rank=2, steps=2, batch=2, length=8, lr=0.05)
    held_out = excerpts(split_file("words.txt").validation, 8192)
    ids = load_tokenizer("base").encode(held_out.decode(), special=False)
    assert len(ids) < len(held_out)
    nats = evaluate(minilora.load_pretrained("base"), all_windows(ids, 2, 8))
    assert done["perplexity"][0] == pytest.approx(math.exp(nats), rel=1e-6)
    assert done["bits_per_byte"][0] == pytest.approx(nats * len(ids) / len(held_out) / math.log(2), rel=1e-6)


@few
@given(words, st.integers(0, 60), st.integers(0, 60))
def test_tokens_of_a_text_that_was_cut_anywhere_are_those_of_its_whole_letters(written, start, stop):
    cut = written.encode()[start:stop]
    assert CHAT.decode(text.tokens_of(cut, CHAT)) == cut.decode(errors="ignore")
    assert text.tokens_of(cut, MADE["bytes"]) == cut


def test_samples_are_what_the_base_and_the_adapted_model_add_to_a_held_out_text(here, capfd):
    assert main(TEXT) == 0
    samples = json.loads(Path("out", "samples.json").read_text())
    assert samples["prompt"].encode() in split_file("words.txt").validation
    shown = capfd.readouterr().out
    assert all(samples["prompt"] + samples[name] in shown for name in ("before", "after"))
    for name, words in (("before", []), ("after", ["--adapter", "out"])):
        options = ["--tokens", str(language_model.SAMPLE), *words]
        assert main(["generate", "--base", "base", "--prompt", samples["prompt"], *options]) == 0
        assert capfd.readouterr().out == samples["prompt"] + samples[name] + "\n"


def test_a_sweep_runs_on_a_base_with_a_tokenizer_too(here, monkeypatch):
    monkeypatch.setattr(sweep, "sweep_figure", lambda report, title: title.encode())
    cells = ["--base", "base", "--data", "words.txt", "--steps", "2", "--length", "8", "--batch", "2", "--jobs", "1"]
    assert main(["sweep", *cells, "--ranks", "1,2", "--seeds", "1", "--recompute", "--out", "grid"]) == 0
    report = json.loads(Path("grid", "sweep.json").read_text())
    before, resumed = tree(here / "grid"), [*cells, "--ranks", "1,2", "--seeds", "1", "--out", "grid", "--resume"]
    assert report["base_bits_per_byte"] < 8  # of tokens it would be log2(400) and more
    assert main(["sweep", *resumed]) == 0
    assert tree(here / "grid") == before


# ---- what an answer is ----


@few
@given(words, words)
def test_the_labels_are_the_answer_and_the_token_that_ends_it_and_nothing_else(prompt, answer):
    ids, targets = encode(CHAT, talk(prompt, answer))
    labelled = targets != IGNORE
    first = int(labelled.argmax())
    assert labelled[first:].all()
    assert CHAT.decode(targets[labelled]) == answer
    assert int(targets[-1]) in CHAT.stop
    assert np.array_equal(ids[first + 1 :], targets[first:-1])  # a label is the token that comes next
    asked = CHAT.encode(CHAT.chat([{"role": "user", "content": prompt}]), special=False)
    assert np.array_equal(ids[: first + 1], asked)  # the model is asked as a chat would ask it


def templated(template: str) -> SubwordTokenizer:
    return SubwordTokenizer(byte_level(), NAMES["byte_level"], template)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (CHATML.replace("message.content }}", "message.content }}{{ messages|length }}"), "prompt differently when"),
        (CHATML.replace("{{ bos_token }}assistant\n", "{{ bos_token }}bot\n"), "prompt differently when"),
        (CHATML.replace("assistant\n", "assistant\nthe"), "prompt differently when"),  # "then": one token or two
        (CHATML.replace("{{ eos_token }}", ""), "ends an answer with no token of its own"),
    ],
)
def test_a_template_under_which_the_labels_would_be_wrong_is_refused_with_the_line(template, says, tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", [{"prompt": "a", "answer": "n b"}] * 2)
    with pytest.raises(ValueError, match=rf"pairs\.jsonl line 1: .*{says}"):
        read_answers(str(tmp_path / "pairs.jsonl"), templated(template), 1, 99, 0)


def test_beside_others_in_a_padded_batch_an_answer_has_the_loss_and_gradients_that_it_has_alone(rng):
    config = Config(vocab_size=CHAT.vocab, n_layers=2, d_model=8, n_heads=2, max_length=99, dtype="float64")
    model = llama(config, rng)
    examples = [encode(CHAT, talk(**pair)) for pair in PAIRS[:4]]
    assert len({len(example.ids) for example in examples}) > 2
    count = sum((example.targets != IGNORE).sum() for example in examples)
    total, grads = 0.0, Gradients()
    for ids, targets in examples:
        loss, part = loss_and_gradients(model, Batch(ids[None], targets[None]), count=count)
        total, grads = total + loss, grads + part
    loss, together = loss_and_gradients(model, padded_batch(examples))
    assert loss == pytest.approx(total, rel=1e-12)
    for name, parameter in model.named_parameters().items():
        np.testing.assert_allclose(together[parameter], grads[parameter], rtol=1e-9, atol=1e-14, err_msg=name)
    logits, _ = model.forward(examples[0].ids[None])
    P = np.exp(logits[0]) / np.exp(logits[0]).sum(-1, keepdims=True)
    by_hand = [-np.log(P[i, label]) for i, label in enumerate(examples[0].targets) if label != IGNORE]
    assert evaluate(model, [padded_batch(examples[:1])]) == pytest.approx(np.mean(by_hand), rel=1e-12)


@pytest.mark.parametrize("name", ["byte_level", "word_piece", "byte_fallback"])
def test_a_long_text_has_the_same_tokens_encoded_in_pieces(name, monkeypatch):
    words = (english().test[:6000].decode(errors="ignore") + " 2024's  end\n\n好的 — é. a b ab " * 9).encode()
    whole = MADE[name].encode(words.decode(), special=False)
    encoded, encode = [], MADE[name].encode
    monkeypatch.setattr(text, "PIECE", 500)
    monkeypatch.setattr(
        MADE[name], "encode", lambda part, special=True: encoded.append(len(part)) or encode(part, special)
    )
    found = text.tokens_of(words, MADE[name])
    assert np.array_equal(found, whole)
    assert max(encoded) < 1000
    assert found.dtype.itemsize == 2


# ---- what is cut ----


def test_what_is_cut_is_counted_and_an_example_without_an_answer_left_is_dropped(here):
    whole = [encode(CHAT, talk(**pair)) for pair in PAIRS]
    long = {"prompt": "why " * 40, "answer": "because"}
    write_pairs(here / "pairs.jsonl", [*PAIRS, long])
    length = int(np.median([len(ids) for ids, _ in whole]))
    cut = sum(len(ids) > length for ids, _ in whole) + 1
    assert 1 < cut < len(PAIRS)
    dataset = read_answers("pairs.jsonl", CHAT, 1, length, 0)
    assert dataset.summary == (
        f"21 examples to learn from, 3 held out; of all 25, {cut} were cut to {length} tokens, and 1 of these, with no "
        "answer left, dropped"
    )
    taken = [*(dataset.batches(i) for i in range(21)), *dataset.held_out()]
    assert len(taken) == 24
    assert all(batch.ids.shape[1] <= length and (batch.targets != IGNORE).any(axis=1).all() for batch in taken)


def test_the_held_out_examples_are_a_tenth_that_the_seed_chooses_and_are_never_learned_from():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pairs.jsonl")
        write_pairs(path, PAIRS)
        one, again, other = (read_answers(str(path), CHAT, 1, 99, seed) for seed in (0, 0, 1))
    held_out, twice, others = ({batch.ids.tobytes() for batch in dataset.held_out()} for dataset in (one, again, other))
    assert held_out == twice != others
    assert len(held_out) == 3
    learned = {one.batches(i).ids.tobytes() for i in range(21 * 3)}
    assert len(learned) == 21
    assert not learned & held_out


# ---- a run ----


@pytest.mark.parametrize("command", [TEXT, INSTRUCT], ids=["text", "instruct"])
def test_the_same_command_gives_the_same_bytes_and_recomputing_blocks_or_more_checkpoints_change_none(command, here):
    changes = {"one": [], "two": [], "three": ["--recompute", "--checkpoint-every", "5"], "other": ["--seed", "3"]}
    for out, words in changes.items():
        assert main([*command, *words, "--out", out]) == 0
    assert tree(here / "one") == tree(here / "two") == tree(here / "three") != tree(here / "other")


def test_stopped_and_resumed_a_run_on_answers_ends_with_the_bytes_of_one_that_never_was(here, monkeypatch, capfd):
    assert main([*INSTRUCT, "--out", "whole"]) == 0
    calls, take = iter(range(100)), batches.take

    def interrupted(texts: Batch, rows: np.ndarray) -> Batch:
        if next(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return take(texts, rows)

    with monkeypatch.context() as patched:
        patched.setattr(batches, "take", interrupted)
        assert main(INSTRUCT) == 130
    assert "the same command with --resume goes on" in lines(capfd.readouterr().err)[-1]
    assert main([*INSTRUCT, "--resume"]) == 0
    assert tree(here / "out") == tree(here / "whole")


def test_answers_are_learned_and_what_comes_next_can_be_pasted(here, capfd, monkeypatch):
    write_pairs(here / "pairs.jsonl", [{"prompt": f"{i}?", "answer": "yes"} for i in range(20)])
    words = ["--steps", "40", "--batch", "8", "--accumulate", "2", "--targets", "lm_head,q_proj"]
    assert main([*INSTRUCT, *words]) == 0
    shown = capfd.readouterr().out
    perplexities = [float(x) for x in re.findall(r"perplexity (\S+) per token", shown)]
    assert perplexities[0] > 300
    assert perplexities[-1] < 1.5
    monkeypatch.setattr("sys.stdin", io.StringIO("7?\n"))
    program, *words = shown.splitlines()[-1].split()
    assert (program, words[0], main(words)) == ("minilora", "chat", 0)
    assert capfd.readouterr().out == "yes\n"


def test_a_template_that_prints_the_date_is_resumed_on_another_day_and_another_template_or_file_is_not(
    here, capfd, monkeypatch
):
    chat = SubwordTokenizer.chat

    def on(day: str) -> None:
        monkeypatch.setattr(SubwordTokenizer, "chat", lambda *given, **more: f"Today is {day}. {chat(*given, **more)}")

    on("Monday")
    assert main(INSTRUCT) == 0
    on("Tuesday")
    assert main([*INSTRUCT, "--resume"]) == 0
    capfd.readouterr()
    pairs = (here / "pairs.jsonl").read_bytes()
    write_pairs(here / "pairs.jsonl", [*PAIRS[:-1], {**PAIRS[-1], "answer": "It is not."}])
    assert_refused(here, capfd, [*INSTRUCT, "--resume"], "the data is not the one that out was run with")
    (here / "pairs.jsonl").write_bytes(pairs)
    path = here / "base" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": f"Hello. {CHATML}"}))
    assert_refused(here, capfd, [*INSTRUCT, "--resume"], "the tokenizer is not the one that out was run with")


# ---- bad input ----

GOOD = json.dumps(PAIRS[0])
BAD_PAIRS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "holds 0 examples, and 0 have an answer"),
    "only blank lines": ("\n\n", "holds 0 examples, and 0 have an answer within 128 tokens: 2 are needed"),
    "another encoding": ("naïve".encode("latin-1"), r"pairs\.jsonl line 1 is not UTF-8: say its encoding"),
    "no JSON": (f"{GOOD}\n\nx\n", r"pairs\.jsonl line 3 is not JSON: "),
    "nested too deep": (f"{GOOD}\n{'[' * 100_000}\n", r"pairs\.jsonl line 2 is not JSON: "),
    "a list": (f"{GOOD}\n[1]\n", r"line 2 is not a JSON object, \{"),
    "another case": ('{"Prompt": "x", "answer": "y"}', "line 1: there is no 'prompt': did you mean 'Prompt'\\? write"),
    "no answer": (f'{GOOD}\n{{"prompt": "x"}}\n', "line 2: there is no 'answer': write {\"prompt\""),
    "an empty prompt": ('{"prompt": " ", "answer": "x"}', "'prompt' is empty in 1 row, on line 1: fill them in"),
    "an empty answer": ('{"prompt": "x", "answer": ""}\n' * 2, "'answer' is empty in 2 rows, on lines 1, 2: fill"),
    "a number": ('{"prompt": "x", "answer": 3}', "line 1: 'answer' is 3, and not a text"),
    "half a letter": ('{"prompt": "x", "answer": "\\ud83d"}', "line 1: character .* is half a surrogate pair"),
    "an answer that ends itself": (
        json.dumps({"prompt": "x", "answer": "a" + CHAT.names["eos_token"]}),
        "line 1: the answer holds a token",
    ),
    "one example": (GOOD, "holds 1 examples, and 1 have an answer within 128 tokens: 2 are needed"),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_what_is_no_prompt_and_answer_is_refused_in_one_line_and_leaves_nothing(name, here, capfd):
    content, says = BAD_PAIRS[name]
    (here / "pairs.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(here, capfd, INSTRUCT, says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--length", "5"], r"holds 24 examples, and 0 have an answer within 5 tokens: .* a larger --length"),
        (["--length", "129"], "windows of 129 tokens are longer than the model's 128 positions"),
        (["--base", "builtin"], "no chat template: .*: take an instruct model such as smollm2, or --task text"),
        (["--base", "plain"], "no chat template: .*: take an instruct model such as smollm2, or --task text"),
        (["--data", "builtin"], "No such file or directory: builtin"),
        (["--task", "other"], "'other' is not known: choose from text"),
    ],
    ids=str,
)
def test_what_does_not_go_with_answers_is_refused_in_one_line(words, says, here, capfd):
    shutil.copytree("base", "plain")
    path = Path("plain", "tokenizer_config.json")
    settings = {key: value for key, value in json.loads(path.read_text()).items() if key != "chat_template"}
    path.write_text(json.dumps(settings))
    assert_refused(here, capfd, [*INSTRUCT, *words], says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"few words", "tokens are less than one batch of 2 windows of 8: more text, or smaller batches"),
        (b"qzxjvwkfy", "leaves 1 tokens to hold out: give more text"),
        ("naïve ".encode("latin-1") * 99, "line 1 is not UTF-8: say its encoding"),
    ],
)
def test_a_text_too_short_in_tokens_or_in_another_encoding_is_refused(content, says, here, capfd):
    (here / "words.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(here, capfd, [*TEXT, "--length", "2", "--batch", "1"] if "hold out" in says else TEXT, says)


# ---- PEFT and Transformers ----


@pytest.mark.oracle
@pytest.mark.parametrize("command", [TEXT, INSTRUCT], ids=["text", "instruct"])
def test_peft_loads_the_adapter_with_the_same_logits_and_transformers_asks_the_same_tokens(command, here):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    assert main(command) == 0
    model = minilora.load_pretrained("base")
    minilora.load_adapter(model, "out")
    theirs = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained("base"), "out").eval()
    batch = padded_batch([encode(CHAT, talk(**pair)) for pair in PAIRS[:3]])
    logits, _ = model.forward(batch.ids, Inputs(batch.padding))
    mask, targets = torch.tensor(batch.padding), torch.tensor(batch.targets)
    with torch.no_grad():
        expected = theirs(torch.tensor(batch.ids), attention_mask=mask.long()).logits
        loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), targets.flatten())  # it ignores -100 too
    assert np.abs(logits - expected.numpy())[batch.padding].max() < 1e-5 * np.abs(logits).max()
    assert evaluate(model, [batch]) == pytest.approx(float(loss), rel=1e-5)
    chat = talk(**PAIRS[0])
    said = transformers.AutoTokenizer.from_pretrained("base").apply_chat_template(chat, return_dict=True)["input_ids"]
    ids, targets = encode(CHAT, chat)
    assert [*ids, targets[-1]] == said[: len(ids) + 1]
