"""Three of notebooks/examples/: each runs at its small size and beats its baselines; its own gradients are right."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from real import real

from minilora.models.config import Config
from minilora.models.parts import LayerFactory
from minilora.nn import Gradients
from minilora.verify import check_model

FOLDER = Path(__file__).parent.parent / "notebooks" / "examples"
NAMES = "digits", "named_entities", "recommender", "reversed_words"  # and those of convolutions, below
each_example = pytest.mark.parametrize("name", NAMES)


def example(name):
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    if "digits" in name:
        pytest.importorskip("sklearn")
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What an example returns at its small size, and its figure; each runs once."""
    done = {}

    def at_small_size(name):
        if name not in done:
            figure = tmp_path_factory.mktemp(name) / "figure.png"
            done[name] = example(name).main(small=True, out=figure), figure
        return done[name]

    return at_small_size


def is_picture(path):
    data = path.read_bytes()
    return data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 20_000


@each_example
def test_an_example_is_less_than_a_hundred_lines(name):
    assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 100


@pytest.mark.slow
def test_lora_teaches_new_digits_and_keeps_more_of_the_old_than_a_new_start(run):
    right, figure = run("digits")
    right = {way: shares[0] for way, shares in right.items()}  # of the one split
    assert right["base"][1] == 0  # 7, 8 and 9 are nothing it can say
    assert right["LoRA"][1] > max(right["new head"][1], 1 / 3)
    assert right["LoRA"][0] > right["from nothing"][0]
    assert is_picture(figure)
    assert figure.with_suffix(".safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rotated_digits", "signals"])
def test_lora_on_convolutions_learns_the_new_with_fewer_numbers_than_all(name):
    rows = {way: found[0] for way, found in example(name).main(small=True).items()}  # of the one seed
    assert rows["LoRA"][0] < rows["full"][0] / 4
    assert rows["LoRA"][2] > rows["base"][2] + 0.03
    assert rows["base"][1] > rows["base"][2] + 0.2


@pytest.mark.slow
def test_lora_follows_the_new_market_closer_than_what_is_popular_and_the_old_model(run):
    curves, figure = run("recommender")
    (row,) = curves.values()
    for way in ("base", "most popular"):
        assert row["LoRA"][9] > row[way][9] + 0.1
    assert all(row[way][9] < row["the world itself"][9] for way in row if way != "the world itself")
    assert is_picture(figure)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:minilm")  # of a head that is not there, and one that is new
def test_lora_finds_names_it_has_never_seen(run):
    real("minilm")
    pytest.importorskip("tokenizers")
    scores, figure = run("named_entities")
    whole = {way: row["PER LOC ORG"] for way, row in scores.items()}
    assert whole["LoRA"] > whole["new head"] > whole["lookup"]
    assert is_picture(figure)


@pytest.mark.slow
def test_queries_and_keys_of_cross_attention_turn_the_words_around_and_values_cannot(run):
    right, figure = run("reversed_words")
    (base,), (cross,), (values,) = right["base"], right["cross"], right["cross, v alone"]
    assert base[0] > 0.9 > 0.2 > base[1]
    assert cross[1] > 0.9
    assert values[1] < 0.3
    assert is_picture(figure)


def test_a_number_that_is_held_out_is_in_no_batch_to_learn_from_and_its_words_are_its_digits(rng):
    module = example("reversed_words")
    batches = [module.numbers(200, rng, backwards, held) for backwards in (False, True) for held in (False, True)]
    for i, batch in enumerate(batches):
        for source, words in zip(batch.source, batch.targets, strict=True):
            digits = [x - module.DIGIT for x in source if x >= module.DIGIT]
            said = [x - module.WORD for x in words if x >= module.WORD]
            assert said == (digits[::-1] if i >= 2 else digits)
            assert (sum(digits) % 5 == 0) == bool(i % 2)
            assert source[len(digits)] == words[len(digits)] == module.END


def test_no_name_and_no_frame_of_the_test_is_in_training():
    sentences = example("sentences")
    for learn, test in (sentences.FRAMES, *sentences.NAMES.values()):
        assert not set(learn) & set(test)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "recommender"])
def test_the_same_seed_gives_the_same_numbers(name, run, tmp_path):
    assert example(name).main(small=True, out=tmp_path / "again.png") == run(name)[0]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", set()),
        ("B-PER I-PER O B-LOC", {(0, 1, "PER"), (3, 3, "LOC")}),
        ("B-PER B-PER", {(0, 0, "PER"), (1, 1, "PER")}),
        ("I-ORG I-ORG", {(0, 1, "ORG")}),
        ("B-PER I-LOC", {(0, 0, "PER"), (1, 1, "LOC")}),
        ("O I-PER O I-PER", {(1, 1, "PER"), (3, 3, "PER")}),
    ],
)
def test_names_are_read_from_tags(tags, expected):
    assert example("named_entities").spans(tags.split()) == expected


# ---- the gradients that the examples write themselves ----


def checked(layer, x, rng):
    """A layer at the root of a model, its numbers shaken, against central differences and complex steps."""
    for parameter in layer.named_parameters().values():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.data.shape)
    y, cache = layer.forward(x)
    dy, grads = rng.standard_normal(y.shape), Gradients()
    layer.backward(dy, cache, grads)
    return check_model(layer, lambda: (dy * layer.forward(x)[0]).sum(), grads, rng=rng)


def new(rng):
    return LayerFactory(Config(vocab_size=1, n_layers=1, d_model=6, n_heads=2, dtype="float64"), rng)


def test_the_gradients_of_items_are_right(rng):
    module, market = example("recommender"), example("market")
    layer = module.Items(rng.standard_normal((market.N, market.F)), new(rng), 6)
    assert checked(layer, rng.integers(0, market.N, (3, market.T)), rng).ok


def test_the_market_draws_from_the_probabilities_it_gives_and_shows_nothing_twice(rng):
    market = example("market")
    f, groups = rng.standard_normal((market.N, market.F)), rng.standard_normal((2, market.F))
    batch, P = market.sessions(f, rng.standard_normal((market.F, market.F)), groups, 2000, rng)
    assert np.allclose(P.sum(axis=-1), 1)
    whole = np.concatenate([batch.ids, batch.targets[:, -1:]], axis=1)
    assert all(len(set(row)) == market.T + 1 for row in whole.tolist())
    drawn = np.take_along_axis(P, batch.targets[..., None], axis=-1)
    expected, n = (P * P).sum(axis=-1).mean(), batch.targets.size  # E[P of what is drawn]
    assert abs(drawn.mean() - expected) < 5 * drawn.std() / n**0.5


@pytest.mark.slow  # half a minute, and what it rests on is tested in training/test_distillation.py
def test_a_student_that_is_distilled_is_nearer_to_its_teacher_than_the_base(run):
    table, figure = run("distillation")
    _, base = table["base"][0][0]
    for way in ("KL(teacher ‖ student)", "KL(student ‖ teacher)"):
        assert table[way][2][0][1] < base
    assert is_picture(figure)
