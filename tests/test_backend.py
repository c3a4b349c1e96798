"""minilora.backend, and the test double that stands in for CuPy on a machine without a GPU."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import fakecupy
import numpy as np
import pytest
from cupy_fidelity import EXPRESSIONS, STRICTER, operands, outcome

from minilora.backend import generator, get_array_module, load_backend, to_numpy

# Valid with NumPy, mistakes with CuPy.
REFUSED = [
    ("x + n", TypeError), ("n + x", TypeError), ("x.__isub__(n)", TypeError),
    ("x.__setitem__(slice(None), n)", TypeError),
    ("x.__setitem__(0, [1.0, 2.0, 3.0, 4.0])", TypeError),
    ("x[np.array([0, 1])]", TypeError), ("x + [1.0, 2.0, 3.0, 4.0]", TypeError), ("cp.exp(n)", TypeError),
    ("cp.where(x > 0, x, n)", TypeError), ("np.concatenate([x, n])", TypeError), ("np.asarray(x)", TypeError),
    ("np.asarray([x.sum()])", TypeError),
    ("np.testing.assert_allclose(x, x)", TypeError),
    ("range(cp.max(ids))", TypeError),
    ("[10, 20][ids[2]]", TypeError),
    ("json.dumps(table.astype('float64').sum())", TypeError),
    ("cp.sum(x, where=x > 0)", TypeError),
    ("cp.exp(x, out=x, where=x > 0)", TypeError),
    ("x.sum(initial=0)", TypeError),
    ("cp.max(x, where=x > 1, initial=1.0)", TypeError),
    ("cp.var(x, correction=0)", TypeError),
    ("cp.take(x, ids, mode='clip')", TypeError),
    ("cp.linalg.svd(square, hermitian=True)", TypeError),
    ("cp.einsum('ij,kj->ik', x, x, out=square[:3, :3])", TypeError),
    ("np.ones(2, like=x)", TypeError), ("x.item(0)", TypeError), ("rng.integers([1, 2], 5)", TypeError),
    ("cp.asarray(['word'])", ValueError),
    ("cp.errstate(all='ignore')", AttributeError),
    ("cp.vecdot(x, x)", AttributeError),
    ("cp.permute_dims(x, (1, 0))", AttributeError),
    ("cp.linalg.vector_norm(x)", AttributeError),
    ("cp.r_[x, x]", AttributeError), ("x.mT", AttributeError), ("x.flat", AttributeError),
    ("x.__array_namespace__()", AttributeError),
    ("rng.normal(0, 1, 3)", AttributeError),
    ("rng.permutation(3)", AttributeError),
    ("cp.maximum.at(table, ids, x)", NotImplementedError),
]  # fmt: skip

# Valid with both. An assignment returns None, hence the `or`.
LEGAL = [
    "x * 2.0 + 1", "x * np.float32(2)", "x * x.sum()", "x.astype('float64') / x.max()", "ids * 0.5", "(x > 1) / 0.9",
    "x - x.max(axis=-1, keepdims=True)",
    "((x - x.mean(-1, keepdims=True)) ** 2).mean(-1)",
    "cp.exp(x) / cp.exp(x).sum(-1, keepdims=True)",
    "x @ square.T", "cp.einsum('ij,kj->ik', x, x)", "x.reshape(3, 2, 2).transpose(1, 0, 2)",
    "cp.concatenate([x, x[:1]], axis=0)", "cp.where(x > 1, x, -1e9)", "cp.tril(cp.ones((3, 3), dtype=bool))",
    "cp.arange(5)[:, None] >= cp.arange(5)[None, :]",
    "x[cp.arange(3), ids]",
    "x[[0, 2]]",
    "x.__setitem__((cp.arange(3), ids), 0.0) or x",
    "x.__setitem__(slice(1), x[1:2]) or x", "cp.add.at(table, ids, x) or table", "x.__iadd__(1.0)",
    "cp.sqrt(x, out=x)", "x.sum(axis=0, out=row)", "cp.clip(x, 0.8, 1.2)", "cp.argmax(x, axis=-1)",
    "cp.take_along_axis(x, ids[:, None], axis=1)",
    "cp.isfinite(x).all()", "cp.allclose(x, x)", "cp.zeros_like(x)", "cp.full((2, 2), 0.5, dtype=x.dtype)",
    "cp.asarray([x.sum(), x.max()])", "cp.asarray(n, dtype='float64')", "cp.linalg.norm(x, axis=1)",
    "cp.linalg.svd(square, full_matrices=False)[1]",
    "np.sum(x, axis=0)",
    "cp.finfo(x.dtype).eps * x",
]  # fmt: skip

SYNCS = [
    ("float(x.sum())", 1),
    ("int(ids[0])", 1),
    ("bool((x > 0).all())", 1),
    ("complex(x[0, 0])", 1),
    ("x.sum().item()", 1),
    ("x.tolist()", 1),
    ("x.get()", 1),
    ("f'{x.sum():.3f}'", 1),
    ("str(x)", 1),
    ("math.log(x.sum())", 1),
    ("max(x[0, 0], x[0, 1])", 1),  # Python compares, and asks for a bool
    ("x[x > 1]", 1),
    ("x.nonzero()", 1),
    ("len(x), x.shape, x.dtype, x.size", 0),
    ("list(x)", 0),
]

# x is (3, 4) in float32: 48 bytes.
COUNTS = "launches", "arrays", "nbytes"
LAUNCHES = [
    ("x * 2.0 + 1", 2, 2, 96),
    ("x.__iadd__(1.0)", 1, 0, 0),
    ("cp.sqrt(x, out=x)", 1, 0, 0),
    ("x.sum(axis=0)", 1, 1, 16),
    ("x.sum()", 1, 1, 4),
    ("x.T, x.swapaxes(0, 1), x.reshape(2, 6), x[1:], x[0, 0], cp.split(x, 2, axis=1), cp.broadcast_to(x, (2, 3, 4))",
     0, 0, 0),
    ("x.T.reshape(-1)", 1, 1, 48),
    ("x[cp.arange(3)[::-1]]", 2, 2, 24 + 48),
    ("x.__setitem__(0, 1.0)", 1, 0, 0),
    ("cp.asarray(x)", 0, 0, 0),
    ("cp.asarray(n)", 1, 1, 48),
    ("cp.add.at(table, ids, x)", 1, 0, 0),
    ("cp.concatenate([x, x])", 1, 1, 96),
    ("x.shape, x.dtype, len(x)", 0, 0, 0),
]  # fmt: skip


def evaluate(expression: str, module: ModuleType) -> object:
    return eval(expression, operands(module))


def load_or_skip() -> ModuleType:
    try:
        return load_backend("cupy")
    except (ImportError, RuntimeError) as error:
        pytest.skip(str(error))


@pytest.fixture(params=["fakecupy", pytest.param("cupy", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The double, and CuPy itself where it finds a GPU."""
    if request.param == "cupy":
        return load_or_skip()
    monkeypatch.setitem(sys.modules, "cupy", fakecupy)
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", fakecupy.special)
    return fakecupy


