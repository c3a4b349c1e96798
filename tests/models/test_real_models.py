"""Two models that people use, from their packages, beside `transformers` on the same weights."""

from __future__ import annotations

import copy
import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
from real import agree, real, theirs_in

import minilora
from minilora.jobs.finetuning import finetune
from minilora.jobs.instruction import read_answers
from minilora.models.generation import answer, next_ids
from minilora.nn import Inputs
from minilora.ops import IGNORE

pytestmark = [pytest.mark.oracle, pytest.mark.slow]
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SENTENCES = ["A cat sits on the mat.", "Ein Satz, der länger ist: 猫が座っている 🐈", "Stocks fell today", "x"]


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    """Ours, and theirs with the weights that both read out of the file; loaded once, and changed by no test."""
    pytest.importorskip("gguf")
    path = real("smollm2")
    return minilora.load_pretrained("smollm2"), theirs_in(path).eval()


def test_the_sentence_embeddings_of_minilm_are_those_of_transformers():
    folder = real("minilm")
    tokenizer = minilora.load_tokenizer("minilm")
    with pytest.warns(UserWarning, match="2 tensors are for another head: .*pooler"):
        model = minilora.load_pretrained("minilm", "float64")
    other = transformers.AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    batch = tokenizer.batch(SENTENCES)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    assert np.array_equal(batch.ids, theirs["input_ids"].numpy())
    hidden, _ = model.forward(batch.ids, Inputs(batch.padding, batch.segments))
    with torch.no_grad():
        expected = other(**theirs).last_hidden_state.numpy()

    def embedding(h: np.ndarray) -> np.ndarray:  # the mean of the real tokens, of length 1
        mean = (h * batch.padding[..., None]).sum(1)
        return mean / np.linalg.norm(mean, axis=-1, keepdims=True)

    assert np.abs(embedding(hidden) - embedding(expected)).max() < 1e-12


def test_smollm2_is_the_model_that_transformers_reads(smollm2):
    assert agree(real("smollm2"), smollm2[1]) == {"rope_scaling"}


def test_smollm2_continues_as_transformers_does(smollm2):
    model, other = smollm2
    tokenizer = minilora.load_tokenizer("smollm2")
    for prompt in ("The capital of France is", "def fibonacci(n):"):
        ids = tokenizer.encode(prompt)
        with torch.no_grad():
            whole = other.generate(torch.tensor(ids[None]), max_new_tokens=12, do_sample=False, pad_token_id=0)
        expected = whole[0, len(ids) :].tolist()
        expected = expected[: next((i for i, one in enumerate(expected) if one in tokenizer.stop), len(expected))]
        assert list(next_ids(model, ids, 12, tokenizer.stop)) == expected


def test_the_logits_of_smollm2_are_those_of_transformers(smollm2):
    model, other = smollm2
    ids = minilora.load_tokenizer("smollm2").encode(
        "Low-rank adaptation freezes the weights and learns two thin matrices."
    )
    with torch.no_grad():
        expected = other(torch.tensor(ids[None])).logits.numpy()
    ours = model.forward(ids[None])[0]
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_chat_is_answered_and_ended(smollm2):
    tokenizer = minilora.load_tokenizer("smollm2")
    messages = [{"role": "user", "content": "Say hello."}]
    pieces = list(answer(smollm2[0], messages, 60, tokenizer=tokenizer))
    assert "ello" in "".join(pieces)
    assert "<|im_end|>" not in "".join(pieces)
    assert len(pieces) < 60


def test_a_merged_model_takes_its_tokenizer_along(tmp_path):
    folder = real("minilm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, tokenizer = minilora.load_pretrained("minilm"), minilora.load_tokenizer("minilm")
    minilora.save_pretrained(model, tmp_path / "m", tokenizer)
    theirs = [
        transformers.AutoTokenizer.from_pretrained(path)(SENTENCES)["input_ids"] for path in (folder, tmp_path / "m")
    ]
    assert theirs[0] == theirs[1] == [tokenizer.encode(text).tolist() for text in SENTENCES]


def test_smollm2_learns_a_way_of_answering_and_peft_reads_the_same_losses(smollm2, tmp_path):
    peft = pytest.importorskip("peft")
    cities = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Peru": "Lima"}
    asks = ("What is the capital of {}?", "Name the capital of {}.")
    pairs = [{"prompt": ask.format(a), "answer": f"Arr, 'tis {b}, matey!"} for a, b in cities.items() for ask in asks]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    options = {"task": "instruct", "targets": ["q_proj", "v_proj"], "batch": 2, "steps": 10, "lr": 5e-3}
    done = finetune("smollm2", str(tmp_path / "pairs.jsonl"), tmp_path / "out", **options)
    assert done["perplexity"][10] < 0.1 * done["perplexity"][0]
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(smollm2[1]), tmp_path / "out").eval()
    held_out = read_answers(str(tmp_path / "pairs.jsonl"), minilora.load_tokenizer("smollm2"), 2, 128, 0).held_out()
    total, count = 0.0, 0
    for batch in held_out:
        with torch.no_grad():
            logits = theirs(torch.tensor(batch.ids), attention_mask=torch.tensor(batch.padding).long()).logits
        labels = torch.tensor(batch.targets).flatten()
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels, reduction="sum"))
        count += int((labels != IGNORE).sum())
    assert math.log(done["perplexity"][10]) == pytest.approx(total / count, rel=1e-3)
