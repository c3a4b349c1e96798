"""Several adapters on one base, each for rows of its own: equal to one at a time."""

from typing import Any

import numpy as np
import pytest
from models import build
from peft_models import V, base, trained

import minilora
from minilora import ops
from minilora.adapters import many, peft
from minilora.adapters.attach import attach
from minilora.adapters.many import Many, share_A
from minilora.adapters.parallel import Parallel
from minilora.adapters.registry import variants
from minilora.data import Batch
from minilora.models.families import FAMILIES
from minilora.nn import Gradients, Inputs, KVCache, Pass, recompute
from minilora.training.gradients import loss_and_gradients
from minilora.verify.cases import CHECKS

B, T = 6, 5
IDS = np.random.default_rng(0).integers(2, V, (B, T))
NAMES = ["b", None, "a", "b", "c", "a"]
PADDING = np.arange(T) < np.array([5, 3, 4, 5, 2, 5])[:, None]
LORA: dict[str, Any] = {
    "a": ("lora", ["q_proj", "v_proj", "down_proj"], {"r": 2, "alpha": 3}),
    "b": ("lora", "all-linear", {"r": 3, "alpha": 7, "rslora": True}),
    "c": ("lora", ["up_proj", "q_proj"], {"r": 1, "alpha": 1}),
}
EVERY = {name: cls[0].examples[""] for name, cls in variants().items()}


def several(specs=LORA, family="llama", head="lm", tied=True, **words):
    """A model with several adapters by name, whose numbers are not those that they start with."""
    model = base(family, head, tied=tied, **words)
    adapters = peft.Adapters(model)
    for seed, (name, (variant, targets, options)) in enumerate(specs.items()):
        adapters.attach(name, variant, targets, rng=seed, **options)
    adapters.activate_by_row()
    trained(model)
    return model, adapters


def one_at_a_time(model, adapters, dy, ids=IDS, names=NAMES, **inputs):
    """Outputs and gradients of each adapter's rows alone, with that adapter in place."""
    y, total = np.zeros(dy.shape), Gradients()
    for name in {*names}:
        adapters.activate(name)
        rows = [i for i, other in enumerate(names) if other == name]
        grads = Gradients()
        y[rows], cache = model.forward(ids[rows], Inputs(**{key: x[rows] for key, x in inputs.items()}))
        model.backward(dy[rows], cache, grads)
        total = total + grads
    adapters.activate_by_row()
    return y, total


def together(model, dy=None, ids=IDS, names=NAMES, **inputs):
    y, cache = model.forward(ids, Inputs(adapters=names, **inputs))
    dy = np.random.default_rng(1).standard_normal(y.shape) if dy is None else dy
    grads = Gradients()
    model.backward(dy, cache, grads)
    return y, grads, dy


def check(model, adapters, **inputs):
    y, grads, dy = together(model, **inputs)
    y_alone, alone = one_at_a_time(model, adapters, dy, **inputs)
    np.testing.assert_allclose(y, y_alone, rtol=1e-12, atol=1e-12)
    assert grads.keys() == alone.keys()
    for parameter, gradient in grads.items():
        np.testing.assert_allclose(gradient, alone[parameter], rtol=1e-11, atol=1e-11)
    assert len(grads) > 0
    return y, grads


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "qwen3"])
@pytest.mark.parametrize("head", ["lm", "classify"])
def test_each_row_is_what_its_adapter_makes_of_it_alone_and_so_are_the_gradients(family, head):
    specs = LORA if family != "gpt2" else {**LORA, "c": ("lora", ["qkv_proj", "embed"], {"r": 1, "alpha": 1})}
    model, adapters = several(specs, family, head)
    check(model, adapters, padding=PADDING)


def test_a_model_of_two_stacks_has_one_adapter_for_all_rows():
    model = build("t5")
    ids = np.ones((2, 3), int)
    for inputs in (Inputs(adapters=["a", None], source=ids), Inputs(active=ids > 0, source=ids)):
        with pytest.raises(ValueError, match="a t5 of two stacks has one adapter for all rows and all tokens"):
            model.forward(ids, inputs)


