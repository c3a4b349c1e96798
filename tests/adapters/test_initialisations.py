"""How A and B begin: each function against what its paper says, in a model, in PEFT's files, and beside PEFT's own."""

import json
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from adapters import snapshot
from models import build, close, gradients, named, some_batch
from peft_models import IDS, PADDING, base, logits, trained

import minilora
from minilora.adapters import peft
from minilora.adapters.attach import attach, attach_lora, attach_without_weights
from minilora.adapters.initialisations import descriptions, inits
from minilora.adapters.initialisations.eva import redistributed, shares
from minilora.adapters.initialisations.lora_ga import GAMMA
from minilora.adapters.initialisations.start import Data, Moments
from minilora.adapters.lora import LoRALinear
from minilora.adapters.lora_mica import MiCALinear
from minilora.adapters.lora_residual import ResidualLoRALinear
from minilora.adapters.merge import merge, unmerge
from minilora.adapters.recording import Recorder, record
from minilora.backend import to_numpy
from minilora.data import Batch
from minilora.files import save_tensors
from minilora.jobs.rank import study
from minilora.models.saving import base_hash
from minilora.nn import Gradients, Linear, Pass, recompute
from minilora.nn.optim import SGD
from minilora.training import evaluate

R, S = 4, 1.7
SIZES = [(16, 24), (24, 16), (16, 16)]  # out, in
TAKES = [name for name, init in inits().items() if init.takes_from_W]
KEEPS = [
    name for name, init in inits().items() if not (init.takes_from_W or init.quantizes)
]  # quantizes: test_loftq.py
FROM_W = ["pissa", "olora"]  # which need no data
each_init = pytest.mark.parametrize("name", [*KEEPS, *TAKES])


def drawn(rng, size, dtype="float64"):
    """W, what an initialisation may look at, and the inputs X."""
    n_in = size[1]
    W = rng.standard_normal(size).astype(dtype)
    X = rng.standard_normal((50, n_in)) * np.linspace(3, 0.2, n_in) + rng.standard_normal(n_in)
    return W, Data(rng=0, inputs=Moments.of(X), gradient=rng.standard_normal(size).astype(dtype)), X


def batches(rng, side="left"):
    return [
        Batch(b.ids, b.labels, b.inputs.padding, b.inputs.segments) for b in (some_batch(rng, side), some_batch(rng))
    ]


# ---- the functions ----


@pytest.mark.each_value
@each_init
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-5)])
def test_W_residual_and_s_B_A_are_W_together_and_W_is_not_touched(name, size, dtype, tolerance, rng):
    W, data, _ = drawn(rng, size, dtype)
    before = W.copy()
    A, B, W_residual = inits()[name].make(W, R, S, data)
    assert (A.shape, B.shape) == ((R, size[1]), (size[0], R))
    assert {A.dtype, B.dtype, W_residual.dtype} == {np.dtype(dtype)}
    assert np.array_equal(W, before)
    assert (W_residual is W) == (name in KEEPS)
    assert close(W_residual + S * (B @ A), W, tolerance)
    assert A.any() or B.any()


def test_the_default_is_first_and_draws_as_PyTorchs_Linear_does():
    assert next(iter(inits())) == "uniform"
    adapter = LoRALinear(Linear(np.ones((300, 400))), r=50, rng=3)
    expected = np.random.default_rng(3).uniform(-1, 1, (50, 400)) / 20
    assert np.array_equal(adapter.lora_A.data, expected)


def test_each_has_a_line_about_it_that_is_read_without_numpy():
    assert descriptions() == {name: init.about for name, init in inits().items()}
    assert next(iter(descriptions())) == "uniform"
    code = "import sys; from minilora.adapters import initialisations; initialisations.descriptions();"
    code += "print('numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_orthogonal_halves_are_orthogonal_and_both_factors_learn_at_once(rng):
    W, data, _ = drawn(rng, (16, 24))
    A, B, _ = inits()["orthogonal"].make(W, R, S, data)
    assert abs(B @ A).max() < 1e-16 * 100
    assert np.linalg.matrix_rank(A) == np.linalg.matrix_rank(B) == R // 2
    with pytest.raises(ValueError, match="r = 3 is odd"):
        inits()["orthogonal"].make(W, 3, S, data)


