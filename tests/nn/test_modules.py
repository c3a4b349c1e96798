"""The contract of every module: three separate values, a cache that decides, a dx that is the receiver's own."""

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from adapters import adapted
from models import build, each_family, forward_loss, gradients, named, some_batch

from minilora import ops
from minilora.backend import get_array_module, to_numpy
from minilora.models.transformer import Transformer
from minilora.nn import Embedding, Gradients, Inputs, Linear, Module, Parameter, Pass, PreNormBlock
from minilora.verify import fed
from minilora.verify.cases import CHECKS

MODELS = {"gpt2": build, "llama": build, "bert": build, "gpt2 adapted": adapted, "llama adapted": adapted}
MODELS |= {"bert adapted": lambda family: adapted(family, dropout=0.4)}
PARTS = [
    *[("gpt2", path) for path in ("norm", "lm_head", "block_0", "block_0.attention", "block_0.mlp")],
    *[("llama", path) for path in ("norm", "block_0", "block_0.attention", "block_0.mlp")],
    *[("bert", path) for path in ("block_0", "block_0.attention", "block_0.attention.q_proj")],
    *[("llama adapted", path) for path in ("block_0", "block_0.attention.q_proj")],
    *[("bert adapted", path) for path in ("block_0", "block_0.mlp.up_proj")],
]
each_model = pytest.mark.parametrize("name", MODELS)
on_a_gpu = pytest.mark.parametrize("xp", ["fakecupy", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True)
each_part = pytest.mark.parametrize(("name", "path"), PARTS, ids=[f"{name}: {path}" for name, path in PARTS])


def model_of(name: str) -> Transformer:
    return MODELS[name](name.split()[0])


def part(name: str, path: str, rng: np.random.Generator) -> tuple[Module, np.ndarray, Inputs, Pass]:
    """A module of a model, an input for it, what goes with it, and how the forward runs."""
    padding = np.array([[True] * 6, [False, False] + [True] * 4])
    return model_of(name)[path], rng.standard_normal((2, 6, 12)), Inputs(padding), Pass(np.random.default_rng(5))


def arrays_in(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from arrays_in(item)
    else:
        assert value is None or isinstance(value, bool | int), f"a cache holds arrays and flags, not {value!r}"


def root(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def same(a: Gradients, b: Gradients) -> bool:
    """The same bits for the same parameters."""
    return {p: g.tobytes() for p, g in a.items()} == {p: g.tobytes() for p, g in b.items()}


class Overwritten(Gradients):
    """Keeps a copy of each gradient, and spoils the array that it was given."""

    def add(self, parameter: Parameter, gradient: np.ndarray) -> None:
        super().add(parameter, gradient.copy())
        gradient.fill(np.nan)


# ---- forward and backward ----


@pytest.mark.parametrize("name", [name for name in CHECKS if not name.startswith("op ")])
def test_no_backward_reads_a_gradient_that_it_has_added(name, monkeypatch):
    found: list[list[bytes]] = []
    monkeypatch.setattr(fed, "check_model", lambda fed, f, grads, **options: [g.tobytes() for g in grads.values()])
    for kind in (Gradients, Overwritten):
        monkeypatch.setattr(fed, "Gradients", kind)
        found.append(list(CHECKS[name](np.random.default_rng(0))))
    assert found[0] == found[1]


@pytest.mark.each_value
@each_part
@pytest.mark.parametrize("frozen", [False, True])
def test_backward_writes_to_nothing_returns_its_own_dx_and_may_run_again(name, path, frozen, rng):
    module, x, inputs, run = part(name, path, rng)
    if frozen:
        module.freeze()
    x.setflags(write=False)
    y, cache = module.forward(x, inputs, run)
    dy = rng.standard_normal(y.shape)
    held = [dy, x, *arrays_in(cache), *module.state_dict().values()]
    for array in held:
        array.setflags(write=False)
    first, second = Gradients(), Gradients()
    dx, again = module.backward(dy, cache, first), module.backward(dy, cache, second)
    assert dx.tobytes() == again.tobytes()
    assert same(first, second)
    assert set(first) == set(module.trainable_parameters().values())
    assert dx.flags.writeable
    assert dx.shape == x.shape
    assert not any(np.shares_memory(dx, array) for array in [*held, *first.values(), again])


@pytest.mark.each_value
@each_part
def test_dx_flows_through_a_frozen_module_unchanged(name, path, rng):
    module, x, inputs, run = part(name, path, rng)
    y, cache = module.forward(x, inputs, run)
    dy = rng.standard_normal(y.shape)
    learned = module.backward(dy, cache, Gradients())
    module.freeze()
    run = Pass(np.random.default_rng(5))
    frozen, grads = module.forward(x, inputs, run), Gradients()
    assert frozen[0].tobytes() == y.tobytes()
    assert module.backward(dy, frozen[1], grads).tobytes() == learned.tobytes()
    assert not grads


@each_model
@pytest.mark.parametrize("train", ["attention", "norm_1"])
def test_where_nothing_below_learns_no_dx_is_made_and_the_gradients_are_the_same_bits(name, train, rng):
    model = model_of(name)
    block = model["block_0"]
    block.freeze()
    for parameter in block[train].parameters():
        parameter.trainable = True
    x, dy, found = *rng.standard_normal((2, 2, 5, model.config.d_model)), []
    for below in (True, False):
        grads = Gradients()
        found.append((block.backward(dy, block.forward(x, run=Pass(needs_dx=below))[1], grads), grads))
    (dx, grads), (none, same_grads) = found
    assert dx.shape == x.shape
    learned = [gradient for gradient in grads.values() if abs(gradient).max() > 1e-6]
    assert len(learned) >= max(1, len(grads) - 1)  # a key's bias has none: db of k is 0
    assert same(grads, same_grads)
    first_learns = train == "norm_1" and isinstance(block, PreNormBlock)
    assert (none is None) == (not first_learns)  # a norm before all else has a gain to learn from it


@each_model
def test_the_cache_decides_freezing_or_thawing_before_the_backward_changes_nothing(name, rng):
    model, batch = model_of(name), some_batch(rng, "left")
    expected = gradients(model, batch)
    parameters = model.trainable_parameters()
    _, (caches, cache) = forward_loss(model, batch)
    model.freeze()
    grads = Gradients()
    model.backward(ops.cross_entropy_backward(1.0, cache), caches, grads)
    assert same(grads, expected)

    kept = set(list(parameters.values())[1::3])
    for parameter in kept:
        parameter.trainable = True
    _, (caches, cache) = forward_loss(model, batch)
    for parameter in model.named_parameters().values():
        parameter.trainable = True
    grads = Gradients()
    model.backward(ops.cross_entropy_backward(1.0, cache), caches, grads)
    assert set(grads) == kept


@each_model
def test_a_cache_holds_no_parameter(name, rng):
    model = model_of(name)
    _, caches = model.forward(some_batch(rng).ids)
    weights = {id(root(data)) for data in model.state_dict().values()}
    held = {id(root(array)) for array in arrays_in(caches)}
    assert held
    assert not weights & held


@each_model
def test_a_model_and_its_cache_can_be_pickled_between_forward_and_backward(name, rng):
    model, batch = model_of(name), some_batch(rng)
    _, (caches, cache) = forward_loss(model, batch)
    copy, caches, cache = pickle.loads(pickle.dumps((model, caches, cache)))
    grads = Gradients()
    copy.backward(ops.cross_entropy_backward(1.0, cache), caches, grads)
    expected = named(model, gradients(model, batch))
    assert {n: g.tobytes() for n, g in named(copy, grads).items()} == {n: g.tobytes() for n, g in expected.items()}


@each_family
def test_layers_below_the_lowest_trainable_one_leave_no_cache(family, rng):
    model, batch = build(family, tied=False), some_batch(rng)
    layers = list(model.layers)
    for i, name in enumerate(layers):
        if not model[name].named_parameters():
            continue
        model.freeze()
        for parameter in model[name].named_parameters().values():
            parameter.trainable = True
        assert len(model.forward(batch.ids)[1]) == len(layers) - i
    model.freeze()
    assert model.forward(batch.ids)[1] == []
    assert gradients(model, batch) == {}


@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_weight_and_bias_learn_independently_and_a_frozen_weight_keeps_no_x(weight, bias, rng):
    linear, x = Linear(rng.standard_normal((4, 3)), rng.standard_normal(4)), rng.standard_normal((2, 5, 3))
    linear.weight.trainable, linear.bias.trainable = weight, bias
    _, cache = linear.forward(x)
    assert (cache.x is x, cache.needs_db) == (weight, bias)
    grads = Gradients()
    linear.backward(rng.standard_normal((2, 5, 4)), cache, grads)
    assert (linear.weight in grads, linear.bias in grads, len(grads)) == (weight, bias, weight + bias)


def test_a_frozen_embedding_keeps_no_ids(rng):
    embedding, ids = Embedding(rng.standard_normal((5, 3))), np.array([[1, 4, 1]])
    assert embedding.forward(ids)[1] is ids
    embedding.freeze()
    assert embedding.forward(ids)[1] is None


def test_a_layer_used_twice_learns_from_both(rng):
    linear = Linear(rng.standard_normal((4, 3)), rng.standard_normal(4))
    xs, dys = rng.standard_normal((2, 5, 3)), rng.standard_normal((2, 5, 4))
    caches = [linear.forward(x)[1] for x in xs]
    twice, apart, at_once = Gradients(), [Gradients(), Gradients()], Gradients()
    for i in (1, 0):
        linear.backward(dys[i], caches[i], twice)
        linear.backward(dys[i], caches[i], apart[i])
    assert same(twice, apart[1] + apart[0])
    linear.backward(dys, linear.forward(xs)[1], at_once)
    for parameter, gradient in at_once.items():
        np.testing.assert_allclose(twice[parameter], gradient, rtol=1e-12)


@each_family
def test_two_threads_share_a_model_and_their_gradients_add_up_to_those_of_the_batch(family, rng):
    model, batch = adapted(family), some_batch(rng)

    def work(shard: slice) -> Gradients:
        logits, caches = model.forward(batch.ids[shard], Inputs(segments=batch.inputs.segments[shard]))
        _, cache = ops.cross_entropy_forward(logits, batch.labels[shard], count=(batch.labels != ops.IGNORE).sum())
        grads = Gradients()
        model.backward(ops.cross_entropy_backward(1.0, cache), caches, grads)
        return grads

    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(work, [slice(1), slice(1, None)])
    total = one + other
    whole = gradients(model, batch)
    assert set(total) == set(whole)
    for parameter, gradient in whole.items():
        np.testing.assert_allclose(total[parameter], gradient, rtol=1e-9, atol=1e-12)


# ---- gradients are a value ----


def test_gradients_add_and_neither_sum_writes_to_what_it_adds():
    p, q, r = (Parameter(np.zeros(2)) for _ in range(3))
    a, b = Gradients({p: np.array([1.0, 2.0]), q: np.array([3.0, 4.0])}), Gradients({p: np.array([0.5, 0.25])})
    b.add(r, np.array([7.0, 8.0]))
    total = a + b
    a.add(p, np.array([10.0, 20.0]))
    assert {parameter: g.tolist() for parameter, g in total.items()} == {p: [1.5, 2.25], q: [3, 4], r: [7, 8]}
    assert {parameter: g.tolist() for parameter, g in a.items()} == {p: [11, 22], q: [3, 4]}
    assert {parameter: g.tolist() for parameter, g in b.items()} == {p: [0.5, 0.25], r: [7, 8]}


def test_parameters_with_equal_numbers_are_two():
    p, q = Parameter(np.ones(2)), Parameter(np.ones(2))
    assert len(Gradients({p: 1, q: 2})) == 2


# ---- names ----


@each_model
def test_the_parameters_are_those_that_have_a_name(name):
    model = model_of(name)
    assert set(model.parameters()) == set(model.named_parameters().values())


def test_a_tied_parameter_has_one_name_and_an_untied_one_its_own():
    tied, untied = build("gpt2"), build("gpt2", tied=False)
    assert set(untied.named_parameters()) - set(tied.named_parameters()) == {"lm_head.weight"}
    assert tied["lm_head"].weight is tied.named_parameters()["embed.token.weight"]
    assert len(set(tied.named_parameters().values())) == len(tied.named_parameters())


@each_model
def test_every_path_leads_to_its_module_and_every_module_can_be_replaced(name):
    model = model_of(name)
    paths = [path for path, _ in model.named_modules()]
    assert "" in paths
    for path in paths:
        assert model[path] is next(module for other, module in model.named_modules() if other == path)
    for path in filter(None, paths):
        new = Linear(np.ones((2, 2)))
        model[path] = new
        assert model[path] is new
        model = model_of(name)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "block_7",
            "no module 'block_7': nothing is called 'block_7', did you mean 'block_1'\\? choose from embed, block_0",
        ),
        ("block_0.attention.query", "'query', choose from q_proj, k_proj, v_proj, o_proj"),
        ("norm.weight", "nothing is called 'weight', choose from none"),
    ],
)
def test_a_path_that_leads_nowhere_is_an_error_that_says_where_it_ends(path, message):
    model = build("llama")
    with pytest.raises(KeyError, match=message):
        model[path]
    with pytest.raises(KeyError, match=message):
        model[path] = Linear(np.ones((2, 2)))


