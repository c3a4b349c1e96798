"""Rows with adapters of their own, and activated LoRA, beside PEFT's, of a GPT-2: it computes that in float64."""

from typing import Any

import numpy as np
import pytest
from peft_models import V, base, trained

import minilora
from minilora.adapters.attach import attach
from minilora.nn import Gradients, Inputs

B, T = 5, 9
WORD = 7, 3, 7
IDS = np.random.default_rng(0).integers(8, V, (B, T))
IDS[0, 2:5] = IDS[3, 0:3] = IDS[3, 5:8] = WORD
NAMES = ["b", "__base__", "a", "w", "b"]
SPECS: dict[str, Any] = {
    "a": ("lora", ["qkv_proj", "down_proj"], {"r": 2, "alpha": 3}),
    "b": ("lora", ["qkv_proj", "up_proj"], {"r": 3, "alpha": 7, "rslora": True}),
    "w": ("alora", ["qkv_proj"], {"r": 1, "alpha": 2, "invocation_tokens": WORD}),
}

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Any:
    """Our model with all adapters by row, and PEFT's with the same folders."""
    torch, hf, transformers = map(pytest.importorskip, ("torch", "peft", "transformers"))
    folder = tmp_path_factory.mktemp("many")
    minilora.save_pretrained(base("gpt2"), folder / "m")
    for seed, (name, (variant, targets, options)) in enumerate(SPECS.items()):
        model = base("gpt2")
        attach(model, variant, targets, rng=seed, **options)
        minilora.save_adapter(trained(model, seed), folder / name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "m", dtype=torch.float64)
    theirs = hf.PeftModel.from_pretrained(theirs, folder / "a", "a", is_trainable=True)
    for name in ("b", "w"):
        theirs.load_adapter(folder / name, name, is_trainable=True)
    ours = minilora.load_pretrained(folder / "m", dtype="float64")
    adapters = minilora.load_adapters(ours, {name: folder / name for name in SPECS})
    return ours, adapters, theirs.double(), folder


def peft_logits(theirs, ids, **words):
    torch = pytest.importorskip("torch")
    theirs.train(False)
    return theirs(torch.tensor(ids), **words).logits


def test_each_row_has_the_logits_that_pefts_adapter_names_give_it(both):
    ours, _, theirs, _ = both
    y, _ = ours.forward(IDS, Inputs(adapters=[None if name == "__base__" else name for name in NAMES]))
    np.testing.assert_allclose(
        y, peft_logits(theirs, IDS, adapter_names=NAMES).detach().numpy(), rtol=1e-12, atol=1e-12
    )


def test_an_activated_lora_has_pefts_logits_and_gradients_and_its_files_go_both_ways(both):
    torch = pytest.importorskip("torch")
    ours, adapters, theirs, folder = both
    adapters.activate("w")
    theirs.set_adapter("w")
    y, cache = ours.forward(IDS)
    out = peft_logits(theirs, IDS)
    np.testing.assert_allclose(y, out.detach().numpy(), rtol=1e-12, atol=1e-12)
    dy, grads = np.random.default_rng(1).standard_normal(y.shape), Gradients()
    ours.backward(dy, cache, grads)
    out.backward(torch.tensor(dy))
    for i, layer in enumerate(theirs.base_model.model.transformer.h):
        adapter = ours[f"block_{i}.attention.qkv_proj"]
        for matrix, parameter in (
            (layer.attn.c_attn.lora_A, adapter.lora_A),
            (layer.attn.c_attn.lora_B, adapter.lora_B),
        ):
            np.testing.assert_allclose(grads[parameter], matrix["w"].weight.grad.numpy(), rtol=1e-10, atol=1e-12)
    theirs.save_pretrained(folder / "back", selected_adapters=["w"])
    again = minilora.load_pretrained(folder / "m", dtype="float64")
    minilora.load_adapter(again, folder / "back" / "w")
    np.testing.assert_array_equal(again.forward(IDS)[0], y)
    adapters.activate_by_row()


def test_generation_with_an_activated_lora_gives_pefts_tokens(both):
    torch = pytest.importorskip("torch")
    from minilora.models.generation import next_ids

    ours, adapters, theirs, _ = both
    adapters.activate("w")
    theirs.set_adapter("w")
    theirs.train(False)
    found = theirs.generate(input_ids=torch.tensor(IDS[:1]), max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert list(next_ids(ours, IDS[0], 5)) == found[0, T:].tolist()
    adapters.activate_by_row()
