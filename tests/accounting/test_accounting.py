"""Parameters, bytes and FLOPs: the formulas against live models, against each other, and against other libraries."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import examples
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ONE_TEXT

import minilora
from minilora import accounting, nn, ops
from minilora.accounting import METHODS, Account, count, executed_flops, ledger, without_weights
from minilora.accounting.audit import Row, rows
from minilora.accounting.count import GROUPS
from minilora.accounting.flops import total
from minilora.accounting.formulas import formulas
from minilora.accounting.live import counted
from minilora.accounting.memory import DTYPES, peft_name
from minilora.accounting.named import NAMED, PRINTED, read
from minilora.adapters.base import Adapter
from minilora.cli import main
from minilora.cli.commands.count import COUNTED
from minilora.data import Batch
from minilora.models.config import ACTIVATIONS, LABELLED, POOLINGS, Config
from minilora.models.config_json import CLASS_ENDINGS
from minilora.models.families import FAMILIES
from minilora.nn import Attention, FusedAttention, Gradients, Linear, Pass, recompute
from minilora.nn.optim import SGD, AdamW
from minilora.training import loss_and_gradients
from minilora.verify.model_cases import SPECIAL

LLAMA = {
    "model_type": "llama", "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
}  # fmt: skip


# ---- a live model: what is predicted is what is there ----


OPTIONS = "rotary_layers", "sliding_window", "layer_types", "local_rope_theta", "query_pre_attn_scalar"
PARTS = {family: FAMILIES[family].build(Config(8, 1, 8, 2), None).named_modules() for family in ONE_TEXT}
FUSED = {family for family, parts in PARTS.items() if any(isinstance(part, FusedAttention) for _, part in parts)}
BARE = {family: FAMILIES[family].build(Config(8, 1, 8, 2, head="none"), None).state_dict() for family in ONE_TEXT}
BIASED = {family for family, state in BARE.items() if any(path.endswith("bias") for path in state)}


@st.composite
def setups(draw) -> dict[str, Any]:
    """A small model of any family, what of it learns, and a batch."""
    family = draw(st.sampled_from(ONE_TEXT))
    head = draw(st.sampled_from(["lm", *FAMILIES[family].classes]))
    grouped = "n_kv_heads" in FAMILIES[family].config_keys
    heads, kv_heads = draw(st.sampled_from([(1, 1), (4, 4), (4, 2)] if grouped else [(1, 1), (4, 4)]))
    options = {key: value for key, value in SPECIAL.get(family, {}).items() if key in OPTIONS}
    options |= {"qwen2": {"head_dim": 4}, "mistral": {"sliding_window": 3}}.get(family, {})
    targets = draw(
        st.sampled_from(
            [None, "all-linear", ["down_proj"], ["qkv_proj"] if family in FUSED else ["q_proj", "v_proj"]]
            + [["embed"], ["embed", "down_proj"]]
            + ([] if head == "none" else [["down_proj", "lm_head" if head == "lm" else "classifier"]])
        )
    )
    tied = draw(st.booleans())
    train = draw(st.sampled_from([(), ("norm",), ("embed",)] + ([("bias",)] if family in BIASED else [])))
    return {
        "family": family,
        "config": Config(vocab_size=31, n_layers=2, d_model=24, n_heads=heads, n_kv_heads=kv_heads,
                         d_ff=draw(st.integers(5, 9)), max_length=16, tied=tied,
                         dtype=draw(st.sampled_from(["float32", "float64"])),
                         head=head, labels=5, offset=2 if family == "roberta" else 0,
                         activation=draw(st.sampled_from(ACTIVATIONS)),
                         classifier_pooling=draw(st.sampled_from(POOLINGS)),
                         **options),
        "lora": targets and {"targets": targets, "r": draw(st.integers(1, 4)), "train": train,
                             "dropout": draw(st.sampled_from([0.0, 0.3])),
                             "ensure_weight_tying": tied and head == "lm" and "embed" in targets and draw(st.booleans())
                             },
        "frozen": draw(st.sampled_from(["", "lora_A", "lora_B"])),
        "shape": (draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 5, 7]))),
    }  # fmt: skip


def build(setup: dict[str, Any]) -> minilora.Transformer:
    rng = np.random.default_rng(0)
    model = FAMILIES[setup["family"]].build(setup["config"], rng)
    if setup["lora"]:
        minilora.attach_lora(model, rng=rng, alpha=5, **setup["lora"])
        for path, parameter in model.named_parameters().items():
            if setup["frozen"] and path.endswith(setup["frozen"]):
                parameter.trainable = False
    return model


@settings(deadline=None, max_examples=examples.count(60))
@given(setups())
def test_the_ledger_has_the_bytes_of_the_cache_and_the_formulas_the_flops_of_a_step(setup):
    model, (B, T), dtype = build(setup), setup["shape"], setup["config"].dtype
    rng = np.random.default_rng(1)
    run, ids = Pass(np.random.default_rng(2)), rng.integers(0, 31, setup["shape"])
    held: dict[str, Any] = {}

    forward = executed_flops(model, lambda: held.update(y=model.forward(ids, run=run)))
    logits, cache = held["y"]
    assert accounting.nbytes(cache) == sum(
        entry.nbytes for entry in ledger(model, B, T, dtype, dropout=True, loss=False)
    )

    grads = Gradients()
    dlogits = counted(rng.standard_normal(logits.shape).astype(dtype))
    backward = executed_flops(model, lambda: model.backward(dlogits, cache, grads))
    predicted = [{"products": p.products, "sums": p.sums} for p in accounting.flops(model, B, T)]
    assert [forward, backward] == predicted
    assert forward["products"] > 0

    account = Account("this", model, "this", B, T, dtype)
    optimizer = AdamW(model.trainable_parameters())
    actual = accounting.memory(model, cache, grads, optimizer)
    memory = account.memory()
    assert {key: memory[key] for key in ("weights", "gradients", "optimizer")} == {
        key: actual[key] for key in ("weights", "gradients", "optimizer")
    }
    counts = accounting.count_parameters(model)
    assert (account.total, account.trainable) == (counts["total"], counts["trainable"])


@pytest.mark.parametrize("lora", [None, {"targets": "all-linear", "r": 3}, {"targets": ["down_proj"], "r": 2}])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_recomputed_blocks_give_the_same_gradients_for_the_bytes_and_flops_that_are_predicted(family, lora, rng):
    config = Config(vocab_size=31, n_layers=3, d_model=24, n_heads=4, d_ff=20, max_length=16)
    model = build({"family": family, "config": config, "lora": lora and {**lora, "dropout": 0.2}, "frozen": ""})
    ids, run = rng.integers(0, 31, (2, 5)), Pass(np.random.default_rng(7))
    logits, cache = model.forward(ids, run=copy.deepcopy(run))
    dlogits, grads, again = rng.standard_normal(logits.shape).astype("f4"), Gradients(), Gradients()
    model.backward(dlogits, cache, grads)

    kept_without = sum(array.nbytes for array in ledger(model, 2, 5, dropout=True))
    recompute(model)
    held: dict[str, Any] = {}
    executed_flops(model, lambda: held.update(y=model.forward(ids, run=copy.deepcopy(run))))
    cache = held["y"][1]
    backward = executed_flops(model, lambda: model.backward(counted(dlogits), cache, again))
    assert set(grads) == set(again)
    assert all(np.array_equal(grads[p], np.asarray(again[p])) for p in grads)
    _, predicted = accounting.flops(model, 2, 5)
    assert backward == {"products": predicted.products, "sums": predicted.sums}

    layers = list(model.layers.values())[-len(cache) :]
    sizes = [
        accounting.nbytes([cache, layer.block.forward(*kept)[1]])
        for layer, kept in zip(layers, cache, strict=True)
        if isinstance(layer, minilora.nn.Checkpointed)
    ]
    assert max(sizes) == sum(array.nbytes for array in ledger(model, 2, 5, dropout=True, loss=False)) < kept_without


@pytest.mark.each_value
@pytest.mark.parametrize("T", [127, 128, pytest.param(129, marks=pytest.mark.slow), 300])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    ("family", "heads", "options"),
    [(family, (4, 4), {}) for family in ("gpt2", "llama", "bert")]
    + [("llama", (4, 2), {}), ("llama", (4, 1), {}), ("gpt2", (1, 1), {})]
    + [("mistral", (4, 2), {"sliding_window": window}) for window in (1, 130, 171, 299)]
    + [("qwen2", (4, 4), {"sliding_window": 40, "max_window_layers": 1})],
)
def test_attention_in_blocks_keeps_and_executes_what_is_predicted_and_nothing_is_tokens_squared(
    family, heads, options, again, T, rng, monkeypatch
):
    monkeypatch.setattr(minilora.nn.Attention, "blockwise_from", 128)
    sizes = {"vocab_size": 31, "n_layers": 2, "d_model": 8, "n_heads": heads[0], "n_kv_heads": heads[1], "d_ff": 5}
    config = Config(**sizes, max_length=300, **options)
    model = build({"family": family, "config": config, "lora": {"targets": "all-linear", "r": 1}, "frozen": ""})
    if again:
        recompute(model)
    held: dict[str, Any] = {}
    forward = executed_flops(model, lambda: held.update(y=model.forward(rng.integers(0, 31, (2, T)))))
    logits, cache = held["y"]
    dlogits = counted(rng.standard_normal(logits.shape, dtype="float32"))
    backward = executed_flops(model, lambda: model.backward(dlogits, cache, Gradients()))
    predicted = accounting.flops(model, 2, T)
    assert [forward, backward] == [{"products": p.products, "sums": p.sums} for p in predicted]
    entries = ledger(model, 2, T, loss=False)
    assert any(entry.shape[-2:] == (T, T) for entry in entries) == (T < 128 or family == "bert")
    if not again:
        assert accounting.nbytes(cache) == sum(entry.nbytes for entry in entries)


def test_a_causal_mask_saves_nearly_half_of_a_long_sequence_and_nothing_of_a_short_one():
    def attention(model: str, T: int) -> list[int]:
        return [part.attention for part in count(model, "full", tokens=T).flops()]

    once, long = attention("gpt2", 500), attention("gpt2", 1000)
    assert long[0] / once[0] == pytest.approx(4 * (1 + 128 / 1000) / 2, rel=0.01)
    assert long[1] == 2.5 * long[0]
    once, long = attention("bert-base", 500), attention("bert-base", 512)
    assert [b / a for a, b in zip(once, long, strict=True)] == [(512 / 500) ** 2] * 2


def test_past_a_window_attention_grows_as_the_tokens_and_up_to_it_as_without_one():
    def forward(T: int, **said: Any) -> int:
        return count(NAMED["mistral-7b"] | said, "full", tokens=T).flops()[0].attention

    free = {"sliding_window": None}
    for T in (100, 512, 4096):
        assert forward(T) == forward(T, **free)
    assert forward(32768) - forward(24576) == forward(24576) - forward(16384) == 8192 * (4096 + 128) * 32 * 4 * 4096
    assert forward(32768) < 0.25 * forward(32768, **free)
    half = {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 16}
    assert 2 * forward(32768, **half) == forward(32768) + forward(32768, **free)


def test_the_ledger_has_the_bytes_of_what_the_loss_keeps(rng):
    model = build(
        {
            "family": "llama",
            "config": Config(vocab_size=31, n_layers=1, d_model=8, n_heads=2, max_length=9),
            "lora": None,
        }
    )
    ids = rng.integers(0, 31, (3, 4))
    _, cache = ops.cross_entropy_forward(model.forward(ids)[0], ids)
    kept = [entry.nbytes for entry in ledger(model, 3, 4) if entry.layer == "loss"]
    assert accounting.nbytes(cache) == sum(kept)


def test_what_is_frozen_keeps_nothing_and_a_frozen_A_keeps_no_input():
    def what(method: str) -> set[str]:
        return {entry.what for entry in count(LLAMA, method, targets=TARGETS.get(method), tokens=5).ledger()}

    TARGETS = {"lora": "all-linear", "lora-fa": "all-linear"}
    assert "x" in what("full") & what("lora")
    assert "x" not in what("lora-fa")
    assert "h" in what("lora") & what("lora-fa")
    model = build({"family": "bert", "config": Config(vocab_size=31, n_layers=1, d_model=8, n_heads=2), "lora": None})
    model.freeze()
    assert ledger(model, 3, 4) == []


# ---- what is there, counted ----


def small(rng, **words):
    made = minilora.llama(
        minilora.Config(vocab_size=32, n_layers=2, d_model=16, n_heads=4, n_kv_heads=2, d_ff=24, max_length=16), rng
    )
    if words:
        minilora.attach_lora(made, rng=rng, **words)
    return made


@pytest.mark.parametrize(
    "words",
    [
        {"targets": "all-linear", "r": 3},
        {"targets": {"q_proj": 2, "lm_head": 4}},
        {"targets": ["embed", "q_proj"], "r": 3},
        {"targets": "embed", "ensure_weight_tying": True},
    ],
)
def test_the_formula_counts_what_the_model_holds(rng, words):
    adapted = small(rng, **words)
    counted = accounting.count_parameters(adapted)
    assert counted["trainable"] == accounting.adapter_parameters(adapted)
    assert counted["total"] == accounting.count_parameters(small(rng))["total"]


def test_every_buffer_is_counted_once_and_a_view_as_its_owner():
    x, y = np.zeros((4, 5)), np.zeros(3, dtype="f4")
    read = np.frombuffer(bytes(24), dtype="f8")
    assert accounting.nbytes([read, read[1:]]) == 24
    assert accounting.nbytes([x, x, x[1], x.T[2:], (y, {"a": 1}, None, y[:1])]) == x.nbytes + y.nbytes
    assert accounting.nbytes({"x": x, "again": x[1:], "y": [y]}) == x.nbytes + y.nbytes


def test_memory_is_the_bytes_of_the_four_values(rng):
    ids = rng.integers(0, 32, (2, 8))
    for words in ({}, {"targets": "all-linear", "r": 3}, {"targets": ["v_proj"], "r": 1}):
        m = small(rng, **words)
        _, cache = m.forward(ids)
        _, grads = loss_and_gradients(m, Batch(ids, ids))
        trainable, total = (
            sum(p.data.nbytes for p in m.trainable_parameters().values()),
            sum(p.data.nbytes for p in m.named_parameters().values()),
        )
        bytes_of = accounting.memory(m, cache, grads, AdamW(m.trainable_parameters()))
        assert (bytes_of["weights"], bytes_of["gradients"], bytes_of["optimizer"]) == (total, trainable, 2 * trainable)
        assert accounting.memory(m, cache, Gradients(), SGD(m.trainable_parameters()))["optimizer"] == 0


def test_adapting_fewer_layers_keeps_less_and_freezing_all_keeps_nothing(rng):
    ids = rng.integers(0, 32, (2, 8))
    caches = [
        accounting.nbytes(small(rng, **words).forward(ids)[1])
        for words in ({}, {"targets": "all-linear", "r": 1}, {"targets": ["v_proj"], "r": 1})
    ]
    assert caches[0] > caches[1] > caches[2]
    frozen = small(rng)
    frozen.freeze()
    assert accounting.nbytes(frozen.forward(ids)[1]) == 0


# ---- the formulas ----


def test_a_gpt2_has_the_parameters_of_its_formula():
    for name, c in NAMED.items():
        if c.get("model_type") == "gpt2":
            d, L, V, T = (c[key] for key in ("n_embd", "n_layer", "vocab_size", "n_positions"))
            assert count(name, "full").total == L * (12 * d * d + 13 * d) + V * d + T * d + 2 * d
            assert count(name, "top2").trainable == 2 * (12 * d * d + 13 * d)


def test_a_llama_has_the_parameters_of_its_formula():
    for name, c in NAMED.items():
        if c.get("model_type") in ("llama", "mistral"):
            C, F, L, V = (c[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
            KV = C // c["num_attention_heads"] * c["num_key_value_heads"]
            heads = 1 if c.get("tie_word_embeddings") else 2
            assert count(name, "full").total == L * (2 * C * C + 2 * C * KV + 3 * C * F + 2 * C) + heads * V * C + C


def test_every_method_trains_what_its_formula_says():
    C, F, H, G, D, L, r, n = 24, 40, 4, 2, 6, 2, 3, 5
    trained = {
        "full": count(LLAMA, "full").total,
        "top2": L * (C * H * D * 2 + 2 * C * G * D + 3 * C * F + 2 * C),
        "prefix-embed": C * n,
        "prefix-layer": L * C * n,
        "lora": L * r * ((C + H * D) + (C + G * D)),
        "qlora": L * r * (2 * (C + H * D) + 2 * (C + G * D) + 3 * (C + F)),
        "adalora": L * r * ((C + H * D + 1) + (C + G * D + 1)),
        "lora-fa": L * r * (H * D + G * D),
        "dora": L * (r * ((C + H * D) + (C + G * D)) + H * D + G * D),
        "vera": L * (H * D + G * D + 2 * r),
        "lora-xs": 2 * L * r * r,
        "svf": 2 * L * r,
        "ia3": L * (2 * G * D + F),
        "loha": 2 * L * r * ((C + H * D) + (C + G * D)),
        "lokr": L * ((4 * 4 + 6 * 6) + (3 * 4 + 4 * 6)),  # C = H D = 4 · 6, G D = 3 · 4, and r = 3 is half of 6
        "adapter-houlsby": 2 * L * (2 * C * r + r + C),
        "adapter-pfeiffer": L * (2 * C * r + r + C),
        "adapter-lin": L * (2 * C * r + r + C + 2 * C),
    }
    trained |= {"token-rows": n * C, "alora": trained["lora"]}
    assert set(trained) == set(accounting.METHODS) - {"bitfit", "lora-bias"}  # Llama has no biases
    for method, expected in trained.items():
        assert count(LLAMA, method, r=r, virtual_tokens=n, tokens=9).trainable == expected, method
    gpt2 = {**TINY["gpt2"], "n_embd": C, "n_layer": L, "n_head": H, "vocab_size": 9, "n_positions": 9, "n_inner": F}
    assert count(gpt2, "bitfit").trainable == L * (3 * C + C + F + C + 2 * C) + C
    assert count(gpt2, "lora-bias", r=r).trainable == L * (r * (C + 3 * C) + 3 * C)


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 100))
def test_lora_costs_two_thirds_of_a_full_step_and_breaks_even_at_its_rank(n_in, n_out, N):
    def steps(r: float) -> tuple[float, float]:
        return N * (4 * n_in * n_out + 6 * r * (n_in + n_out)), N * 6 * n_in * n_out

    lora, full = steps(accounting.break_even_rank(n_in, n_out))
    assert lora == pytest.approx(full)
    assert steps(0)[0] / full == pytest.approx(2 / 3)
    assert accounting.break_even_rank(n_in, n_in) == pytest.approx(n_in / 6)


@settings(deadline=None, max_examples=examples.count(20))
@given(*[st.integers(1, 9)] * 4)
def test_an_association_order_costs_what_it_executes(n_in, n_out, r, N):
    rng = np.random.default_rng(0)
    x, A, B, dy = (rng.standard_normal(s).view(accounting.live.CountedArray) for s in
                   ((N, n_in), (r, n_in), (n_out, r), (N, n_out)))  # fmt: skip
    orders = {
        "(x Aᵀ) Bᵀ": lambda: (x @ A.T) @ B.T, "x (B A)ᵀ": lambda: x @ (B @ A).T,
        "(dy B) A": lambda: (dy @ B) @ A, "dy (B A)": lambda: dy @ (B @ A),
        "(dy B)ᵀ x": lambda: (dy @ B).T @ x, "Bᵀ (dyᵀ x)": lambda: B.T @ (dy.T @ x),
        "dyᵀ (x Aᵀ)": lambda: dy.T @ (x @ A.T), "(dyᵀ x) Aᵀ": lambda: (dy.T @ x) @ A.T,
    }  # fmt: skip
    empty = minilora.Linear(np.zeros((1, 1)))
    for pair in accounting.association_orders(n_in, n_out, r, N).values():
        for name, flops in pair.items():
            assert executed_flops(empty, orders[name])["products"] == flops


@given(st.integers(1, 10**6))
def test_nf4_costs_half_a_bit_for_scales_and_an_eighth_when_they_are_quantised_too(n):
    single, double = accounting.nf4_bits(n, False), accounting.nf4_bits(n, True)
    blocks = math.ceil(n / 64)
    assert single == 4 * n + 32 * blocks
    assert double == 4 * n + 8 * blocks + 32 * math.ceil(blocks / 256) + 32
    if n % 2**14 == 0:
        assert single == 4.5 * n
        assert double - 32 == (4 + 8 / 64 + 32 / (64 * 256)) * n


def test_every_layer_with_a_forward_has_costs():
    layers = [cls for cls in vars(nn).values() if isinstance(cls, type) and issubclass(cls, nn.Module)]
    assert len(layers) > 15
    for cls in layers:
        assert (cls.costs is nn.Module.costs) == (cls.forward is nn.Module.forward), cls


def test_a_model_without_weights_and_what_is_added_to_it_take_no_memory():
    for method in METHODS:
        if method not in (
            "bitfit",
            "lora-bias",
            "vera",
        ):  # llama has no biases; VeRA's A and B are drawn, once for all layers
            parameters = count(LLAMA, method, r=4).model.parameters()
            assert max(sum(np.abs(p.data.strides)) for p in parameters) == 0, method


def test_counting_a_live_model_copies_no_array_and_changes_nothing(rng):
    model = small(rng, targets="all-linear", r=2)
    before = {path: (parameter.data, parameter.trainable) for path, parameter in model.named_parameters().items()}
    account = count(model, "full")
    assert account.total == account.trainable == accounting.count_parameters(small(rng))["total"]
    assert all(p.data is before[path][0] for path, p in account.model.named_parameters().items())
    after = {path: (p.data, p.trainable) for path, p in model.named_parameters().items()}
    assert all(after[path][0] is x and after[path][1] == learns for path, (x, learns) in before.items())


def test_the_groups_add_up_to_the_total_and_every_parameter_is_in_one():
    for name in NAMED:
        account = count(name, "full")
        assert set(account.groups()) == set(GROUPS)
        assert sum(account.groups().values()) == account.total


def test_a_share_is_of_the_base_and_a_new_head_is_trained_whatever_the_method():
    for method in ("lora", "dora", "bitfit", "prefix-embed", "adapter-houlsby"):
        bare = count("roberta-base", method, tokens=4)
        headed = count("roberta-base", method, head="classify", labels=3, tokens=4)
        pooler_bias = 768 if method == "bitfit" else 0  # the bare model ends in a pooler, the other does not
        assert headed.trainable == bare.trainable - pooler_bias + (768 * 768 + 768) + (3 * 768 + 3)
        assert headed.share == headed.trainable / headed.total


def test_attention_is_quadratic_in_the_tokens_and_all_else_linear():
    short, long = (count("gpt2", "lora", tokens=T).flops() for T in (100, 300))
    for a, b in zip(short, long, strict=True):
        assert b.attention == 9 * a.attention
        assert (b.linear, b.adapter) == (3 * a.linear, 3 * a.adapter)


# ---- bad input ----


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "nothing"], "no folder or file 'nothing', none of gpt2, gpt2-medium,"),
        (["--method", "lor"], "no method is called 'lor': did you mean 'lora'? choose from full, top2"),
        (["--targets", "query"], "no layer is called 'query': choose from embed, q_proj"),
        (["--method", "full", "--targets", "q_proj"], "full has no targets to choose"),
        (["--method", "vera", "--targets", "embed"], "this adapter is for a Linear, and this is of type Embedding"),
        (
            ["--rank", "129", "--method", "lora-xs"],
            "block_0.attention.q_proj: r 129 is above 128, the smaller side of",
        ),
        (["--method", "bitfit"], "has no bias"),
        (["--tokens", "129"], "129 tokens are not from 1 to builtin's 128 positions"),
        (["--dtype", "int3"], "no dtype is called 'int3': did you mean 'int8'?"),
        (["--model", "bloom.json"], "family 'bloom' is not supported: choose from"),
        (["--method", "full", "--dtype", "nf4"], "full trains the weights themselves"),
        (["--head", "tail"], "no head is called 'tail': choose from lm, classify, tokens, none"),
        (["--model", "answers.json"], "architectures = ['BertForQuestionAnswering'] is not supported"),
        (["--labels", "3"], "labels = 3 needs head='classify' or head='tokens'"),
        (["--plot", "x.png"], "say --compare"),
        (["--compare", "full,lora", "--method", "lora"], "leave --method out"),
        (["--compare", "full,lora", "--plot", "nowhere/x.png"], "not the name of a .png file in a folder"),
        (["--model", "broken.json"], "broken.json is not valid JSON"),
        (["--model", "folder"], "folder holds no config.json: it is not a model folder"),
        (["--model", "empty.json"], "family None is not supported"),
        (["--model", "lacking.json"], "lacking.json lacks 'vocab_size'"),
        (["--model", "words.json"], "words.json: hidden_size = 'wide' is not a whole number from 1"),
        (["--model", "deep.json"], "deep.json: num_hidden_layers = 999999999 is more than 10,000"),
        (["--model", "wide.json"], "wide.json: vocab_size = 1000000000"),
        (
            ["--method", "prefix-layer", "--tokens", "121"],
            "121 tokens are not from 1 to builtin's 128 positions, less 8",
        ),
        (["--method", "qlora", "--dtype", "float32"], "qlora is over a base in 4 bits, nf4 or nf4-dq, not in float32"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{")
    Path("folder").mkdir()
    Path("empty.json").write_text("{}")
    Path("lacking.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 8}))
    Path("words.json").write_text(json.dumps({**LLAMA, "hidden_size": "wide"}))
    Path("deep.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": 999_999_999}))
    Path("wide.json").write_text(json.dumps({**LLAMA, "vocab_size": 10**400}))
    Path("bloom.json").write_text(json.dumps({"model_type": "bloom", "d_model": 24}))
    Path("answers.json").write_text(json.dumps({**TINY["bert"], "architectures": ["BertForQuestionAnswering"]}))
    assert main(["count", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    "words", [{"batch": 1.5}, {"tokens": 0}, {"tokens": 2.5}, {"r": True}, {"method": "prefix-embed", "tokens": 32}]
)
def test_what_is_counted_over_must_be_whole_and_fit(words):
    with pytest.raises(ValueError, match=r"whole number|not from 1 to"):
        count(LLAMA, **words)


@pytest.mark.parametrize("names", ["", "full,,lora"])
def test_a_list_of_methods_that_lacks_a_name_is_refused(names, capsys):
    with pytest.raises(SystemExit):
        main(["count", "--compare", names])
    assert f"{names!r} lacks a name" in capsys.readouterr().err


def test_the_help_names_every_method():
    assert sorted(re.findall(r"[\w-]{3,}", COUNTED)) == sorted(METHODS)


def test_a_rank_may_be_numpys_and_the_usual_tokens_leave_room_for_virtual_ones():
    assert count(LLAMA, r=np.int64(4)).trainable == count(LLAMA, r=4).trainable
    assert count(LLAMA, "prefix-embed").tokens == LLAMA["max_position_embeddings"] - 8


# ---- the commands ----


def test_count_prints_json_with_every_number_of_the_account(capsys):
    assert main(["count", "--model", "gpt3-175b", "--targets", "q_proj,v_proj", "--rank", "4", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["trainable"] == 96 * 2 * 4 * (12288 + 12288)
    assert said["share"] == said["trainable"] / said["total"]
    assert said["total_printed"] == list(PRINTED["gpt3-175b"])
    assert set(said["memory"]) == {"weights", "gradients", "optimizer", "activations"}
    assert said["memory"]["activations"] == sum(row["bytes"] for row in said["ledger"])
    assert {"forward", "backward"} < set(said["flops"])
    assert said["adapter_bytes"] > 4 * said["trainable"]


def test_count_shows_each_number_beside_its_formula_and_breaks_the_names_of_tensors_at_their_dots(narrow):
    said, slim = narrow(["count", "--model", "gpt3-175b", "--targets", "q_proj,v_proj", "--rank", "4"])
    assert re.search(r"│ block_\*\.attention\.q_proj\. +│ 96 × 12,288 × 12,288 .*\n│ weight +│ +│ +│\n", slim)
    for words in ("50,257 × 12,288", "617,558,016", "174,604,259,328", "175,255.8M", "96 × 4 × 12,288", "18,874,368",
                  "0.0108%", "2,048"):  # fmt: skip
        assert words in said


def evaluated(formula: str, layers: list[dict[str, int]], letters: dict[str, int]) -> int:
    """What a printed formula gives: "2 Σ n in·out" is 2 times a sum over the sizes of the layers."""

    def product(words: str, values: dict[str, int]) -> int:
        factors = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", re.sub("[·×]", "*", words).replace("in", "n_in"))
        return eval(factors.strip() or "1", {}, values)

    outside, sigma, inside = formula.partition("   ")[0].partition("Σ")
    if not sigma:
        return product(outside, letters)
    return product(outside, {}) * sum(product(inside, letters | sizes) for sizes in layers)


def sizes_of(account: Account, layer: Any, path: str) -> dict[str, int]:
    n_out, n_in = layer.weight.data.shape
    rows = 1 if path.startswith(("classifier", "pooler")) else account.tokens + account.virtual_tokens
    return {"n": account.batch * rows, "n_in": n_in, "out": n_out}


WINDOWED = LLAMA | {"model_type": "qwen2", "num_hidden_layers": 5, "max_position_embeddings": 700,
                    "use_sliding_window": True, "sliding_window": 200, "max_window_layers": 1}  # fmt: skip
COSTS: list[tuple[Any, str, dict[str, Any]]] = [
    *((LLAMA, method, {"r": 3}) for method in METHODS if method not in ("bitfit", "lora-bias")),
    ("bert-base", "lora", {"r": 3}),
    ("roberta-base", "dora", {"head": "classify", "labels": 3}),
    (LLAMA, "lora", {"targets": ["q_proj", "lm_head"], "r": 2}),
    (LLAMA, "dora", {"recompute": True}),
    (LLAMA, "top2", {"recompute": True, "batch": 3}),
    ("gpt2", "lora", {"tokens": 700}),
    ("gpt2", "prefix-embed", {"tokens": 510, "virtual_tokens": 8, "recompute": True}),
    ("bert-base", "lora", {"tokens": 512}),
    ("mistral-7b", "lora", {"tokens": 5000}),
    (WINDOWED, "full", {"tokens": 700}),
    (WINDOWED, "top2", {"tokens": 700, "recompute": True}),
]  # fmt: skip


@pytest.mark.parametrize(("model", "method", "words"), COSTS)
def test_each_formula_of_flops_gives_the_number_beside_it(model, method, words, capsys):
    account = count(model, method, **{"batch": 2, "tokens": 7} | words)
    layers = {path: m for path, m in account.model.named_modules() if isinstance(m, Linear)}
    attentions = [m for _, m in account.model.named_modules() if isinstance(m, Attention)]
    heads, T = attentions[0], account.tokens + account.virtual_tokens
    letters = {"T": T, "N": account.batch * T, "H": heads.heads, "D": heads.head_dim, "r": words.get("r", 8)}
    letters |= {"M": account.batch * heads.scores(T), "W": account.batch * attentions[-1].scores(T)}
    made = {"forward": account.costs.forward, "backward": account.costs.backward}
    adapted = [sizes_of(account, m.base, path) for path, m in account.model.named_modules() if isinstance(m, Adapter)]
    accounting.report.show_account(account)
    printed = " ".join(capsys.readouterr().out.split())
    assert (f"W = {letters['W']:,} scores of a head in a layer with a window" in printed) == (model is WINDOWED)
    for which, part in zip(("forward", "backward"), account.flops(), strict=True):
        linear, added, attention = formulas(account, which)
        expected = total(made[which])  # without what runs again
        paths = [product.layer for product in made[which] if product.kind == "linear"]
        linears = [sizes_of(account, layers[path], path) for path in paths]
        assert evaluated(linear.replace(" + the blocks' forward", ""), linears, letters) == expected.linear
        assert sum(map(int, re.findall(r" of (\d+)", linear))) == len(linears)
        terms = re.findall(r"Σ .*?(?= of| \+ Σ| \+ the|$)", added)
        groups = {product.formula: [] for product in made[which] if product.kind == "adapter"}
        for product in made[which]:
            if product.kind == "adapter":
                layer = account.model[product.layer]
                groups[product.formula].append(layer.sizes | sizes_of(account, layer.base, product.layer))
        sums = [evaluated(*pair, letters) for pair in zip(terms, groups.values(), strict=True)]
        assert sum(sums) == expected.adapter
        assert evaluated(attention.replace(" + the blocks' forward", ""), [], letters) == expected.attention
        assert ("the blocks' forward" in linear) == (part != expected) == (account.recompute and which == "backward")
        assert f"{which}: linear │ {linear.partition('   ')[0]}" in printed
    assert ("if B A were formed" in printed) == (method in ("lora", "qlora", "alora"))
    if "if B A were formed" in printed:
        assert f"{evaluated('2 Σ (r + n) in·out', adapted, letters):.4g}" in printed


def test_an_embedding_is_adapted_in_the_table_as_other_layers_are(capsys):
    assert main(["count", "--targets", "embed"]) == 0
    assert "Σ n (2 r out)" in capsys.readouterr().out
    assert main(["count", "--targets", "embed,q_proj"]) == 0
    printed = capsys.readouterr().out
    assert "Σ n (2 r out) of 1 + Σ n (2 r (in + out)) of 5" in printed
    assert "if B A were formed" in printed


def test_parts_of_a_fused_layer_are_counted_each_and_written_as_one_of_higher_rank():
    account = count("gpt2-medium", "lora", targets=["q_proj", "v_proj"], r=4)
    assert account.trainable == 24 * 2 * 4 * (1024 + 1024) == 393_216
    assert account.adapter_bytes == count("gpt2-medium", "lora", targets=["qkv_proj"], r=8).adapter_bytes


GPT3 = {  # of two layers: as large, and sooner counted
    "model_type": "gpt2", "n_embd": 7 * 12288, "n_layer": 2, "n_head": 96, "vocab_size": 50257, "n_positions": 2048,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        pytest.param("count --model roberta-large", marks=pytest.mark.slow),
        "count --model gpt3.json --compare full,lora,qlora,dora,ia3",
        pytest.param("audit", marks=pytest.mark.slow),
    ],
)
def test_no_number_and_no_name_is_cut_in_a_terminal_of_80_columns(words, narrow, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("gpt3.json").write_text(json.dumps(GPT3))
    wide, slim = narrow(words.split())
    numbers = set(re.findall(r"\d[\d,.]*\d", wide))
    assert numbers <= set(re.findall(r"\d[\d,.]*\d", slim))
    assert {word for word in re.findall(r"[a-z_]+", wide) if len(word) < 12} <= set(re.findall(r"[a-z_]+", slim))


@pytest.mark.slow
def test_methods_are_set_side_by_side_in_a_table_and_a_figure(tmp_path, capsys):
    plot = tmp_path / "costs.png"
    words = ["--compare", "full,lora,qlora", "--targets", "all-linear", "--dtype", "bfloat16", "--plot", str(plot)]
    assert main(["count", "--model", "llama-2-7b", *words]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("full", "lora", "qlora", "nf4-dq", "6,738,415,616"))
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main(["count", "--model", "llama-2-7b", *words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    weights = {name: account["memory"]["weights"] for name, account in result.items()}
    assert weights["qlora"] < weights["full"] < weights["lora"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_cost_the_bytes_of_their_dtype(dtype):
    _, model = without_weights("smollm2-135m")
    bits = 8 * accounting.weight_bytes(model, dtype) / count("smollm2-135m", "full").total
    known = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16, "int8": pytest.approx(9.7, abs=0.1)}
    assert bits == known.get(dtype, pytest.approx(7, abs=0.5))


# ---- the audit ----


def test_a_row_of_the_audit_is_reproduced_only_if_rounding_gives_what_is_printed():
    def row(printed: str, value: float) -> Row:
        return Row("a paper", "table 1", "a thing", printed, "n", value)

    assert row("4.7M", 4_749_999).reproduced
    assert not row("4.7M", 4_750_001).reproduced
    assert row("4.7M", 4_799_999).verdict == "cut off, not rounded"
    assert row("4.7M", 4_800_001).verdict == "differs by -2.08%"
    assert row("1,234.5GB", 1.23449e12).reproduced


@pytest.mark.slow
def test_the_audit_finds_the_rows_that_do_not_reproduce(capsys):
    found = list(rows())
    wrong = {row.what for row in found if not row.reproduced}
    for words in ("BitFit", "PreLayer, 2 + 2", "LoRA on q and v, r = 4", "AdapterH, r = 64", "full fine-tuning"):
        assert any(words in what for what in wrong), words
    right = {row.what for row in found if row.reproduced}
    for words in ("top 2 blocks", "PreEmbed, 256", "AdapterH, r = 8", "LoRA on q, v, r = 8", "scales of NF4"):
        assert any(words in what for what in right), words
    assert main(["audit", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["reproduced"] for row in said] == [row.reproduced for row in found]
    assert all(row.reason for row in found if not row.reproduced)
    assert main(["audit"]) == 0
    printed = capsys.readouterr().out
    good, fitted, cut, other = map(
        int, re.findall(r"(\d+)(?: of \d+ numbers follow| more agree| are only| differ)", printed)
    )
    assert good == sum(row.reproduced for row in found)
    assert (fitted, cut) == (4, sum(row.verdict.startswith("cut off") for row in found))
    assert good + fitted + cut + other == len(found)
    assert "25% less time" in printed  # the reason of a number that is reproduced


@pytest.mark.slow
def test_an_r_that_was_fitted_to_a_number_does_not_reproduce_it():
    fitted = [row for row in rows() if row.fitted]
    assert all("not printed" in row.what and not row.reproduced for row in fitted)
    assert [row.agrees for row in fitted] == [True] * 4 + [False]


# ---- other libraries ----

TINY: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gpt2": {
        "model_type": "gpt2", "n_embd": 24, "n_layer": 11, "n_head": 4, "vocab_size": 50, "n_positions": 32,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    },
    "bert": {
        "model_type": "bert", "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 40, "max_position_embeddings": 34, "type_vocab_size": 2, "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    },
}  # fmt: skip
TINY["roberta"] = {**TINY["bert"], "model_type": "roberta", "type_vocab_size": 1}
TINY["gemma3_text"] = {**LLAMA, "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 3,
                       "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
TINY["modernbert"] = {
    "model_type": "modernbert", "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 20, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip
TINY["distilbert"] = {
    "model_type": "distilbert", "vocab_size": 50, "dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40,
    "max_position_embeddings": 34,
}  # fmt: skip


def their_model(config: dict[str, Any], head: str, labels: int, device: str = "cpu") -> Any:
    """What `transformers` builds from the config."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    family = config["model_type"]
    rest = {key: value for key, value in config.items() if key not in ("model_type", "fused", "num_labels")}
    made = transformers.AutoConfig.for_model(family, **rest, num_labels=labels, attn_implementation="eager")
    auto = {
        "lm": transformers.AutoModelForMaskedLM if "bert" in family else transformers.AutoModelForCausalLM,
        "classify": transformers.AutoModelForSequenceClassification,
        "tokens": transformers.AutoModelForTokenClassification,
        "none": transformers.AutoModel,
    }[head]
    with torch.device(device):
        return auto.from_config(made)