@pytest.mark.parametrize("size", SIZES)
def test_pissa_leaves_the_small_singular_values_in_W_and_balances_A_and_B(size, rng):
    W, _, _ = drawn(rng, size)
    A, B, W_residual = inits()["pissa"].make(W, R, S, Data())
    sigma = np.linalg.svd(W, compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(S * B @ A, compute_uv=False)[:R], sigma[:R], rtol=1e-12)
    np.testing.assert_allclose(np.linalg.svd(W_residual, compute_uv=False)[: len(sigma) - R], sigma[R:], rtol=1e-12)
    np.testing.assert_allclose(B.T @ B, A @ A.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(B.T @ B), sigma[:R] / S, rtol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_olora_begins_with_orthonormal_columns_and_takes_the_first_columns_of_W(size, rng):
    W, _, _ = drawn(rng, size)
    A, B, W_residual = inits()["olora"].make(W, R, 1.0, Data())
    np.testing.assert_allclose(B.T @ B, np.eye(R), atol=1e-14)
    assert np.array_equal(A, np.triu(A))
    np.testing.assert_allclose(W_residual[:, :R], 0, atol=1e-13)


def test_eva_takes_the_directions_of_most_variance_about_the_mean(rng):
    W, data, X = drawn(rng, (16, 24))
    A, B, _ = inits()["eva"].make(W, R, S, data)
    _, sigma, Vt = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(abs((A * Vt[:R]).sum(axis=1)), 1, rtol=1e-10)
    assert not B.any()
    np.testing.assert_allclose(shares(data.inputs), sigma**2 / (sigma**2).sum(), rtol=1e-8)
    few = data._replace(inputs=Moments.of(X[:R]))
    with pytest.raises(ValueError, match="r = 4 is above 3, the number of directions that its inputs"):
        inits()["eva"].make(W, R, S, few)


def test_moments_of_batches_are_those_of_all_rows(rng):
    X = rng.standard_normal((3, 4, 5))
    joined = Moments.of(X[:1]).joined(Moments.of(X[1:]))
    np.testing.assert_allclose(joined.covariance(), np.cov(X.reshape(-1, 5).T, bias=True), atol=1e-15)
    assert joined.N == 12


def test_the_ranks_of_eva_go_where_most_is_explained_and_their_sum_stays():
    flat, steep = np.diag([1.0, 1, 1, 1, 1, 1]), np.diag([8.0, 4, 2, 1, 0.5, 0.5])
    data = {name: Data(inputs=Moments(9, np.zeros(6), 9 * C)) for name, C in (("flat", flat), ("steep", steep))}
    # shares: 1/6 six times; 1/2, 1/4, 1/8, ...
    assert redistributed({"flat": 2, "steep": 2}, data, 2.0) == {"flat": 2, "steep": 2}
    assert redistributed({"flat": 1, "steep": 1}, data, 2.0) == {"flat": 0, "steep": 2}
    assert redistributed({"flat": 1, "steep": 1}, data, 1.0) == {"flat": 1, "steep": 1}
    assert redistributed({"flat": 3, "steep": 3}, data, 1.4) == {"flat": 4, "steep": 2}
    for rho in (0.9, math.nan):
        with pytest.raises(ValueError, match=r"rho = .* is not a number from 1 up"):
            redistributed({"flat": 1}, data, rho)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["corda", "corda_kpm"])
def test_corda_takes_the_triplets_that_matter_most_or_least_for_the_inputs(name, size, rng):
    W, data, X = drawn(rng, size)
    _, _, W_residual = inits()[name].make(W, R, S, data)
    C = X.T @ X / len(X)
    C += 0.01 * np.diag(C).mean() * np.eye(len(C))
    sigma = np.linalg.svd(W @ C, compute_uv=False)
    rest = sigma[R:] if name == "corda" else sigma[:-R]
    np.testing.assert_allclose(np.linalg.svd(W_residual @ C, compute_uv=False)[: len(rest)], rest, rtol=1e-9)
    scaled = inits()[name].make(W, R, S, data._replace(inputs=Moments.of(7 * X)))
    assert close(scaled.W_residual, W_residual, 1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_the_first_step_of_lora_ga_is_the_gradient_projected_on_twice_r_directions(size, rng):
    W, data, _ = drawn(rng, size)
    G, eta = data.gradient, 1e-6
    A, B, _ = inits()["lora_ga"].make(W, R, S, data)
    U, sigma, Vt = np.linalg.svd(G, full_matrices=False)
    step = S * ((B - eta * S * G @ A.T) @ (A - eta * S * B.T @ G) - B @ A)
    c2 = size[0] ** 0.5 / GAMMA
    best = (U[:, : 2 * R] * sigma[: 2 * R]) @ Vt[: 2 * R]
    assert close(step, -eta * S**2 * c2 * best, 1e-4)


def test_the_signs_of_lora_ga_do_not_depend_on_those_of_the_SVD(rng, monkeypatch):
    from minilora.adapters import initialisations

    W, data, _ = drawn(rng, (16, 24))
    first = inits()["lora_ga"].make(W, R, S, data)
    module, svd = sys.modules[f"{initialisations.__name__}.lora_ga"], minilora.adapters.spectrum.svd

    def other_signs(G):
        U, sigma, Vt = svd(G)
        signs = np.where(np.arange(len(sigma)) % 3, -1, 1)
        return U * signs, sigma, Vt * signs[:, None]

    monkeypatch.setattr(module, "svd", other_signs)
    second = inits()["lora_ga"].make(W, R, S, data)
    assert np.array_equal(first.A, second.A)
    assert np.array_equal(first.B, second.B)


def test_mica_begins_where_W_does_least(rng):
    W, _, _ = drawn(rng, (16, 24))
    A, B, _ = inits()["mica"].make(W, R, S, Data())
    assert not A.any()
    np.testing.assert_allclose(B.T @ B, np.eye(R), atol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(W.T @ B, axis=0), np.linalg.svd(W, compute_uv=False)[-R:], rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "r", "message"),
    [
        ("pissa", 17, "r = 17 is above 16, the number of singular values of W"),
        ("olora", 17, "r = 17 is above 16, the number of columns of Q"),
        ("mica", 17, "r = 17 is above 16, the number of singular vectors of W"),
        ("corda", 17, "r = 17 is above 16, the number of singular values of W"),
        ("eva", 25, "r = 25 is above 24, the number of directions"),
        ("lora_ga", 9, "r = 9 is above 8, half of the singular vectors of W's gradient"),  # PEFT: an error on shapes
    ],
)
def test_a_rank_that_an_initialisation_cannot_fill_is_refused(name, r, message, rng):
    W, data, _ = drawn(rng, (16, 24))
    with pytest.raises(ValueError, match=message):
        inits()[name].make(W, r, S, data)
    inits()[name].make(W, r - 1, S, data)


@pytest.mark.parametrize("name", ["pissa", "corda", "corda_kpm"])
@pytest.mark.parametrize("s", [0.0, -1.0])
def test_a_part_of_W_is_shared_by_A_and_B_at_a_scale_above_0_alone(name, s, rng):
    W, data, _ = drawn(rng, (16, 24))
    with pytest.raises(ValueError, match=f"at a scale s = {s:g}: choose an alpha above 0"):
        inits()[name].make(W, R, s, data)


# ---- the layer ----


