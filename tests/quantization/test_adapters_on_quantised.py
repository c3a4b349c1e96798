"""Adapters over a base that is held as codes: what each variant of the registry does there, in each format.

The reference is the same adapter over arrays, W = Ŵ: what Quantized.dense() gives. Products are the same then, so equal
means equal in every bit.
"""

import re
import warnings

import examples
import numpy as np
import pytest
from adapters import snapshot
from models import build, close, gradients, loss, named, some_batch

import minilora
from minilora.adapters import peft
from minilora.adapters.attach import adaptable, attach, attach_lora
from minilora.adapters.base import Adapter
from minilora.adapters.initialisations import inits
from minilora.adapters.merge import merge, unmerge
from minilora.adapters.peft.format import BASE_FORMAT
from minilora.adapters.registry import variants
from minilora.backend import to_numpy
from minilora.data import Batch
from minilora.files import load_tensors, save_tensors
from minilora.models.quantized import quantize
from minilora.models.saving import base_hash
from minilora.nn import Embedding, Gradients, Linear, recompute
from minilora.quantization import Quantized, formats
from minilora.training import fit
from minilora.verify import check_model

CLASSES = [  # LoftQ makes its base itself, of a W in full precision: test_loftq.py
    cls
    for classes in variants().values()
    for cls in classes
    if cls.base_type in (Linear, Embedding) and not cls.replaces_weight  # norms and kernels are never quantised
]
FORMATS = list(formats())
each_format = pytest.mark.parametrize("name", FORMATS)


def small(variant):
    return dict(variants()[variant][0].examples[""])


PLACES = [("llama", None), ("llama", "all-linear"), ("gpt2", ["q_proj", "v_proj"]), ("bert", None)]
PLACED = [
    pytest.param(variant, family, targets, id=f"{variant}-{family}-{targets}")
    for variant in variants()
    for family, targets in PLACES
    if adaptable(build(family), variant, targets or "all-linear", **small(variant))
]
each_place = pytest.mark.parametrize(("variant", "family", "targets"), PLACED)


def held(family, name, **options):
    """A model of codes."""
    model = build(family, **options)
    quantize(model, name)
    return model


def decoded(model):
    """The same model of arrays, W = Ŵ: the parameters are decoded in place."""
    for parameter in model.named_parameters().values():
        if isinstance(parameter.data, Quantized):
            parameter.data = parameter.data.dense()
    return model


def both(family, name, **options):
    return held(family, name, **options), decoded(held(family, name, **options))


def codes(model):
    """{path: the bytes of all arrays} of what is held as codes."""
    found = {path: p.data for path, p in model.named_parameters().items() if isinstance(p.data, Quantized)}
    return {path: {k: to_numpy(x).tobytes() for k, x in Q.arrays.items()} for path, Q in found.items()}


def moved(model):
    """The model with every slot off its start."""
    rng = np.random.default_rng(5)
    for module in [module for _, module in model.named_modules() if isinstance(module, Adapter)]:
        for parameter in module.own_parameters().values():
            change = 0.3 * rng.standard_normal(parameter.data.shape)
            parameter.data = parameter.data + parameter.xp.asarray(change, dtype=parameter.data.dtype)
    return model


def logits(model, batch):
    return model.forward(batch.ids, batch.inputs)[0]


def same(one, other):
    """Are they the same numbers, to the bit?"""
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def one_layer(cls, name, dtype="float32"):
    """An adapter off its start over codes with short and odd blocks, the same over arrays, and an x."""
    rng = np.random.default_rng(3)
    adapters = []
    n_in, n_out = 35, 11
    of_ids = cls.base_type is Embedding
    W = rng.standard_normal((n_in, n_out) if of_ids else (n_out, n_in)).astype(dtype)
    Q, b = formats()[name].of(W), rng.standard_normal(n_out).astype(dtype)
    for held in (Q, Q.dense()):
        base = Embedding(held) if of_ids else Linear(held, b)
        adapters.append(moved(cls.start(base, rng=0, **cls.examples[""])))
    return *adapters, rng.integers(0, n_in, (3, 2)) if of_ids else rng.standard_normal((3, 2, n_in)).astype(dtype)


