"""Two of notebooks/examples/: sparse rows beside dense ones, and the fourth article's scheme, at their small sizes."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from minilora.nn import Gradients, Linear
from minilora.verify import check_model

FOLDER = Path(__file__).parent.parent / "notebooks" / "examples"


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def test_sparse_rows_have_the_gradients_of_dense_ones_in_less_memory():
    found = importlib.import_module("sparse_rows").main(densities=(0.002,), rounds=1)
    assert found[0.002]["apart"] < 1e-5
    assert found[0.002]["peaks"]["sparse"] < found[0.002]["peaks"]["dense"] / 10


def test_the_gradients_of_a_cut_layer_are_right_and_with_all_values_it_is_the_layer(rng):
    example = importlib.import_module("ten_values")
    W, b, x, dy = (rng.standard_normal(shape) for shape in ((5, 4), 5, (3, 4), (3, 5)))
    svd = np.linalg.svd(W, full_matrices=False)
    bias = Linear(W, b).bias
    bias.trainable = False
    assert np.allclose(example.CutLinear(*svd, bias, 4).forward(x)[0], x @ W.T + b)
    layer, grads = example.CutLinear(*svd, bias, 2), Gradients()
    layer.z.data = rng.standard_normal(2)
    dx = layer.backward(dy, layer.forward(x)[1], grads)
    assert check_model(layer, lambda: (dy * layer.forward(x)[0]).sum(), grads, rng=rng).ok
    W_k = svd[0][:, :2] * svd[1][:2] * layer.z.data @ svd[2][:2]
    assert np.allclose(dx, dy @ W_k)


@pytest.mark.slow
def test_the_scheme_runs_at_its_small_size_and_the_cut_at_all_values_loses_nothing(tmp_path):
    found = importlib.import_module("ten_values").main(small=True, out=tmp_path / "figure.png")
    assert found["cut"][128] == found["LoRA"][128]
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
