"""LoftQ: what falls and what may rise, whatever s is, in a model, in files, on the command line, and beside PEFT."""

import json
import math

import numpy as np
import pytest
from adapters import snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from models import build, close, gradients, named, some_batch
from peft_models import IDS, PADDING, base, logits, trained

import minilora
from minilora import quantize
from minilora.adapters import DEFAULT, peft
from minilora.adapters.attach import attach, attach_lora
from minilora.adapters.initialisations.loftq import loftq, rounded
from minilora.adapters.lora_loftq import LoftQLinear
from minilora.adapters.merge import merge, unmerge
from minilora.backend import to_numpy
from minilora.cli import main
from minilora.jobs.rank import study
from minilora.models.saving import base_hash
from minilora.nn import Linear
from minilora.nn.optim import SGD
from minilora.quantization import Quantized, format_named, formats

FORMATS = [name for name, cls in formats().items() if cls.for_blocks]
each_format = pytest.mark.parametrize("quantize_as", FORMATS)
each_model = pytest.mark.parametrize(
    ("family", "targets"), [("llama", "all-linear"), ("gpt2", "all-linear"), ("llama", ["lm_head", "q_proj"])]
)
sizes = st.tuples(st.integers(3, 30), st.integers(3, 70))


def drawn(size, seed=0, dtype="float32"):
    return np.random.default_rng(seed).standard_normal(size).astype(dtype)


def error(W, A, B, Q, s):
    """‖W - Q - s B A‖"""
    return np.linalg.norm(W - Q.dense() - s * B @ A)


# ---- the function ----


@each_format
@settings(max_examples=25)
@given(sizes, st.integers(1, 3), st.integers(1, 4), st.floats(0.1, 9))
def test_the_turn_of_A_and_B_takes_the_r_largest_singular_values_off_the_error(quantize_as, size, r, rounds, s):
    W = drawn(size, dtype="float64")
    A, B, Q = loftq(W, r, s, quantize=quantize_as, rounds=rounds)
    assert (A.shape, B.shape, Q.shape) == ((r, size[1]), (size[0], r), size)
    sigma = np.linalg.svd(W - Q.dense(), compute_uv=False)
    assert math.isclose(error(W, A, B, Q, s), np.sqrt((sigma[r:] ** 2).sum()), rel_tol=1e-9, abs_tol=1e-12)
    assert error(W, A, B, Q, s) <= np.linalg.norm(W - Q.dense()) * (1 + 1e-12)
    np.testing.assert_allclose(B.T @ B, A @ A.T, atol=1e-12)


@each_format
@settings(max_examples=15)
@given(sizes, st.integers(1, 3), st.integers(1, 4), st.sampled_from(["float32", "float64"]))
def test_s_changes_no_bit_of_Q_and_not_the_update_that_the_layer_begins_with(quantize_as, size, r, rounds, dtype):
    W = drawn(size, dtype=dtype)
    before = W.copy()
    starts = {s: loftq(W, r, s, quantize=quantize_as, rounds=rounds) for s in (1.0, 2.0, 4.0, 0.3)}
    _, _, first = starts[1.0]
    updates = {s: s * start.B.astype(float) @ start.A for s, start in starts.items()}
    for s, (A, B, Q) in starts.items():
        assert {A.dtype, B.dtype, Q.dense().dtype} == {np.dtype(dtype)}
        assert {name: x.tobytes() for name, x in Q.arrays.items()} == {n: x.tobytes() for n, x in first.arrays.items()}
        scale = np.abs(updates[1.0]).max()
        np.testing.assert_allclose(updates[s], updates[1.0], atol=scale * (1e-13 if dtype == "float64" else 1e-6))
    assert np.array_equal(W, before)


@each_format
@settings(max_examples=15)
@given(sizes, st.integers(1, 3))
def test_Q_is_the_formats_rounding_of_what_the_turn_before_left_to_it(quantize_as, size, rounds):
    W, encode = drawn(size, dtype="float64"), format_named(quantize_as).of
    A, B, _ = loftq(W, 2, 2.0, quantize=quantize_as, rounds=rounds)
    assert np.array_equal(loftq(W, 2, 2.0, quantize=quantize_as).W_residual.dense(), encode(W).dense())
    after = loftq(W, 2, 2.0, quantize=quantize_as, rounds=rounds + 1).W_residual
    assert np.array_equal(after.dense(), encode(W - 2.0 * B @ A).dense())


