"""Sparse rows and embedding bags: the numbers of a dense x, without one; low-rank attention and what it is not."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import close

import minilora
from minilora import ops
from minilora.adapters.registry import variants
from minilora.data import Batch
from minilora.nn import Gradients, Linear, Pass, Sequential, Tanh

EXACT = 1e-12


def dense(x):
    full = np.zeros(x.shape, x.values.dtype)
    for row, (i, v) in zip(full, x, strict=True):
        row[i] = v
    return full


def sparse(N, n_in, density, rng, dtype="float64"):
    present = rng.random((N, n_in)) < density
    indptr = np.concatenate([[0], present.sum(axis=1).cumsum()])
    return ops.CSR(indptr, np.nonzero(present)[1], rng.standard_normal(indptr[-1]).astype(dtype), n_in)


def adapted(n_in, n_out, rng, dtype="float64", **options):
    """A model of two layers; both are adapted, B is not 0, and the bias learns too."""
    layers = {"first": Linear(rng.standard_normal((n_out, n_in)), np.zeros(n_out)), "tanh": Tanh()}
    model = Sequential(layers | {"second": Linear(rng.standard_normal((3, n_out)))})
    minilora.attach_lora(model, ["first", "second"], r=2, alpha=4, rng=rng, train="bias", **options)
    for path in ("first", "second"):
        model[path].lora_B.data = rng.standard_normal(model[path].lora_B.data.shape)
    model.astype(dtype)
    return model


THROUGH_x = "adalora", "bitfit", "dora", "ia3", "loha", "lora", "lora-bias", "lora-fa", "lora-xs", "svf", "vera"


@pytest.mark.parametrize("variant", THROUGH_x)
def test_other_adapters_take_sparse_rows_too(variant, rng):
    x, model = sparse(5, 8, 0.4, rng), Sequential({"q_proj": Linear(rng.standard_normal((6, 8)), np.ones(6))})
    options = next(cls for cls in variants()[variant] if cls.base_type is Linear).examples[""]
    minilora.attach(model, variant, ["q_proj"], rng=0, **options)
    results, dy = [], rng.standard_normal((5, 6))
    for parameter in model.trainable_parameters().values():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.data.shape)
    for rows in (x, dense(x)):
        (y, cache), grads = model.forward(rows), Gradients()
        model.backward(dy, cache, grads)
        results.append([y, *(grads[parameter] for parameter in model.trainable_parameters().values())])
    assert all(close(*pair, EXACT) for pair in zip(*results, strict=True))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1), N=st.integers(1, 6), n_in=st.integers(2, 9), density=st.sampled_from([0, 0.2, 1])
)
def test_an_adapted_layer_gives_for_sparse_rows_what_it_gives_for_dense_ones(seed, N, n_in, density):
    rng = np.random.default_rng(seed)
    x, model = sparse(N, n_in, density, rng), adapted(n_in, 4, rng)
    outputs, gradients, dy = [], [], rng.standard_normal((N, 3))
    for rows in (x, dense(x)):
        y, cache = model.forward(rows)
        grads = Gradients()
        model.backward(dy, cache, grads)
        outputs.append(y)
        gradients.append({path: grads[p] for path, p in model.trainable_parameters().items()})
    assert close(*outputs, EXACT)
    assert len(gradients[0]) == 5  # A and B of two layers, and a bias
    for path, gradient in gradients[0].items():
        np.testing.assert_allclose(gradient, gradients[1][path], rtol=0, atol=EXACT * max(1, abs(gradient).max()))


def test_columns_without_an_entry_have_no_gradient_in_A_and_the_others_have(rng):
    x, dh = sparse(5, 40, 0.1, rng), rng.standard_normal((5, 3))
    dA = ops.lora_A_gradients(dh, x)
    assert set(np.flatnonzero(dA.any(axis=0))) == set(x.indices.tolist()) != set(range(40))


def test_no_dense_x_and_no_dx_is_ever_made(rng):
    N, n_in = 512, 8192
    model, x = adapted(n_in, 8, rng, "float32"), sparse(N, n_in, 0.002, rng, "float32")
    targets, before = np.zeros(N, np.int64), tracemalloc.is_tracing()
    assert not before
    tracemalloc.start()
    try:
        minilora.training.gradients.loss_and_gradients(model, Batch(x, targets))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * N * n_in / 10


def test_rows_of_sparse_rows_are_sparse_rows_and_fit_learns_from_them_in_any_number_of_shards(rng):
    x, targets = sparse(24, 30, 0.2, rng), rng.integers(0, 3, 24)
    for rows in (slice(3, 9), np.array([7, 0, 7]), np.arange(24) % 2 == 0):
        assert np.array_equal(dense(x[rows]), dense(x)[rows])
    assert x[4].shape == (1, 30)
    losses = {}
    for shards in (1, 3):
        for form in (x, dense(x)):
            model = adapted(30, 4, np.random.default_rng(0), dropout=0.0)
            history = minilora.fit(model, lambda step, form=form: Batch(form[step % 2 :: 2], targets[step % 2 :: 2]), 8,
                                   lr=2e-2, shards=shards, description=None)  # fmt: skip
            losses[shards, form is x] = history.loss
    first = losses[1, True]
    assert first[-1] < first[0]
    assert all(np.allclose(loss, first, rtol=1e-10) for loss in losses.values())


def test_dropout_keeps_or_drops_entries_and_zeros_stay(rng):
    x, model = sparse(50, 40, 0.2, rng), adapted(40, 4, rng, dropout=0.5)
    _, cache = model["first"].forward(x, run=Pass(np.random.default_rng(1)))
    ratio = cache.x.values / x.values
    assert set(ratio.round(12)) == {0, 2}
    assert cache.x.shape == x.shape


@pytest.mark.oracle
def test_a_matrix_of_scipy_is_read_in_any_format_and_added_up_where_a_place_comes_twice(rng):
    scipy = pytest.importorskip("scipy.sparse")
    x = scipy.coo_array((np.array([1.0, 2, 4, 8]), (np.array([0, 0, 2, 2]), np.array([1, 1, 3, 0]))), shape=(3, 5))
    for form in (x, x.tocsr(), x.tocsc(), scipy.coo_matrix(x)):
        assert np.array_equal(dense(ops.CSR.of(form)), x.toarray())
        W = rng.standard_normal((4, 5))
        assert close(ops.linear_forward(ops.CSR.of(form), W)[0], form @ W.T, EXACT)


@pytest.mark.parametrize(
    ("indptr", "indices", "message"),
    [
        ([0, 2], [1, 1], "a column comes twice in a row"),
        ([0, 2], [0, 3], "columns are from 0 to 2; 0 to 3 are given"),
        ([0, 2], [-1, 0], "columns are from 0 to 2; -1 to 0 are given"),
        ([0, 1], [0, 1], "indptr goes from 0 up to the 2 entries"),
        ([1, 2], [0, 1], "indptr goes from 0 up to the 2 entries"),
        ([0, 2, 1, 2], [0, 1], "indptr goes from 0 up to the 2 entries"),
        ([], [], "indptr goes from 0 up to the 0 entries"),
    ],
)
def test_arrays_that_are_no_sparse_rows_are_refused(indptr, indices, message):
    with pytest.raises(ValueError, match=message):
        ops.CSR(indptr, np.array(indices, int), np.ones(len(indices)), 3)


def test_values_that_are_not_as_many_as_the_indices_are_refused_and_so_is_another_shape(rng):
    with pytest.raises(ValueError, match=r"2 indices need as many values, not \(3,\)"):
        ops.CSR([0, 2], np.array([0, 1]), np.ones(3), 3)
    with pytest.raises(ValueError, match=r"sparse rows \(4, 6\) have no other shape"):
        sparse(4, 6, 0.5, rng).reshape(2, 12)


# ---- embedding bags ----

BAGS = [[3, 1, 3], [], [0], [4, 4, 4, 2]]


@pytest.mark.oracle
@pytest.mark.parametrize("mean", [False, True])
def test_bags_are_those_of_pytorch_where_an_id_counts_as_often_as_it_comes_and_an_empty_bag_is_zero(mean, rng):
    torch = pytest.importorskip("torch")
    W, dy = rng.standard_normal((6, 3)), rng.standard_normal((4, 3))
    theirs = torch.nn.EmbeddingBag(6, 3, mode="mean" if mean else "sum", dtype=torch.float64)
    theirs.weight.data = torch.tensor(W)
    starts = np.cumsum([0, *map(len, BAGS[:-1])])
    expected = theirs(torch.tensor([i for bag in BAGS for i in bag]), torch.tensor(starts))
    expected.backward(torch.tensor(dy))
    y, X = ops.embedding_bag_forward(ops.bags(BAGS, 6, mean, "float64"), W)
    assert close(y, expected.detach().numpy(), EXACT)
    assert close(ops.embedding_bag_gradients(dy, X), theirs.weight.grad.numpy(), EXACT)
    assert not y[1].any()


def test_a_linear_layer_whose_weight_is_the_table_transposed_is_an_embedding_bag_and_takes_an_adapter(rng):
    table, X = rng.standard_normal((6, 3)), ops.bags(BAGS, 6, dtype="float64")
    model = Sequential({"bag": Linear(table.T)})
    assert close(model.forward(X)[0], ops.embedding_bag_forward(X, table)[0], EXACT)
    minilora.attach_lora(model, ["bag"], r=2, rng=0)
    assert np.array_equal(model.forward(X)[0], ops.embedding_bag_forward(X, table)[0])  # B = 0


# ---- low-rank attention ----


def qkv(rng, n=6, heads=(4, 2, 2)):
    return [rng.standard_normal((2, n, 3 * h)) for h in heads]


def test_with_E_and_F_the_identity_low_rank_attention_is_attention(rng):
    q, k, v = qkv(rng)
    y, _ = ops.projected_attention_forward(q, k, v, np.eye(6), np.eye(6), 3)
    assert close(y, ops.attention_forward(q, k, v, None, 3)[0], EXACT)


def test_what_multiplies_v_is_a_matrix_of_rank_m_where_that_of_attention_has_rank_n(rng):
    q, k, v = qkv(rng, heads=(1, 1, 1))
    E, F = rng.standard_normal((2, 2, 6))
    P = ops.projected_attention_forward(q, k, np.eye(6)[None, :, :3] + 0 * v, E, F, 3)[1].attention
    scores = (P.E / P.Z)[0, 0]
    assert scores.shape == (6, 2)
    assert np.linalg.matrix_rank(scores @ F) == 2
    whole = ops.attention_forward(q, k, v, None, 3)[1]
    assert np.linalg.matrix_rank((whole.E / whole.Z)[0, 0]) == 6
    assert close(scores @ F @ v[0], ops.projected_attention_forward(q, k, v, E, F, 3)[0][0], EXACT)


def test_the_order_of_the_m_projections_does_not_matter(rng):
    (q, k, v), (E, F) = qkv(rng), rng.standard_normal((2, 4, 6))
    order = rng.permutation(4)
    y, turned = (ops.projected_attention_forward(q, k, v, *each, 3)[0] for each in ((E, F), (E[order], F[order])))
    assert close(y, turned, EXACT)


def test_it_is_not_causal_the_first_output_sees_the_last_token(rng):
    (q, k, v), (E, F) = qkv(rng), rng.standard_normal((2, 4, 6))
    y = ops.projected_attention_forward(q, k, v, E, F, 3)[0][:, 0]
    for x in (k, v):
        x[:, -1] += 1
        assert (ops.projected_attention_forward(q, k, v, E, F, 3)[0][:, 0] != y).all()
