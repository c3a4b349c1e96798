"""Attention in blocks: the plain op's numbers, in memory that is linear in the number of tokens."""

import copy
import tracemalloc
from functools import partial
from typing import Any

import examples
import fakecupy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora import ops
from minilora.backend import get_array_module, to_numpy
from minilora.models.config import Config
from minilora.models.families import FAMILIES
from minilora.models.transformer import Transformer
from minilora.nn import Attention, Gradients, Inputs, KVCache, Pass, recompute
from minilora.ops.blockwise_attention import BLOCK, blocks
from minilora.verify.op_cases.attention import attention_mask
from minilora.verify.op_cases.tokens import pad

EXACT = 1e-12


def close(a: np.ndarray, b: np.ndarray, tolerance: float = EXACT) -> bool:
    """Within `tolerance` of the largest number."""
    return a.shape == b.shape and bool(np.abs(a - b).max() <= tolerance * np.abs(b).max())


def plain(q, k, v, dy, D, causal, padding=None, window=None) -> list[np.ndarray]:
    o, cache = ops.attention_forward(q, k, v, attention_mask(q, causal, padding, window), D)
    return [o, *ops.attention_backward(dy, cache)]


def blockwise(q, k, v, dy, D, causal, padding=None, block=BLOCK, window=None) -> list[np.ndarray]:
    o, cache = ops.blockwise_attention_forward(q, k, v, D, causal, padding, block, window)
    return [o, *ops.blockwise_attention_backward(dy, cache)]


def drawn(rng: np.random.Generator, B: int, T: int, G: int, R: int, D: int, dtype: str = "float64") -> list[np.ndarray]:
    """q, k, v and dy"""
    return [rng.standard_normal((B, T, n * D)).astype(dtype) for n in (G * R, G, G, G * R)]


# ---- the op ----


@settings(max_examples=examples.count(100), deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    *[st.integers(1, high) for high in (3, 12, 3, 3, 4)],
    st.integers(1, 13),
    st.booleans(),
    st.sampled_from(["none", "left", "right"]),
    st.none() | st.integers(1, 14),
    st.sampled_from([("float64", EXACT), ("float32", 1e-5)]),
)
def test_output_and_gradients_are_those_of_plain_attention(seed, B, T, G, R, D, block, causal, side, window, precision):
    (dtype, tolerance), rng = precision, np.random.default_rng(seed)
    q, k, v, dy = drawn(rng, B, T, G, R, D, dtype)
    padding = None if side == "none" else pad(side, T, [T, *rng.integers(0, T + 1, B - 1)])
    real = np.ones((B, T, 1), dtype) if padding is None else padding[..., None].astype(dtype)
    (o, *expected), (ours, *gradients) = (
        plain(q, k, v, dy * real, D, causal, padding, window),
        blockwise(q, k, v, dy * real, D, causal, padding, block, window),
    )
    assert ours.dtype == dtype
    assert close(ours * real, o * real, tolerance)
    scale = max(np.abs(gradient).max() for gradient in expected)
    for gradient, exact in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, exact, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128"])
@pytest.mark.parametrize("block", [1, 2, 3, 8])
def test_a_row_with_nothing_to_look_at_is_zero_and_passes_no_gradient(dtype, block, rng):
    padding = np.array([[False, False, True, True, True], [False] * 5])
    q, k, v, dy = drawn(rng, 2, 5, 2, 2, 3, dtype)
    o, *gradients = blockwise(q, k, v, dy, 3, True, padding, block)
    lost = np.array([[True, True, False, False, False], [True] * 5])
    assert not o[lost].any()
    assert o[~lost].all()
    dy[lost] *= 7
    for before, after in zip(gradients, blockwise(q, k, v, dy, 3, True, padding, block)[1:], strict=True):
        assert np.array_equal(before, after)
        assert np.isfinite(before).all()
        assert not before[lost].any()


@pytest.mark.parametrize(("causal", "computed"), [(True, 8), (False, 12)])
def test_blocks_above_the_diagonal_of_a_causal_mask_are_not_computed(causal, computed, rng):
    q, k, *_ = (x.reshape(1, 1, 11, 2) for x in drawn(rng, 1, 11, 1, 1, 2))
    found = list(blocks(q, k, causal, None, 2))
    assert len(found) == computed
    S, see = q @ k.swapaxes(-1, -2), np.tri(11) > 0
    for i, j, S_ij in found:
        rows, keys = i[-1], j[-1]
        expected = np.where(see[rows, keys] | (not causal), S[0, :, rows, keys], -np.inf)
        assert close(np.exp(S_ij), np.exp(expected))
    assert sum(S_ij.size for *_, S_ij in found) == (2 * (2 + 4 + 6 + 8 + 10) + 11 if causal else 121)