def test_the_turn_of_Q_may_raise_the_error_so_more_rounds_promise_nothing():
    """Of 200 small matrices some end farther from W after a further round: the scales that q takes are another grid."""
    rises = falls = 0
    for seed in range(200):
        W = drawn((4, 6), seed, "float64")
        one, two = (error(W, *loftq(W, 1, 2.0, rounds=T), 2.0) for T in (1, 2))
        rises, falls = rises + (two > one * (1 + 1e-9)), falls + (two < one)
    assert rises > 5
    assert falls > 100


@pytest.mark.slow
@pytest.mark.parametrize(("r", "after"), [(8, [0.970, 0.942, 0.926, 0.908]), (32, [0.889, 0.830, 0.804, 0.778])])
def test_the_error_of_a_normal_matrix_falls_from_round_to_round_as_far_as_was_foretold(r, after):
    W = 0.02 * drawn((512, 512))
    found = [error(W, *loftq(W, r, 2.0, rounds=T), 2.0) for T in (1, 2, 3, 5)]
    alone = np.linalg.norm(W - rounded(W, r, "nf4", 1).dense())
    np.testing.assert_allclose(np.array(found) / alone, after, atol=0.004)


@pytest.mark.parametrize("quantize_as", ["nf4", "int8"])
@settings(max_examples=20)
@given(sizes, st.integers(1, 3))
def test_a_W_on_its_grid_is_Q_itself_and_nothing_is_left_to_make_up_for(quantize_as, size, rounds):
    W = format_named(quantize_as).of(drawn(size)).dense()
    A, B, Q = loftq(W, 2, 2.0, quantize=quantize_as, rounds=rounds)
    assert np.array_equal(Q.dense(), W)
    assert not (B @ A).any()


def test_without_1_over_s_the_error_is_that_of_none_at_s_2_and_larger_beyond():
    """What PEFT 0.21.2 does: docs/peft.md. ‖E - s E_r‖² = ‖E‖² + (s² - 2 s) Σ_{i≤r} σᵢ²"""
    W = drawn((64, 48))
    A, B, Q = loftq(W, 8, 1.0)
    alone = np.linalg.norm(W - Q.dense())
    forgotten = [error(W, A, B, Q, s) / alone for s in (1, 2, 4)]
    assert 0.5 < forgotten[0] < 0.9
    assert math.isclose(forgotten[1], 1, rel_tol=1e-5)
    assert forgotten[2] > 1.5
    right = [error(W, *loftq(W, 8, s), s) / alone for s in (1, 2, 4)]
    np.testing.assert_allclose(right, forgotten[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"r": 13}, "r = 13 is above 12, the number of singular values of W - Q"),
        ({"s": 0.0}, "at a scale s = 0: choose an alpha above 0"),
        ({"quantize": "nf5"}, "no format is called 'nf5': did you mean 'nf4'"),
        ({"W": np.full((12, 20), np.nan)}, "nf4 has no code for nan"),
    ],
)
def test_what_the_function_refuses(words, message):
    with pytest.raises(ValueError, match=message):
        loftq(**{"W": drawn((12, 20)), "r": 2, "s": 1.0, **words})


# ---- the layer ----


@pytest.mark.each_value
@each_format
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_layer_holds_Q_as_codes_shares_its_bias_and_leaves_the_given_one_as_it_was(quantize_as, rslora, dtype, rng):
    W, b, x = drawn((16, 24), dtype=dtype), drawn(16, 1, dtype), drawn((5, 24), 2, dtype)
    plain = Linear(W, b)
    before = W.copy()
    adapter = LoftQLinear(plain, r=4, alpha=7, rslora=rslora, quantize=quantize_as, rounds=2)
    assert plain.weight.data is W
    assert np.array_equal(W, before)
    assert adapter.weight.data.name == quantize_as
    assert adapter.base.bias is plain.bias
    assert type(adapter.dense()) is np.ndarray
    A, B, Q = loftq(W, 4, adapter.scaling, quantize=quantize_as, rounds=2)
    y = x @ (Q.dense() + adapter.scaling * B @ A).T + b
    assert close(adapter.forward(x)[0], y, 1e-12 if dtype == "float64" else 1e-5)
    with pytest.raises(ValueError, match="has no gradient"):
        adapter.weight.trainable = True


