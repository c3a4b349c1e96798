"""spectrum.py and accounting.py."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minilora
from minilora import accounting, spectrum
from minilora.modules import Gradients
from minilora.optim import SGD, AdamW
from minilora.text import Batch
from minilora.training import loss_and_gradients


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_the_small_core_has_the_singular_values_of_the_dense_update(n_in, n_out, r, seed):
    rng = np.random.default_rng(seed)
    r = min(r, n_in, n_out)
    layer = minilora.LoRALinear(minilora.Linear(rng.standard_normal((n_out, n_in))), r, 3, rng=rng)
    layer.lora_B.data = rng.standard_normal((n_out, r))
    small, dense = spectrum.lora_singular_values(layer), spectrum.singular_values(layer.delta())
    assert small.shape == (r,)
    np.testing.assert_allclose(small, dense[:r], rtol=0, atol=1e-12 * dense[0])
    np.testing.assert_allclose(dense[r:], 0, atol=1e-12 * dense[0])


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20))
def test_energy_grows_to_one_and_is_what_the_best_approximation_keeps(values):
    sigma = np.sort(values)[::-1]
    kept = spectrum.energy(sigma)
    assert (np.diff(kept) >= 0).all()
    assert kept[-1] == pytest.approx(1)
    assert kept[0] == pytest.approx(1 - np.sum(sigma[1:] ** 2) / np.sum(sigma**2))


@given(st.integers(1, 30), st.integers(0, 30), st.floats(0.1, 10))
def test_the_effective_rank_of_n_equal_values_is_n_whatever_zeros_follow(n, zeros, scale):
    assert spectrum.effective_rank(np.r_[np.full(n, scale), np.zeros(zeros)]) == pytest.approx(n)


def test_no_update_has_rank_and_energy_zero():
    assert spectrum.effective_rank(np.zeros(3)) == 0
    assert (spectrum.energy(np.zeros(3)) == 0).all()


def test_spectra_on_a_device_equal_those_on_the_host(xp, rng):
    W = rng.standard_normal((6, 4))
    np.testing.assert_allclose(spectrum.singular_values(xp.asarray(W)), np.linalg.svd(W)[1], rtol=1e-12)


def model(rng, **words):
    made = minilora.llama(
        minilora.Config(vocab=32, layers=2, width=16, heads=4, kv_heads=2, hidden=24, context=16), rng
    )
    if words:
        minilora.attach_lora(made, rng=rng, **words)
    return made


@pytest.mark.parametrize("words", [{"targets": "all-linear", "r": 3}, {"targets": {"q_proj": 2, "lm_head": 4}}])
def test_the_formula_counts_what_the_model_holds(rng, words):
    adapted = model(rng, **words)
    counted = accounting.count_parameters(adapted)
    assert counted["trainable"] == accounting.lora_parameters(adapted)
    assert counted["total"] == accounting.count_parameters(model(rng))["total"]


def test_every_buffer_is_counted_once_and_a_view_as_its_owner():
    x, y = np.zeros((4, 5)), np.zeros(3, dtype="f4")
    read = np.frombuffer(bytes(24), dtype="f8")
    assert accounting.nbytes([read, read[1:]]) == 24
    assert accounting.nbytes([x, x, x[1], x.T[2:], (y, {"a": 1}, None, y[:1])]) == x.nbytes + y.nbytes


def test_memory_is_the_bytes_of_the_four_values(rng):
    ids = rng.integers(0, 32, (2, 8))
    for words in ({}, {"targets": "all-linear", "r": 3}, {"targets": ["v_proj"], "r": 1}):
        m = model(rng, **words)
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
        accounting.nbytes(model(rng, **words).forward(ids)[1])
        for words in ({}, {"targets": "all-linear", "r": 1}, {"targets": ["v_proj"], "r": 1})
    ]
    assert caches[0] > caches[1] > caches[2]
    frozen = model(rng)
    frozen.freeze()
    assert accounting.nbytes(frozen.forward(ids)[1]) == 0
