"""Adapters: their gradients, attaching, merging, and what stays as it was."""

import math
from typing import Any

import numpy as np
import pytest
from adapters import Counted, adapted, lora_names, snapshot
from models import (
    Batch,
    build,
    close,
    each_family,
    gradients,
    hugging_face,
    hugging_face_logits,
    loss,
    named,
    some_batch,
)

from minilora.adapters.attach import attach_lora
from minilora.adapters.lora import LoRAEmbedding, LoRALinear, TiedLoRALinear
from minilora.adapters.merge import MergedEmbedding, MergedLinear, merge, unmerge
from minilora.adapters.spectrum import adapter_singular_values
from minilora.models.transformer import Transformer
from minilora.nn import Embedding, Gradients, LayerNorm, Linear, Pass
from minilora.nn.optim import SGD, AdamW
from minilora.verify import check_model


def layer(rng: np.random.Generator, n_in: int = 5, n_out: int = 4, **options: Any) -> LoRALinear:
    """One adapted layer whose B is not 0."""
    base = Linear(rng.standard_normal((n_out, n_in)), rng.standard_normal(n_out))
    adapter = LoRALinear(base, **{"r": 2, "alpha": 3, "rng": rng, **options})
    adapter.lora_B.data = rng.standard_normal(adapter.lora_B.data.shape)
    return adapter


# ---- gradients ----


@pytest.mark.each_value
@each_family
@pytest.mark.parametrize(("which", "dropout"), [("query and value", 0.0), ("all-linear", 0.4)])
def test_every_gradient_of_the_adapters_is_right(family, which, dropout, rng):
    targets = (["qkv_proj"] if family == "gpt2" else ["q_proj", "v_proj"]) if which == "query and value" else which
    model, batch = adapted(family, targets, dropout=dropout), some_batch(rng, "left")

    def replayed() -> Batch:  # the same masks every time
        return batch._replace(run=batch.run._replace(rng=np.random.default_rng(7)))

    grads = gradients(model, replayed())
    assert set(model.trainable_parameters()) == lora_names(model)
    check_model(model, lambda: loss(model, replayed()), grads, rng=rng, directions=1).raise_if_wrong()


@each_family
def test_at_the_start_the_logits_are_the_base_models_every_dA_is_zero_and_no_dB_is(family, rng):
    model, batch = build(family), some_batch(rng)
    before, _ = model.forward(batch.ids, batch.inputs, batch.run)
    attach_lora(model, "all-linear", r=2, alpha=3, rng=rng)
    assert model.forward(batch.ids, batch.inputs, batch.run)[0].tobytes() == before.tobytes()
    grads = named(model, gradients(model, batch))
    assert set(grads) == lora_names(model)
    for name, gradient in grads.items():
        assert gradient.any() == name.endswith("lora_B"), name


@pytest.mark.parametrize("rslora", [False, True])
def test_the_first_step_changes_the_weight_by_minus_eta_s2_G_At_A(rslora, rng):
    adapter, eta = layer(rng, rslora=rslora), 0.37
    adapter.lora_B.data = 0 * adapter.lora_B.data
    A, s = adapter.lora_A.data, adapter.scaling
    x, dy = rng.standard_normal((3, 2, 5)), rng.standard_normal((3, 2, 4))
    grads = Gradients()
    adapter.backward(dy, adapter.forward(x)[1], grads)
    SGD(adapter.trainable_parameters(), lr=eta).step(grads)
    G = np.einsum("bto,bti->oi", dy, x)
    np.testing.assert_allclose(adapter.delta(), -eta * s**2 * G @ A.T @ A, rtol=1e-12)


def test_the_adapted_layer_is_the_dense_layer_with_weight_W0_plus_s_B_A(rng):
    adapter, x, dy = layer(rng), rng.standard_normal((3, 2, 5)), rng.standard_normal((3, 2, 4))
    W = adapter.base.weight.data + 3 / 2 * adapter.lora_B.data @ adapter.lora_A.data
    y, cache = adapter.forward(x)
    np.testing.assert_allclose(y, x @ W.T + adapter.base.bias.data, rtol=1e-12)
    np.testing.assert_allclose(adapter.backward(dy, cache, Gradients()), dy @ W, rtol=1e-12)