@pytest.mark.each_value
@pytest.mark.parametrize("name", TAKES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_layer_that_gave_of_its_W_begins_as_the_base_to_the_bit_and_as_its_parts_say(name, size, rslora, dtype, rng):
    W, data, _ = drawn(rng, size, dtype)
    b, x = rng.standard_normal(size[0]).astype(dtype), rng.standard_normal((5, size[1])).astype(dtype)
    plain = Linear(W, b)
    adapter = ResidualLoRALinear(plain, r=R, alpha=5, rslora=rslora, init=name, data=data, rng=0)
    assert adapter.weight.data is W
    y = adapter.forward(x)[0]
    assert y.tobytes() == plain.forward(x)[0].tobytes()
    assert not adapter.delta().any()
    assert np.array_equal(adapter.merged()[0], W)
    A, B, W_residual = inits()[name].make(W, R, adapter.scaling, data)
    assert close(x @ W_residual.T + b + adapter.scaling * x @ A.T @ B.T, y, 1e-12 if dtype == "float64" else 1e-5)


def test_dropout_acts_on_what_learns_alone_as_beside_a_residual_W(rng):
    W, _, _ = drawn(rng, (16, 24))
    adapter, x = ResidualLoRALinear(Linear(W), r=R, alpha=5, dropout=0.4, rng=0), rng.standard_normal((3, 24))
    A, B, W_residual = inits()["pissa"].make(W, R, adapter.scaling, Data())
    y, cache = adapter.forward(x, run=Pass(rng=np.random.default_rng(8)))
    np.testing.assert_allclose(y, x @ W_residual.T + adapter.scaling * (x * cache.keep) @ A.T @ B.T, rtol=1e-10)


@pytest.mark.parametrize("name", FROM_W)
@pytest.mark.parametrize(
    ("family", "targets"), [("llama", "all-linear"), ("gpt2", ["q_proj", "v_proj"]), ("gpt2", "all-linear")]
)
def test_training_moves_no_bit_of_the_base_and_merging_comes_back_to_every_bit(name, family, targets, rng):
    model, batch = build(family), some_batch(rng)
    before, hashed = {n: x.tobytes() for n, x in model.state_dict().items()}, base_hash(model)
    y = model.forward(batch.ids, batch.inputs)[0]
    paths = attach_lora(model, targets, r=2, alpha=3, rng=0, init=name)
    assert {type(model[path]) for path in paths} == {ResidualLoRALinear}
    assert model.forward(batch.ids, batch.inputs)[0].tobytes() == y.tobytes()
    assert {n.rpartition(".")[2] for n in model.trainable_parameters()} == {"lora_A", "lora_B"}
    grads = gradients(model, batch)
    assert all(g.any() for g in named(model, grads).values())  # both factors learn from the first step
    SGD(model.trainable_parameters(), lr=0.1).step(grads)
    tuned, state = model.forward(batch.ids, batch.inputs)[0], snapshot(model)
    assert not close(tuned, y, 1e-3)
    assert base_hash(model) == hashed
    merge(model)
    assert close(model.forward(batch.ids, batch.inputs)[0], tuned, 1e-12)
    unmerge(model)
    assert snapshot(model) == state
    now = {n: x.tobytes() for n, x in model.state_dict().items()}
    assert {n: now[n] for n in before} == before


@pytest.mark.parametrize("name", FROM_W)
def test_the_class_for_counting_is_that_of_the_initialisation(name):
    shapes = []
    for attach_it in (lambda *a, **o: attach(*a, rng=0, **o), attach_without_weights):
        model = build("llama")
        attach_it(model, "lora", "all-linear", r=2, alpha=3, init=name)
        shapes.append({n: (p.data.shape, p.trainable) for n, p in model.named_parameters().items()})
    assert shapes[0] == shapes[1]
    assert "block_0.attention.q_proj.lora_A0" in shapes[0]


def test_mica_freezes_B(rng):
    model, batch = build("llama"), some_batch(rng)
    y = model.forward(batch.ids, batch.inputs)[0]
    paths = attach_lora(model, "all-linear", r=2, rng=0, init="mica")
    assert {type(model[path]) for path in paths} == {MiCALinear}
    assert model.forward(batch.ids, batch.inputs)[0].tobytes() == y.tobytes()
    assert {n.rpartition(".")[2] for n in model.trainable_parameters()} == {"lora_A"}
    assert all(g.any() for g in named(model, gradients(model, batch)).values())


def test_orthogonal_begins_as_the_base_to_rounding(rng):
    model, batch = build("llama"), some_batch(rng)
    y = model.forward(batch.ids, batch.inputs)[0]
    attach_lora(model, "all-linear", r=2, rng=0, init="orthogonal")
    assert close(model.forward(batch.ids, batch.inputs)[0], y, 1e-13)
    assert all(g.any() for g in named(model, gradients(model, batch)).values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"init": "pisa"}, "lora has no init 'pisa': did you mean 'pissa'"),
        ({"init": 3}, "lora has no init 3: choose from uniform"),
        (
            {"targets": ["embed"], "init": "pissa"},
            "embed.token: init 'pissa' is of ResidualLoRALinear, for a Linear, and not of LoRAEmbedding",
        ),
        (
            {"targets": ["embed", "q_proj"], "init": "eva"},
            "embed.token: init 'eva' is of LoRALinear, for a Linear, and not of LoRAEmb",
        ),
        ({"init": "pissa", "r": 13}, "block_0.attention.q_proj: r = 13 is above 12, the number of singular values"),
        ({"init": "pissa", "r": 7}, "block_0.attention.k_proj: r = 7 is above 4"),  # q_proj has been made by then
        ({"init": "orthogonal", "r": 3}, "block_0.attention.q_proj: r = 3 is odd"),
        ({"init": "eva"}, "init 'eva' needs the inputs of the layers: data="),
        ({"init": "lora_ga"}, "init 'lora_ga' needs the gradient of the layers: data="),
        ({"init": "eva", "data": []}, "data holds no batch"),
        ({"init": "eva", "data": "one", "rho": 0.5}, "rho = 0.5 is not a number from 1 up"),
        ({"init": "lora_ga", "data": "one", "r": 7}, "q_proj: r = 7 is above 6, half of the singular vectors"),
    ],
)
def test_an_attach_that_fails_says_why_and_leaves_the_model_as_it_was(words, message, rng):
    model = build("llama")
    model.named_parameters()["norm.weight"].trainable = False
    before = snapshot(model)
    words = {"targets": "all-linear", "r": 2, "rng": 0, **words}
    words["data"] = batches(rng) if words.get("data") == "one" else words.get("data")
    with pytest.raises(ValueError, match=message), warnings.catch_warnings(action="ignore"):  # of a wasted rank
        attach_lora(model, **words)
    assert snapshot(model) == before


