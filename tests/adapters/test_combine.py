"""Several adapters into one: each way against its definition and PEFT, and the files, layers and refusals."""

import math
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft_models import adapted, base, logits, trained

import minilora
from minilora.adapters.combine import combine, cosines, off_the_sum
from minilora.adapters.combining import combinations, descriptions
from minilora.adapters.combining.combination import Factors, Options, positive
from minilora.adapters.combining.dare_linear import dropped
from minilora.adapters.combining.magnitude_prune import largest
from minilora.adapters.combining.ties import ties
from minilora.adapters.peft import Adapters, load_adapter, save_adapter

OF_FACTORS = [name for name, way in combinations().items() if way.of_factors]
WEIGHTS = 0.5, 1.5, 2.0


def draw(seed=0, ranks=(4, 4, 4), n_out=10, n_in=7, scales=(0.75, 1.0, 2.0)):
    rng = np.random.default_rng(seed)
    return [
        Factors(rng.standard_normal((r, n_in)), rng.standard_normal((n_out, r)), s)
        for r, s in zip(ranks, scales, strict=True)
    ]


def made(how, adapters, weights=WEIGHTS, rank=4, density=0.4, seed=3):
    A, B = combinations()[how].make(*positive(adapters, weights), Options(rank, density, np.random.default_rng(seed)))
    return B @ A


def total(adapters, weights=WEIGHTS):
    return sum(w * adapter.delta() for w, adapter in zip(weights, adapters, strict=True))


def close(x, y, tolerance=1e-12):
    return np.abs(x - y).max() <= tolerance * np.abs(y).max()


# ---- the ways ----


@given(seed=st.integers(0, 10**6), ranks=st.lists(st.integers(1, 5), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_cat_is_the_sum_and_svd_is_as_near_as_the_theorem_says(seed, ranks):
    rng = np.random.default_rng(seed)
    adapters = draw(seed, ranks, scales=rng.uniform(-2, 2, len(ranks)))
    weights = rng.uniform(-2, 2, len(ranks))
    D = total(adapters, weights)
    assert close(made("cat", adapters, weights), D)
    sigma = np.linalg.svd(D, compute_uv=False)
    for k in range(1, min(sum(ranks), 7) + 1):
        off = np.linalg.norm(made("svd", adapters, weights, rank=k) - D)
        assert abs(off - np.linalg.norm(sigma[k:])) <= 1e-12 * sigma[0]


def test_the_cross_terms_are_what_linear_is_off_the_sum():
    adapters = draw()
    roots = [math.sqrt(w * s) for w, (_, _, s) in zip(WEIGHTS, adapters, strict=True)]
    cross = sum(
        roots[i] * roots[j] * adapters[i].B @ adapters[j].A for i in range(3) for j in range(3) if i != j
    )  # fmt: skip
    assert close(made("linear", adapters) - total(adapters), cross)


@pytest.mark.parametrize("how", combinations())
def test_another_basis_of_the_same_adapter_changes_what_works_on_factors_and_nothing_else(how):
    adapters = draw()
    M = np.random.default_rng(5).standard_normal((4, 4))
    A, B, s = adapters[1]
    turned = [adapters[0], Factors(np.linalg.solve(M, A), B @ M, s), adapters[2]]
    same = close(made(how, turned), made(how, adapters), 1e-9)
    assert same == (how not in OF_FACTORS)


@pytest.mark.parametrize("how", combinations())
def test_a_weight_below_zero_is_the_negative_adapter_and_one_of_zero_is_absent(how):
    first, second, third = draw()
    negative = Factors(-second.A, second.B, second.s)
    assert np.array_equal(made(how, [first, second], (1, -0.5)), made(how, [first, negative], (1, 0.5)))
    assert np.array_equal(made(how, [first, second, third], (1, 0.5, 0)), made(how, [first, second], (1, 0.5)))
    below = Factors(second.A, second.B, -second.s)
    assert np.array_equal(made(how, [first, below], (1, 0.5)), made(how, [first, second], (1, -0.5)))


@pytest.mark.parametrize("how", OF_FACTORS)
def test_at_density_1_with_the_rest_that_agrees_a_way_is_linear(how):
    first = draw()[0]
    alike = [first, Factors(2 * first.A, 3 * first.B, 0.5)]
    expected = made("linear", alike, (1, 2))
    if "ties" in how:  # the mean of two on A and on B
        expected = expected / 4
    assert close(made(how, alike, (1, 2), density=1.0), expected)


def test_ties_by_hand():
    x, y, z = np.array([4.0, -1, 2, 0.1]), np.array([-3.0, 5, 2, 0.1]), np.array([1.0, -1, -9, 0.1])
    # trimmed to two numbers each: 4 . 2 . | -3 5 . . | 1? no: . -1 . and -9: of 1 and -1 the first stays
    assert np.array_equal(largest(z, 0.5), [1, 0, -9, 0])
    expected = [(4 * 1 + 1 * 3) / 2, 5 * 2, -9 * 3, 0]  # + elected, + elected, - elected
    assert np.array_equal(ties([x, y, z], (1, 2, 3), Options(density=0.5)), expected)


@given(n=st.integers(1, 300), percent=st.integers(1, 100))
@settings(max_examples=50, deadline=None)
def test_pruning_keeps_the_floor_of_density_times_n_of_the_largest(n, percent):
    x = np.random.default_rng(n).permutation(n) + 1.0
    kept = largest(x, percent / 100)
    k = n * percent // 100
    assert np.count_nonzero(kept) == k
    assert set(kept[kept != 0]) == set(range(n - k + 1, n + 1))


def test_dare_keeps_each_number_scaled_up_and_its_mean_is_the_sum():
    options = Options(density=0.4, rng=np.random.default_rng(0))
    x = np.arange(1, 13.0).reshape(3, 4)
    drawn = np.stack([dropped(x, options) for _ in range(4000)])
    assert set(np.unique(np.round(drawn / x, 12))) == {0, 2.5}
    deviation = (drawn.mean(0) / x - 1) / math.sqrt(0.6 / 0.4 / 4000)
    assert np.abs(deviation).max() < 4.5
    assert np.abs(deviation).max() > 0.01


def test_the_inner_product_is_that_of_the_dense_updates():
    (first, second, _) = draw()
    assert math.isclose(first.inner(second), float(np.sum(first.delta() * second.delta())), rel_tol=1e-12)


def test_the_lines_about_the_ways_are_those_of_the_files():
    assert descriptions() == {name: way.about for name, way in combinations().items()}
    assert len(combinations()) == 11


# ---- PEFT ----


@pytest.fixture(scope="module")
def theirs():
    """(a PEFT layer of three adapters in float64, its model, the same as Factors)"""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # or its weights are of float32
    adapters = draw()
    model = None
    for i, (A, B, s) in enumerate(adapters):
        config = peft.LoraConfig(r=4, lora_alpha=4 * s, target_modules=["0"])
        if model is None:
            model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(7, 10)), config, adapter_name="0")
        else:
            model.add_adapter(str(i), config)
        layer = model.base_model.model[0]
        layer.lora_A[str(i)].weight.data, layer.lora_B[str(i)].weight.data = torch.tensor(A), torch.tensor(B)
    yield layer, model, adapters
    torch.set_default_dtype(before)


