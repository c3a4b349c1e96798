"""docs/peft.md: PEFT still does what the page says it does. And what is right, here."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from adapters import snapshot
from peft_models import base, logits

from minilora import merge, unmerge
from minilora.adapters.attach import attach, attach_lora
from minilora.adapters.loha import LoHaLinear
from minilora.nn import Gradients, Linear
from minilora.nn.optim import AdamW

PAGE = (Path(__file__).parents[2] / "docs" / "peft.md").read_text(encoding="utf-8")
BEFORE, *SECTIONS = re.split(r"^### ", PAGE, flags=re.MULTILINE)
FAULTS = {section.partition("\n")[0]: section for section in SECTIONS}


def blocks(text):
    """(language, content) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def values(printed):
    """The words that were printed, the numbers among them as such."""
    words = printed.split()
    return [float(word) if re.fullmatch(r"-?\d+\.\d+", word) else word for word in words]


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAULTS)
def test_peft_prints_what_the_page_shows(name):
    hf, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    assert f"with PEFT {hf.__version__}, " in BEFORE
    assert f" {hf.__version__}:" in PAGE.splitlines()[0]
    (language, code), (_, shown) = blocks(FAULTS[name])
    assert language == "python"
    if "bitsandbytes" in code:
        pytest.importorskip("bitsandbytes")
    scope, printed = {}, io.StringIO()
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(printed):
        exec(blocks(BEFORE)[0][1] + code, scope)
    found, expected = values(printed.getvalue()), values(shown)
    assert [value for value in found if isinstance(value, str)] == [
        value for value in expected if isinstance(value, str)
    ]
    assert found == [value if isinstance(value, str) else pytest.approx(value, abs=0.011) for value in expected]


def test_the_page_has_a_block_and_what_it_prints_for_each_fault_and_says_what_is_right():
    assert len(FAULTS) == len(SECTIONS)
    for section in SECTIONS:
        assert [language for language, _ in blocks(section)] == ["python", ""]
        assert re.search(r"^(Right: |minilora )", section, re.MULTILINE)
        assert len(blocks(section)[0][1].splitlines()) <= 16


# ---- what is right ----


@pytest.mark.parametrize("feed_forward", [False, True], ids=["out side", "in side"])
def test_a_zero_in_the_vector_of_ia3_merges_and_unmerges_to_the_bit(feed_forward):
    model = base("llama", dtype="float32")
    attach(model, "ia3", ["down_proj"], rng=0, feedforward_modules=["down_proj"] if feed_forward else [])
    vector = model["block_0.mlp.down_proj"].ia3_l
    vector.data = np.where(np.arange(len(vector.data)) == 0, 0, vector.data)
    before, with_zero = snapshot(model), logits(model)
    merge(model)
    np.testing.assert_allclose(logits(model), with_zero, rtol=1e-4, atol=1e-5)
    unmerge(model)
    assert snapshot(model) == before
    assert logits(model).tobytes() == with_zero.tobytes()


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_what_a_tied_pair_shares_is_stepped_once_with_both_gradients():
    """Adam's first step moves a number by lr, whatever its gradient; PEFT's two parameters over one array by 2 lr."""
    hf, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    model, lr = base("llama", dtype="float64"), 0.01
    attach_lora(model, ["embed"], r=2, rng=0, ensure_weight_tying=True)
    embedding, head = model["embed.token"], model["lm_head"]
    assert embedding.own_parameters() == head.own_parameters()
    A, B = embedding.lora_A.data, embedding.lora_B.data
    y, cache = model.forward(np.arange(12).reshape(2, 6))
    grads = Gradients()
    model.backward(np.random.default_rng(0).standard_normal(y.shape), cache, grads)
    AdamW(model.trainable_parameters(), lr=lr, weight_decay=0).step(grads)
    moved = {
        "A": np.abs(embedding.lora_A.data - A).max() / lr,
        "B": np.abs(embedding.lora_B.data - B).max() / lr,
    }
    assert 0.99 < max(moved.values()) < 1.0001

    scope: dict = {}
    exec(blocks(BEFORE)[0][1], scope)
    config = scope["lora"](target_modules=["embed_tokens"], ensure_weight_tying=True, task_type="CAUSAL_LM")
    theirs = hf.get_peft_model(scope["llama"](tie_word_embeddings=True), config)
    held = [p for p in theirs.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in held]
    optimizer = torch.optim.AdamW(held, lr=lr, weight_decay=0)
    ids = torch.arange(12).reshape(2, 6)
    theirs(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    furthest = max(float((p.detach() - was).abs().max()) for p, was in zip(held, start, strict=True))
    assert 1.99 < furthest / lr < 2.01


def test_the_scale_of_loha_is_exact_in_float64(rng):
    adapter = LoHaLinear.start(Linear(rng.standard_normal((16, 24))), rng=0, r=3, alpha=1)
    for parameter in adapter.own_parameters().values():
        parameter.data = rng.standard_normal(parameter.data.shape)
    B1, A1, B2, A2 = adapter.tensors
    right = (B1 @ A1) * (B2 @ A2) / 3
    assert np.abs(adapter.delta() - right).max() < 1e-15 * np.abs(right).max()
    x = rng.standard_normal((5, 24))
    np.testing.assert_allclose(adapter.forward(x)[0], x @ (adapter.weight.data + right).T, rtol=1e-11)