# load_backend


def test_load_backend_returns_the_library_of_that_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fakecupy)
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", fakecupy.special)
    assert load_backend() is np
    assert load_backend("numpy") is np
    assert load_backend("cupy") is fakecupy


def test_load_backend_refuses_an_unknown_name():
    with pytest.raises(ValueError, match=r"'jax'.*'numpy' or 'cupy'"):
        load_backend("jax")


def test_load_backend_says_how_to_install_a_missing_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # makes the import fail
    with pytest.raises(ImportError, match=r"pip install '\.\[cuda13\]'"):
        load_backend("cupy")


def test_load_backend_refuses_a_cupy_without_a_driver(monkeypatch):
    def ones(*args, **kwargs):
        raise OSError("insufficient driver")

    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(ones=ones, ndarray=fakecupy.ndarray))
    with pytest.raises(RuntimeError, match="OSError: insufficient driver") as caught:
        load_backend("cupy")
    assert isinstance(caught.value.__cause__, OSError)


def test_load_backend_refuses_a_cupy_without_matrix_products(monkeypatch):
    class WithoutBlas(fakecupy.ndarray):
        def __matmul__(self, other):
            raise ImportError("no cuBLAS")

    cupy = SimpleNamespace(ones=lambda *args, **kwargs: WithoutBlas(np.ones(*args, **kwargs)), ndarray=fakecupy.ndarray)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(RuntimeError, match="no cuBLAS"):
        load_backend("cupy")