class Replayed:
    """A generator whose draws give the masks that PEFT drew."""

    def __init__(self, masks):
        self.masks = iter(masks)

    def random(self, shape):
        mask = next(self.masks)
        assert mask.shape == shape
        return 1.0 - mask  # 0 stays, 1 is dropped


@pytest.mark.each_value
@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", combinations())
@pytest.mark.parametrize("density", [0.4, 0.9])
def test_the_numbers_are_pefts(theirs, how, density):
    import torch

    (layer, model, adapters), masks, bernoulli = theirs, [], torch.bernoulli

    def recorded(p):
        masks.append(bernoulli(p))
        return masks[-1]

    name = f"{how} {density:.0%}"
    with patch.object(torch, "bernoulli", recorded):
        model.add_weighted_adapter(["0", "1", "2"], list(WEIGHTS), name, combination_type=how, density=density)
    options = Options(4, density, Replayed([mask.numpy() for mask in masks]))
    A, B = combinations()[how].make(*positive(adapters, WEIGHTS), options)
    assert bool(masks) == ("dare" in how)
    assert close(B @ A, layer.get_delta_weight(name).numpy())


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["cat", "svd", "linear", "magnitude_prune_svd"])
def test_negative_weights_are_pefts_where_no_sign_is_elected(theirs, how):
    layer, model, adapters = theirs
    weights, name = (0.5, -1.5, 2.0), f"{how} below 0"
    model.add_weighted_adapter(["0", "1", "2"], list(weights), name, combination_type=how, density=0.4)
    assert close(made(how, adapters, weights), layer.get_delta_weight(name).numpy())


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_loads_the_file_and_computes_the_same(tmp_path, family):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    adapters = several(tmp_path, family)
    combine(adapters, "both", {"0": 1, "1": -0.5}, "cat")
    adapters.activate("both")
    save_adapter(adapters.model, tmp_path / "both")
    minilora.save_pretrained(base(family), tmp_path / "base")
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    model = peft.PeftModel.from_pretrained(hf.eval(), tmp_path / "both")
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            found[name] = module.get_delta_weight("default").numpy()
    ours = [m.delta() for m in adapters.loaded["both"].values()]
    assert len(found) == len(ours)
    for x, y in zip(found.values(), ours, strict=True):
        assert close(x if x.shape == y.shape and family == "llama" else x.T, y)