def test_a_class_says_whose_an_initialisation_is_and_what_data_it_needs(rng):
    W = Linear(rng.standard_normal((6, 5)))
    with pytest.raises(ValueError, match="init 'pissa' is of ResidualLoRALinear, for a Linear, and not of LoRALinear"):
        LoRALinear(W, r=2, rng=0, init="pissa")
    with pytest.raises(ValueError, match="init 'gaussian' is of LoRALinear, for a Linear, and not of Residual"):
        ResidualLoRALinear(W, r=2, rng=0, init="gaussian")
    with pytest.raises(ValueError, match=r"it needs the inputs of the layer: data=Data\(inputs=...\)"):
        LoRALinear(W, r=2, rng=0, init="eva")
    with pytest.raises(ValueError, match=r"init 'lora_ga' gives numbers that are not finite|did not converge"):
        ResidualLoRALinear(W, r=2, rng=0, init="lora_ga", data=Data(gradient=np.full((6, 5), np.nan)))


# ---- what a model is given, recorded ----


class Spy(Linear):
    """Keeps what it is given."""

    def __init__(self, layer):
        super().__init__(layer.weight, layer.bias)
        self.seen = []

    def forward(self, x, inputs, run):
        self.seen.append(x)
        return super().forward(x, inputs, run)


@pytest.mark.parametrize(("family", "place", "targets"), [
    ("llama", "block_1.mlp.down_proj", ["down_proj", "q_proj"]),
    ("llama", "block_1.attention.k_proj", "all-linear"),
    ("llama", "lm_head", ["lm_head"]),
    ("gpt2", "block_1.attention.qkv_proj", "all-linear"),
    ("gpt2", "block_1.attention.qkv_proj", ["q_proj", "v_proj"]),
])  # fmt: skip
def test_the_inputs_of_a_layer_are_those_of_all_batches_without_padding(family, place, targets, rng):
    model, data = build(family), batches(rng)
    before = snapshot(model)
    parts = (
        [f"{place}.{name}" for name in targets] if place.endswith("qkv_proj") and targets != "all-linear" else [place]
    )
    seen = record(model, {p: minilora.adapters.attach.layer_at(model, p) for p in parts}, data, "inputs")
    assert snapshot(model) == before
    spy = model[place] = Spy(model[place])
    for batch in data:
        model.forward(batch.ids, minilora.Inputs(batch.padding, batch.segments))
    real = [x if b.padding is None else x[b.padding] for x, b in zip(spy.seen, data, strict=True)]
    X = np.concatenate([x.reshape(-1, x.shape[-1]) for x in real])
    assert len(X) == sum(b.ids.size if b.padding is None else b.padding.sum() for b in data)
    for path in parts:
        assert len(X) == seen[path].inputs.N
        np.testing.assert_allclose(seen[path].inputs.total, X.sum(axis=0), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(seen[path].inputs.squares, X.T @ X, rtol=1e-10, atol=1e-12)


def test_layers_that_read_one_x_share_its_sums_and_others_do_not(rng):
    model = build("llama")
    layers = {path: m for path, m in model.named_modules() if isinstance(m, Linear) and path.startswith("block_0")}
    seen = {path.rpartition(".")[2]: x.inputs for path, x in record(model, layers, batches(rng), "inputs").items()}
    assert seen["q_proj"] is seen["k_proj"] is seen["v_proj"]
    assert seen["gate_proj"] is seen["up_proj"]
    assert len({id(x) for x in seen.values()}) == 4


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("llama", True), ("gpt2", True)])
def test_the_gradients_of_W_are_those_of_the_loss_and_of_this_use_alone(family, tied, rng):
    model, data = build(family, tied=tied), batches(rng)
    chosen = {"lm_head": model["lm_head"], "block_0.mlp.down_proj": model["block_0.mlp.down_proj"]}
    name = "block_1.attention.q_proj" if family == "llama" else "block_1.attention.qkv_proj.k_proj"
    chosen[name] = minilora.adapters.attach.layer_at(model, name)
    before = snapshot(model)
    seen = record(model, chosen, data, "gradient")
    assert snapshot(model) == before
    eps = 1e-6
    for path in chosen:
        D = rng.standard_normal(seen[path].gradient.shape)
        above = path.rpartition(".")[0]
        place, rows = (path, slice(None)) if path in dict(model.named_modules()) else (above, slice(12, 24))  # k
        layer, ends = model[place], []
        for sign in (1, -1):
            W = layer.weight.data.copy()
            W[rows] += sign * eps * D
            model[place] = Linear(W, layer.bias)
            ends.append(np.mean([evaluate(model, [batch], description=None) for batch in data]))
        model[place] = layer
        assert abs((ends[0] - ends[1]) / (2 * eps) - (seen[path].gradient * D).sum()) < 1e-7, path