def test_the_dense_update_is_never_formed(rng):
    n_in, n_out, r, N = 50, 70, 3, 2
    adapter = layer(rng, n_in, n_out, r=r)
    for parameter in adapter.named_parameters().values():
        parameter.data = parameter.data.view(Counted)
    base, path = 2 * N * n_in * n_out, 2 * N * r * (n_in + n_out)
    Counted.flops = 0
    _, cache = adapter.forward(rng.standard_normal((N, n_in)).view(Counted))
    assert Counted.flops == base + path
    Counted.flops = 0
    adapter.backward(rng.standard_normal((N, n_out)).view(Counted), cache, Gradients())
    assert Counted.flops == base + 2 * path  # dx of the base; dh, dx, dA and dB of the path; no dW


# ---- a new adapter ----


@pytest.mark.parametrize(("init", "std"), [("uniform", 1 / math.sqrt(3 * 400)), ("gaussian", 1 / 50)])
def test_A_starts_with_the_standard_deviation_of_its_init_and_B_at_zero(init, std, rng):
    adapter = LoRALinear(Linear(np.zeros((60, 400), np.float32)), r=50, rng=rng, init=init)
    A, B = adapter.lora_A.data, adapter.lora_B.data
    assert (A.shape, B.shape, A.dtype, B.dtype) == ((50, 400), (60, 50), np.float32, np.float32)
    assert A.std() == pytest.approx(std, rel=0.03)
    assert A.mean() == pytest.approx(0, abs=0.03 * std)
    assert not B.any()
    if init == "uniform":
        assert 0.99 / math.sqrt(400) < np.abs(A).max() <= np.float32(1 / math.sqrt(400))


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 10 / 4), (True, 10 / 2)])
def test_the_scaling_is_alpha_over_r_or_over_its_root(rslora, scaling, rng):
    assert layer(rng, r=4, alpha=10, rslora=rslora).scaling == scaling


@pytest.mark.parametrize("options", [{"r": np.int64(3)}, {"alpha": np.float64(5)}, {"r": np.int64(3), "rslora": True}])
def test_numbers_from_numpy_make_no_float64_of_a_float32_layer(options, rng):
    W, x = (rng.standard_normal((n, 5)).astype(np.float32) for n in (4, 3))
    adapter = LoRALinear(Linear(W), **{"r": 2, "rng": rng, **options})
    y, cache = adapter.forward(x)
    grads = Gradients()
    dx = adapter.backward(y, cache, grads)
    assert {array.dtype for array in [y, dx, adapter.delta(), *grads.values()]} == {np.dtype(np.float32)}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    states = []
    for seed in (5, 5, 6):
        model = build("llama")
        attach_lora(model, "all-linear", r=2, rng=np.random.default_rng(seed))
        states.append({name: data.tobytes() for name, data in model.state_dict().items()})
    assert states[0] == states[1]
    assert {n for n in states[0] if states[0][n] != states[2][n]} == {n for n in states[0] if n.endswith("lora_A")}


def test_dropout_acts_on_the_adapters_input_alone_and_only_with_a_generator(rng):
    p, x = 0.4, rng.standard_normal((3, 2, 5))
    adapter = layer(rng, dropout=p)
    without, cache = adapter.forward(x)
    assert cache.keep is None
    np.testing.assert_allclose(without - adapter.base.forward(x)[0], 1.5 * low_rank(adapter, x), rtol=1e-10)
    y, cache = adapter.forward(x, run=Pass(rng=np.random.default_rng(8)))
    again, _ = adapter.forward(x, run=Pass(rng=np.random.default_rng(8)))
    other, _ = adapter.forward(x, run=Pass(rng=np.random.default_rng(9)))
    assert y.tobytes() == again.tobytes() != other.tobytes()
    np.testing.assert_allclose(np.unique(cache.keep), [0, 1 / (1 - p)])
    np.testing.assert_allclose(y - adapter.base.forward(x)[0], 1.5 * low_rank(adapter, x * cache.keep), rtol=1e-10)


def low_rank(adapter: LoRALinear, x: np.ndarray) -> np.ndarray:
    return x @ adapter.lora_A.data.T @ adapter.lora_B.data.T


