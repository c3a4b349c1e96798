"""Phi-3's fused layers, whose parts differ in size: adapters on the parts and on the whole, and PEFT's files both ways;
SmolLM3's files too."""

import warnings

import numpy as np
import pytest
from models import close
from peft_models import IDS, PADDING, adapted, base, logits, trained

import minilora
from minilora.adapters import peft
from minilora.adapters.attach import attach
from minilora.nn import Gradients, Inputs

QKV, MLP = "block_0.attention.qkv_proj", "block_0.mlp.gate_up_proj"
CASES = {
    "whole": ("phi3", "lora", ["qkv_proj", "gate_up_proj"], {"r": 3}),
    "all-linear": ("phi3", "lora", "all-linear", {"r": 3, "rslora": True}),
    "parts": ("phi3", "lora", ["q_proj", "v_proj", "up_proj"], {"r": 3}),
    "parts, ranks": ("phi3", "lora", {"k_proj": 2, "gate_proj": 1, "up_proj": 4}, {"alpha": 4, "rslora": True}),
    "parts, DoRA": ("phi3", "dora", ["k_proj", "gate_proj"], {"r": 2}),
    "parts, IA3": ("phi3", "ia3", ["k_proj", "v_proj"], {}),
    "parts, AdaLoRA": ("phi3", "adalora", ["q_proj", "v_proj"], {"r": 3}),
    "embedding": ("phi3", "lora", ["embed", "down_proj"], {"r": 3}),
    "smollm3": ("smollm3", "lora", ["q_proj", "v_proj", "down_proj"], {"r": 3}),
}
DIFFER = {"parts, ranks"}  # α/√r is another for each rank, and a file has one for a layer


def model_of(case):
    family, variant, targets, options = CASES[case]
    model = base(family)
    attach(model, variant, targets, rng=np.random.default_rng(2), **options)
    return trained(model)


def their_base(folder, family):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    minilora.save_pretrained(base(family), folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def agree(ours, theirs):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        found = theirs(input_ids=torch.tensor(IDS * PADDING), attention_mask=torch.tensor(PADDING).long()).logits
    return close(logits(ours)[PADDING], found.numpy()[PADDING], 1e-5)  # theirs has its norms in float32


@pytest.mark.parametrize("case", [case for case in CASES if case not in DIFFER])
def test_a_file_comes_back_with_the_same_logits(case, tmp_path):
    model = model_of(case)
    peft.save_adapter(model, tmp_path / "a")
    loaded = base(CASES[case][0])
    assert peft.load_adapter(loaded, tmp_path / "a") == ""
    np.testing.assert_allclose(logits(loaded), logits(model), rtol=0, atol=1e-12 * np.abs(logits(model)).max())


def test_parts_whose_scaling_differs_have_no_file(tmp_path):
    with pytest.raises(ValueError, match="differ in scaling"):
        peft.save_adapter(model_of("parts, ranks"), tmp_path / "a")


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [case for case in CASES if case not in DIFFER])
def test_peft_loads_what_ours_writes_with_the_same_logits_and_ours_what_peft_writes(case, tmp_path):
    hf = pytest.importorskip("peft")
    model = model_of(case)
    peft.save_adapter(model, tmp_path / "a")
    theirs = hf.PeftModel.from_pretrained(their_base(tmp_path / "m", CASES[case][0]), tmp_path / "a").eval()
    assert agree(model, theirs)
    theirs.save_pretrained(tmp_path / "back")
    again = base(CASES[case][0])
    peft.load_adapter(again, tmp_path / "back")
    assert agree(again, theirs)


@pytest.mark.filterwarnings("ignore:merged, embed.token is no longer tied")
@pytest.mark.parametrize("case", CASES)
def test_merging_computes_the_same_and_is_undone(case):
    model = model_of(case)
    before = logits(model)
    minilora.merge(model)
    assert close(logits(model), before, 1e-12)
    minilora.unmerge(model)
    assert np.array_equal(logits(model), before)


def test_parts_are_rows_of_their_own_size_in_the_order_of_the_whole(rng):
    model, x = base("phi3"), rng.standard_normal((3, 12))
    fused = model[QKV]
    assert fused.parts == {"q_proj": 12, "k_proj": 6, "v_proj": 6}
    whole = fused.forward(x)[0]
    for name, y in zip(fused.parts, fused.split(whole), strict=True):
        np.testing.assert_allclose(fused.part(name).forward(x)[0], y, atol=1e-14)
    assert model[MLP].parts == {"gate_proj": 20, "up_proj": 20}


@pytest.mark.parametrize("train", [(), ["qkv_proj"]])
def test_the_gradient_of_every_part_is_a_central_difference(train, rng):
    model = adapted("phi3", "lm", ["k_proj", "v_proj", "gate_proj"], train=train)
    inputs = Inputs(padding=PADDING)
    y, cache = model.forward(IDS, inputs)
    dy, grads = rng.standard_normal(y.shape), Gradients()
    model.backward(dy, cache, grads)
    assert set(grads) == set(model.trainable_parameters().values())
    for path, p in model.trainable_parameters().items():
        d, x = rng.standard_normal(p.data.shape), p.data
        ends = []
        for p.data in (x + 1e-5 * d, x - 1e-5 * d):
            ends.append((model.forward(IDS, inputs)[0] * dy).sum())
        p.data = x
        expected = (grads[p] * d).sum()
        assert abs((ends[0] - ends[1]) / 2e-5 - expected) < 1e-6 * max(1, abs(expected)), path


def test_targets_that_name_the_whole_and_its_part_are_refused():
    with warnings.catch_warnings(), pytest.raises(ValueError, match="gate_up_proj and a part of it are both targets"):
        minilora.attach_lora(base("phi3"), ["gate_up_proj", "up_proj"], rng=0)