# ---- one layer ----


@pytest.mark.each_value
@each_format
@pytest.mark.parametrize("cls", CLASSES)
def test_a_layer_computes_in_every_bit_what_it_does_over_the_decoded_matrix(cls, name):
    ours, theirs, x = one_layer(cls, name)
    dy = None
    found = []
    for adapter in (ours, theirs):
        y, cache = adapter.forward(x)
        dy = np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype) if dy is None else dy
        grads = Gradients()
        dx = adapter.backward(dy, cache, grads)
        W, b = adapter.merged()
        found.append([y, dx, *(grads[p] for p in adapter.own_parameters().values() if p in grads), b, adapter.delta()])
        found[-1].append(W.dense() if isinstance(W, Quantized) else W)
        assert set(grads) == {p for p in adapter.own_parameters().values() if p.trainable}
    for one, other in zip(*found, strict=True):
        assert one is other is None or same(one, other)


@pytest.mark.each_value
@pytest.mark.parametrize("cls", CLASSES)
def test_a_layer_over_codes_computes_the_same_on_each_array_library(cls, xp):
    adapter, _, x = one_layer(cls, "nf4-dq", "float64")
    y, cache = adapter.forward(x)
    grads, there = Gradients(), Gradients()
    adapter.backward(y, cache, grads)
    adapter.to(xp)
    moved_x = xp.asarray(x)
    y_there, cache = adapter.forward(moved_x)
    adapter.backward(y_there, cache, there)
    assert {type(a) for a in adapter.weight.data.arrays.values()} == {xp.ndarray}
    for ours, other in [(y, y_there), *((grads[p], there[p]) for p in grads)]:
        assert isinstance(other, xp.ndarray)
        np.testing.assert_allclose(to_numpy(other), ours, rtol=1e-10, atol=1e-12)


# ---- a model ----


@pytest.mark.each_value
@each_format
@each_place
def test_a_model_begins_as_its_base_learns_as_over_arrays_and_its_codes_stay(variant, family, targets, name, rng):
    ours, theirs = both(family, name)
    batch, before = some_batch(rng, "left"), codes(ours)
    y = logits(ours, batch)
    for model in (ours, theirs):
        attach(model, variant, targets, rng=0, **small(variant))
    assert same(logits(ours, batch), y)
    for model in (ours, theirs):
        moved(model)
    assert same(logits(ours, batch), logits(theirs, batch))
    dense, grads = named(theirs, gradients(theirs, batch)), named(ours, gradients(ours, batch))
    assert grads.keys() == dense.keys() == set(ours.trainable_parameters())
    assert all(same(grads[path], dense[path]) for path in grads)
    assert codes(ours) == before != {}


@pytest.mark.each_value
@each_place
def test_merge_gives_the_W_of_the_decoded_base_and_unmerge_every_code(variant, family, targets, rng):
    ours, theirs = both(family, "nf4")
    batch = some_batch(rng)
    for model in (ours, theirs):
        attach(model, variant, targets, rng=0, **small(variant))
        moved(model)
    before, y = codes(ours), logits(ours, batch)
    if variant == "alora":  # it acts on some tokens, and a weight on all
        with pytest.raises(ValueError, match="cannot be merged"):
            merge(ours)
        return
    paths = merge(ours)
    assert merge(theirs) == paths
    for path in paths:
        assert same(minilora.quantization.dense(ours[path].weight.data), theirs[path].weight.data)
    assert close(logits(ours, batch), y, 1e-12)
    assert unmerge(ours) == paths
    assert codes(ours) == before
    assert same(logits(ours, batch), y)