def test_dropout_keeps_the_mean(rng):
    adapter = layer(rng, n_in=2000, dropout=0.3)
    _, cache = adapter.forward(np.ones((20, 2000)), run=Pass(rng=rng))
    assert cache.keep.mean() == pytest.approx(1, abs=0.01)


def test_what_is_frozen_keeps_nothing(rng):
    adapter, x = layer(rng), rng.standard_normal((3, 2, 5))
    _, cache = adapter.forward(x)
    assert (cache.base.x, cache.base.needs_db) == (None, False)
    assert cache.x is x
    assert cache.h.shape == (6, 2)
    adapter.lora_A.trainable = False
    assert adapter.forward(x)[1].x is None
    adapter.lora_B.trainable = False
    assert adapter.forward(x)[1] == (cache.base, None, None, None)


# ---- embeddings ----


@each_family
def test_an_adapted_embedding_is_the_table_W0_plus_s_B_A_transposed_and_its_gradients_are_right(family, rng):
    model, batch = adapted(family, ["embed"], tied=False), some_batch(rng, "left")
    token = model["embed.token"]
    assert isinstance(token, LoRAEmbedding)
    token.lora_A.data = rng.standard_normal(token.lora_A.data.shape)
    ids = rng.integers(0, len(token.weight.data), (2, 3))
    W = token.base.weight.data + 3 / 2 * (token.lora_B.data @ token.lora_A.data).T
    np.testing.assert_allclose(token.forward(ids)[0], W[ids], rtol=1e-12, atol=1e-14)
    assert set(model.trainable_parameters()) == {"embed.token.lora_A", "embed.token.lora_B"}
    check_model(model, lambda: loss(model, batch), gradients(model, batch), rng=rng).raise_if_wrong()


def test_a_new_adapter_of_an_embedding_is_zero_by_its_A_and_its_first_step_moves_the_rows_that_were_seen(rng):
    adapter = LoRAEmbedding(Embedding(rng.standard_normal((200, 60)).astype("f4")), r=50, rng=rng)
    A, B = adapter.lora_A.data, adapter.lora_B.data
    assert (A.shape, B.shape, A.dtype, B.dtype) == ((50, 200), (60, 50), np.float32, np.float32)
    assert not A.any()
    assert B.std() == pytest.approx(1, rel=0.05)
    ids = np.array([[3, 7, 3]])
    y, cache = adapter.forward(ids)
    assert np.array_equal(y, adapter.base.weight.data[ids])
    grads = Gradients()
    adapter.backward(rng.standard_normal(y.shape, dtype="f4"), cache, grads)
    assert not grads[adapter.lora_B].any()
    SGD(adapter.trainable_parameters(), lr=0.1).step(grads)
    assert set(np.nonzero(adapter.delta().any(axis=1))[0]) == {3, 7}


def test_what_is_frozen_of_an_embeddings_adapter_keeps_nothing(rng):
    adapter, ids = LoRAEmbedding(Embedding(rng.standard_normal((5, 4))), r=2, rng=rng), np.array([[1, 2, 1]])
    cache = adapter.forward(ids)[1]
    assert cache.base is None
    assert cache.ids is ids
    assert cache.h.shape == (3, 2)
    adapter.lora_A.trainable = False
    assert adapter.forward(ids)[1].ids is None
    adapter.lora_B.trainable = False
    assert adapter.forward(ids)[1] == (None, None, None)


def test_an_embeddings_adapter_leaves_a_tied_head_alone_and_merging_unties_it_with_a_warning(rng):
    model, batch = adapted("gpt2", ["embed"]), some_batch(rng)
    model["embed.token"].lora_A.data = rng.standard_normal(model["embed.token"].lora_A.data.shape)
    W, logits = model["lm_head"].weight, model.forward(batch.ids, batch.inputs, batch.run)[0]
    assert W is model["embed.token"].weight
    before = snapshot(model)
    with pytest.warns(UserWarning, match=r"embed\.token is no longer tied"):
        merge(model)
    assert isinstance(model["embed.token"], MergedEmbedding)
    assert model["lm_head"].weight is W
    assert close(model.forward(batch.ids, batch.inputs, batch.run)[0], logits, 1e-12)
    assert unmerge(model) == ["embed.token"]
    assert snapshot(model) == before


