"""Trainable token rows, alone and beside LoRA, over a tied head; BitFit; LoRA with a bias of its own; (IA)³ with l = 0.
What holds for every variant is in test_variants.py, PEFT's files of what adapts a Linear in test_peft.py."""

import json
import re
import warnings

import numpy as np
import pytest
from adapters import snapshot
from models import build, close, gradients, loss, some_batch
from peft_models import IDS, PADDING, base, logits, trained
from safetensors.numpy import save

import minilora
from minilora import Pass, attach, attach_lora, merge, unmerge
from minilora.accounting import Account, executed_flops, flops, ledger, nbytes
from minilora.adapters import peft
from minilora.adapters.base import Adapter
from minilora.adapters.bitfit import BitFitLayerNorm, BitFitLinear
from minilora.adapters.lora_bias import LoRABiasLinear
from minilora.adapters.token_rows import TokenRowsEmbedding, TokenRowsLinear
from minilora.files import load_tensors, save_tensors
from minilora.nn import Embedding, Gradients, LayerNorm, Linear
from minilora.nn.optim import SGD
from minilora.verify import check_model

I = [7, 2, 11]  # noqa: E741  (the letter of ops/token_rows.py): out of order, one of them not in the batch below
pinned = pytest.mark.filterwarnings("ignore")


def moved(model, rng):
    for module in [module for _, module in model.named_modules() if isinstance(module, Adapter)]:
        for parameter in module.own_parameters().values():
            parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.data.shape)
    return model


def with_rows(family="gpt2", rng=None, lora=(), **options):
    model = build(family, **options)
    if lora:
        attach_lora(model, lora, r=2, rng=0)
    attach(model, "token-rows", token_indices=I, rng=0)
    return moved(model, rng) if rng else model


def batch_with(ids, rng):
    batch = some_batch(rng)
    return batch._replace(ids=np.array(ids))


BATCH = [[7, 7, 1, 7, 2, 0], [3, 7, 2, 2, 12, 5], [0, 0, 1, 3, 4, 5]]  # 7 and 2 several times, 11 nowhere


# ---- token rows: the gradient ----


@pytest.mark.parametrize(("family", "options"), [("gpt2", {}), ("bert", {}), ("llama", {"tied": False})])
def test_dT_is_the_rows_of_the_gradient_of_the_whole_table_also_where_a_head_is_tied_to_it(family, options, rng):
    model, batch = with_rows(family, rng, **options), batch_with(BATCH, rng)
    T = model["embed.token"].token_rows
    whole = build(family, **options)
    W = whole["embed.token"].weight
    W.data = W.data.copy()
    W.data[I] = T.data
    assert close(gradients(model, batch)[T], gradients(whole, batch)[W][I], 1e-12)


def test_a_row_whose_id_is_nowhere_gets_nothing_from_an_embedding_and_its_logits_from_a_tied_head(rng):
    batch = batch_with(BATCH, rng)
    untied, tied = (with_rows("llama", rng, tied=tied) for tied in (False, True))
    dT = gradients(untied, batch)[untied["embed.token"].token_rows]
    assert not dT[2].any()
    assert dT[0].any()
    assert gradients(tied, batch)[tied["embed.token"].token_rows][2].any()


def test_the_rows_of_W_that_T_replaces_change_nothing(rng):
    model, batch = with_rows("gpt2", rng), batch_with(BATCH, rng)
    before = model.forward(batch.ids)[0]
    W = model["embed.token"].base.weight
    W.data = W.data.copy()
    W.data[I] = 1e3
    assert model.forward(batch.ids)[0].tobytes() == before.tobytes()


@pytest.mark.parametrize(("family", "what"), [("gpt2", "W"), ("bert", "b")])
def test_the_rest_of_a_table_that_learns_too_gets_nothing_where_T_stands_and_a_bias_of_the_head_all(family, what, rng):
    model, batch = with_rows(family, rng), batch_with(BATCH, rng)
    head = model["lm_head"].base
    learns = head.weight if what == "W" else head.bias
    learns.trainable = True
    grads = gradients(model, batch)
    check_model(model, lambda: loss(model, batch), grads, rng=rng).raise_if_wrong()
    assert bool(grads[learns][I].any()) == (what == "b")


def test_an_embedding_and_its_tied_head_have_one_parameter_that_moves_once_a_step(rng):
    model, batch = with_rows("gpt2", rng), batch_with(BATCH, rng)
    T = model["embed.token"].token_rows
    assert model["lm_head"].token_rows is T
    assert list(model.trainable_parameters()) == ["embed.token.token_rows"]
    before, grads = T.data.copy(), gradients(model, batch)
    SGD(model.trainable_parameters(), lr=0.1).step(grads)
    np.testing.assert_allclose(T.data, before - 0.1 * grads[T], rtol=1e-12)


