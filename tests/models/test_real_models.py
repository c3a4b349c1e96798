"""Two models that people use, from their packages, beside `transformers` on the same weights."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import minilora
from minilora.models.generation import answer, next_ids
from minilora.models.sources import locate
from minilora.nn import Inputs

pytestmark = [pytest.mark.oracle, pytest.mark.slow]
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SENTENCES = ["A cat sits on the mat.", "Ein Satz, der länger ist: 猫が座っている 🐈", "Stocks fell today", "x"]


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    """Ours, and theirs with the weights that both read out of the file."""
    pytest.importorskip("gguf")
    try:
        path = locate("smollm2")
    except ImportError as error:
        pytest.skip(str(error))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return minilora.load_pretrained("smollm2"), other.eval()


def test_the_sentence_embeddings_of_minilm_are_those_of_transformers():
    try:
        folder = locate("minilm")
    except ImportError as error:
        pytest.skip(str(error))
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


def test_smollm2_continues_as_transformers_does(smollm2):
    model, other = smollm2
    tokenizer = minilora.load_tokenizer("smollm2")
    for prompt in ("The capital of France is", "def fibonacci(n):"):
        ids = tokenizer.encode(prompt)
        with torch.no_grad():
            whole = other.generate(torch.tensor(ids[None]), max_new_tokens=24, do_sample=False, pad_token_id=0)
        expected = whole[0, len(ids) :].tolist()
        expected = expected[: next((i for i, one in enumerate(expected) if one in tokenizer.stop), len(expected))]
        assert list(next_ids(model, ids, 24, tokenizer.stop)) == expected


def test_the_logits_of_smollm2_are_those_of_transformers(smollm2):
    model, other = smollm2
    ids = minilora.load_tokenizer("smollm2").encode(
        "Low-rank adaptation freezes the weights and learns two thin matrices."
    )
    with torch.no_grad():
        expected = other(torch.tensor(ids[None])).logits.numpy()
    ours = model.forward(ids[None])[0]
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_chat_is_answered_and_ended():
    try:
        locate("smollm2")
    except ImportError as error:
        pytest.skip(str(error))
    tokenizer = minilora.load_tokenizer("smollm2")
    messages = [{"role": "user", "content": "Say hello."}]
    pieces = list(answer(minilora.load_pretrained("smollm2"), messages, 60, tokenizer=tokenizer))
    assert "ello" in "".join(pieces)
    assert "<|im_end|>" not in "".join(pieces)
    assert len(pieces) < 60


def test_a_merged_model_takes_its_tokenizer_along(tmp_path):
    try:
        folder = locate("minilm")
    except ImportError as error:
        pytest.skip(str(error))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, tokenizer = minilora.load_pretrained("minilm"), minilora.load_tokenizer("minilm")
    minilora.save_pretrained(model, tmp_path / "m", tokenizer)
    theirs = [
        transformers.AutoTokenizer.from_pretrained(path)(SENTENCES)["input_ids"] for path in (folder, tmp_path / "m")
    ]
    assert theirs[0] == theirs[1] == [tokenizer.encode(text).tolist() for text in SENTENCES]
