"""T5 beside `transformers` and PEFT: the same logits, gradients, adapters and greedy texts.

`transformers` takes RMS norms in float32 whatever the model is in: float64 is put in their place.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import numpy as np
import pytest
from models import close

import minilora
from minilora.adapters.peft import load_adapter, save_adapter
from minilora.models.generation import next_ids
from minilora.models.names import hf_name
from minilora.models.saving import save_pretrained
from minilora.models.transformer import Transformer
from minilora.nn import Gradients, Inputs
from minilora.ops import relative_buckets

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 43, "d_model": 24, "d_kv": 5, "d_ff": 20, "num_layers": 2, "num_decoder_layers": 3,
         "num_heads": 4, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 7,
         "dropout_rate": 0.0, "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}  # fmt: skip
KINDS = {"1.0": {"feed_forward_proj": "relu"}, "1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}}


class Pair(NamedTuple):
    """Their model, and the folder that it was saved to."""

    theirs: Any
    folder: Path

    def ours(self) -> Any:
        return minilora.load_pretrained(self.folder, "float64")


def in_float64(model: Any) -> Any:
    def rms_norm(self: Any, x: Any) -> Any:
        return self.weight * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.variance_epsilon)

    for module in model.modules():
        if type(module).__name__ == "T5LayerNorm":
            module.forward = MethodType(rms_norm, module)
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None
    return model


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    config = transformers.T5Config(**SIZES, **KINDS[request.param])
    model = transformers.T5ForConditionalGeneration(config).double().eval()
    if request.param == "1.1":  # its head is its own; a new model of transformers 5 ties it
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    folder = tmp_path_factory.mktemp("t5")
    model.save_pretrained(folder)
    return Pair(in_float64(model), folder)


class Batch(NamedTuple):
    """Three sources, padded on one side, and the decoder's ids."""

    ids: np.ndarray
    source: np.ndarray
    real: np.ndarray

    @property
    def inputs(self) -> Inputs:
        return Inputs(source=self.source, source_padding=self.real)


def batch(rng: np.random.Generator, left: bool = False) -> Batch:
    T, lengths = 9, np.array([9, 5, 2])
    real = np.arange(T)[:: -1 if left else 1] < lengths[:, None]
    return Batch(rng.integers(1, 43, (3, 6)), np.where(real, rng.integers(1, 43, (3, T)), 0), real)


def logits_of(model: Any, batch: Batch) -> Any:
    words = {"input_ids": batch.source, "attention_mask": batch.real.astype(int), "decoder_input_ids": batch.ids}
    return model(**{name: torch.tensor(x) for name, x in words.items()}).logits


def both_gradients(ours: Transformer, theirs: Any, batch: Batch, rng: np.random.Generator) -> tuple[Any, Any]:
    y, cache = ours.forward(batch.ids, batch.inputs)
    dy, grads = rng.standard_normal(y.shape), Gradients()
    ours.backward(dy, cache, grads)
    logits_of(theirs, batch).backward(torch.tensor(dy))
    mine = {path: grads[p] for path, p in ours.named_parameters().items() if p in grads}
    return mine, {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("left", [False, True])
def test_the_logits_are_those_of_transformers_whatever_side_the_source_is_padded_on(pair, left, rng):
    some = batch(rng, left)
    y, _ = pair.ours().forward(some.ids, some.inputs)
    assert close(y, logits_of(pair.theirs, some).detach().numpy(), 1e-12)


def test_every_gradient_is_that_of_transformers(pair, rng):
    ours = pair.ours()
    pair.theirs.zero_grad()
    mine, theirs = both_gradients(ours, pair.theirs, batch(rng), rng)
    assert {hf_name(ours, path) for path in mine} == theirs.keys()
    for path, gradient in mine.items():
        assert close(gradient, theirs[hf_name(ours, path)], 1e-10), path


def test_a_folder_that_is_written_here_is_read_there(pair, rng, tmp_path):
    ours, some = pair.ours(), batch(rng)
    save_pretrained(ours, tmp_path / "saved")
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "saved", dtype=torch.float64)
    y, _ = ours.forward(some.ids, some.inputs)
    assert close(logits_of(in_float64(again), some).detach().numpy(), y, 1e-12)
    assert again.config.decoder_start_token_id == 0


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("n", "farthest"), [(32, 128), (8, 7), (16, 20), (6, 50)])
def test_the_buckets_are_those_of_transformers(both_ways, n, farthest):
    attention = transformers.models.t5.modeling_t5.T5Attention
    d = torch.arange(300)[None, :] - torch.arange(40, 340)[:, None]
    theirs = attention._relative_position_bucket(d, both_ways, n, farthest)
    assert np.array_equal(relative_buckets(300, 300, 40, both_ways, n, farthest), theirs.numpy())