def test_a_merged_table_stays_tied_and_without_a_warning(rng):
    model = with_rows("gpt2", rng)
    before = snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merge(model)
    assert model["lm_head"].weight is model["embed.token"].weight
    unmerge(model)
    assert snapshot(model) == before


@pytest.mark.parametrize("lora", [(), ["q_proj", "o_proj"]])
@pytest.mark.parametrize(("family", "options"), [("gpt2", {}), ("llama", {"tied": True}), ("llama", {"tied": False})])
def test_the_ledger_and_the_flops_are_those_of_a_step(family, options, lora, rng):
    step_is_as_counted(with_rows(family, rng, lora, **options), rng)


def step_is_as_counted(model, rng):
    ids, held = rng.integers(0, 13, (2, 5)), {}
    forward = executed_flops(model, lambda: held.update(y=model.forward(ids, run=Pass())))
    y, cache = held["y"]
    assert nbytes(cache) == sum(entry.nbytes for entry in ledger(model, 2, 5, "float64", loss=False))
    dy = rng.standard_normal(y.shape).view(type(y))
    backward = executed_flops(model, lambda: model.backward(dy, cache, Gradients()))
    assert [forward, backward] == [{"products": p.products, "sums": p.sums} for p in flops(model, 2, 5)]


# ---- token rows: attaching ----


def test_beside_lora_they_are_a_second_attach_and_all_learns(rng):
    model = build("llama", tied=True)
    attach_lora(model, ["q_proj"], r=2, rng=0)
    assert attach(model, "token-rows", token_indices=I, rng=0) == ["embed.token", "lm_head"]
    learns = {name.rpartition(".")[2] for name in model.trainable_parameters()}
    assert learns == {"lora_A", "lora_B", "token_rows"}
    batch = some_batch(rng)
    moved(model, rng)
    check_model(model, lambda: loss(model, batch), gradients(model, batch), rng=rng).raise_if_wrong()


def test_a_head_alone_may_have_rows_and_an_untied_one_has_its_own(rng):
    model = build("llama", tied=True)
    assert attach(model, "token-rows", "lm_head", token_indices=I, rng=0) == ["lm_head"]
    model = build("llama", tied=False)
    attach(model, "token-rows", ["embed", "lm_head"], token_indices=I, rng=0)
    assert model["lm_head"].token_rows is not model["embed.token"].token_rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "embed.token: token_indices is empty: name the tokens whose rows to train"),
        ({"token_indices": [5, 5]}, r"token_indices \[5, 5\] is not a list of different whole numbers from 0 up"),
        ({"token_indices": [-1]}, r"token_indices \[-1\] is not a list"),
        ({"token_indices": [2.0]}, r"token_indices \[2.0\] is not a list"),
        ({"token_indices": [True]}, r"token_indices \[True\] is not a list"),
        ({"token_indices": "7"}, "token_indices '7' is not a list"),
        ({"token_indices": 7}, "token_indices 7 is not a list"),
        ({"token_indices": [0, 13]}, "token_indices: this layer has the rows 0 to 12, and not 13"),
        ({"token_indices": [1], "targets": ["embed", "lm_head"]}, "lm_head shares the embedding's adapter"),
        ({"token_indices": [1], "targets": ["norm_1"]}, "no layer is called 'norm_1'"),
        ({"token_indices": [1], "r": 2}, "token-rows has no option 'r'"),
    ],
)
def test_token_rows_that_cannot_be_are_refused_and_the_model_stays_as_it_was(options, message):
    model = build("llama", tied=True)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        attach(model, "token-rows", rng=0, **options)
    assert snapshot(model) == before


def test_a_head_that_is_adapted_cannot_be_tied(rng):
    model = build("gpt2")
    attach_lora(model, ["lm_head"], r=2, rng=0)
    before = snapshot(model)
    with pytest.raises(ValueError, match="lm_head shares the embedding's adapter, as the two are tied"):
        attach(model, "token-rows", token_indices=I, rng=0)
    assert snapshot(model) == before


# ---- token rows: PEFT's layer ----