def test_the_layer_of_a_model_on_another_array_library_holds_the_same_codes(xp):
    W = drawn((16, 24))
    here, there = Linear(W), Linear(W)
    there.to(xp)
    ours, other = (LoftQLinear(layer, r=4, alpha=7, rounds=2) for layer in (here, there))
    assert other.weight.xp is xp
    assert isinstance(other.lora_A.data, xp.ndarray)
    for name, x in ours.weight.data.arrays.items():
        assert to_numpy(other.weight.data.arrays[name]).tobytes() == x.tobytes()
    assert np.array_equal(to_numpy(other.lora_B.data), ours.lora_B.data)


@each_model
@each_format
def test_training_moves_A_and_B_alone_and_merging_and_unmerging_give_back_every_code(family, targets, quantize_as, rng):
    model, batch = build(family, tied=True), some_batch(rng)
    held = model.state_dict()
    dense = {name: x.copy() for name, x in held.items()}
    paths = attach_lora(model, targets, r=2, alpha=3, rng=0, init="loftq", quantize=quantize_as, rounds=2)
    assert all(np.array_equal(held[name], dense[name]) for name in dense)  # the given W is not written to
    assert {type(model[path]) for path in paths} == {LoftQLinear}
    assert {n.rpartition(".")[2] for n in model.trainable_parameters()} == {"lora_A", "lora_B"}
    hashed, grads = base_hash(model), gradients(model, batch)
    assert all(g.any() for g in named(model, grads).values())  # both learn from the first step
    SGD(model.trainable_parameters(), lr=0.1).step(grads)
    assert base_hash(model) == hashed
    tuned, states = model.forward(batch.ids, batch.inputs)[0], {p: model[p].weight.data for p in paths}
    merge(model)
    assert not any(isinstance(model[path].weight.data, Quantized) for path in paths)
    assert close(model.forward(batch.ids, batch.inputs)[0], tuned, 1e-12)
    unmerge(model)
    assert all(model[path].weight.data is data for path, data in states.items())
    assert np.array_equal(model.forward(batch.ids, batch.inputs)[0], tuned)


@pytest.mark.parametrize("r", [2, 4])
def test_a_layer_begins_nearer_to_the_dense_model_than_with_B_0_and_the_nearer_the_more_ranks(r):
    start = {}
    for init in ("uniform", "loftq"):
        model = base("llama", dtype="float32")
        dense = {p: m.dense() for p, m in model.named_modules() if isinstance(m, Linear) and "block" in p}
        attach_lora(model, "all-linear", r=r, alpha=4 * r, rng=0, init=init)
        quantize(model, "nf4")
        start[init] = sum(np.linalg.norm(model[p].merged()[0] - W) ** 2 for p, W in dense.items())
    assert start["loftq"] < (0.75 if r == 2 else 0.45) * start["uniform"]


def test_the_others_are_quantised_by_quantize_and_count_says_the_bytes():
    model = base("llama", dtype="float32")
    attach_lora(model, ["q_proj", "v_proj"], r=2, rng=0, init="loftq", quantize="nf4-dq")
    codes = model["block_0.attention.q_proj"].weight.data
    quantize(model, "nf4-dq")
    assert model["block_0.attention.q_proj"].weight.data is codes
    held = {p.data.name for p in model.base_parameters().values() if isinstance(p.data, Quantized)}
    assert held == {"nf4-dq", "bfloat16"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"quantize": "nf5"}, "block_0.attention.q_proj: no format is called 'nf5'"),
        ({"rounds": 0}, "block_0.attention.q_proj: rounds 0 is not a whole number from 1"),
        ({"targets": ["embed"]}, "embed.token: init 'loftq' is of LoftQLinear, for a Linear, and not of LoRAEmbedding"),
        ({"r": 13}, "block_0.attention.q_proj: r = 13 is above 12"),
    ],
)
@pytest.mark.filterwarnings("ignore:rank")
def test_an_attach_that_fails_says_why_and_leaves_the_model_as_it_was(words, message):
    model = build("llama")
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        attach_lora(model, **{"targets": "all-linear", "r": 2, "rng": 0, "init": "loftq", **words})
    assert snapshot(model) == before