def test_greedy_texts_are_those_of_transformers(pair, rng):
    sources, ours, lengths = rng.integers(2, 43, (5, 8)), pair.ours(), []
    for source in sources:
        theirs = pair.theirs.generate(torch.tensor(source[None]), max_new_tokens=12, do_sample=False, use_cache=False)
        mine = list(next_ids(ours, source, 12, stop=[1]))
        assert mine == [i for i in theirs[0].tolist()[1:] if i != 1]
        lengths.append(len(mine))
    assert max(lengths) > 2


# ---- adapters ----


def peft_model(pair: Pair, seed: int = 0, **words: Any) -> Any:
    peft = pytest.importorskip("peft")
    base = transformers.T5ForConditionalGeneration.from_pretrained(pair.folder, dtype=torch.float64)
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=3, lora_alpha=5, **words)
    model = peft.get_peft_model(in_float64(base), config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


@pytest.mark.parametrize("targets", [["q", "v"], ["EncDecAttention.k", "wo"], "all-linear"])
def test_an_adapter_of_peft_has_the_same_logits_and_gradients_here(pair, targets, rng, tmp_path):
    theirs, some = peft_model(pair, target_modules=targets), batch(rng)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = pair.ours()
    load_adapter(ours, tmp_path / "adapter")
    y, _ = ours.forward(some.ids, some.inputs)
    assert close(y, logits_of(theirs, some).detach().numpy(), 1e-12)
    mine, grads = both_gradients(ours, theirs, some, rng)
    assert len(mine) == len(grads)
    for path, gradient in mine.items():
        layer, _, name = path.rpartition(".")
        theirs_name = f"base_model.model.{hf_name(ours, layer)}.{name}.default.weight"
        assert close(gradient, grads[theirs_name], 1e-10), path


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["up_proj"], ["block_1.cross_attention.k_proj"]])
def test_peft_reads_an_adapter_that_is_written_here(pair, targets, rng, tmp_path):
    peft = pytest.importorskip("peft")
    ours, some = pair.ours(), batch(rng)
    minilora.attach_lora(ours, targets, r=2, alpha=6, rng=0)
    for parameter in ours.trainable_parameters().values():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.data.shape)
    save_adapter(ours, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    base = transformers.T5ForConditionalGeneration.from_pretrained(pair.folder, dtype=torch.float64)
    theirs = peft.PeftModel.from_pretrained(in_float64(base), tmp_path / "adapter").double().eval()
    y, _ = ours.forward(some.ids, some.inputs)
    assert close(y, logits_of(theirs, some).detach().numpy(), 1e-12)
    assert isinstance(theirs, peft.PeftModelForSeq2SeqLM)


def test_in_peft_an_adapter_of_the_shared_embedding_does_nothing_so_it_has_no_file(pair, rng, tmp_path):
    theirs, some = peft_model(pair, target_modules=["shared"]), batch(rng)
    logits, plain = (logits_of(model, some).detach().numpy() for model in (theirs, pair.theirs))
    assert close(logits, plain, 1e-12)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = pair.ours()
    with pytest.raises(ValueError, match="shared: in PEFT each stack of a t5 has an embedding of its own"):
        load_adapter(ours, tmp_path / "adapter")
    minilora.attach_lora(ours, ["embed"], r=2, alpha=6, rng=0)
    with pytest.raises(ValueError, match="there is no file for an adapter of both"):
        save_adapter(ours, tmp_path / "saved")