@pytest.mark.oracle
@pytest.mark.parametrize("cls", [TokenRowsEmbedding, TokenRowsLinear])
def test_outputs_gradients_and_merged_weights_are_those_of_peft(cls, rng):
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    W, lookup = rng.standard_normal((9, 4)), cls is TokenRowsEmbedding
    adapter = moved_layer(cls.start(Embedding(W) if lookup else Linear(W), rng=0, token_indices=[7, 0, 5]), rng)
    inner = torch.nn.Embedding(9, 4) if lookup else torch.nn.Linear(4, 9, bias=False)
    config = hf.TrainableTokensConfig(target_modules=["0"], token_indices=[7, 0, 5])
    theirs = hf.get_peft_model(torch.nn.Sequential(inner), config).double()
    layer = theirs.base_model.model[0]
    with torch.no_grad():
        layer.base_layer.weight.copy_(torch.tensor(W))
        layer.trainable_tokens_delta["default"].copy_(torch.tensor(adapter.token_rows.data))
    x = rng.integers(0, 9, (3, 5)) if lookup else rng.standard_normal((3, 5, 4))
    there = torch.tensor(x, requires_grad=not lookup)
    y, cache = adapter.forward(x)
    out = theirs(there)
    np.testing.assert_allclose(y, out.detach().numpy(), rtol=1e-13)
    dy, grads = rng.standard_normal(y.shape), Gradients()
    dx = adapter.backward(dy, cache, grads)
    out.backward(torch.tensor(dy))
    expected = layer.trainable_tokens_delta["default"].grad.numpy()
    np.testing.assert_allclose(grads[adapter.token_rows], expected, rtol=1e-12, atol=1e-13)
    if not lookup:
        np.testing.assert_allclose(dx, there.grad.numpy(), rtol=1e-12)
    theirs.merge_adapter()
    assert np.array_equal(adapter.merged()[0], layer.base_layer.weight.detach().numpy())


def moved_layer(adapter, rng):
    for parameter in adapter.own_parameters().values():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.data.shape)
    return adapter


# ---- token rows: PEFT's files ----


LORA = {"llama": ["q_proj", "v_proj"], "gpt2": ["qkv_proj"], "bert": ["q_proj"]}
THEIRS = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "bert": ["query"]}
PLACES: dict[str, dict] = {
    "alone": {"lora": False},
    "beside LoRA": {},
    "of the head": {"targets": "lm_head", "lora": False},
    "of the head, beside LoRA": {"targets": "lm_head"},
    "untied": {"tied": False},
    "of both, untied": {"tied": False, "targets": ["embed", "lm_head"]},
}


def ours_with_rows(family, tied=True, targets=None, lora=True):
    model = base(family, tied=tied)
    if lora:
        attach_lora(model, LORA[family], r=3, alpha=5, rng=2)
    attach(model, "token-rows", targets, token_indices=I, rng=2)
    return trained(model)


def in_places(*families):
    cases = [(f, place) for f in families for place, words in PLACES.items() if f == "llama" or words.get("tied", True)]
    return pytest.mark.parametrize(("family", "place"), cases)


def files(folder):
    return [(folder / name).read_bytes() for name in (peft.CONFIG, peft.WEIGHTS)]


def config(folder):
    return json.loads((folder / peft.CONFIG).read_text())


def tensors(folder):
    return load_tensors(folder / peft.WEIGHTS)[0]