def tied(dropout: float = 0.0) -> Transformer:
    model = adapted("gpt2", ["embed", "qkv_proj"], ensure_weight_tying=True, dropout=dropout)
    A = model["embed.token"].lora_A
    A.data = np.random.default_rng(5).standard_normal(A.data.shape)
    return model


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_with_ensure_weight_tying_the_head_has_the_embeddings_A_and_B_and_their_gradients_are_summed(dropout, rng):
    model, batch = tied(dropout), some_batch(rng, "right")
    head, token = model["lm_head"], model["embed.token"]
    assert isinstance(head, TiedLoRALinear)
    assert head.lora_A is token.lora_A
    assert [name for name in lora_names(model) if "block" not in name] == [
        name for name in lora_names(model) if "embed" in name
    ]

    def replayed() -> Batch:
        return batch._replace(run=batch.run._replace(rng=np.random.default_rng(7)))

    check_model(model, lambda: loss(model, replayed()), gradients(model, replayed()), rng=rng).raise_if_wrong()


def test_a_tied_pair_is_merged_to_one_matrix_without_a_warning_and_comes_back_as_it_was(rng):
    model, batch = tied(), some_batch(rng)
    before, logits = snapshot(model), model.forward(batch.ids, batch.inputs, batch.run)[0]
    x, W = rng.standard_normal((2, 12)), model["embed.token"].weight.data + model["embed.token"].delta()
    np.testing.assert_allclose(model["lm_head"].forward(x)[0], x @ W.T, rtol=1e-10, atol=1e-12)
    merge(model)
    assert model["lm_head"].weight is model["embed.token"].weight
    assert close(model.forward(batch.ids, batch.inputs, batch.run)[0], logits, 1e-12)
    unmerge(model)
    assert snapshot(model) == before


def test_a_step_moves_a_tied_adapter_once_as_adamw_says(rng):
    model, batch = tied(), some_batch(rng)
    B, lr = model["embed.token"].lora_B, 1e-3
    before = B.data
    AdamW(model.trainable_parameters(), lr=lr, weight_decay=0).step(gradients(model, batch))
    assert np.abs(B.data - before).max() == pytest.approx(lr, rel=1e-3)  # the first step of Adam is lr, not twice it


# ---- attaching ----


def test_attach_returns_the_paths_in_the_order_of_the_model_and_adapts_nothing_else(rng):
    model = build("llama")
    paths = attach_lora(model, ["v_proj", "q_proj"], r=2, rng=rng)
    assert paths == [f"block_{i}.attention.{name}" for i in (0, 1) for name in ("q_proj", "v_proj")]
    assert paths == [path for path, module in model.named_modules() if isinstance(module, LoRALinear)]


def test_attaching_is_the_visible_assignment_in_a_loop(rng):
    by_hand, attached = build("llama"), build("llama")
    by_hand.freeze()
    generator = np.random.default_rng(4)
    for i in (0, 1):
        path = f"block_{i}.attention.q_proj"
        by_hand[path] = LoRALinear(by_hand[path], r=2, alpha=3, rng=generator)
    attach_lora(attached, "q_proj", r=2, alpha=3, rng=np.random.default_rng(4))
    one, other = by_hand.state_dict(), attached.state_dict()
    assert {name: data.tobytes() for name, data in one.items()} == {name: d.tobytes() for name, d in other.items()}
    assert set(by_hand.trainable_parameters()) == set(attached.trainable_parameters())


def test_adapting_a_layer_renames_no_parameter_of_it(rng):
    model = build("bert")
    names = set(model.named_parameters())
    paths = attach_lora(model, "all-linear", r=2, rng=rng)
    added = {f"{path}.{name}" for path in paths for name in ("lora_A", "lora_B")}
    assert set(model.named_parameters()) == names | added
    assert set(model.trainable_parameters()) == added


@each_family
def test_all_linear_is_every_linear_but_the_head(family, rng):
    model = build(family, tied=False)
    linear = [path for path, module in model.named_modules() if isinstance(module, Linear)]
    assert attach_lora(model, "all-linear", r=2, rng=rng) == [path for path in linear if path != "lm_head"]
    assert "lm_head" in linear