@pytest.mark.parametrize("family", [family for family in FAMILIES if not build(family).reads_source])
def test_in_every_family_rows_are_what_they_are_alone(family):
    model, rng = build(family), np.random.default_rng(3)
    c = model.config
    shape = (3, c.channels, c.image_size, c.image_size) if c.image_size else (3, 6)
    x = rng.standard_normal(shape) if c.image_size else rng.integers(0, c.vocab_size, shape)
    adapters, names = peft.Adapters(model), ["b", None, "a"]
    adapters.attach("a", "lora", "all-linear", rng=0, r=1)
    adapters.attach("b", "dora", ["down_proj"], rng=1, r=2)
    adapters.activate_by_row()
    trained(model)
    y, grads, dy = together(model, ids=x, names=names)
    y_alone, alone = one_at_a_time(model, adapters, dy, x, names)
    np.testing.assert_allclose(y, y_alone, rtol=1e-10, atol=1e-11)
    assert grads.keys() == alone.keys()
    for parameter, gradient in grads.items():
        np.testing.assert_allclose(gradient, alone[parameter], rtol=1e-9, atol=1e-10 * abs(gradient).max())


@pytest.mark.parametrize("variant", EVERY)
def test_every_variant_beside_a_lora_and_the_base(variant):
    targets = ["embed"] if variant == "token-rows" else ["q_proj", "up_proj"]
    family = "gpt2" if variant in ("bitfit", "lora-bias") else "llama"
    options = {key: value for key, value in EVERY[variant].items() if key != "mask"}
    specs = {"a": LORA["a"], "b": (variant, targets, options), "c": ("lora", ["embed", "q_proj"], {"r": 1})}
    model, adapters = several(specs, family)
    check(model, adapters)


def test_the_base_is_multiplied_once_for_all_rows_whose_adapter_stands_beside_it(monkeypatch):
    model, _ = several()
    calls = []
    layer = model["block_0.attention.q_proj"].base
    forward = type(layer).forward
    monkeypatch.setattr(
        type(layer), "forward", lambda self, x, *a: (calls.append((self, len(x))), forward(self, x, *a))[1]
    )
    model.forward(IDS, Inputs(adapters=NAMES))
    assert [n for called, n in calls if called is layer] == [B]


def test_without_names_every_row_is_the_base_s_and_one_name_for_all_is_that_adapter():
    model, adapters = several()
    plain, _ = model.forward(IDS)
    np.testing.assert_array_equal(plain, model.forward(IDS, Inputs(adapters=[None] * B))[0])
    all_a, _ = model.forward(IDS, Inputs(adapters=["a"] * B))
    adapters.activate(None)
    np.testing.assert_array_equal(plain, model.forward(IDS)[0])
    adapters.activate("a")
    np.testing.assert_allclose(all_a, model.forward(IDS)[0], rtol=1e-12, atol=1e-12)
    assert abs(all_a - plain).max() > 0.01


@pytest.mark.parametrize("tied", [True, False])
def test_labelled_positions_alone_get_logits_and_a_head_with_an_adapter_finds_its_own_rows(tied):
    specs = {**LORA, "c": ("lora", ["lm_head"] if not tied else ["up_proj"], {"r": 2})}
    model, _ = several(specs, tied=tied)
    b, t = np.array([4, 0, 0, 3, 4, 2, 5]), np.array([1, 4, 2, 0, 3, 3, 4])
    everything, _, _ = together(model)
    y, grads, dy = together(model, labelled=(b, t))
    np.testing.assert_allclose(y, everything[b, t], rtol=1e-12, atol=1e-12)
    whole = np.zeros(everything.shape)
    whole[b, t] = dy
    _, expected, _ = together(model, whole)
    for parameter, gradient in expected.items():
        np.testing.assert_allclose(grads[parameter], gradient, rtol=1e-11, atol=1e-12)