def test_a_base_that_is_quantised_already_and_a_part_of_a_fused_layer_are_refused_by_name():
    model = base("llama", dtype="float32")
    quantize(model, "int8")
    with pytest.raises(
        ValueError, match=r"q_proj: its weight is held in int8 already, .* load the model without quant"
    ):
        attach_lora(model, ["q_proj"], r=2, rng=0, init="loftq")
    attach_lora(model, ["q_proj"], r=2, rng=0)  # what is left is usable
    with pytest.raises(ValueError, match="a part of a fused layer, and LoftQ replaces the whole"):
        attach_lora(base("gpt2"), ["q_proj"], r=2, rng=0, init="loftq")


def test_other_starts_do_not_read_its_options_and_other_variants_do_not_have_them():
    models = [base("llama"), base("llama")]
    attach_lora(models[0], ["q_proj"], r=2, rng=0)
    attach_lora(models[1], ["q_proj"], r=2, rng=0, quantize="int8", rounds=4)
    assert np.array_equal(logits(trained(models[0])), logits(trained(models[1])))
    with pytest.raises(ValueError, match="dora has no option 'rounds'"):
        attach(base("llama"), "dora", ["q_proj"], rng=0, rounds=2)


# ---- files ----


def saved(folder, family="llama", targets="all-linear", rest=None, **words):
    """A trained model, in `folder` too."""
    model = base(family, dtype="float32")
    words = {"r": 2, "alpha": 8, "quantize": "nf4", "rounds": 3, **words}
    attach_lora(model, targets, rng=0, init="loftq", **words)
    if rest:
        quantize(model, rest)
    trained(model)
    peft.save_adapter(model, folder)
    return model


@pytest.mark.each_value
@each_format
@each_model
@pytest.mark.parametrize("rslora", [False, True])
def test_a_file_on_the_dense_base_makes_the_same_bytes_again(family, targets, quantize_as, rslora, tmp_path):
    model = saved(tmp_path / "a", family, targets, quantize=quantize_as, rslora=rslora)
    said = json.loads((tmp_path / "a" / peft.CONFIG).read_text())
    assert said["init_lora_weights"] == "loftq"
    by_peft = {"nf4": 4, "int8": 8}.get(quantize_as, quantize_as) if family == "llama" else quantize_as
    assert said["loftq_config"] == {"loftq_bits": by_peft, "loftq_iter": 3}
    again = base(family, dtype="float32")
    dense = {name: x.tobytes() for name, x in again.state_dict().items()}
    held = again.state_dict()
    assert peft.load_adapter(again, tmp_path / "a") == ""
    assert {name: x.tobytes() for name, x in held.items()} == dense
    assert base_hash(again) == base_hash(model)
    assert np.array_equal(logits(again), logits(model))
    assert set(again.trainable_parameters()) == set(model.trainable_parameters())
    peft.save_adapter(again, tmp_path / "b")
    assert {f.name: f.read_bytes() for f in (tmp_path / "a").iterdir()} == {
        f.name: f.read_bytes() for f in (tmp_path / "b").iterdir()
    }


def test_ranks_of_their_own_make_the_same_bytes_again(tmp_path):
    model = saved(tmp_path / "a", targets={"q_proj": 3, "up_proj": 1})
    again = base("llama", dtype="float32")
    assert peft.load_adapter(again, tmp_path / "a") == ""
    assert np.array_equal(logits(again), logits(model))