@pytest.mark.parametrize(
    ("window", "keys"),  # of each block of two queries, in whole blocks
    [(1, [2, 2, 2, 2, 2, 1]), (2, [2, 4, 4, 4, 4, 3]), (3, [2, 4, 4, 4, 4, 3]), (4, [2, 4, 6, 6, 6, 5]),
     (11, [2, 4, 6, 8, 10, 11])],
)  # fmt: skip
def test_blocks_of_keys_before_the_window_are_not_computed(window, keys, rng):
    q, k, *_ = (x.reshape(1, 1, 11, 2) for x in drawn(rng, 1, 11, 1, 1, 2))
    found = list(blocks(q, k, True, None, 2, window))
    S, see = q @ k.swapaxes(-1, -2), (np.tri(11) - np.tri(11, k=-window)) > 0
    for i, j, S_ij in found:
        expected = np.where(see[i[-1], j[-1]], S[0, :, i[-1], j[-1]], -np.inf)
        assert close(np.exp(S_ij), np.exp(expected))
    assert sum(S_ij.size for *_, S_ij in found) == 2 * sum(keys[:-1]) + keys[-1]


def peak(run: Any) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("causal", [True, False])
def test_the_peak_of_forward_and_backward_is_linear_in_the_tokens_and_holds_no_array_of_tokens_squared(causal, rng):
    def peaks(op: Any) -> tuple[int, int]:
        first, second = (drawn(rng, 1, T, 2, 2, 16, "float32") for T in (512, 1024))
        return peak(lambda: op(*first, 16, causal)), peak(lambda: op(*second, 16, causal))

    once, twice = peaks(partial(blockwise, block=32))
    assert 1.8 < twice / once < 2.05  # with one mask, of a byte for each pair of tokens, 2.3
    once, twice = peaks(plain)
    assert 3.5 < twice / once < 4.1


def test_what_is_kept_is_linear_in_the_tokens(rng):
    q, k, v, _ = drawn(rng, 2, 7, 2, 2, 4)
    _, cache = ops.blockwise_attention_forward(q, k, v, 4, True, block=2)
    assert [x.shape for x in cache[:5]] == [(2, 2, 14, 4), (2, 2, 7, 4), (2, 2, 7, 4), (2, 2, 14, 4), (2, 2, 14, 1)]