def test_token_rows_and_their_tied_head_go_by_row():
    specs = {"a": ("token-rows", None, {"token_indices": (3, 5)}), "b": LORA["b"]}
    model, adapters = several(specs)
    assert isinstance(model["lm_head"], Many)
    names = ["b", None, "a", "b", None, "a"]
    y, grads, dy = together(model, names=names)
    y_alone, alone = one_at_a_time(model, adapters, dy, names=names)
    np.testing.assert_allclose(y, y_alone, rtol=1e-12, atol=1e-12)
    for parameter, gradient in grads.items():
        np.testing.assert_allclose(gradient, alone[parameter], rtol=1e-11, atol=1e-11)


def test_dropout_is_drawn_for_each_adapter_s_rows_and_the_gradient_is_of_what_was_drawn():
    specs = {"a": ("lora", ["q_proj"], {"dropout": 0.4}), "b": ("dora", ["q_proj"], {"dropout": 0.3})}
    model, _ = several(specs)
    names = ["a", None, "b", "a", "b", None]

    def run():
        return model.forward(IDS, Inputs(adapters=names), Pass(np.random.default_rng(5)))

    y, cache = run()
    dy, grads = np.random.default_rng(1).standard_normal(y.shape), Gradients()
    model.backward(dy, cache, grads)
    assert abs(y - model.forward(IDS, Inputs(adapters=names))[0]).max() > 0.01
    for parameter, gradient in grads.items():
        d = np.random.default_rng(2).standard_normal(gradient.shape)
        data, eps, losses = parameter.data, 1e-6, []
        for sign in (1, -1):
            parameter.data = data + sign * eps * d
            losses.append((dy * run()[0]).sum())
        parameter.data = data
        np.testing.assert_allclose((losses[0] - losses[1]) / (2 * eps), (gradient * d).sum(), rtol=1e-6, atol=1e-7)