def test_a_model_that_fails_meanwhile_is_left_as_it_was(rng):
    model, data = build("llama"), batches(rng)
    before = snapshot(model)
    wrong = data[0]._replace(ids=data[0].ids + 100)
    with pytest.raises(Exception):  # noqa: B017, PT011  whatever a bad batch raises
        attach_lora(model, "all-linear", rng=0, init="lora_ga", data=[data[0], wrong])
    assert snapshot(model) == before
    assert not any(isinstance(m, Recorder) for _, m in model.named_modules())


@pytest.mark.each_value
@pytest.mark.parametrize("name", [name for name, init in inits().items() if init.needs])
@pytest.mark.parametrize(
    ("family", "targets"), [("llama", "all-linear"), ("gpt2", ["q_proj", "v_proj"]), ("bert", "all-linear")]
)
def test_a_model_begins_as_its_base_whatever_data_its_adapters_saw(name, family, targets, rng):
    model, data = build(family), batches(rng)
    batch = some_batch(rng, "left")
    y = model.forward(batch.ids, batch.inputs)[0]
    paths = attach_lora(model, targets, r=2, alpha=3, rng=0, init=name, data=data)
    assert model.forward(batch.ids, batch.inputs)[0].tobytes() == y.tobytes()
    assert {type(model[path]) for path in paths} == {ResidualLoRALinear if name in TAKES else LoRALinear}
    again = build(family)
    assert attach(again, "lora", targets, r=2, alpha=3, rng=1, init=name, data=iter(data)) == paths
    ours = {n: x.tobytes() for n, x in model.state_dict().items()}
    assert {n: x.tobytes() for n, x in again.state_dict().items()} == ours  # nothing is drawn


@pytest.mark.parametrize("name", ["pissa", "eva", "lora_ga"])
def test_a_model_on_another_array_library_and_one_that_recomputes_begin_the_same(name, xp, rng):
    states = []
    for change in (lambda model: None, lambda model: model.to(xp), recompute):
        model, data = build("llama"), batches(np.random.default_rng(1))
        change(model)
        attach_lora(model, "all-linear", r=2, rng=0, init=name, data=data)
        states.append({n: p.data for n, p in model.named_parameters().items() if "lora" in n})
    assert {type(x) for x in states[1].values()} == {xp.ndarray}
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        for n, x in state.items():
            assert close(to_numpy(x), states[0][n], 1e-9) or not states[0][n].any(), n


@pytest.mark.parametrize(("family", "r", "lost"), [("llama", 1, 1), ("gpt2", 3, 0)])
def test_eva_gives_layers_their_ranks_and_a_layer_of_rank_0_no_adapter(family, r, lost, tmp_path):
    model, data = base(family), [Batch(IDS, IDS, PADDING)]
    targets = "all-linear" if family == "llama" else ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    alone = attach_lora(base(family), targets, r=r, rng=0)
    paths = attach_lora(model, targets, r=r, alpha=1.5 * r, rng=0, init="eva", data=data, rho=2)
    ranks = {path: model[path].r for path in paths}
    assert sum(ranks.values()) == r * len(alone)
    assert len(set(ranks.values())) > 1
    assert len(paths) == len(alone) - lost
    assert max(ranks.values()) <= 2 * r
    assert {model[path].scaling for path in paths} == {1.5}
    assert {n.rpartition(".")[0] for n in model.trainable_parameters()} == set(paths)
    trained(model)
    peft.save_adapter(model, tmp_path / "a")
    loaded = base(family)
    peft.load_adapter(loaded, tmp_path / "a")
    assert close(logits(loaded), logits(model), 1e-12)
    same = attach_lora(base(family), targets, r=2, alpha=3, rng=0, init="eva", data=data, rho=1)
    assert same == alone


def test_parts_that_all_lose_their_ranks_leave_a_plain_layer(rng, monkeypatch):
    model, data = build("gpt2"), batches(rng)
    chosen = inits()["eva"]._replace(redistribute=lambda ranks, data, rho: {p: 4 * p.endswith("o_proj") for p in ranks})
    monkeypatch.setitem(minilora.adapters.lora.INITS, "eva", chosen)
    paths = attach_lora(model, ["q_proj", "v_proj", "o_proj"], r=2, rng=0, init="eva", data=data)
    assert paths == ["block_0.attention.o_proj", "block_1.attention.o_proj"]
    assert not model["block_0.attention.qkv_proj"].is_adapter


# ---- PEFT's files ----


@pytest.mark.parametrize("name", FROM_W)
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(("family", "targets"), [("llama", ["q_proj", "down_proj"]), ("gpt2", ["q_proj", "v_proj"])])
def test_the_file_holds_a_plain_adapter_of_twice_the_rank_for_the_untouched_base(
    name, rslora, family, targets, tmp_path
):
    model = base(family)
    hashed = base_hash(model)
    minilora.attach_lora(model, targets, r=2, alpha=3, rslora=rslora, rng=0, init=name)
    trained(model)
    learns = set(model.trainable_parameters())
    peft.save_adapter(model, tmp_path / "a")
    assert set(model.trainable_parameters()) == learns
    config = json.loads((tmp_path / "a" / peft.CONFIG).read_text())
    r = 4 if family == "llama" else 8  # of two parts
    s = 3 / math.sqrt(2) if rslora else 3 / 2
    assert (config["r"], config["init_lora_weights"]) == (r, True)
    np.testing.assert_allclose(config["lora_alpha"], s * (math.sqrt(r) if rslora else r), rtol=1e-15)
    _, _, metadata = peft.read_adapter(tmp_path / "a")
    assert metadata["base_sha256"] == hashed
    loaded = base(family)
    assert peft.load_adapter(loaded, tmp_path / "a") == ""
    assert close(logits(loaded), logits(model), 1e-12)