def heads_of(config: dict[str, Any]) -> list[str]:
    return list(FAMILIES[config["model_type"]].classes)


OF_ONE_TEXT = [name for name in NAMED if read(name)[1]["model_type"] in ONE_TEXT]  # of two: test_two_stacks.py


@pytest.mark.oracle
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in OF_ONE_TEXT])
def test_totals_are_those_of_the_models_that_transformers_builds(name):
    config = dict(read(name)[1])
    for head in heads_of(config):
        labels = config.get("num_labels", 2)
        theirs = sum(p.numel() for p in their_model(config, head, labels, "meta").parameters())
        assert count(name, "full", head=head).total == theirs, head


@pytest.mark.each_value
@pytest.mark.oracle
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", [*TINY, "mistral", "qwen2", "smollm3", "phi3"])
def test_a_config_is_counted_as_the_class_that_wrote_it(family, tied):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = dict(TINY.get(family, LLAMA)) | {"tie_word_embeddings": tied, "pad_token_id": 0}
    del sizes["model_type"]
    config = transformers.AutoConfig.for_model(family, **sizes, num_labels=5)
    classes, seen = FAMILIES[family].classes, 0
    stem = classes["none"].removesuffix("Model")
    for ending, head in CLASS_ENDINGS.items():
        made = getattr(transformers, stem + ending, None)
        if made is None or head not in classes or ending == "ForPreTraining":  # BERT's has a second head
            continue
        with torch.device("meta"):
            total = sum(parameter.numel() for parameter in made(config).parameters())
        assert count(config.to_dict() | {"architectures": [stem + ending]}, "full").total == total, ending
        seen += 1
    assert seen >= 2


