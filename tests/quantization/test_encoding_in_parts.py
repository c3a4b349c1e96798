"""Matrices are encoded some rows at a time, and by a table: to the same codes, in little memory."""

import tracemalloc

import numpy as np
import pytest

from minilora import ops
from minilora.quantization import base, format_named, formats
from minilora.quantization.nf4 import LEVELS, UPPER, nearest, nearest_code


def test_the_table_finds_the_nearest_level_and_of_two_the_lower(rng):
    ends = UPPER[:-1]
    x = np.concatenate([ends, np.nextafter(ends, -2), np.nextafter(ends, 2), LEVELS, rng.uniform(-1, 1, 100_000)])
    x = x.astype(np.float32)
    np.testing.assert_array_equal(nearest_code(x), nearest(x, LEVELS))
    cell = (ends + 1) * 32  # no end so near a 32nd that rounding could put a number on its other side
    assert abs(cell - np.rint(cell)).min() > 1e-4
    assert len(set(cell.astype(int))) == len(ends)


@pytest.mark.each_value
@pytest.mark.parametrize("format", formats())
@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (40, 96), (45, 67), (300, 2)])
def test_parts_give_the_codes_and_the_numbers_of_the_whole(format, shape, rng, monkeypatch):
    cls, W = format_named(format), rng.standard_normal(shape, dtype=np.float32)
    x, dy = rng.standard_normal((5, shape[1])), rng.standard_normal((5, shape[0]))  # float64: BLAS may sum in any order
    whole = cls.of(W)
    y, dx = ops.quantized_linear_forward(x, whole), ops.quantized_linear_backward(dy, whole)
    monkeypatch.setattr(base, "PART", 128)
    for file in ("nf4", "int8", "bfloat16"):
        monkeypatch.setattr(f"minilora.quantization.{file}.ENCODED", 128)
    parted = cls.of(W)
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(parted.arrays[name], array)
    rows = [parted.dense(part) for part in base.parts(parted)]
    assert len(rows) == -(-shape[0] // max(1, 128 // shape[1]))
    np.testing.assert_array_equal(np.concatenate(rows), whole.dense())
    np.testing.assert_allclose(ops.quantized_linear_forward(x, parted), y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ops.quantized_linear_backward(dy, parted), dx, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("format", ["nf4", "nf4-dq", "int8", "bfloat16"])
def test_encoding_and_a_product_take_little_beside_what_is_held(format, rng):
    cls, W = format_named(format), rng.standard_normal((8192, 1024), dtype=np.float32)
    tracemalloc.start()
    try:
        Q = cls.of(W)
        assert tracemalloc.get_traced_memory()[1] < Q.nbytes + W.size + 80 * base.ENCODED
        x = W[:8]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        y = ops.quantized_linear_forward(x, Q)
        ops.quantized_linear_backward(y, Q)
        assert tracemalloc.get_traced_memory()[1] - before < 16 * base.PART <= W.nbytes
    finally:
        tracemalloc.stop()