def test_recomputed_blocks_and_quantised_bases_go_by_row():
    model, adapters = several()
    y, grads, dy = together(model)
    recompute(model)
    again, recomputed, _ = together(model, dy)
    np.testing.assert_array_equal(again, y)
    for parameter, gradient in grads.items():
        np.testing.assert_array_equal(recomputed[parameter], gradient)
    quantised = base()
    minilora.quantize(quantised, "int8")
    adapters = peft.Adapters(quantised)
    adapters.attach("a", "lora", ["q_proj"], rng=0)
    adapters.attach("b", "dora", ["q_proj", "up_proj"], rng=1)
    adapters.activate_by_row()
    trained(quantised)
    names = ["a", None, "b", "a", "b", None]
    y, _, dy = together(quantised, names=names)
    np.testing.assert_allclose(y, one_at_a_time(quantised, adapters, dy, names=names)[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_read_from_folders_goes_by_row_with_its_saved_layers_and_biases(family, tmp_path):
    for i, (name, train) in enumerate({"a": (), "b": ("lm_head",), "c": ("bias",)}.items()):
        model = base(family, tied=False)
        train = train if family == "gpt2" or train != ("bias",) else ("norm",)
        attach(model, "lora", ["q_proj" if family == "llama" else "qkv_proj"], rng=i, train=train, r=i + 1)
        minilora.save_adapter(trained(model, seed=i), tmp_path / name)
    model = base(family, tied=False)
    adapters = minilora.load_adapters(model, {name: tmp_path / name for name in "abc"})
    check(model, adapters)


def test_a_batch_of_training_names_the_adapter_of_each_row_and_shards_keep_it():
    model, _ = several()
    targets = np.where(np.random.default_rng(3).random((B, T)) < 0.3, ops.IGNORE, IDS)
    batch = Batch(IDS, targets, adapters=np.array(NAMES, dtype=object))
    loss, grads = loss_and_gradients(model, batch)
    count = int((targets != ops.IGNORE).sum())
    halves = [Batch(IDS[i:j], targets[i:j], adapters=batch.adapters[i:j]) for i, j in ((0, 2), (2, 6))]
    parts = [loss_and_gradients(model, half, count=count) for half in halves]
    np.testing.assert_allclose(loss, sum(part for part, _ in parts))
    total = parts[0][1] + parts[1][1]
    for parameter, gradient in grads.items():
        np.testing.assert_allclose(gradient, total[parameter], rtol=1e-10, atol=1e-13)
    history = minilora.fit(model, lambda step: batch, steps=3, lr=1e-2, shards=2, description=None)
    assert history.loss[-1] < history.loss[0]


def test_one_A_for_several_tasks_learns_from_the_rows_of_all_of_them_and_each_B_from_its_own():
    model = base()
    adapters = peft.Adapters(model)
    for seed, name in enumerate("abc"):
        adapters.attach(name, "lora", ["q_proj", "v_proj"], rng=seed, r=3, alpha=5)
    adapters.activate_by_row()
    trained(model)
    layer = model["block_1.attention.q_proj"]
    before = len({*model.trainable_parameters().values()})
    assert share_A(model) == 2 * sum(
        model[f"block_{i}.attention.{p}_proj.a"].lora_A.data.size for i in (0, 1) for p in "qv"
    )
    assert share_A(model) == 0
    assert len({*model.trainable_parameters().values()}) == before - 2 * 4
    check(model, adapters)
    x, dy = (np.random.default_rng(seed).standard_normal((B, T, 12)) for seed in (1, 2))
    inputs, order, _ = Inputs(adapters=NAMES).by_adapter()
    own, cache = Gradients(), layer.forward(x[order], inputs)[1]
    layer.backward(dy[order], cache, own)
    Bs = np.stack([layer.adapters[name].lora_B.data for name in "abc"])
    rows, bounds = x[order][1:].reshape(-1, 12), T * np.array([0, 2, 4, 5])  # the first is the base's
    s, A, d = layer.adapters["a"].scaling, layer.adapters["a"].lora_A.data, dy[order][1:].reshape(-1, 12)
    _, (rows, h) = ops.lora_tasks_forward(rows, A, Bs, s, bounds)
    _, dh = ops.lora_tasks_backward(d, A, Bs, s, bounds)
    np.testing.assert_allclose(own[layer.adapters["c"].lora_A], ops.lora_A_gradients(dh, rows), rtol=1e-12)
    dBs = ops.lora_tasks_B_gradients(d, h, s, bounds)
    for name, dB in zip("abc", dBs, strict=True):
        np.testing.assert_allclose(own[layer.adapters[name].lora_B], dB, rtol=1e-12)


def test_one_A_needs_one_rank_and_a_lora():
    model, _ = several()
    with pytest.raises(ValueError, match="one A has one rank, and the adapters of a layer have 1, 2, 3"):
        share_A(model)
    model, _ = several({"a": LORA["a"], "b": ("vera", ["q_proj"], {"r": 2})})
    with pytest.raises(ValueError, match="one adapter is a VeRALinear"):
        share_A(model)


def lost(self, dx, dy, cache, grads):
    """A path whose dx does not arrive."""
    self.path_backward(dy, cache, grads, True)


def shifted(at, rows):
    """The rows of the next adapter."""
    return slice(at.start - rows.start - 1, at.stop - rows.start - 1) if at.start > rows.start else slice(0, at.stop)


@pytest.mark.parametrize(("place", "name", "wrong"), [(Parallel, "add_path_backward", lost), (many, "within", shifted)])
def test_verify_calls_a_backward_wrong_that_loses_a_path_or_takes_the_rows_of_another(monkeypatch, place, name, wrong):
    monkeypatch.setattr(place, name, wrong)
    assert not all(report.ok for report in CHECKS["adapter Many in a model"](np.random.default_rng(0)))


WRONG = {
    "a name that is not there": (["a", "d"], "no adapter of a row is called 'd', choose from a, b, c"),
    "a name too few": (["a"], "adapters are 1 names, and the batch has 2 rows"),
}


@pytest.mark.parametrize(("names", "message"), WRONG.values(), ids=WRONG)
def test_names_that_do_not_fit_are_refused(names, message):
    model, _ = several()
    with pytest.raises(ValueError, match=message):
        model.forward(IDS[:2], Inputs(adapters=names))


def test_a_model_with_one_adapter_in_place_has_no_names_and_says_so():
    model, adapters = several()
    adapters.activate("a")
    with pytest.raises(ValueError, match="this model has none"):
        model.forward(IDS[:1], Inputs(adapters=["a"]))


def test_what_is_of_one_adapter_is_refused_by_name_and_changes_nothing(tmp_path):
    model, adapters = several()
    before = dict(model.named_modules())
    for do in (minilora.merge, lambda model: minilora.save_adapter(model, tmp_path / "a")):
        with pytest.raises(ValueError, match=r"the layer has several adapters, and .* needs a single one: activate"):
            do(model)
    with pytest.raises(ValueError, match="adapted already"):
        minilora.attach_lora(model, rng=0)
    with pytest.raises(ValueError, match="so none of it can be trained"):
        adapters.attach("d", rng=0, train="norm")
    assert dict(model.named_modules()) == before
    adapters.activate("a")
    minilora.save_adapter(model, tmp_path / "a")
    again = base()
    minilora.load_adapter(again, tmp_path / "a")
    np.testing.assert_array_equal(again.forward(IDS)[0], model.forward(IDS)[0])


def test_a_kv_cache_of_rows_with_adapters_of_their_own_goes_on_as_the_whole_text():
    model, _ = several()
    whole, _ = model.forward(IDS, Inputs(adapters=NAMES))
    kv_cache = KVCache(T)
    parts = [
        model.forward(IDS[:, i:j], Inputs(adapters=NAMES), Pass(kv_cache=kv_cache))[0]
        for i, j in ((0, 2), (2, 3), (3, 5))
    ]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-12, atol=1e-12)


def changes(model, adapters):
    yield "another name", lambda: None, ["a", "a"]
    yield "one adapter for all", lambda: adapters.activate("a"), None
    yield "the base", lambda: adapters.activate(None), None


@pytest.mark.parametrize("i", range(3))
def test_a_kv_cache_never_serves_another_adapter(i):
    model, adapters = several()
    kv_cache = KVCache(T)
    model.forward(IDS[:2, :2], Inputs(adapters=["a", "b"]), Pass(kv_cache=kv_cache))
    _, change, names = list(changes(model, adapters))[i]
    change()
    with pytest.raises(ValueError, match=r"the KV cache .* with a new KVCache"):
        model.forward(IDS[:2, 2:], Inputs(adapters=names), Pass(kv_cache=kv_cache))


def test_a_kv_cache_is_refused_after_a_merge_an_unmerge_and_an_attach_and_taken_again_when_all_is_back():
    model = base()
    kv_cache = KVCache(T)
    model.forward(IDS[:1, :2], run=Pass(kv_cache=kv_cache))
    minilora.attach_lora(model, ["q_proj"], rng=0)
    refused = pytest.raises(ValueError, match="attached, merged or switched")
    with refused:
        model.forward(IDS[:1, 2:], run=Pass(kv_cache=kv_cache))
    kv_cache = KVCache(T)
    model.forward(IDS[:1, :2], run=Pass(kv_cache=kv_cache))
    minilora.merge(model)
    with refused:
        model.forward(IDS[:1, 2:], run=Pass(kv_cache=kv_cache))
    minilora.unmerge(model)
    y, _ = model.forward(IDS[:1, 2:], run=Pass(kv_cache=kv_cache))
    np.testing.assert_allclose(y, model.forward(IDS[:1])[0][:, 2:], rtol=1e-12, atol=1e-12)