def test_a_dict_gives_every_layer_its_rank_and_a_path_beats_a_last_name(rng):
    model = build("llama")
    attach_lora(model, {"block_1.attention.q_proj": 3, "q_proj": 2, "block_0.mlp.up_proj": 5}, r=7, rng=rng)
    ranks = {path: module.r for path, module in model.named_modules() if isinstance(module, LoRALinear)}
    assert ranks == {"block_0.attention.q_proj": 2, "block_0.mlp.up_proj": 5, "block_1.attention.q_proj": 3}
    assert (
        {p: model[p].lora_A.data.shape[0] for p in ranks} == {p: model[p].lora_B.data.shape[1] for p in ranks} == ranks
    )


@pytest.mark.parametrize("train", ["bias", "norm", "lm_head", ("bias", "norm"), "up_proj"])
def test_train_names_what_else_learns(train, rng):
    model = build("bert", tied=False)
    norms = {path for path, module in model.named_modules() if isinstance(module, LayerNorm)}
    expected = set()
    for name in model.named_parameters():
        layer_path, _, last = name.rpartition(".")
        kinds = {"bias"} & {last} | ({"norm"} if layer_path in norms else set()) | {layer_path.rpartition(".")[2]}
        if kinds & ({train} if isinstance(train, str) else set(train)):
            expected.add(name)
    attach_lora(model, ["q_proj", "down_proj"], r=2, rng=rng, train=train)
    assert expected
    assert set(model.trainable_parameters()) == expected | lora_names(model)


def test_a_second_attach_keeps_the_first_trainable(rng):
    model = build("llama")
    first, second = (attach_lora(model, target, r=2, rng=rng) for target in ("q_proj", "v_proj"))
    assert len(first) == len(second) == 2
    assert set(model.trainable_parameters()) == lora_names(model)
    assert len(lora_names(model)) == 8


def test_a_second_attach_thaws_the_first_and_freezes_what_its_train_does_not_name(rng):
    model = build("llama")
    attach_lora(model, "q_proj", r=2, rng=rng, train="norm")
    model["block_0.attention.q_proj"].lora_A.trainable = False
    attach_lora(model, "v_proj", r=2, rng=rng)
    assert set(model.trainable_parameters()) == lora_names(model)


