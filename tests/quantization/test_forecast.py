"""What a merge keeps is foretold from a format's grid: within 5 % of what is measured."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minilora.quantization import Quantized, formats
from minilora.quantization.forecast import Kept, foretell, measure, on_the_grid

SIZES = 0.003, 0.01, 0.03, 0.1, 0.3
SHAPES = (48, 384), (96, 90), (33, 512)
every_format = pytest.mark.parametrize("cls", formats().values(), ids=formats())


def weights(shape: tuple[int, int], r: int, size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A normal W and a ΔW = B A of rank r, float32, with ‖ΔW‖ = size ‖W‖."""
    rng = np.random.default_rng(seed)
    W = 0.04 * rng.standard_normal(shape)
    delta = rng.standard_normal((shape[0], r)) @ rng.standard_normal((r, shape[1]))
    delta *= size * np.linalg.norm(W) / np.linalg.norm(delta)
    return W.astype(np.float32), delta.astype(np.float32)


def both(W: np.ndarray, delta: np.ndarray, cls: type[Quantized]) -> tuple[Kept, Kept]:
    return foretell(W, delta, cls), measure(W, delta, cls)


def assert_foretold(foretold: Kept, measured: Kept, within: float = 0.05) -> None:
    assert foretold.relative_error == pytest.approx(measured.relative_error, rel=within)
    assert foretold.cos == pytest.approx(measured.cos, abs=within)
    assert foretold.survive == pytest.approx(measured.survive, abs=within)


@pytest.mark.each_value
@every_format
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("in_format", [True, False], ids=["W in the format", "W in float32"])
def test_the_error_of_a_merge_is_foretold_within_5_percent(cls, size, in_format):
    for seed, (shape, r) in enumerate(zip(SHAPES * 2, (1, 2, 8, 32, 4, 1), strict=True)):
        W, delta = weights(shape, r, size, seed)
        W = cls.of(W).dense() if in_format else W
        assert on_the_grid(W, cls) is in_format
        assert_foretold(*both(W, delta, cls))


@every_format
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from(SIZES), in_format=st.booleans())
def test_one_of_many_forecasts_is_within_5_percent_too(cls, seed, size, in_format):
    r = int(np.random.default_rng(seed).integers(1, 33))
    W, delta = weights((64, 192), r, size, seed)
    assert_foretold(*both(cls.of(W).dense() if in_format else W, delta, cls))


@every_format
def test_a_forecast_holds_for_a_change_of_few_columns_and_rows_of_different_size_with_outliers(cls):
    W, delta = weights((96, 384), 4, 0.1, 0)
    W *= np.geomspace(0.1, 1, len(W), dtype=np.float32)[:, None]
    W[:, :8] *= 6
    delta[:, 100:] = 0
    assert_foretold(*both(W, delta, cls))
    assert_foretold(*both(cls.of(W).dense(), delta, cls))


def test_in_nf4_a_small_change_of_a_base_in_nf4_is_lost_and_of_a_base_in_float32_is_not():
    cls, (W, delta) = formats()["nf4"], weights((256, 256), 8, 0.01, 0)
    held = cls.of(W).dense()
    for kept in both(held, delta, cls):
        assert kept.share == pytest.approx(1 / 64, abs=0.01)  # the largest number of a block, and the scale with it
        levels = np.mean((held / np.repeat(abs(held.reshape(-1, 64)).max(axis=1), 64).reshape(held.shape)) ** 2)
        assert kept.relative_error == pytest.approx((1 + levels - 1 / 64 - 1 / 64) ** 0.5, rel=0.02)
    for kept in both(W, delta, cls):
        assert kept.share == pytest.approx(1, abs=0.1)
        assert kept.relative_error > 5  # the rounding of W, in which the change is lost to the eye
    without = cls.of(W).dense() - W
    assert np.sqrt(kept.error) == pytest.approx(np.linalg.norm(without), rel=0.02)


@pytest.mark.parametrize(
    ("name", "gap"), [("bfloat16", 2.0**-8), ("float16", 2.0**-11), ("int8", 1 / 127), ("nf4", 0.0796)]
)
def test_a_number_moves_once_the_change_is_half_the_gap_to_the_next(name, gap):
    cls = formats()[name]
    level, low, high = cls.cells(np.array([[0.0 if name == "nf4" else 1.0 - gap * (name == "int8")]]))
    assert high - level == pytest.approx(gap if name.endswith("16") else gap / 2, rel=1e-3)
    assert level - low == pytest.approx(0.0455 if name == "nf4" else gap / 2, rel=1e-3)