@pytest.mark.oracle
@pytest.mark.parametrize("family", TINY)
def test_paths_are_called_as_in_transformers_and_have_its_shapes(family):
    for head in heads_of(TINY[family]):
        _, model = without_weights(TINY[family], head, 3 if head in LABELLED else None)
        ours = {
            peft_name(model, path).removeprefix("base_model.model."): p.data.shape
            for path, p in model.named_parameters().items()
        }
        theirs = {name: tuple(p.shape) for name, p in their_model(TINY[family], head, 3).named_parameters()}
        if family == "gpt2":  # its Conv1D holds (in, out)
            ours = {name: shape[::-1] if "c_" in name else shape for name, shape in ours.items()}
        assert ours == theirs, head


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("name", OF_ONE_TEXT)
def test_flops_are_those_that_torch_counts_in_the_models_of_transformers(name):
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    config = dict(read(name)[1])
    config |= {key: 2 for key in ("n_layer", "num_hidden_layers") if key in config}  # all of them are alike
    head, B, T = heads_of(config)[0], 2, 64
    model = their_model(config, head, 2, "meta")
    with torch.device("meta"):
        ids = torch.zeros(B, T, dtype=torch.long)
        with FlopCounterMode(display=False) as forward:
            out = model(input_ids=ids)
        y = next(getattr(out, key) for key in ("logits", "pooler_output", "last_hidden_state") if hasattr(out, key))
        with FlopCounterMode(display=False) as backward:
            y.sum().backward()
    labels = 2 if head == "classify" else None
    ours = count(config, "full", head=head, labels=labels, batch=B, tokens=T).flops()
    assert [part.products for part in ours] == [forward.get_total_flops(), backward.get_total_flops()]


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", TINY)
def test_adapter_files_have_the_bytes_that_peft_writes(family, dtype, tmp_path):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    config = TINY[family]
    ways: list[tuple[str, Any]] = [("lora", "all-linear"), ("dora", None), ("vera", None), ("ia3", None)]
    if family in ("llama", "gpt2", "bert"):
        ways += [("lora", ["embed", "down_proj"])]
    for head in heads_of(config):
        for method, targets in ways + ([("lora", ["lm_head"])] if family == "llama" and head == "lm" else []):
            labels = 3 if head in LABELLED else None
            account = count(config, method, targets=targets, r=3, head=head, labels=labels, tokens=5, dtype=dtype)
            model = their_model(config, head, 3).to(getattr(torch, dtype))
            paths = [path for path, m in account.model.named_modules() if isinstance(m, Adapter)]
            their = [peft_name(account.model, path).removeprefix("base_model.model.") for path in paths]
            their = [name.removeprefix("model.") if "embed_tokens" in name else name for name in their]
            words: dict[str, Any] = {"target_modules": their, "fan_in_fan_out": family == "gpt2"}
            if head in LABELLED:
                words |= {"task_type": {"classify": "SEQ_CLS", "tokens": "TOKEN_CLS"}[head]}
            scaled = [name for name, path in zip(their, paths, strict=True) if path.endswith("down_proj")]
            made = {
                "lora": lambda: peft.LoraConfig(r=3, **words),  # noqa: B023
                "dora": lambda: peft.LoraConfig(r=3, use_dora=True, **words),  # noqa: B023
                "vera": lambda: peft.VeraConfig(r=3, **words),  # noqa: B023
                "ia3": lambda: peft.IA3Config(feedforward_modules=scaled, **words),  # noqa: B023
            }[method]()
            adapted = peft.get_peft_model(model, made)
            assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == account.trainable
            folder = tmp_path / f"{head}-{method}-{targets}"
            adapted.save_pretrained(folder)
            written = (folder / "adapter_model.safetensors").stat().st_size
            assert account.adapter_bytes == written, (head, method, targets)