# ---- the adapters of a model ----


def several(folder, family="llama"):
    """Three adapters, of other ranks, layers and scales; the first two of one rank."""
    first, second = {"llama": ("q_proj", "up_proj"), "gpt2": ("qkv_proj", "up_proj"), "bert": ("q_proj", "up_proj")}[
        family
    ]
    for i, (targets, options) in enumerate([
        ([first], {"r": 3, "alpha": 5}),
        ([first, second], {"r": 3, "alpha": 4, "rslora": True}),
        ({first: 2, f"block_1.mlp.{second}": 1}, {"alpha": 3}),
    ]):  # fmt: skip
        model = base(family)
        minilora.attach_lora(model, targets, rng=i, **options)
        save_adapter(trained(model, i), folder / str(i))
    adapters = Adapters(base(family))
    for i in range(3):
        assert adapters.load(str(i), folder / str(i)) == ""
    return adapters


def deltas(adapters, name):
    return {path: m.delta() for path, m in adapters.loaded[name].items() if m.is_adapter}


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_cat_of_other_ranks_layers_and_scales_is_the_sum_after_a_file_too(tmp_path, family):
    adapters, weights = several(tmp_path, family), {"0": 0.5, "1": -1.0, "2": 2.0}
    found = combine(adapters, "all", weights, "cat")
    assert off_the_sum(found) < 1e-14
    adapters.activate("all")
    save_adapter(adapters.model, tmp_path / "all")
    again = base(family)
    assert load_adapter(again, tmp_path / "all") == ""
    assert np.array_equal(logits(again), logits(adapters.model))
    each = {one: deltas(adapters, one) for one in weights}
    for path, D in deltas(adapters, "all").items():
        assert close(D, sum(w * each[one].get(path, 0) for one, w in weights.items()))
    assert deltas(adapters, "all").keys() == set().union(*each.values())
    ranks = {layer.rank for layer in found.values()}
    assert max(ranks) == 8
    assert min(ranks) == 3  # of a layer that one alone adapts


def test_svd_takes_the_rank_it_is_given_and_what_is_off_is_what_is_said(tmp_path):
    adapters, weights = several(tmp_path), {"0": 1.0, "1": 1.0}
    found = combine(adapters, "small", weights, rank=2)
    exact = combine(adapters, "exact", weights, "cat")
    small, whole = deltas(adapters, "small"), deltas(adapters, "exact")
    for path, layer in found.items():
        off = np.linalg.norm(small[path] - whole[path])
        assert math.isclose(layer.off, off, rel_tol=1e-9)
        assert math.isclose(layer.least, off, rel_tol=1e-9)
        assert math.isclose(layer.size, np.linalg.norm(whole[path]), rel_tol=1e-12)
        assert layer.rank == 2
    assert off_the_sum(exact) < 1e-14
    assert {layer.rank for layer in combine(adapters, "usual", weights).values()} == {3}
    linear = combine(adapters, "linear", weights, "linear")
    assert off_the_sum(linear) > 2 * off_the_sum(linear, least=True)


def test_the_cosines_are_those_of_the_dense_updates_and_of_all_layers_together(tmp_path):
    adapters = several(tmp_path)
    adapters.activate("2")
    found = cosines(adapters, "0", "1")
    assert adapters.active == "2"
    adapters.activate(None)
    one, two = deltas(adapters, "0"), deltas(adapters, "1")
    norm = np.linalg.norm
    for path in one:
        assert math.isclose(found.pop(path), np.sum(one[path] * two[path]) / norm(one[path]) / norm(two[path]))
    every = [np.concatenate([d.get(p, 0 * two[p]).ravel() for p in two]) for d in (one, two)]
    assert math.isclose(found.pop(""), every[0] @ every[1] / norm(every[0]) / norm(every[1]))
    assert not found
    assert math.isclose(cosines(adapters, "0", "0")[""], 1)


def test_an_embedding_and_a_classifier_come_along(tmp_path):
    model = adapted("bert", "classify", ["embed", "q_proj"])
    save_adapter(model, tmp_path / "0")
    adapters = Adapters(base("bert", "classify"))
    adapters.load("0", tmp_path / "0")
    combine(adapters, "half", {"0": 0.5}, "cat")
    combine(adapters, "twice", {"half": 2.0}, "svd")
    adapters.activate("twice")
    assert close(logits(adapters.model), logits(model), 1e-9)
    save_adapter(adapters.model, tmp_path / "twice")
    assert load_adapter(base("bert", "classify"), tmp_path / "twice") == ""