@pytest.mark.parametrize("variant", examples.some_of(["lora", "dora", "adalora", "ia3"]))
def test_gradients_over_codes_are_those_of_the_loss(variant, rng):
    model, batch = held("llama", "nf4"), some_batch(rng, "left")
    attach(model, variant, "all-linear" if variant != "ia3" else None, rng=0, **small(variant))
    moved(model)
    check_model(model, lambda: loss(model, batch), gradients(model, batch), rng=rng).raise_if_wrong()


@pytest.mark.each_value
@pytest.mark.parametrize("targets", [["embed"], ["embed", "q_proj"], ["lm_head"]], ids=str)
@pytest.mark.parametrize("tie", [False, True], ids=["the input alone", "tied"])
@pytest.mark.parametrize("name", ["nf4", "bfloat16"])
def test_an_embedding_of_codes_and_the_head_that_is_tied_to_it_are_adapted(targets, tie, name, rng):
    if tie and "embed" not in targets:
        pytest.skip("ties the head to an embedding's adapter")
    ours, theirs = both("llama", name, tied=True)
    batch = some_batch(rng)
    for model in (ours, theirs):
        attach_lora(model, targets, r=2, rng=0, ensure_weight_tying=tie)
        moved(model)
    assert same(logits(ours, batch), logits(theirs, batch))
    one, other = named(ours, gradients(ours, batch)), named(theirs, gradients(theirs, batch))
    assert one.keys() == other.keys()
    assert all(same(one[path], other[path]) for path in one)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are no longer tied
        before = codes(ours)
        merge(ours)
        merge(theirs)
        assert close(logits(ours, batch), logits(theirs, batch), 1e-13)
    unmerge(ours)
    assert codes(ours) == before