@pytest.mark.each_value
@pytest.mark.oracle
@pytest.mark.parametrize("head", ["lm", "classify", "tokens", "none"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "roberta"])
def test_the_embeddings_of_virtual_tokens_have_the_bytes_that_pefts_prompt_tuning_writes(family, head, tmp_path):
    peft = pytest.importorskip("peft")
    if head not in FAMILIES[family].classes or (
        head == "lm" and "bert" in family
    ):  # PEFT has no task for a masked head
        pytest.skip("there is no such prompt tuning")
    labels = 3 if head in LABELLED else None
    account = count(TINY[family], "prefix-embed", virtual_tokens=5, head=head, labels=labels, tokens=4)
    tasks = {"lm": "CAUSAL_LM", "classify": "SEQ_CLS", "tokens": "TOKEN_CLS", "none": "FEATURE_EXTRACTION"}
    task = tasks[head]
    config = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=5)
    adapted = peft.get_peft_model(their_model(TINY[family], head, 3), config)
    adapted.save_pretrained(tmp_path)
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == account.trainable
    assert account.adapter_bytes == (tmp_path / "adapter_model.safetensors").stat().st_size


@pytest.mark.oracle
@pytest.mark.parametrize("n", [64, 4096, 64 * 256, 64 * 300, 24 * 40])
def test_nf4_has_the_bytes_of_what_bitsandbytes_stores(n):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    W = torch.randn(n)
    for double in (False, True):
        packed, state = functional.quantize_4bit(W, quant_type="nf4", blocksize=64, compress_statistics=double)
        parts = [packed, state.absmax]
        if double:
            parts += [state.state2.absmax, state.offset.reshape(1)]
        assert accounting.nf4_bits(n, double) == 8 * sum(part.numel() * part.element_size() for part in parts)