@every_format
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=1620243)  # of nf4-dq an entry 8e-8 from the end of its cell
def test_the_cell_of_a_number_holds_what_is_rounded_to_its_level(cls, seed):
    rng = np.random.default_rng(seed)
    W = (rng.standard_normal((3, 128)) * 10.0 ** rng.uniform(-9, 3, (3, 128) if not cls.for_blocks else ())).astype(
        np.float32
    )
    a, held = (x.astype(float) for x in cls.scales_of(W))
    level, low, high = cls.cells(W / a)
    assert (low <= level).all()
    assert (level <= high).all()
    assert (W / a >= low).all()
    assert (W / a <= high).all()
    ulp = 2.0**-22 * (a != 1)  # W is divided by a in float32, two roundings, which decide at the end of a cell
    levels = [cls.cells(W / a * (1 + e)).level * held for e in (-ulp, 0, ulp)]
    assert np.any([np.isclose(each, cls.of(W).dense(), rtol=1e-6, atol=0) for each in levels], axis=0).all()


def test_float16_keeps_its_grid_below_its_normal_numbers():
    cls = formats()["float16"]
    level, low, high = cls.cells(np.array([3e-6]))
    assert level % 2.0**-24 == 0
    assert high - low == 2.0**-24
    assert cls.cells(np.zeros(1)).high == 2.0**-25


@every_format
@pytest.mark.parametrize("n_in", [64, 96])
def test_nothing_is_lost_of_a_matrix_of_zeros_nor_of_rows_of_zeros_that_do_not_change(cls, n_in):
    W, delta = weights((32, n_in), 2, 0.1, 0)
    for x in (W, delta):
        x[8:16] = 0
    foretold, measured = both(W, delta, cls)
    assert_foretold(foretold, measured)
    without = foretell(np.delete(W, slice(8, 16), axis=0), np.delete(delta, slice(8, 16), axis=0), cls)
    assert foretold.error == pytest.approx(without.error, rel=0.01)  # of nf4-dq, zeros move the mean of the scales
    nothing = foretell(np.zeros_like(W), np.zeros_like(W), cls)
    assert (nothing.error, nothing.moved) == (0, 0)


@every_format
def test_the_error_of_y_is_foretold_from_the_columns_and_from_what_is_lost_of_the_change(cls):
    rng = np.random.default_rng(0)
    W, delta = weights((256, 192), 4, 0.02, 0)
    x = rng.standard_normal((2000, 192)) * np.geomspace(0.1, 3, 192)
    x += rng.standard_normal((2000, 4)) @ np.linalg.svd(delta)[2][:4] * 9  # as of a trained adapter: ΔW reads much of x
    for base in (W, cls.of(W).dense()):
        foretold = foretell(base, delta, cls)
        error = cls.of(base + delta).dense() - (base + delta)
        added, real = (float(np.sqrt(np.mean((x @ E.T) ** 2))) for E in (delta, error))
        assert foretold.error_of_y(len(W), np.mean(x**2, axis=0), added) == pytest.approx(real, rel=0.1)


@every_format
def test_rows_of_zeros_that_stay_zeros_have_no_error_and_decide_nothing(cls):
    W, delta = weights((96, 384), 4, 0.1, 0)
    W, delta = (np.concatenate([x, np.zeros((300, 384), np.float32)]) for x in (W, delta))
    for base in (W, cls.of(W).dense()):
        assert on_the_grid(base, cls) is (base is not W)
        foretold, measured = both(base, delta, cls)
        assert foretold.relative_error == pytest.approx(measured.relative_error, rel=0.05)


@every_format
def test_a_change_that_takes_all_away_is_kept(cls):
    W, _ = weights((96, 384), 4, 0.1, 0)
    for kept in both(W, -W, cls):
        assert (kept.share, kept.relative_error) == pytest.approx((1, 0), abs=1e-6)


@every_format
def test_of_no_change_there_is_no_share(cls):
    W, _ = weights((8, 64), 2, 0.1, 0)
    for kept in both(W, np.zeros_like(W), cls):
        assert np.isnan([kept.share, kept.relative_error]).all()
        assert kept.cos == 0


def test_a_huge_change_is_measured_in_float64():
    W, delta = weights((48, 384), 4, 1, 0)
    kept = measure(W, delta * np.float32(1e37), formats()["int8"])
    assert kept.cos == pytest.approx(kept.share, rel=0.01) == pytest.approx(1, rel=0.01)


@every_format
def test_rows_of_numbers_that_are_tiny_beside_one_of_them_are_foretold(cls):
    W, delta = weights((48, 384), 4, 0.1, 0)
    W, delta = W * np.float32(1e-6), delta * np.float32(1e-6)
    W[:, ::64] *= np.float32(1e6)
    foretold, measured = both(W, delta, cls)
    assert np.sqrt(foretold.error) == pytest.approx(np.sqrt(measured.error), rel=0.1)