@pytest.mark.parametrize("path", ["", "block_0."])
def test_a_path_without_a_last_name_cannot_be_assigned_to(path):
    model = build("llama")
    paths = [path for path, _ in model.named_modules()]
    with pytest.raises(KeyError):
        model[path] = Linear(np.ones((2, 2)))
    assert [path for path, _ in model.named_modules()] == paths


# ---- state ----


@each_model
def test_a_state_dict_makes_another_model_the_same_and_keeps_its_dtype(name, rng):
    model, other, ids = model_of(name), model_of(name), some_batch(rng).ids
    for parameter in other.named_parameters().values():
        parameter.data = np.zeros_like(parameter.data)
    other.load_state_dict({name: data.astype(np.float32) for name, data in model.state_dict().items()})
    assert all(data.dtype == np.float64 for data in other.state_dict().values())
    np.testing.assert_allclose(other.forward(ids)[0], model.forward(ids)[0], atol=1e-4)
    other.load_state_dict(model.state_dict())
    assert other.forward(ids)[0].tobytes() == model.forward(ids)[0].tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("norm.weight"), "missing: norm.weight"),
        (lambda state: state.update({"norm.bias": np.ones(12)}), "unexpected: norm.bias"),
        (lambda state: state.update({"norm.weight": np.ones(11)}), r"norm.weight has shape \(11,\), and \(12,\)"),
        (lambda state: state.update({"norm.weight": np.ones((1, 12))}), r"norm.weight has shape \(1, 12\)"),
        (lambda state: state.update({"lm_head.weight": np.ones((13, 12))}), "unexpected: lm_head.weight"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_name_and_changes_nothing(change, message):
    model = build("llama")
    before = model.state_dict()
    state = {name: data + 1 for name, data in before.items()}
    change(state)
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(state)
    assert all(data is before[name] for name, data in model.state_dict().items())


@on_a_gpu
def test_a_model_goes_to_the_gpu_and_back_without_losing_a_bit(xp):
    model = build("bert", dtype="float32")
    before = {name: data.tobytes() for name, data in model.state_dict().items()}
    model.to(xp)
    assert all(get_array_module(data) is xp for data in model.state_dict().values())
    model.to(np)
    assert {name: data.tobytes() for name, data in model.state_dict().items()} == before


@on_a_gpu
@pytest.mark.parametrize("to_the_gpu", [True, False])
def test_a_state_is_loaded_from_where_it_is_to_where_the_model_is(to_the_gpu, xp):
    model, other = build("llama"), build("llama")
    (model if to_the_gpu else other).to(xp)
    model.load_state_dict({name: data + 1 for name, data in other.state_dict().items()})
    for name, data in model.state_dict().items():
        assert get_array_module(data) is (xp if to_the_gpu else np)
        assert np.array_equal(to_numpy(data), to_numpy(other.state_dict()[name]) + 1)


def test_astype_converts_every_parameter(rng):
    model = adapted("bert")
    model.astype(np.float32)
    assert {data.dtype for data in model.state_dict().values()} == {np.dtype(np.float32)}
    logits, caches = model.forward(some_batch(rng).ids)
    assert {a.dtype for a in [logits, *arrays_in(caches)] if a.dtype.kind == "f"} == {np.dtype(np.float32)}


def test_freezing_a_module_freezes_what_is_below_it_alone():
    model = build("bert")
    model["block_0"].freeze()
    frozen = {name for name, parameter in model.named_parameters().items() if not parameter.trainable}
    assert frozen == {name for name in model.named_parameters() if name.startswith("block_0.")}
    assert not model["block_0"].trainable
    assert model.trainable