def test_a_base_that_is_Q_stays_Q_and_one_that_is_not_is_refused(tmp_path):
    model = saved(tmp_path / "a", rounds=1)
    for bits in ("as codes", "as numbers"):
        Q = base("llama", dtype="float32")
        for path, layer in model.named_modules():
            if isinstance(layer, LoftQLinear):
                data = layer.weight.data
                Q[path].weight.data = data if bits == "as codes" else data.dense()
        assert peft.load_adapter(Q, tmp_path / "a") == ""
        assert np.array_equal(logits(Q), logits(model))
    other = base("llama", seed=7, dtype="float32")
    before = snapshot(other)
    with pytest.raises(ValueError, match="made for another base"):
        peft.load_adapter(other, tmp_path / "a")
    assert snapshot(other) == before
    in_int8 = base("llama", dtype="float32")
    quantize(in_int8, "int8")
    with pytest.raises(ValueError, match="compensates the error of nf4, and this layer is held in int8: load"):
        peft.load_adapter(in_int8, tmp_path / "a")


def test_of_one_round_a_base_that_was_loaded_in_the_format_is_the_same_base(tmp_path):
    model = saved(tmp_path / "a", rest="nf4", rounds=1)
    Q = base("llama", dtype="float32")
    quantize(Q, "nf4")
    assert peft.load_adapter(Q, tmp_path / "a") == ""
    assert np.array_equal(logits(Q), logits(model))
    saved(tmp_path / "b", rest="nf4", rounds=3)
    Q = base("llama", dtype="float32")
    quantize(Q, "nf4")
    with pytest.raises(ValueError, match="made for another base"):
        peft.load_adapter(Q, tmp_path / "b")


def test_where_the_rest_was_quantised_too_a_note_says_so_and_quantising_it_gives_the_same_logits(tmp_path):
    model = saved(tmp_path / "a", targets=["q_proj"], rest="nf4")
    again = base("llama", dtype="float32")
    note = peft.load_adapter(again, tmp_path / "a")
    assert note.endswith("here it is in full precision, but for what it adapts: quantize(model, 'nf4')")
    assert not np.array_equal(logits(again), logits(model))
    quantize(again, "nf4")
    assert np.array_equal(logits(again), logits(model))


def test_where_only_the_rest_is_held_in_few_bits_a_note_says_that_it_cannot_be_compared(tmp_path):
    saved(tmp_path / "a")  # every layer of the blocks is LoftQ's, and the embedding was in float32
    again = base("llama", dtype="float32")
    again["embed.token"].weight.data = format_named("bfloat16").of(again["embed.token"].weight.data)
    note = peft.load_adapter(again, tmp_path / "a")
    assert note.endswith("and this one is in bfloat16: its names and shapes fit, and its weights cannot be compared")


def test_it_switches_with_other_adapters_on_one_dense_base(tmp_path):
    model = saved(tmp_path / "a")
    other = base("llama", dtype="float32")
    attach_lora(other, ["q_proj"], r=2, rng=0, init="pissa")
    peft.save_adapter(trained(other), tmp_path / "b")
    plain = base("llama", dtype="float32")
    before, adapters = logits(plain), peft.Adapters(plain)
    adapters.load("loftq", tmp_path / "a")
    adapters.load("other", tmp_path / "b")
    for name, expected in (
        ("loftq", logits(model)),
        ("other", logits(other)),
        (None, before),
        ("loftq", logits(model)),
    ):
        adapters.activate(name)
        assert close(logits(plain), expected, 1e-6)
    adapters.activate(None)
    assert np.array_equal(logits(plain), before)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"loftq_config": {}}, "lacks 'loftq_config.loftq_bits'"),
        ({"loftq_config": "4"}, "lacks 'loftq_config.loftq_bits'"),
        ({"loftq_config": {"loftq_bits": 2, "loftq_iter": 1}}, "loftq_config.loftq_bits: quantize 2 is not a word"),
        ({"loftq_config": {"loftq_bits": 4, "loftq_iter": 0}}, "loftq_config.loftq_iter: rounds 0 is not a whole"),
        ({"loftq_config": {"loftq_bits": "nf5", "loftq_iter": 1}}, "no format is called 'nf5'"),
        ({"loftq_config": {"loftq_bits": 4, "loftq_iter": 1, "x": 2}}, "loftq_config.x = 2 is not known here"),
    ],
)
def test_a_config_that_says_something_else_is_refused_by_its_key(said, message, tmp_path):
    saved(tmp_path / "a")
    file = tmp_path / "a" / peft.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    with pytest.raises(ValueError, match=message):
        peft.load_adapter(base("llama", dtype="float32"), tmp_path / "a")