# get_array_module and to_numpy


def test_get_array_module_does_not_import_cupy(monkeypatch):
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert get_array_module(np.ones(2)) is np
    assert "cupy" not in sys.modules


def test_get_array_module_tells_the_arrays_of_one_process_apart(device):
    assert get_array_module(np.ones(2)) is np
    assert get_array_module(device.ones(2)) is device


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
def test_to_numpy_inverts_asarray(xp, rng, dtype):
    host = (rng.standard_normal((3, 2)) * 2).astype(dtype)
    back = to_numpy(xp.asarray(host))
    assert type(back) is np.ndarray
    assert back.dtype == host.dtype
    np.testing.assert_array_equal(back, host)


def test_to_numpy_returns_a_numpy_array_itself(rng):
    host = rng.standard_normal(3)
    assert to_numpy(host) is host


def test_no_memory_is_shared_between_host_and_device(device):
    host = np.zeros(3)
    x = device.asarray(host)
    host += 1
    back = to_numpy(x)
    back += 2
    assert to_numpy(x).tolist() == [0.0, 0.0, 0.0]


# generator


def test_a_seed_stands_for_a_generator_and_nothing_else_does(rng):
    assert generator(rng) is rng
    assert generator(7).random() == generator(np.int64(7)).random() == np.random.default_rng(7).random()
    for wrong in (None, -1, 7.0, True, "7"):
        with pytest.raises(ValueError, match=f"rng {wrong!r} is neither a seed nor a generator: rng=0, or"):
            generator(wrong)


# What the double refuses and what it lets through


@pytest.mark.parametrize(("expression", "error"), REFUSED, ids=[expression for expression, _ in REFUSED])
def test_the_double_refuses_what_numpy_takes_and_cupy_does_not(expression, error):
    evaluate(expression, np)  # no mistake in the expression itself
    with pytest.raises(error):
        evaluate(expression, fakecupy)


@pytest.mark.parametrize("expression", STRICTER)
def test_the_double_is_stricter_than_cupy(expression):
    assert outcome(expression, fakecupy) == "refused"


@pytest.mark.parametrize("expression", LEGAL)
def test_a_legal_expression_gives_numpys_values_on_the_device(device, expression):
    want = np.asarray(evaluate(expression, np))
    x = evaluate(expression, device)
    assert isinstance(x, device.ndarray)
    got = to_numpy(x)
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("expression", LEGAL)
def test_a_legal_expression_does_not_wait_for_the_device(expression):
    names = operands(fakecupy)
    before = fakecupy.syncs
    eval(expression, names)
    assert fakecupy.syncs == before


@pytest.mark.parametrize(("expression", "count"), SYNCS, ids=[expression for expression, _ in SYNCS])
def test_each_wait_for_the_device_is_counted(expression, count):
    names = operands(fakecupy)
    before = fakecupy.syncs
    eval(expression, names)
    assert fakecupy.syncs == before + count


@pytest.mark.parametrize(("expression", *COUNTS), LAUNCHES, ids=[expression for expression, *_ in LAUNCHES])
def test_work_that_the_device_is_given_is_counted_and_a_view_is_none(expression, launches, arrays, nbytes):
    names = operands(fakecupy)
    before = [getattr(fakecupy, count) for count in COUNTS]
    eval(expression, names)
    counted = [getattr(fakecupy, count) - start for count, start in zip(COUNTS, before, strict=True)]
    assert counted == [launches, arrays, nbytes]