@pytest.mark.each_value
@pytest.mark.oracle
@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (False, None), (True, 200)])
@pytest.mark.parametrize(("G", "R"), [(4, 1), (2, 3)])
def test_more_than_one_block_agrees_with_pytorch(G, R, causal, window, side, rng):
    torch = pytest.importorskip("torch")
    B, T, D = 2, 5 * BLOCK + 9, 8
    inputs = drawn(rng, B, T, G, R, D)
    padding = pad(side, T, [T - 1, T // 3]) if side != "none" else np.ones((B, T), bool)
    inputs[-1] *= padding[..., None]
    q, k, v, dy = (torch.tensor(x, requires_grad=True) for x in inputs)
    heads = (x.unflatten(-1, (-1, D)).transpose(1, 2) for x in (q, k, v))
    seen = np.tri(T, dtype=bool) if causal else np.ones((T, T), bool)
    seen &= ~np.tri(T, k=-window, dtype=bool) if window else True
    see = torch.tensor(seen) & torch.tensor(padding)[:, None, None]
    y = torch.nn.functional.scaled_dot_product_attention(*heads, see, enable_gqa=R > 1).transpose(1, 2).flatten(2)
    y.backward(dy)
    o, *gradients = blockwise(*inputs, D, causal, None if side == "none" else padding, window=window)
    assert close(o[padding], y.detach().numpy()[padding])
    for gradient, x in zip(gradients, (q, k, v), strict=True):
        assert close(gradient, x.grad.numpy())


# ---- a model ----

T = 4 * BLOCK + 22
HEADS: dict[str, dict[str, Any]] = {family: {"n_heads": 4, "n_kv_heads": 2} for family in ("llama", "mistral")}


def build(family: str, **options: Any) -> Transformer:
    family, _, windowed = family.partition(", ")
    options |= {"sliding_window": 2 * BLOCK + 5} if windowed else {}
    config = {"vocab_size": 13, "n_layers": 2, "d_model": 8, "d_ff": 6, "n_heads": 2, "max_length": 2 * T}
    config |= {"dtype": "float64"} | HEADS.get(family, {}) | options
    return FAMILIES[family].build(Config(**config), np.random.default_rng(1))


def step(model: Transformer, side: str = "none", rng: np.random.Generator | None = None) -> list[np.ndarray]:
    """The loss and every gradient of it, over two sequences of T tokens."""
    drawn = np.random.default_rng(2)
    ids, real = drawn.integers(0, 13, (2, T)), pad(side, T, [T, 40])
    labels = np.where(real, ids, ops.IGNORE)
    logits, caches = model.forward(ids, Inputs(None if side == "none" else real), Pass(rng))
    xp, grads = get_array_module(logits), Gradients()
    L, cache = ops.cross_entropy_forward(logits, xp.asarray(labels))
    model.backward(ops.cross_entropy_backward(1.0, cache), caches, grads)
    return [L, *(grads[parameter] for parameter in model.named_parameters().values())]


each_family = pytest.mark.parametrize("family", ["gpt2", "llama", "mistral, windowed"])  # those with a causal mask


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The caches of what was computed in blocks."""
    found: list[Any] = []
    original = ops.blockwise_attention_forward

    def watched(*arguments: Any, **options: Any) -> Any:
        o, cache = original(*arguments, **options)
        found.append(cache)
        return o, cache

    monkeypatch.setattr(ops, "blockwise_attention_forward", watched)
    return found


@pytest.mark.parametrize(("family", "side"), [("gpt2", "none"), ("llama", "left"), ("mistral, windowed", "right")])
def test_loss_and_gradients_of_a_model_are_those_of_plain_attention(family, side, monkeypatch, computed):
    model = build(family)
    monkeypatch.setattr(Attention, "blockwise_from", T + 1)
    expected = step(model, side)
    assert not computed
    monkeypatch.setattr(Attention, "blockwise_from", T)
    found = step(model, side)
    assert len(computed) == 2
    largest = max(np.abs(gradient).max() for gradient in expected[1:])
    assert found[0] == pytest.approx(expected[0], rel=EXACT)
    for gradient, exact in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(gradient, exact, rtol=0, atol=EXACT * largest)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_encoder_takes_the_plain_op_however_long_its_text(family, monkeypatch, computed):
    monkeypatch.setattr(Attention, "blockwise_from", 1)
    step(build(family))
    assert not computed


@each_family
def test_recomputed_blocks_give_the_same_bits(family, monkeypatch, computed):
    monkeypatch.setattr(Attention, "blockwise_from", T)
    model = build(family, dtype="float32")
    expected = step(model)
    again = copy.deepcopy(model)
    recompute(again)
    computed.clear()
    assert [x.tobytes() for x in step(again)] == [x.tobytes() for x in expected]
    assert len(computed) == 4  # both layers, twice


@each_family
def test_with_a_past_every_earlier_key_is_seen(family, monkeypatch, rng):
    model, ids = build(family), rng.integers(0, 13, (1, 12))
    whole, _ = model.forward(ids)
    monkeypatch.setattr(Attention, "blockwise_from", 2)
    kv_cache = KVCache(12)
    parts = [model.forward(part, run=Pass(kv_cache=kv_cache))[0] for part in np.split(ids, 3, axis=1)]
    assert close(np.concatenate(parts, axis=1), whole)


@each_family
@pytest.mark.parametrize("xp", ["fakecupy", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True)
def test_on_a_gpu_a_model_gives_the_same_numbers_and_nothing_waits_for_the_host(family, xp, monkeypatch, computed):
    monkeypatch.setattr(Attention, "blockwise_from", T)
    model = build(family, dtype="float32")
    expected = step(model, "left")
    model.to(xp)
    syncs = fakecupy.syncs
    found = step(model, "left")
    assert fakecupy.syncs == syncs
    assert len(computed) == 4
    for x, exact in zip(map(to_numpy, found), expected, strict=True):
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, exact, rtol=0, atol=1e-4 if xp.__name__ == "cupy" else 0)