def test_a_layout_without_a_word_for_it_and_a_smaller_rank_of_several_rounds_are_refused(tmp_path):
    saved(tmp_path / "a")
    minilora.save_pretrained(base("llama", dtype="float32"), tmp_path / "m")
    with pytest.raises(ValueError, match="has a base in fewer bits, which this layout cannot say"):
        peft.layouts.pairs.read_pairs(tmp_path / "a")
    with pytest.raises(ValueError, match="is a LoftQ of several rounds, whose base depends on the rank"):
        study(str(tmp_path / "a"), rank=1, out=str(tmp_path / "small"))
    assert study(str(tmp_path / "a"), base=str(tmp_path / "m"))["layers"]  # the hash is that with Q
    saved(tmp_path / "b", rounds=1)
    study(str(tmp_path / "b"), rank=1, out=str(tmp_path / "small"))
    again = base("llama", dtype="float32")
    assert peft.load_adapter(again, tmp_path / "small") == ""
    assert {again[p].r for p, m in again.named_modules() if isinstance(m, LoftQLinear)} == {1}


# ---- the document ----


# ---- the command line ----


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


@pytest.mark.parametrize(
    "held",
    [pytest.param(["--quantize", "nf4"], marks=pytest.mark.slow), []],
    ids=["all in nf4", "the adapted layers alone"],
)
def test_finetune_generate_and_merge_on_the_command_line(held, tmp_path, capsys):
    (tmp_path / "t.txt").write_text("for i in range(10): print(i)\n" * 400)
    short = "--steps", 2, "--batch", 2, "--length", 32, "--evaluate-every", 2, "--rank", 2
    loftq = "--init", "loftq", "--option", "rounds=2", "--targets", "q_proj", *held
    run("finetune", "--base", "builtin", "--data", tmp_path / "t.txt", "--out", tmp_path / "a", *loftq, *short)
    config, _, _ = peft.read_adapter(tmp_path / "a")
    assert (config["loftq_config.loftq_bits"], config["loftq_config.loftq_iter"]) == (4, 2)
    capsys.readouterr()
    run("generate", "--adapter", tmp_path / "a", "--prompt", "for", "--tokens", 4)
    assert "note" not in capsys.readouterr().err  # the base is that of the run, to the byte
    run("merge", "--adapter", tmp_path / "a", "--out", tmp_path / "m")
    model = minilora.load_pretrained("builtin")
    minilora.load_adapter(model, tmp_path / "a")
    if held:
        quantize(model, "nf4")
    minilora.merge(model)
    for other in ("int8", "stored", "none"):  # for all but the adapted layers
        run("generate", "--adapter", tmp_path / "a", "--prompt", "for", "--tokens", 4, "--quantize", other)
    ids = np.arange(97, 117)[None]
    assert close(minilora.load_pretrained(tmp_path / "m").forward(ids)[0], model.forward(ids)[0], 2e-2)
    with pytest.raises(ValueError, match="option 'quantize' is set by --quantize"):
        minilora.jobs.finetuning.settings_of(
            minilora.jobs.settings.LanguageModelSettings, method=DEFAULT, option={"quantize": "int8"}
        )


# ---- PEFT's own ----


@pytest.fixture
def without_cuda(monkeypatch):
    """PEFT moves the weight to CUDA, also in a model on the CPU; here "cuda" is the CPU."""
    torch, bnb = pytest.importorskip("torch"), pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    torch._dynamo.config.disable = True  # it would compile bitsandbytes for every shape
    for cls in (torch.Tensor, bnb.nn.Params4bit, bnb.nn.Int8Params):
        to = cls.to

        def on_the_cpu(self, *where, to=to, **words):
            words = {name: "cpu" if x == "cuda" else x for name, x in words.items()}
            return to(self, *("cpu" if x == "cuda" else x for x in where), **words)

        monkeypatch.setattr(cls, "to", on_the_cpu)