@pytest.mark.each_value
@in_places("llama", "gpt2", "bert")
def test_token_rows_come_back_to_the_bit_and_are_written_to_the_same_bytes(family, place, tmp_path):
    model, tied = ours_with_rows(family, **PLACES[place]), PLACES[place].get("tied", True)
    peft.save_adapter(model, tmp_path / "a")
    loaded = base(family, tied=tied)
    assert peft.load_adapter(loaded, tmp_path / "a") == ""
    assert np.array_equal(logits(loaded), logits(model))
    assert set(loaded.trainable_parameters()) == set(model.trainable_parameters())
    peft.save_adapter(loaded, tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    adapters = peft.Adapters(base(family, tied=tied))
    adapters.load("a", tmp_path / "a")
    adapters.activate("a")
    assert np.array_equal(logits(adapters.model), logits(model))
    adapters.activate(None)
    assert np.array_equal(logits(adapters.model), logits(base(family, tied=tied)))
    shape_and_names = {name: x.shape for name, x in tensors(tmp_path / "a").items() if "trainable_tokens" in name}
    assert set(shape_and_names.values()) == {(3, 12)}
    assert all((".token_adapter." in name) == PLACES[place].get("lora", True) for name in shape_and_names)


@pytest.mark.parametrize("place", PLACES)
def test_the_bytes_of_a_file_with_token_rows_are_as_counted(place, tmp_path):
    model = ours_with_rows("llama", **PLACES[place])
    peft.save_adapter(model, tmp_path / "a")
    written = save(tensors(tmp_path / "a"), {"format": "pt"})  # without the hash of the base
    assert Account("this", model, "this", 1, 1, "float64").adapter_bytes == len(written)


def their_model(family, folder, tied=True):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    if not folder.exists():
        minilora.save_pretrained(base(family, tied=tied), folder)
    auto = transformers.AutoModelForMaskedLM if family == "bert" else transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()


def their_logits(model):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        mask = torch.tensor(PADDING).long()
        return model(input_ids=torch.tensor(IDS * PADDING), attention_mask=mask).logits.double().numpy()[PADDING]


def tolerance(family):
    return 1e-5 if family == "llama" else 1e-12  # a float64 llama of theirs has norms and rotations in float32


@pytest.mark.oracle
@pinned
@in_places("llama", "gpt2")
def test_peft_loads_our_token_rows_with_the_same_logits_and_writes_the_same_tensors(family, place, tmp_path):
    hf = pytest.importorskip("peft")
    model = ours_with_rows(family, **PLACES[place])
    peft.save_adapter(model, tmp_path / "a")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        other = their_model(family, tmp_path / "m", PLACES[place].get("tied", True))
        theirs = hf.PeftModel.from_pretrained(other, tmp_path / "a").double()
    assert not [w for w in caught if re.search("missing adapter keys|nexpected keyword", str(w.message))]
    assert close(logits(model)[PADDING], their_logits(theirs), tolerance(family))
    theirs.save_pretrained(tmp_path / "back")
    ours, back = tensors(tmp_path / "a"), tensors(tmp_path / "back")
    assert set(ours) == set(back)
    assert all(np.array_equal(ours[name], back[name]) for name in ours)


CONFIGS = {
    "alone": {},
    "beside LoRA": {"trainable_token_indices": I},
    "beside LoRA, by name": {"trainable_token_indices": {"TABLE": I}},
    "beside LoRA, both by name": {"trainable_token_indices": {"TABLE": I, "lm_head": I}},
    "beside lora with a bias": {"trainable_token_indices": I, "lora_bias": True},
    "beside rsLoRA and what is saved whole": {
        "trainable_token_indices": I, "use_rslora": True, "modules_to_save": ["norm"],
    },
}  # fmt: skip


@pytest.mark.oracle
@pinned
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", CONFIGS)
def test_token_rows_that_peft_wrote_load_with_the_same_logits_and_are_written_back(family, name, tmp_path):
    hf, torch, words = pytest.importorskip("peft"), pytest.importorskip("torch"), dict(CONFIGS[name])
    if family == "llama" and "lora_bias" in words:
        pytest.skip("a llama has no bias")
    indices, table = words.get("trainable_token_indices"), "embed_tokens" if family == "llama" else "wte"
    if isinstance(indices, dict):
        words["trainable_token_indices"] = {key.replace("TABLE", table): value for key, value in indices.items()}
    if "modules_to_save" in words and family == "gpt2":
        words["modules_to_save"] = ["ln_f"]
    made = hf.TrainableTokensConfig(token_indices=I)
    if words:
        made = hf.LoraConfig(r=3, lora_alpha=7, target_modules=THEIRS[family], **words)
    theirs = hf.get_peft_model(their_model(family, tmp_path / "m"), made).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    model = base(family)
    peft.load_adapter(model, tmp_path / "theirs")
    assert model["lm_head"].token_rows is model["embed.token"].token_rows
    assert close(logits(model)[PADDING], their_logits(theirs), tolerance(family))
    peft.save_adapter(model, tmp_path / "ours")
    ours, back = tensors(tmp_path / "ours"), tensors(tmp_path / "theirs")
    assert set(ours) == set(back)
    assert all(np.array_equal(ours[name], back[name]) for name in ours)
    assert config(tmp_path / "ours").get("trainable_token_indices") == (indices and I)


@pytest.mark.oracle
@pinned
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_gradient_of_the_rows_over_a_tied_head_is_that_of_peft(family, tmp_path):
    hf, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    model = ours_with_rows(family, lora=False)
    peft.save_adapter(model, tmp_path / "a")
    other = their_model(family, tmp_path / "m")
    theirs = hf.PeftModel.from_pretrained(other, tmp_path / "a", is_trainable=True).double()
    y, cache = model.forward(IDS)
    dy, grads = np.random.default_rng(0).standard_normal(y.shape), Gradients()
    model.backward(dy, cache, grads)
    theirs(input_ids=torch.tensor(IDS)).logits.backward(torch.tensor(dy))
    (T,) = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    assert close(grads[model["embed.token"].token_rows], T.grad.numpy(), tolerance(family))


@pytest.mark.oracle
@pinned
@pytest.mark.parametrize("lora", [True, False])
def test_the_bias_of_a_tied_head_is_in_all_logits_where_peft_loses_it_until_it_merges(lora, tmp_path):
    hf = pytest.importorskip("peft")
    model = ours_with_rows("bert", lora=lora)
    peft.save_adapter(model, tmp_path / "a")
    theirs = hf.PeftModel.from_pretrained(their_model("bert", tmp_path / "m"), tmp_path / "a").double()
    bias = model["lm_head"].base.bias.data
    assert abs(bias).min() > 1e-3
    assert close(logits(model)[PADDING] - bias, their_logits(theirs), 1e-12)  # PEFT 0.21.2; its issue #3649
    assert close(logits(model)[PADDING], their_logits(theirs.merge_and_unload()), 1e-12)


def test_the_indices_of_one_file_may_name_an_untied_head_by_itself(tmp_path):
    model = base("llama", tied=False)
    attach_lora(model, ["q_proj"], r=2, rng=0)
    attach(model, "token-rows", token_indices=[1, 2], rng=0)
    attach(model, "token-rows", "lm_head", token_indices=[9], rng=0)
    peft.save_adapter(trained(model), tmp_path / "a")
    expected = {"model.embed_tokens": [1, 2], "lm_head": [9]}
    assert config(tmp_path / "a")["trainable_token_indices"] == expected
    loaded = base("llama", tied=False)
    peft.load_adapter(loaded, tmp_path / "a")
    assert np.array_equal(logits(loaded), logits(model))
    with pytest.raises(ValueError, match="lm_head is tied to the embedding, so it has the same rows"):
        peft.load_adapter(base("llama"), tmp_path / "a")


DAMAGES = {
    "repeated": ({"trainable_token_indices": [1, 1, 2]}, r"trainable_token_indices: token_indices \[1, 1, 2\] is not"),
    "too large": ({"trainable_token_indices": [1, 2, 31]}, "embed_tokens: token_indices: this layer has the rows 0 to"),
    "below": ({"trainable_token_indices": [1, 2, -1]}, "is not a list of different whole numbers"),
    "a word": ({"trainable_token_indices": "all"}, "trainable_token_indices: token_indices 'all' is not a list"),
    "none": ({"trainable_token_indices": []}, "embed_tokens: token_indices is empty"),
    "a number by name": ({"trainable_token_indices": {"embed_tokens": 3}}, "token_indices 3 is not a list"),
    "fewer": ({"trainable_token_indices": [1, 2]}, r"trainable_tokens_delta has shape \(3, 12\), and \(2, 12\) is n"),
    "another layer": ({"trainable_token_indices": {"wte": I}}, "trainable_token_indices: nothing in this llama is c"),
    "a norm": ({"trainable_token_indices": {"model.norm": I}}, r"model\.norm: this adapter is for an Embedding"),
    "other rows of the head": (
        {"trainable_token_indices": {"embed_tokens": I, "lm_head": [1, 2, 3]}}, "lm_head is tied to the embedding",
    ),
    "saved whole too": ({"modules_to_save": ["embed_tokens"]}, "embed_tokens is in trainable_token_indices, and"),
    "a target too": ({"target_modules": ["q_proj", "v_proj", "embed_tokens"]}, "embed_tokens is in trainable_token_in"),
    "left out": ({"trainable_token_indices": None}, "unexpected: .*embed_tokens.token_adapter.trainable_tokens_delta"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_rows_that_a_config_says_wrong_are_refused_and_the_model_stays_as_it_was(name, tmp_path):
    words, message = DAMAGES[name]
    peft.save_adapter(ours_with_rows("llama"), tmp_path / "a")
    (tmp_path / "a" / peft.CONFIG).write_text(json.dumps(config(tmp_path / "a") | words))
    model = base("llama")
    before = snapshot(model)
    with pytest.raises(ValueError, match=message) as caught:
        peft.load_adapter(model, tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert snapshot(model) == before


def test_the_rows_of_a_tied_head_in_a_file_are_those_of_its_embedding(tmp_path):
    peft.save_adapter(ours_with_rows("llama", lora=False), tmp_path / "a")
    x, metadata = load_tensors(tmp_path / "a" / peft.WEIGHTS)
    name = "base_model.model.lm_head.trainable_tokens_delta"
    save_tensors(tmp_path / "a" / peft.WEIGHTS, x | {name: x[name] + 1}, metadata)
    with pytest.raises(ValueError, match=r"the head is tied to the embedding: .*lm_head\.trainable_tokens_delta is"):
        peft.load_adapter(base("llama"), tmp_path / "a")


def test_a_classifier_that_peft_would_lose_beside_token_rows_alone_is_not_written_without_lora(tmp_path):
    model = base("bert", "classify")
    attach(model, "token-rows", token_indices=I, rng=0)
    with pytest.raises(ValueError, match="PEFT's TRAINABLE_TOKENS saves no whole layer"):
        peft.save_adapter(model, tmp_path / "a")
    model = base("bert", "classify")
    attach_lora(model, ["q_proj"], r=2, rng=0)
    attach(model, "token-rows", token_indices=I, rng=0, train="classifier")
    peft.save_adapter(trained(model), tmp_path / "a")
    loaded = base("bert", "classify")
    peft.load_adapter(loaded, tmp_path / "a")
    assert np.array_equal(logits(loaded), logits(model))


def test_rows_beside_a_variant_whose_config_in_peft_has_no_place_for_them_are_not_written(tmp_path):
    model = base("llama")
    attach(model, "vera", r=3, rng=0)
    attach(model, "token-rows", token_indices=I, rng=0)
    with pytest.raises(ValueError, match="the adapters are of 2 variants, token-rows, vera, and PEFT's file holds one"):
        peft.save_adapter(model, tmp_path / "a")


def test_info_says_the_tokens_whose_rows_learn(tmp_path):
    peft.save_adapter(ours_with_rows("llama"), tmp_path / "a")
    assert "trainable_token_indices = [7, 2, 11]" in peft.describe_adapter(tmp_path / "a")["adapter"]


# ---- BitFit ----


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_bitfit_learns_what_the_biases_of_the_model_would_and_leaves_them_as_they_are(family, rng):
    ours, its_own, batch = build(family), build(family), some_batch(rng)
    paths = attach(ours, "bitfit", rng=0)
    its_own.freeze()
    biases = {name: p for name, p in its_own.named_parameters().items() if name.endswith(".bias")}
    for parameter in biases.values():
        parameter.trainable = True
    assert {f"{path}.bias" for path in paths} == set(biases)
    before = {path: ours[path].base.bias.data.copy() for path in paths}
    for _ in range(2):  # from the start, and off it
        of_ours, of_its_own = gradients(ours, batch), gradients(its_own, batch)
        for path in paths:
            db = of_its_own[biases[f"{path}.bias"]]  # of a key's, which the softmax ignores, no more than rounding
            np.testing.assert_allclose(of_ours[ours[path].bitfit_b], db, rtol=1e-10, atol=1e-15)
        SGD(ours.trainable_parameters(), lr=0.1).step(of_ours)
        SGD(biases, lr=0.1).step(of_its_own)
    assert close(ours.forward(batch.ids)[0], its_own.forward(batch.ids)[0], 1e-12)
    assert all(np.array_equal(ours[path].base.bias.data, b) for path, b in before.items())


def test_bitfit_adapts_every_layer_with_a_bias_but_a_classifier_which_learns_whole():
    model = base("bert", "classify")
    paths = attach(model, "bitfit", rng=0, train="classifier")
    with_bias = {name.removesuffix(".bias") for name in base("bert", "classify").state_dict() if name.endswith(".bias")}
    assert set(paths) == with_bias - {"classifier"}
    assert isinstance(model["classifier"], Linear)
    with pytest.raises(ValueError, match=r"bitfit can adapt no layer of this model; block_0\.attention\.q_p.*no bias"):
        attach(build("llama"), "bitfit", rng=0)
    with pytest.raises(ValueError, match="this adapter is for a LayerNorm, and this is of type RMSNorm"):
        BitFitLayerNorm.check(build("llama")["norm"])


def test_a_bias_below_bitfit_that_learns_too_gets_nothing_as_it_is_replaced(rng):
    layer = BitFitLinear.start(Linear(rng.standard_normal((4, 5)), rng.standard_normal(4)), rng=0)
    layer.base.bias.trainable = True
    y, cache = layer.forward(rng.standard_normal((3, 5)))
    grads = Gradients()
    layer.backward(np.ones_like(y), cache, grads)
    assert set(grads) == {layer.bitfit_b}


def test_bitfit_on_the_norm_of_the_embeddings_passes_dx_to_the_tables(rng):
    model, batch = build("bert"), some_batch(rng)
    attach(model, "bitfit", ["embed.norm"], rng=0)
    attach_lora(model, ["embed"], r=2, rng=0)
    moved(model, rng)
    check_model(model, lambda: loss(model, batch), gradients(model, batch), rng=rng).raise_if_wrong()


def test_bitfit_on_parts_of_a_fused_layer_is_one_vector_with_the_rest_as_it_was(rng, tmp_path):
    model = base("gpt2")
    attach(model, "bitfit", ["q_proj", "v_proj"], rng=0)
    trained(model)
    parts = model["block_0.attention.qkv_proj"]
    whole, x = parts.in_file(), rng.standard_normal((2, 3, 12))
    assert np.array_equal(whole.bitfit_b.data[12:24], parts.base.bias.data[12:24])
    np.testing.assert_allclose(whole.forward(x)[0], parts.forward(x)[0], rtol=1e-12)
    peft.save_adapter(model, tmp_path / "a")
    loaded = base("gpt2")
    peft.load_adapter(loaded, tmp_path / "a")
    assert close(logits(loaded), logits(model), 1e-12)


def test_a_merged_bias_leaves_the_weight_to_the_base_and_what_is_tied_to_it(rng):
    model = build("bert")
    attach(model, "bitfit", rng=0)
    moved(model, rng)
    before, size = snapshot(model), sum(p.data.size for p in build("bert").parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merge(model)
    assert model["lm_head"].weight is model["embed.token"].weight
    assert sum(p.data.size for p in model.parameters()) == size
    unmerge(model)
    assert snapshot(model) == before
    merge(model)
    model.astype(np.float32)
    unmerge(model)
    assert {p.data.dtype for p in model.named_parameters().values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_the_ledger_and_the_flops_of_bitfit_are_those_of_a_step(family, rng):
    model = build(family)
    attach(model, "bitfit", rng=0)
    step_is_as_counted(model, rng)
    first = build(family)
    attach(first, "bitfit", ["norm_1"], rng=0)  # below which nobody reads dx
    step_is_as_counted(first, rng)


def test_bitfit_is_written_by_a_type_of_its_own_that_is_refused_by_nobody_here(tmp_path):
    for head, train in (("lm", ()), ("classify", ("classifier",))):
        model = base("bert", head)
        attach(model, "bitfit", rng=0, train=train)
        peft.save_adapter(trained(model), tmp_path / head)
        assert config(tmp_path / head)["peft_type"] == BitFitLinear.peft_type == "BITFIT"
        loaded = base("bert", head)
        assert peft.load_adapter(loaded, tmp_path / head) == ""
        assert np.array_equal(logits(loaded), logits(model))
        norms = [m for _, m in loaded.named_modules() if isinstance(m, BitFitLayerNorm)]
        assert all(isinstance(norm.base, LayerNorm) for norm in norms)
        assert norms
    said = peft.describe_adapter(tmp_path / "classify")
    assert said["beside them"].startswith(f"{12 * 3 + 3} parameters")


# ---- LoRA with a bias of its own ----


@pytest.mark.oracle
@pytest.mark.parametrize("conv", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("rslora", [False, True])
def test_lora_with_a_bias_is_that_of_peft(conv, rslora, rng):
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    W, b, x = rng.standard_normal((4, 5)), rng.standard_normal(4), rng.standard_normal((3, 2, 5))
    adapter = LoRABiasLinear.start(Linear(W, b), r=3, alpha=7, rslora=rslora, rng=0)
    moved_layer(adapter, rng)
    inner = conv1d(4, 5) if conv else torch.nn.Linear(5, 4)
    words = {"r": 3, "lora_alpha": 7, "use_rslora": rslora, "lora_bias": True, "fan_in_fan_out": conv}
    theirs = hf.get_peft_model(torch.nn.Sequential(inner), hf.LoraConfig(target_modules=["0"], **words)).double()
    layer = theirs.base_model.model[0]
    A, B = layer.lora_A["default"], layer.lora_B["default"]
    pairs = {"lora_A": A.weight, "lora_B": B.weight, "lora_B_bias": B.bias}
    with torch.no_grad():
        layer.base_layer.weight.copy_(torch.tensor(W.T if conv else W))
        layer.base_layer.bias.copy_(torch.tensor(b))
        for name, held in pairs.items():
            held.copy_(torch.tensor(getattr(adapter, name).data))
    there = torch.tensor(x, requires_grad=True)
    y, cache = adapter.forward(x)
    out = theirs(there)
    np.testing.assert_allclose(y, out.detach().numpy(), rtol=1e-12)
    dy, grads = rng.standard_normal(y.shape), Gradients()
    dx = adapter.backward(dy, cache, grads)
    out.backward(torch.tensor(dy))
    np.testing.assert_allclose(dx, there.grad.numpy(), rtol=1e-12, atol=1e-13)
    for name, held in pairs.items():
        np.testing.assert_allclose(grads[getattr(adapter, name)], held.grad.numpy(), rtol=1e-12, atol=1e-13)
    theirs.merge_adapter()
    merged_W, merged_b = adapter.merged()
    np.testing.assert_allclose(merged_W.T if conv else merged_W, layer.base_layer.weight.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(merged_b, layer.base_layer.bias.detach().numpy(), rtol=1e-12)


def test_parts_with_a_bias_of_their_own_join_with_zeros_for_the_rest(rng):
    model = build("gpt2")
    attach(model, "lora-bias", ["q_proj", "v_proj"], r=2, rng=0)
    parts, x = moved(model, rng)["block_0.attention.qkv_proj"], rng.standard_normal((2, 3, 12))
    whole = parts.in_file()
    assert whole.r == 4
    assert not whole.lora_B_bias.data[12:24].any()
    np.testing.assert_allclose(whole.forward(x)[0], parts.forward(x)[0], rtol=1e-11)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("llama", {}, "q_proj: this layer has no bias that lora_bias could be merged into"),
        ("gpt2", {"targets": "embed"}, "embed.token: this adapter is for a Linear, and this is of type Embedding"),
        ("gpt2", {"init": "gaussian"}, "lora-bias has no option 'init'"),
    ],
)
def test_lora_with_a_bias_where_peft_has_none_is_refused(family, options, message):
    model = build(family)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        attach(model, "lora-bias", rng=0, **options)
    assert snapshot(model) == before


def test_a_config_of_lora_with_a_bias_and_what_peft_refuses_beside_it_is_refused(tmp_path):
    model = base("gpt2")
    attach(model, "lora-bias", ["qkv_proj"], r=2, rng=0)
    peft.save_adapter(trained(model), tmp_path / "a")
    for words, message in (
        ({"init_lora_weights": "gaussian"}, "init_lora_weights = 'gaussian' is not known to leave the base as it is"),
        ({"lora_bias": False}, r"unexpected: .*lora_B\.bias"),
        ({"lora_bias": "yes"}, "lora_bias = 'yes' is not supported"),
    ):
        before = config(tmp_path / "a")
        (tmp_path / "a" / peft.CONFIG).write_text(json.dumps(before | words))
        with pytest.raises(ValueError, match=message):
            peft.load_adapter(base("gpt2"), tmp_path / "a")
        (tmp_path / "a" / peft.CONFIG).write_text(json.dumps(before))


# ---- (IA)³ ----


def test_a_vector_with_zeros_merges_and_unmerges_to_the_bit(rng):
    model, ids = build("llama"), rng.integers(0, 13, (2, 5))
    attach(model, "ia3", rng=0)
    moved(model, rng)
    for _, module in model.named_modules():
        if isinstance(module, Adapter):
            module.ia3_l.data[:2] = 0  # PEFT 0.21.2 divides by them to unmerge, and loses these rows
    before, y = snapshot(model), model.forward(ids)[0]
    merge(model)
    assert close(model.forward(ids)[0], y, 1e-12)
    unmerge(model)
    assert snapshot(model) == before
    assert model.forward(ids)[0].tobytes() == y.tobytes()


@pytest.mark.oracle
@pinned
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_layers_that_peft_rescales_by_default_load_on_their_sides(family, tmp_path):
    hf, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    theirs = hf.get_peft_model(their_model(family, tmp_path / "m"), hf.IA3Config(task_type="CAUSAL_LM")).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).double()
    theirs.save_pretrained(tmp_path / "theirs")
    model = base(family)
    peft.load_adapter(model, tmp_path / "theirs")
    sides = {path.rpartition(".")[2]: type(m).__name__ for path, m in model.named_modules() if isinstance(m, Adapter)}
    out_sides = ["qkv_proj"] if family == "gpt2" else ["k_proj", "v_proj"]
    assert sides == dict.fromkeys(out_sides, "IA3Linear") | {"down_proj": "IA3FeedForward"}
    assert close(logits(model)[PADDING], their_logits(theirs), tolerance(family))