def test_a_bias_that_learns_beside_a_residual_adapter_is_written_and_goes_on_learning(tmp_path):
    model = base("gpt2")
    minilora.attach_lora(model, ["o_proj", "qkv_proj"], r=2, rng=0, init="pissa", train="bias")
    trained(model)
    learns = set(model.trainable_parameters())
    peft.save_adapter(model, tmp_path / "a")
    assert set(model.trainable_parameters()) == learns
    loaded = base("gpt2")
    peft.load_adapter(loaded, tmp_path / "a")
    assert close(logits(loaded), logits(model), 1e-12)


def test_mica_is_written_as_such_and_comes_back_with_B_frozen(tmp_path):
    model = base("llama")
    minilora.attach_lora(model, ["q_proj"], r=2, rng=0, init="mica")
    trained(model)
    peft.save_adapter(model, tmp_path / "a")
    assert json.loads((tmp_path / "a" / peft.CONFIG).read_text())["init_lora_weights"] == "mica"
    loaded = base("llama")
    peft.load_adapter(loaded, tmp_path / "a")
    assert np.array_equal(logits(loaded), logits(model))
    assert {n.rpartition(".")[2] for n in loaded.trainable_parameters()} == {"lora_A"}
    minilora.attach_lora(model, ["v_proj"], r=2, rng=0)
    with pytest.raises(
        ValueError, match="the adapters are MiCALinear and LoRALinear, and PEFT's config has one init_lora"
    ):
        peft.save_adapter(model, tmp_path / "b")


@pytest.mark.parametrize("name", FROM_W)
def test_the_spectrum_of_a_file_without_its_start_needs_the_base_and_a_smaller_one_is_a_plain_adapter(name, tmp_path):
    model = base("llama", dtype="float32")
    minilora.save_pretrained(model, tmp_path / "m")
    minilora.attach_lora(model, ["q_proj"], r=2, rng=0, init=name)
    trained(model)
    layers = {f"model.layers.{i}.self_attn.q_proj": model[f"block_{i}.attention.q_proj"] for i in range(2)}
    peft.save_adapter(model, tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / peft.CONFIG).read_text()) | {"r": 2, "lora_alpha": 16}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / peft.CONFIG).write_text(json.dumps(config | {"init_lora_weights": name}))  # as PEFT writes it
    own = {f"{n}.{x}.weight": getattr(a, x).data for n, a in layers.items() for x in ("lora_A", "lora_B")}
    own = {f"base_model.model.{n}": x for n, x in own.items()}
    save_tensors(tmp_path / "a" / peft.WEIGHTS, own, {})
    with pytest.raises(ValueError, match="lacks lora_B0, which is computed from the base: give its base too"):
        study(str(tmp_path / "a"))
    words = {"base": str(tmp_path / "m"), "rank": 4}
    found = [study(str(tmp_path / name), out=str(tmp_path / f"{name}2"), **words) for name in ("plain", "a")]
    norms = [[row["norm"] for row in report["layers"]] for report in found]
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-4)
    again = base("llama", dtype="float32")
    peft.load_adapter(again, tmp_path / "a2")
    assert close(logits(again), logits(model), 1e-4)


# ---- PEFT's own ----

ALPHA = S * R
quiet = pytest.mark.filterwarnings("ignore")


def their_layer(size, conv, W):
    """A torch model of one layer called `lin`, with our W and a bias."""
    torch = pytest.importorskip("torch")
    layer = (
        pytest.importorskip("transformers.pytorch_utils").Conv1D(*size) if conv else torch.nn.Linear(size[1], size[0])
    )
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(W.T if conv else W))
        layer.bias.copy_(torch.linspace(-1, 1, size[0]))

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = layer

        def forward(self, x, **others):
            return self.lin(x)

    return Net()


def their_config(init, conv, **words):
    hf = pytest.importorskip("peft")
    words = {"r": R, "lora_alpha": ALPHA, "target_modules": ["lin"], "fan_in_fan_out": conv, **words}
    return hf.LoraConfig(init_lora_weights=init, **words)


def their_start(net, config, conv):
    """A, B and W_res of PEFT's layer."""
    lin = pytest.importorskip("peft").get_peft_model(net, config).base_model.model.lin
    A, B, W = (p.detach().numpy() for p in (lin.lora_A["default"].weight, lin.lora_B["default"].weight, lin.weight))
    return A, B, W.T if conv else W


each_kind = pytest.mark.parametrize("conv", [False, True], ids=["Linear", "Conv1D"])


@pytest.mark.each_value
@pytest.mark.oracle
@quiet
@each_kind
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", ["pissa", "olora", "mica", "corda", "corda_kpm"])
def test_the_start_is_that_of_peft(name, rslora, size, conv, rng, tmp_path):
    if name == "olora" and conv:
        pytest.skip("PEFT's is wrong there: the next test")
    W, data, X = drawn(rng, size, "float32")
    net, words = their_layer(size, conv, W), {"use_rslora": rslora}
    s = ALPHA / (math.sqrt(R) if rslora else R)
    if name.startswith("corda"):
        pytest.importorskip("attrs")
        torch, corda = pytest.importorskip("torch"), pytest.importorskip("peft.tuners.lora.corda")
        method = pytest.importorskip("peft.tuners.lora.config").CordaConfig(
            corda_method="kpm" if "kpm" in name else "ipm"
        )
        config = their_config("corda", conv, corda_config=method, **words)
        corda.preprocess_corda(net, config, run_model=lambda: net(torch.tensor(X[None], dtype=torch.float32)))
    else:
        config = their_config(name, conv, **words)
    A, B, W_res = their_start(net, config, conv)
    ours = inits()[name].make(W, R, s, data)
    assert close(s * ours.B @ ours.A, s * B @ A, 2e-5) or name == "mica"
    assert close(ours.W_residual, W_res, 2e-5)
    if name == "mica":
        assert not A.any()
        assert close(ours.B @ ours.B.T, B @ B.T, 1e-5)