@pytest.mark.parametrize("expression", ["x.sum()", "x[0, 0]", "cp.max(x)", "cp.argmax(x)", "rng.random()"])
def test_a_single_number_is_a_0d_array(device, expression):
    x = evaluate(expression, device)
    assert isinstance(x, device.ndarray)
    assert x.shape == ()
    with pytest.raises(TypeError):
        len(x)
    with pytest.raises(TypeError):
        iter(x)


@pytest.mark.each_value
@pytest.mark.parametrize("scalar", [2.0, 2, True, np.float32(2), np.int64(2)], ids=repr)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "bool"])
def test_scalars_and_0d_arrays_promote_as_in_numpy_2(dtype, scalar):
    host = np.ones(3, dtype)
    x = fakecupy.asarray(host)
    assert (x * scalar).dtype == (scalar * x).dtype == (host * scalar).dtype
    assert (x * x.sum() * scalar).dtype == (host * host.sum() * scalar).dtype
    assert (x.sum() * scalar).dtype == (host.sum() * scalar).dtype
    assert (x * fakecupy.asarray(2.0)).dtype == (host * np.asarray(2.0)).dtype


# Indices


def test_assigning_to_repeated_indices_is_refused():
    x = fakecupy.zeros((3, 2))
    values = fakecupy.asarray(np.ones((2, 2)))
    for index in ([0, 0], [2, -1], fakecupy.asarray([1, 1])):
        with pytest.raises(ValueError, match="repeated"):
            x[index] = values
    x[[0, 2]] = values
    x[[1, 1]] = 5.0  # all of them write the same
    assert x.tolist() == [[1.0, 1.0], [5.0, 5.0], [1.0, 1.0]]


def test_subtracting_at_repeated_indices_is_refused():
    x, rows = fakecupy.zeros((3, 2)), fakecupy.asarray([0, 0])
    with pytest.raises(ValueError, match="repeated"):
        x[rows, rows] -= 1


def test_an_index_out_of_range_is_refused():
    x, index = fakecupy.zeros(3), fakecupy.asarray([3])
    with pytest.raises(IndexError):
        x[index]
    with pytest.raises(IndexError):
        x[index] = 1.0
    with pytest.raises(IndexError):
        fakecupy.add.at(x, index, 1.0)


def test_add_at_sums_over_repeated_indices(device):
    x = device.zeros(3, dtype="float32")
    device.add.at(x, device.asarray([0, 2, 2]), device.asarray([1.0, 2.0, 3.0], dtype="float32"))
    assert x.tolist() == [1.0, 0.0, 5.0]


# Arrays that alias, and numbers that differ


def test_a_basic_index_gives_a_view(device):
    x = device.zeros((2, 2))
    row, element = x[0], x[1, 1]
    row += 1
    element += 2  # in NumPy this would change a scalar
    assert x.tolist() == [[1.0, 1.0], [0.0, 2.0]]


def test_an_in_place_operation_returns_the_array_itself(device):
    x = y = device.ones((2, 2))
    y += 1
    assert y is x
    assert device.exp(x, out=x) is x


def test_the_in_place_product_makes_a_new_array(device):
    x = y = device.ones((2, 2))
    y @= x
    assert x.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert y.tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_asarray_of_a_device_array_shares_its_memory_and_array_does_not(device):
    x = device.zeros(2)
    shared, copied = device.asarray(x), device.array(x)
    x += 1
    assert shared.tolist() == [1.0, 1.0]
    assert copied.tolist() == [0.0, 0.0]


def test_a_seed_gives_other_numbers_than_numpys(device):
    on_device, host = device.random.default_rng(0), np.random.default_rng(0)
    assert not np.allclose(to_numpy(on_device.random(8)), host.random(8))


# The double against CuPy itself


@pytest.mark.gpu
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_double_does_what_cupy_does(expression):
    assert outcome(expression, fakecupy) == outcome(expression, load_or_skip())


@pytest.mark.gpu
@pytest.mark.parametrize("expression", STRICTER)
def test_cupy_computes_what_the_double_is_stricter_about(expression):
    assert outcome(expression, load_or_skip()) != "refused"