def their_base(folder, family="llama"):
    transformers = pytest.importorskip("transformers")
    minilora.save_pretrained(base(family, dtype="float32"), folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def their_logits(model):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(PADDING).long()).logits.numpy()


def their_config(family="llama", targets=("q_proj", "down_proj"), rounds=1, alpha=5, **words):
    hf = pytest.importorskip("peft")
    words = {"r": 3, "lora_alpha": alpha, "target_modules": [*targets], "task_type": "CAUSAL_LM", **words}
    return hf.LoraConfig(
        init_lora_weights="loftq", loftq_config={"loftq_bits": 4, "loftq_iter": rounds},
        fan_in_fan_out=family == "gpt2", **words,
    )  # fmt: skip


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rounds", [1, 3])
def test_peft_loads_what_we_save_on_the_dense_base_as_on_a_machine_with_cuda(rounds, tmp_path, without_cuda):
    hf = pytest.importorskip("peft")
    model = saved(tmp_path / "a", targets=["q_proj", "down_proj"], rounds=rounds, alpha=8)
    theirs = hf.PeftModel.from_pretrained(their_base(tmp_path / "m"), tmp_path / "a")
    assert close(their_logits(theirs)[PADDING], logits(model)[PADDING], 2e-5)
    assert not close(logits(base("llama", dtype="float32"))[PADDING], logits(model)[PADDING], 0.05)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rounds", [1, 3])
def test_what_peft_saved_is_read_on_the_dense_base(rounds, tmp_path, without_cuda):
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    theirs = hf.get_peft_model(their_base(tmp_path / "m"), their_config(rounds=rounds))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    theirs.save_pretrained(tmp_path / "a")
    model = base("llama", dtype="float32")
    assert "does not say which base" in peft.load_adapter(model, tmp_path / "a")
    assert close(logits(model)[PADDING], their_logits(theirs)[PADDING], 2e-5)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_peft_refuses_what_it_has_not_or_gets_wrong_and_its_own_on_gpt2_is_refused_here(tmp_path, without_cuda):
    hf = pytest.importorskip("peft")
    saved(tmp_path / "dq", targets=["q_proj"], quantize="nf4-dq")
    with pytest.raises(ValueError, match="Only nf4 and int8 quantization is supported"):
        hf.PeftModel.from_pretrained(their_base(tmp_path / "m"), tmp_path / "dq")
    saved(tmp_path / "gpt2", "gpt2", ["o_proj"])
    with pytest.raises(ValueError, match="Only nf4 and int8 quantization is supported"):
        hf.PeftModel.from_pretrained(their_base(tmp_path / "m2", "gpt2"), tmp_path / "gpt2")
    theirs = hf.get_peft_model(their_base(tmp_path / "m3", "gpt2"), their_config("gpt2", ["attn.c_proj"]))
    theirs.save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match=r"stored as \(in, out\), where PEFT's init_lora_weights = 'loftq' is wrong"):
        peft.load_adapter(base("gpt2", dtype="float32"), tmp_path / "a")


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("conv", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("s", [1, 2, 4])
def test_the_start_is_that_of_peft_at_s_1_on_a_linear_alone(s, conv, without_cuda):
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
    W = drawn((64, 64))
    layer = Conv1D(64, 64) if conv else torch.nn.Linear(64, 64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(W.T if conv else W))
    config = their_config("gpt2" if conv else "", ["0"], alpha=3 * s, task_type=None)
    theirs = hf.get_peft_model(torch.nn.Sequential(layer), config).base_model.model[0]
    Q, D = theirs.base_layer.weight.detach().numpy(), theirs.get_delta_weight("default").detach().numpy()
    Q, D = (Q.T, D.T) if conv else (Q, D)
    A, B, ours = loftq(W, 3, s)
    alone = np.linalg.norm(W - ours.dense())
    assert error(W, A, B, ours, s) < 0.95 * alone
    if not conv:
        assert np.array_equal(Q, ours.dense())
    off = np.linalg.norm(W - Q - D) / np.linalg.norm(W - Q)
    if s == 1 and not conv:
        assert close(D, s * B @ A, 1e-4)
    else:
        assert off > 0.999  # nothing is won