@pytest.mark.each_value
@pytest.mark.oracle
@quiet
@each_kind
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_outputs_gradients_and_merged_weights_of_a_residual_adapter_are_those_of_pissa_in_peft(size, bias, conv, rng):
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    W, _, X = drawn(rng, size, "float32")
    net = their_layer(size, conv, W)
    if not bias and not conv:
        net.lin.bias = None
    theirs = hf.get_peft_model(net, their_config("pissa", conv, use_rslora=True)).double()
    lin = theirs.base_model.model.lin
    A0, B0 = (p["default"].weight.detach().numpy().copy() for p in (lin.lora_A, lin.lora_B))
    with torch.no_grad():
        for p in theirs.parameters():
            if p.requires_grad:
                p += torch.tensor(0.3 * rng.standard_normal(p.shape))
    A, B = (p["default"].weight.detach().numpy() for p in (lin.lora_A, lin.lora_B))
    s, W_res = ALPHA / math.sqrt(R), lin.base_layer.weight.detach().numpy()
    W0 = (W_res.T if conv else W_res) + s * B0 @ A0  # the W of before, in float64
    b = lin.base_layer.bias.detach().numpy() if bias or conv else None
    tensors = {"lora_A": A, "lora_B": B, "lora_A0": A0, "lora_B0": B0}
    adapter = ResidualLoRALinear.of(Linear(W0, b), tensors, r=R, alpha=ALPHA, rslora=True)
    x = torch.tensor(X, requires_grad=True)
    y, cache = adapter.forward(X)
    dy, grads = rng.standard_normal(y.shape), Gradients()
    dx = adapter.backward(dy, cache, grads)
    out = lin(x)
    out.backward(torch.tensor(dy))
    pairs = [(y, out.detach()), (dx, x.grad), (grads[adapter.lora_A], lin.lora_A["default"].weight.grad)]
    for ours, other in [*pairs, (grads[adapter.lora_B], lin.lora_B["default"].weight.grad)]:
        np.testing.assert_allclose(ours, other.numpy(), rtol=1e-11, atol=1e-11)
    theirs.merge_adapter()
    merged = lin.base_layer.weight.detach().numpy()
    np.testing.assert_allclose(adapter.merged()[0], merged.T if conv else merged, rtol=1e-11, atol=1e-12)


@pytest.mark.oracle
@quiet
def test_olora_of_peft_is_wrong_where_W_is_stored_transposed_and_ours_is_right(rng):
    torch = pytest.importorskip("torch")
    W, data, X = drawn(rng, (16, 16), "float32")
    x = torch.tensor(X[:5, :16], dtype=torch.float32)
    net = their_layer((16, 16), True, W)
    before = net(x).detach().numpy()
    A, B, W_res = their_start(net, their_config("olora", True), True)
    assert not close(net(x).detach().numpy(), before, 0.1)
    assert not close(W_res + S * B @ A, W, 0.1)
    A, B, W_res = inits()["olora"].make(W, R, S, data)
    assert close(W_res + S * B @ A, W, 1e-5)
    net = their_layer((16, 24), True, np.ones((16, 24), np.float32))
    pytest.importorskip("peft").get_peft_model(net, their_config("olora", True))
    with pytest.raises(RuntimeError, match="shape"):
        net(torch.ones(2, 24))


@pytest.mark.oracle
@quiet
@each_kind
@pytest.mark.parametrize("size", SIZES)
def test_lora_ga_is_that_of_peft_but_for_the_size_of_each_column_and_its_use_of_in_for_out(size, conv, rng):
    torch, loraga = pytest.importorskip("torch"), pytest.importorskip("peft.tuners.lora.loraga")
    W, _, X = drawn(rng, size, "float32")
    X, Y = torch.tensor(X, dtype=torch.float32), torch.tensor(rng.standard_normal((50, size[0])), dtype=torch.float32)
    net = their_layer(size, conv, W)
    settings = pytest.importorskip("peft.tuners.lora.config").LoraGAConfig()
    config = their_config("lora_ga", conv, lora_ga_config=settings)
    grads = []

    def step():
        (net(X) - Y).pow(2).mean().backward()
        grads.append(net.lin.weight.grad.numpy().copy())

    loraga.preprocess_loraga(net, config, train_step=step)
    G = grads[0].T if conv else grads[0]
    torch.manual_seed(0)
    A, B, W_res = their_start(net, config, conv)
    ours = inits()["lora_ga"].make(W, R, S, Data(gradient=G))
    c = size[0] ** 0.25 / math.sqrt(GAMMA)
    sigma = np.linalg.svd(G, compute_uv=False)
    theirs = c if not conv else (size[1] ** 0.25 / math.sqrt(GAMMA))  # PEFT's, of B alone
    np.testing.assert_allclose(abs((ours.A / c * A).sum(axis=1)), 1, rtol=1e-4)
    np.testing.assert_allclose(abs((ours.B / c * B / (theirs * sigma[R : 2 * R])).sum(axis=0)), 1, rtol=1e-4)
    assert close(W_res + S * B @ A, W, 1e-5)


@pytest.mark.oracle
@quiet
def test_lora_ga_of_peft_raises_an_error_on_shapes_above_half_of_the_smaller_side(rng):
    torch, loraga = pytest.importorskip("torch"), pytest.importorskip("peft.tuners.lora.loraga")
    W, _, _ = drawn(rng, (6, 8), "float32")
    net = their_layer((6, 8), False, W)
    settings = pytest.importorskip("peft.tuners.lora.config").LoraGAConfig()
    config = their_config("lora_ga", False, lora_ga_config=settings)
    loraga.preprocess_loraga(net, config, train_step=lambda: net(torch.ones(3, 8)).sum().backward())
    with pytest.raises(RuntimeError, match=r"size|shape"):
        their_start(net, config, False)  # ours: test_a_rank_that_an_initialisation_cannot_fill_is_refused