@pytest.mark.each_value
@pytest.mark.parametrize("init", [name for name, init in inits().items() if not init.quantizes])
@pytest.mark.parametrize(("family", "targets"), [("llama", "all-linear"), ("gpt2", ["q_proj", "v_proj"])])
def test_every_start_takes_what_it_takes_from_the_decoded_matrix(init, family, targets, rng):
    ours, theirs = both(family, "nf4")
    batch, before = some_batch(rng), codes(ours)
    y, data = logits(ours, batch), [Batch(batch.ids, batch.labels)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for model in (ours, theirs):
            attach_lora(model, targets, r=2, rng=0, init=init, data=data)
    states = [
        {path: p.data for path, p in model.named_parameters().items() if "lora" in path} for model in (ours, theirs)
    ]
    assert states[0].keys() == states[1].keys()
    for path, x in states[0].items():
        assert same(x, states[1][path]), path
    start = logits(ours, batch)
    assert same(start, y) if init != "orthogonal" else close(start, y, 1e-12)  # whose B A is 0 but for rounding
    assert codes(ours) == before


# ---- what learns ----


@pytest.mark.parametrize(
    ("train", "held_in"),
    [("lm_head", "bfloat16"), ("embed", "bfloat16"), ("q_proj", "nf4"), (["bias", "down_proj"], "nf4")],
    ids=str,
)
def test_to_train_a_matrix_of_codes_is_refused_by_its_name_and_the_model_stays_as_it_was(train, held_in):
    model = held("bert" if "bias" in train else "llama", "nf4")
    before = {path: (p, p.trainable) for path, p in model.named_parameters().items()}, dict(model.named_modules())
    name = train if isinstance(train, str) else train[-1]
    with pytest.raises(
        ValueError, match=rf"train='{name}': \S+{'' if name in ('lm_head', 'embed') else name}\S* is held in {held_in}"
    ):
        attach_lora(model, r=2, rng=0, train=train)
    assert (
        {path: (p, p.trainable) for path, p in model.named_parameters().items()},
        dict(model.named_modules()),
    ) == before


@pytest.mark.parametrize("train", ["bias", "norm"])
def test_vectors_that_stay_arrays_learn_beside_the_adapters(train, rng):
    ours, theirs = both("bert", "nf4")
    batch = some_batch(rng)
    for model in (ours, theirs):
        attach_lora(model, r=2, rng=0, train=train)
    one, other = named(ours, gradients(ours, batch)), named(theirs, gradients(theirs, batch))
    assert one.keys() == other.keys() == set(ours.trainable_parameters())
    assert any("lora" not in path for path in one)
    assert all(same(one[path], other[path]) for path in one)


def some(i):
    rng = np.random.default_rng([5, i])
    return Batch(rng.integers(0, 13, (4, 6)), rng.integers(0, 13, (4, 6)))


@pytest.mark.each_value
@pytest.mark.parametrize("blocks", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize(("shards", "accumulate"), [(1, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("name", ["nf4-dq", "int8"])
def test_training_ends_at_the_bytes_of_training_over_arrays(name, shards, accumulate, blocks):
    ends = []
    for model in both("llama", name, dtype="float32"):
        attach_lora(model, "all-linear", r=2, rng=0, dropout=0.1)
        if blocks:
            recompute(model)
        before = codes(model)
        history = fit(model, some, 3, lr=0.02, shards=shards, accumulate=accumulate, description=None)
        assert codes(model) == before
        ends.append((history.loss, {path: p.data.tobytes() for path, p in model.trainable_parameters().items()}))
    assert ends[0] == ends[1]


# ---- files ----


@pytest.mark.each_value
@each_place
def test_an_adapter_comes_back_to_the_bit_on_the_codes_that_it_was_trained_on(variant, family, targets, tmp_path, rng):
    model, batch = held(family, "nf4"), some_batch(rng)
    attach(model, variant, targets, rng=0, **small(variant))
    moved(model)
    over_arrays = decoded(held(family, "nf4"))
    attach(over_arrays, variant, targets, rng=0, **small(variant))
    try:
        peft.save_adapter(moved(over_arrays), tmp_path / "b")
    except ValueError as error:  # what has no file over arrays has none here
        with pytest.raises(ValueError, match=re.escape(str(error))):
            peft.save_adapter(model, tmp_path / "a")
        return
    peft.save_adapter(model, tmp_path / "a")
    files = [(tmp_path / folder / peft.CONFIG).read_bytes() for folder in "ab"]
    assert files[0] == files[1]
    loaded = held(family, "nf4")
    before = codes(loaded)
    assert peft.load_adapter(loaded, tmp_path / "a") == ""
    assert close(logits(loaded, batch), logits(model, batch), 1e-14)
    assert codes(loaded) == before
    over_arrays = decoded(held(family, "nf4"))
    assert peft.load_adapter(over_arrays, tmp_path / "a") == ""  # Ŵ is Ŵ, however it is held
    assert same(logits(over_arrays, batch), logits(loaded, batch))


def saved(folder, name, targets=("q_proj", "v_proj"), **options):
    """An adapter on a llama that is held in a format, or in none, in a folder."""
    model = held("llama", name, dtype="float32") if name else build("llama", dtype="float32")
    attach_lora(model, targets, r=2, rng=0, **options)
    peft.save_adapter(moved(model), folder)
    return folder


@pytest.mark.parametrize(
    ("trained", "here", "says"),
    [
        ("nf4", "nf4", r"^$"),
        ("nf4", "", r"was trained on this base in nf4, and here it is in full precision: quantize='nf4'$"),
        (
            "bfloat16",
            "",
            r"was trained on this base in bfloat16, and here it is in full precision: quantize='bfloat16'$",
        ),
        ("", "nf4", r"was trained on its base in full precision, and this one is in nf4: .* cannot be compared$"),
        ("int8", "nf4", r"was trained on its base in int8, and this one is in nf4: .* cannot be compared$"),
    ],
)
@pytest.mark.parametrize("targets", [("q_proj",), ("embed_tokens", "q_proj")], ids=["a block", "the embedding too"])
def test_an_adapter_goes_on_its_base_in_another_format_with_a_note(trained, here, says, targets, tmp_path, rng):
    own = ["embed" if name == "embed_tokens" else name for name in targets]
    folder = saved(tmp_path / "a", trained, own)
    model = held("llama", here, dtype="float32") if here else build("llama", dtype="float32")
    assert re.search(says, peft.load_adapter(model, folder))
    reference = held("llama", here, dtype="float32") if here else build("llama", dtype="float32")
    attach_lora(reference, own, r=2, rng=0)
    batch = some_batch(rng)
    assert close(logits(model, batch), logits(moved(reference), batch), 1e-6)


@pytest.mark.parametrize(("trained", "here"), [("nf4", "nf4"), ("nf4", ""), ("", "")])
def test_another_base_is_refused_where_the_weights_can_be_compared(trained, here, tmp_path):
    folder = saved(tmp_path / "a", trained)
    model = build("llama", dtype="float32")
    W = model["block_1.mlp.up_proj"].weight
    W.data = -W.data
    if here:
        quantize(model, here)
    before = snapshot(model) if not here else codes(model)
    with pytest.raises(
        ValueError, match="a was made for another base: the weights of this model are not those it names"
    ):
        peft.load_adapter(model, folder)
    assert (snapshot(model) if not here else codes(model)) == before


def test_a_format_that_is_not_known_here_is_told_in_the_note(tmp_path):
    folder = saved(tmp_path / "a", "nf4")
    tensors, metadata = load_tensors(folder / peft.WEIGHTS)
    save_tensors(folder / peft.WEIGHTS, tensors, metadata | {BASE_FORMAT: "nf3"})
    note = peft.load_adapter(build("llama", dtype="float32"), folder)
    assert "was trained on its base in nf3, and this one is in full precision" in note


def test_the_hash_in_a_format_is_that_of_the_model_in_it_and_is_made_without_it():
    model = build("llama", dtype="float32")
    for name in FORMATS:
        assert base_hash(model, format=name) == base_hash(held("llama", name, dtype="float32"))
    assert not codes(model)


def test_what_an_adapter_trains_whole_is_an_array_of_its_own_on_a_base_of_codes(tmp_path, rng):
    model, batch = build("llama", tied=False), some_batch(rng)
    attach_lora(model, r=2, rng=0, train=["embed", "norm"])
    peft.save_adapter(moved(model), tmp_path / "a")
    loaded = held("llama", "nf4", tied=False)
    before = codes(loaded)
    peft.load_adapter(loaded, tmp_path / "a")
    learned = {path for path in loaded.trainable_parameters() if "lora" not in path}
    assert "embed.token.weight" in learned
    assert learned == {path for path in model.trainable_parameters() if "lora" not in path}
    assert set(named(loaded, gradients(loaded, batch))) == set(loaded.trainable_parameters())
    left = codes(loaded)
    assert left == {path: before[path] for path in left}
    assert before.keys() - left.keys() == {"embed.token.weight"}


def test_adapters_are_switched_over_one_base_of_codes_which_comes_back_to_the_bit(tmp_path, rng):
    folders = {
        name: saved(tmp_path / name, "int8", targets) for name, targets in {"a": ["q_proj"], "b": ["embed"]}.items()
    }
    model, batch = held("llama", "int8", dtype="float32"), some_batch(rng)
    before, y = codes(model), logits(model, batch)
    adapters = peft.Adapters(model)
    for name, folder in folders.items():
        assert adapters.load(name, folder) == ""
    found = set()
    for name in ("a", "b", "a"):
        adapters.activate(name)
        found.add(logits(model, batch).tobytes())
    adapters.activate(None)
    assert len(found | {y.tobytes()}) == 3
    assert same(logits(model, batch), y)
    assert codes(model) == before


def test_a_layer_that_is_made_of_codes_is_frozen():
    Q = formats()["nf4"].of(np.random.default_rng(0).standard_normal((6, 5)))
    assert Linear(Q).weight.trainable is Embedding(Q).weight.trainable is False
    with pytest.raises(ValueError, match="a weight in nf4 has no gradient"):
        Linear(Q).weight.trainable = True