REFUSED = [
    ({"r": 0}, "block_0.attention.q_proj: r 0 is not a whole number from 1 to"),
    ({"r": -2}, "r -2 is not"),
    ({"r": True}, "r True is not"),
    ({"r": 2.0}, "r 2.0 is not"),
    ({"targets": {"q_proj": 2, "v_proj": -5}}, "block_0.attention.v_proj: r -5 is not a whole number from 1 to"),
    (
        {"targets": "proj"},
        "no layer is called 'proj': did you mean 'v_proj'\\? choose from embed, q_proj, k_proj, v_proj, o_proj",
    ),
    ({"targets": ["q_proj", "query"]}, "no layer is called 'query': choose from embed, q_proj"),
    ({"targets": {"block_2.attention.q_proj": 2}}, "no layer is called 'block_2.attention.q_proj'"),
    ({"targets": "token"}, "no layer is called 'token'"),
    ({"targets": []}, "no target is named"),
    ({"dropout": 1.0}, "dropout 1.0 is not a probability below 1"),
    ({"dropout": -0.1}, "dropout -0.1 is not"),
    ({"dropout": math.nan}, "dropout nan is not"),
    ({"init": "zeros"}, "lora has no init 'zeros': choose from uniform"),
    ({"train": "biases"}, "train='biases' matches nothing"),
    ({"rng": None}, "rng None is neither a seed nor a generator: rng=0, or rng=numpy.random.default_rng"),
    ({"rng": -1}, "rng -1 is neither a seed nor"),
    ({"alpha": True}, "alpha True is not a number"),
    ({"targets": ["q_proj", "o_proj"]}, "block_0.attention.o_proj: this layer is adapted already"),
    ({"ensure_weight_tying": True}, "ensure_weight_tying: no target is an embedding that a head is tied to"),
    ({"targets": ["embed", "lm_head"], "ensure_weight_tying": True}, "lm_head shares the embedding's adapter"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_an_attach_that_fails_says_why_and_leaves_the_model_as_it_was(options, message, rng):
    model = adapted("llama", ["o_proj"])
    model.named_parameters()["norm.weight"].trainable = True
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        attach_lora(model, **{"targets": ["q_proj"], "r": 2, "rng": rng, **options})
    assert snapshot(model) == before


def test_ranks_above_the_smaller_side_are_one_warning_and_work_as_others_do(rng):
    model, batch = build("llama"), some_batch(rng)
    with pytest.warns(UserWarning, match="wasted") as told:
        attach_lora(model, ["q_proj", "k_proj", "embed"], r=13, rng=rng)
    assert [str(warning.message) for warning in told] == [
        "rank 13 of embed.token (and of 4 more) is above 12, the smaller side of its weight: the rest is wasted"
    ]
    train(model, batch)
    adapter = model["block_0.attention.k_proj"]
    assert np.linalg.matrix_rank(adapter.delta()) == min(adapter.delta().shape) < adapter.r
    assert len(adapter_singular_values(adapter)) == min(adapter.delta().shape)
    before = model.forward(batch.ids)[0]
    with pytest.warns(UserWarning, match="no longer tied"):
        merge(model)
    assert close(model.forward(batch.ids)[0], before, 1e-12)


def test_an_adapter_that_cannot_be_drawn_leaves_its_base_as_it_was(rng):
    base = Linear(rng.standard_normal((4, 5)))
    before = snapshot(base)
    with pytest.raises(ValueError, match="rng None is neither a seed nor a generator"):
        LoRALinear(base, r=2, rng=None)
    assert snapshot(base) == before


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda rng: Embedding(np.ones((5, 4))), "for a Linear, and this is of type Embedding"),
        (lambda rng: LayerNorm(np.ones(4), np.ones(4)), "this is of type LayerNorm"),
        (lambda rng: layer(rng), "adapted already"),
        (lambda rng: MergedLinear(layer(rng)), "adapted already"),
    ],
    ids=["an embedding", "a norm", "an adapter", "a merged adapter"],
)
def test_an_adapter_goes_on_a_plain_linear_only(base, message, rng):
    module = base(rng)
    before = snapshot(module)
    with pytest.raises(ValueError, match=message):
        LoRALinear(module, r=2, rng=rng)
    assert snapshot(module) == before


# ---- training, merging, unmerging ----


def train(model: Transformer, batch: Batch, steps: int = 3) -> None:
    optimizer = AdamW(model.trainable_parameters(), lr=0.02, weight_decay=0.1)
    for _ in range(steps):
        optimizer.step(gradients(model, batch))


@each_family
def test_steps_lower_the_loss_and_change_no_frozen_bit(family, rng):
    model, batch = adapted(family), some_batch(rng)
    before, start = model.state_dict(), {name: data.copy() for name, data in model.state_dict().items()}
    first = loss(model, batch)
    train(model, batch)
    assert loss(model, batch) < first
    for name, data in model.state_dict().items():
        assert before[name].tobytes() == start[name].tobytes(), f"{name} was written into"
        assert (data is before[name]) == (name not in lora_names(model)), name


@pytest.mark.each_value
@each_family
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_a_merged_model_gives_the_logits_of_the_adapted_one_without_its_adapters(family, dtype, tolerance, rng):
    model, batch = adapted(family, dtype=dtype), some_batch(rng, "right")
    paths = [path for path, module in model.named_modules() if isinstance(module, LoRALinear)]
    logits, _ = model.forward(batch.ids, batch.inputs, batch.run)
    assert merge(model) == paths
    merged, _ = model.forward(batch.ids, batch.inputs, batch.run)
    assert merged.dtype == dtype
    assert close(merged, logits, tolerance)
    assert not lora_names(model)
    assert not model.trainable_parameters()
    assert not any(isinstance(module, LoRALinear) for _, module in model.named_modules())
    assert all(isinstance(model[path], Linear) for path in paths)