@pytest.mark.oracle
@quiet
@pytest.mark.parametrize(("rho", "cosine"), [(1.0, 0.99), (2.0, 0.9999)])
def test_eva_has_the_directions_ranks_and_alphas_of_peft(rho, cosine, tmp_path):
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    eva = pytest.importorskip("peft.tuners.lora.eva")
    transformers = pytest.importorskip("transformers")
    model = base("llama", dtype="float32")
    minilora.save_pretrained(model, tmp_path / "m")
    there = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    config = hf.LoraConfig(
        r=2, lora_alpha=3, target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
        init_lora_weights="eva", eva_config=hf.EvaConfig(rho=rho),
    )  # fmt: skip
    theirs = hf.get_peft_model(there, config)
    ids = np.random.default_rng(5).integers(2, 31, (16, 14))
    mask = np.arange(14) < np.random.default_rng(6).integers(5, 15, (16, 1))
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask).long()}
    eva.initialize_lora_eva_weights(theirs, [batch], show_progress_bar=False)
    paths = attach_lora(
        model, ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"], r=2, alpha=3, rng=0, init="eva",
        data=Batch(ids, ids, mask), rho=rho,
    )  # fmt: skip
    found = {n: m for n, m in theirs.named_modules() if hasattr(m, "lora_A") and "default" in m.lora_A}
    ours = {minilora.models.names.hf_name(model, path): model[path] for path in paths}
    found = {n.removeprefix("base_model.model."): m for n, m in found.items()}
    assert {n: m.r["default"] for n, m in found.items()} == {n: a.r for n, a in ours.items()}
    assert {n: m.lora_alpha["default"] for n, m in found.items()} == {n: a.alpha for n, a in ours.items()}
    for n, adapter in ours.items():
        A = found[n].lora_A["default"].weight.detach().numpy()
        assert abs((A * adapter.lora_A.data).sum(axis=1)).min() > cosine, n


def their_model(folder, family):
    """transformers' model of our base, in float32, as these initialisations of PEFT need it."""
    transformers = pytest.importorskip("transformers")
    minilora.save_pretrained(base(family, dtype="float32"), folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def their_logits(model):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(PADDING).long()).logits.numpy()


TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


@pytest.mark.oracle
@quiet
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(("name", "family"), [("pissa", "llama"), ("pissa", "gpt2"), ("olora", "llama")])
def test_what_peft_saved_without_conversion_is_read_beside_the_untouched_base(name, family, rslora, tmp_path):
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    config = hf.LoraConfig(
        r=3, lora_alpha=5, target_modules=TARGETS[family], init_lora_weights=name, use_rslora=rslora,
        rank_pattern={TARGETS[family][1]: 2}, task_type="CAUSAL_LM",
    )  # fmt: skip
    theirs = hf.get_peft_model(their_model(tmp_path / "m", family), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    theirs.save_pretrained(tmp_path / "a")
    model = base(family, dtype="float32")
    plain = logits(model)
    assert "does not say which base" in peft.load_adapter(model, tmp_path / "a")
    assert {type(m).__name__ for _, m in model.named_modules() if m.is_adapter} == {"ResidualLoRALinear"}
    assert close(logits(model)[PADDING], their_logits(theirs)[PADDING], 2e-5)
    assert not close(logits(model), plain, 0.05)
    assert {n.rpartition(".")[2] for n in model.trainable_parameters()} == {"lora_A", "lora_B"}
    peft.save_adapter(model, tmp_path / "ours")  # and back, as a plain one
    back = hf.PeftModel.from_pretrained(their_model(tmp_path / "m2", family), tmp_path / "ours")
    assert close(logits(model)[PADDING], their_logits(back)[PADDING], 2e-5)


@pytest.mark.each_value
@pytest.mark.oracle
@quiet
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", TAKES)
@pytest.mark.parametrize(
    ("family", "targets"), [("llama", ["q_proj", "down_proj"]), ("gpt2", ["q_proj", "v_proj", "o_proj"])]
)
def test_peft_loads_what_we_save_on_the_untouched_base(family, targets, name, rslora, tmp_path):
    hf = pytest.importorskip("peft")
    model = base(family, dtype="float32")
    data = Batch(IDS, IDS, PADDING)
    minilora.attach_lora(model, targets, r=2, alpha=3, rslora=rslora, rng=0, init=name, data=data)
    trained(model)
    peft.save_adapter(model, tmp_path / "a")
    theirs = hf.PeftModel.from_pretrained(their_model(tmp_path / "m", family), tmp_path / "a")
    assert close(logits(model)[PADDING], their_logits(theirs)[PADDING], 2e-5)


@pytest.mark.oracle
@quiet
def test_olora_of_peft_on_layers_stored_transposed_is_refused(tmp_path):
    hf = pytest.importorskip("peft")
    config = hf.LoraConfig(r=3, target_modules=["attn.c_proj"], init_lora_weights="olora", task_type="CAUSAL_LM")
    hf.get_peft_model(their_model(tmp_path / "m", "gpt2"), config).save_pretrained(tmp_path / "a")
    with pytest.raises(
        ValueError, match=r"c_proj is stored as \(in, out\), where PEFT's init_lora_weights = 'olora' is"
    ):
        peft.load_adapter(base("gpt2", dtype="float32"), tmp_path / "a")


@pytest.mark.oracle
@quiet
@pytest.mark.parametrize("name", ["eva", "orthogonal", "gaussian", "mica"])
def test_what_leaves_W_as_it_is_loads_with_the_logits_of_peft(name, tmp_path):
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    config = hf.LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj"], init_lora_weights=name, task_type="CAUSAL_LM")
    theirs = hf.get_peft_model(their_model(tmp_path / "m", "llama"), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    theirs.save_pretrained(tmp_path / "a")
    model = base("llama", dtype="float32")
    peft.load_adapter(model, tmp_path / "a")
    assert close(logits(model)[PADDING], their_logits(theirs)[PADDING], 2e-5)