@pytest.mark.parametrize("variant", ["dora", "ia3", "vera", "loha", "lokr", "adalora", "svf", "lora-xs"])
def test_other_variants_go_through_the_svd_of_their_delta(tmp_path, variant):
    model = base()
    minilora.attach(model, variant, ["q_proj"], rng=0)
    save_adapter(trained(model), tmp_path / "0")
    save_adapter(adapted("llama", "lm", ["q_proj"]), tmp_path / "1")
    adapters = Adapters(base())
    for name in "01":
        adapters.load(name, tmp_path / name)
    combine(adapters, "all", {"0": 0.5, "1": 1.0}, "svd", rank={"lora-xs": 11}.get(variant, 12))  # 8 and 3
    for path, D in deltas(adapters, "all").items():
        assert close(D, 0.5 * deltas(adapters, "0")[path] + deltas(adapters, "1")[path], 1e-9)
    if adapters.loaded["0"][path].factors() is None:
        with pytest.raises(ValueError, match=f"{variant}, whose ΔW is not a product"):
            combine(adapters, "x", {"0": 1, "1": 1}, "svd")
        with pytest.raises(ValueError, match=f"{variant}, whose ΔW is not a product"):
            combine(adapters, "x", {"0": 1, "1": 1}, "linear")


def test_what_is_drawn_follows_the_seed(tmp_path):
    adapters = several(tmp_path)
    for name, seed in (("one", 4), ("two", 4), ("three", 5)):
        combine(adapters, name, {"0": 1, "1": 1}, "dare_linear", density=0.5, rng=seed)
    path = next(iter(adapters.loaded["one"]))
    one, two, three = (deltas(adapters, name)[path] for name in ("one", "two", "three"))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, three)


REFUSED = {
    "called 'tie': did you mean 'ties'": {"how": "tie"},
    "called '0' already": {"name": "0"},
    "no adapter is called 'a'": {"weights": {"0": 1, "a": 1}},
    "not a finite number": {"weights": {"0": math.inf}},
    "all weights are 0": {"weights": {"0": 0.0}},
    "cat does not read a rank": {"how": "cat", "rank": 2},
    "svd does not read a density": {"density": 0.5},
    "ties needs a density": {"how": "ties"},
    "density 1.5 is not": {"how": "ties", "density": 1.5},
    "density 0 is not": {"how": "dare_ties", "density": 0},
    "rank 0 is not": {"rank": 0},
    "rank 9 is above 6": {"rank": 9},
    "ranks 3, 2.*linear needs equal ranks": {"how": "linear", "weights": {"0": 1, "2": 1}},
}


@pytest.mark.parametrize("says", REFUSED)
def test_bad_input_is_refused_in_a_line_and_nothing_is_loaded(tmp_path, says):
    adapters = several(tmp_path)
    options = {"name": "new", "weights": {"0": 1, "1": 1}, **REFUSED[says]}
    with pytest.raises(ValueError, match=says):
        combine(adapters, options.pop("name"), options.pop("weights"), options.pop("how", "svd"), **options)
    assert [*adapters.loaded] == ["0", "1", "2"]


def test_what_a_sum_cannot_hold_is_refused_by_name(tmp_path):
    def refuse(model, fresh, says):
        save_adapter(trained(model), tmp_path / says[:4])
        adapters = Adapters(fresh)
        adapters.load("a", tmp_path / says[:4])
        with pytest.raises(ValueError, match=says):
            combine(adapters, "b", {"a": 1})

    model = base("bert")
    minilora.attach(model, "lora-bias", ["q_proj"], rng=0)
    refuse(model, base("bert"), "lora-bias, which changes the bias")
    model = base()
    minilora.attach_lora(model, ["embed"], rng=0, ensure_weight_tying=True)
    refuse(model, base(), "the head that is tied to it")
    refuse(adapted("bert", "lm", ["q_proj"], train="bias"), base("bert"), "changes the bias of")
    refuse(adapted("llama", "lm", ["q_proj"], init="loftq"), base(), "holds a W of its own")


def test_two_classifiers_and_two_bases_are_refused(tmp_path):
    for i in range(2):
        save_adapter(trained(adapted("bert", "classify", ["q_proj"], train="classifier"), i), tmp_path / str(i))
    adapters = Adapters(base("bert", "classify"))
    for name in "01":
        adapters.load(name, tmp_path / name)
    with pytest.raises(ValueError, match="0 and 1 have each trained classifier"):
        combine(adapters, "both", {"0": 1, "1": 1})
    combine(adapters, "one", {"0": 1, "1": 0})
    with pytest.raises(ValueError, match="made for another base"):
        Adapters(base("bert", "classify", seed=2)).load("0", tmp_path / "0")