def test_unmerge_gives_back_the_very_same_weights_and_adapters_whatever_was_trained_between(rng):
    model, batch = adapted("bert", ["q_proj", "up_proj"], train="bias"), some_batch(rng)
    train(model, batch)
    adapters = {path: module for path, module in model.named_modules() if isinstance(module, LoRALinear)}
    weights = {path: (a.base.weight, a.base.weight.data, a.base.weight.data.copy()) for path, a in adapters.items()}
    lora = {name: data for name, data in model.state_dict().items() if name in lora_names(model)}
    for _ in range(2):
        paths = merge(model)
        biases = {name: data.copy() for name, data in model.state_dict().items() if name.endswith("bias")}
        train(model, batch)  # the biases
        assert any((model.state_dict()[name] != data).any() for name, data in biases.items())
        assert unmerge(model) == paths == list(adapters)
        for path, (parameter, data, copy) in weights.items():
            assert model[path] is adapters[path]
            assert model[path].base.weight is parameter
            assert parameter.data is data
            assert data.tobytes() == copy.tobytes()
        assert all(model.state_dict()[name] is data for name, data in lora.items())


def test_merging_twice_or_unmerging_what_is_not_merged_does_nothing(rng):
    model = adapted("llama")
    assert unmerge(model) == []
    assert merge(model)
    before = snapshot(model)
    assert merge(model) == []
    assert snapshot(model) == before


def test_merging_an_adapter_of_a_tied_head_leaves_the_embedding_alone(rng):
    model, batch = adapted("gpt2", ["lm_head"]), some_batch(rng)
    token = model["embed.token"].weight
    embedding, data, logits = token.data, token.data.copy(), model.forward(batch.ids, batch.inputs, batch.run)[0]
    with pytest.warns(UserWarning, match="lm_head is no longer tied"):
        merge(model)
    assert token.data is embedding
    assert embedding.tobytes() == data.tobytes()
    assert model["lm_head"].weight is not token
    assert close(model.forward(batch.ids, batch.inputs, batch.run)[0], logits, 1e-12)
    unmerge(model)
    assert model["lm_head"].base.weight is token


# ---- Hugging Face PEFT with the same numbers ----


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("rslora", [False, True])
def test_the_gradients_of_A_and_B_are_those_of_peft(rslora, rng):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    other = hugging_face(build("llama"))
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"], use_rslora=rslora)
    other = peft.get_peft_model(other, config).double()
    model, batch = adapted("llama", ["q_proj", "v_proj"], rslora=rslora), some_batch(rng)
    ours = {name: data for name, data in model.state_dict().items() if name in lora_names(model)}
    parameters = dict(other.named_parameters())

    def theirs(name: str) -> Any:
        _, i, _, layer, lora = name.replace("block_", "block.").split(".")
        return parameters[f"base_model.model.model.layers.{i}.self_attn.{layer}.{lora}.default.weight"]

    with torch.no_grad():
        for name, data in ours.items():
            theirs(name).copy_(torch.tensor(data))
    logits = hugging_face_logits(other, batch)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(batch.labels).flatten()).backward()
    assert close(model.forward(batch.ids, batch.inputs, batch.run)[0], logits.detach().numpy(), 1e-5)
    grads = named(model, gradients(model, batch))
    assert set(grads) == set(ours)
    assert sum(p.requires_grad for p in parameters.values()) == len(grads)
    for name, gradient in grads.items():
        assert close(gradient, theirs(name).grad.numpy(), 1e-4), name  # their norms are in float32
    delta = other.base_model.model.model.layers[1].self_attn.v_proj.get_delta_weight("default")
    np.testing.assert_allclose(model["block_1.attention.v_proj"].delta(), delta.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("moved", ["float64", "xp"])
def test_an_adapter_that_waited_while_the_model_moved_comes_back_where_the_model_is(moved, xp, rng):
    model = adapted(dtype="float32")
    merge(model)
    if moved == "xp":
        model.to(xp)
    else:
        model.astype(np.float64)
    unmerge(model)
    kinds = {(type(p.data), p.data.dtype) for p in model.named_parameters().values()}
    assert kinds == {(xp.ndarray, np.dtype("f4")) if moved == "xp" else (np.ndarray, np.dtype("f8"))}
