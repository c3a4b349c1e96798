"""NF4, int8 and half precision to the bit as bitsandbytes and PyTorch have them; a step of QLoRA as PEFT takes it."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import examples
import numpy as np
import pytest

from minilora.adapters.lora import LoRALinear
from minilora.nn import Gradients, Linear, Parameter
from minilora.quantization import Quantized
from minilora.quantization.bfloat16 import bfloat16_bits
from minilora.quantization.int8 import OUTLIER, Int8, int8_codes, llm_int8
from minilora.quantization.nf4 import LEVELS, LEVELS8, NF4, DoubleNF4, double_quantised, dynamic_map, nf4_codes, packed

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]  # theirs warn, of this and that
BLOCKS = 32, 64, 128
MIDPOINTS = (LEVELS[:-1] + LEVELS[1:]) / np.float32(2)
TIES = np.concatenate([[1], MIDPOINTS, -MIDPOINTS, np.zeros(33)]).astype(np.float32).reshape(1, 64)


@pytest.fixture(scope="module", autouse=True)
def torch() -> Iterator[Any]:
    """PyTorch on one thread, without compiling anew for every shape."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes")
    import torch._dynamo.config as dynamo

    before, threads = dynamo.disable, torch.get_num_threads()
    dynamo.disable = True
    torch.set_num_threads(1)
    yield torch
    dynamo.disable = before
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def theirs() -> Any:
    return pytest.importorskip("bitsandbytes.functional")


def adversarial() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "zeros": np.zeros((4, 64)),
        "zeros and a short block": np.zeros((3, 50)),
        "ties": TIES,
        "ties times 3e-5": np.float32(3e-5) * TIES,
        "above ties": np.nextafter(TIES, np.float32(2)),
        "below ties": np.nextafter(TIES, np.float32(-2)),
        "denormal": rng.standard_normal((2, 64)) * 1e-41,
        "tiny": rng.standard_normal((2, 64)) * 1e-37,
        "huge": rng.uniform(-3, 3, (2, 64)) * 1e38,
        "all equal": np.full((2, 64), -0.3),
        "a block and 1": rng.standard_normal((5, 13)),
        "an odd length": rng.standard_normal((7, 11)),
        "3 numbers": rng.standard_normal((1, 3)),
        "float16's grid": rng.standard_normal((8, 64)).astype(np.float16),
        "blocks of zeros among others": np.where(np.arange(8)[:, None] % 3 == 0, 0, rng.standard_normal((8, 77))),
    }


def random_matrices(n: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(1)
    for i in range(n):
        W = rng.standard_normal(rng.integers(1, 200, 2)) * 10 ** rng.uniform(-6, 3)
        yield (W * rng.standard_t(2, W.shape) if i % 3 == 0 else W).astype(np.float32)


def all_matrices() -> list[np.ndarray]:
    return [W.astype(np.float32) for W in adversarial().values()] + list(random_matrices(examples.count(100)))


def same_bits(a: Any, b: Any) -> bool:
    a, b = (np.ascontiguousarray(x).reshape(-1) for x in (a, b))
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def by_table(x: np.ndarray) -> np.ndarray:
    """p as bitsandbytes finds it on a CPU: x in [-1, 1] becomes one of 65,536 steps, and each step has its level."""
    steps = np.float32(-1) + np.float32(2) * np.arange(65536, dtype=np.float32) / np.float32(65535)
    table = np.searchsorted(np.float32(0.5) * (LEVELS8[:-1] + LEVELS8[1:]), steps, side="left").astype(np.uint8)
    return table[((x + np.float32(1)) * np.float32(0.5) * np.float32(65535) + np.float32(0.5)).astype(np.uint16)]


def scaled(a: np.ndarray, mean: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """(a - μ) / A, and A."""
    x = a - mean
    x = np.append(x, np.zeros(-len(x) % 256, np.float32)).reshape(-1, 256)
    A = abs(x).max(axis=1)
    with np.errstate(all="ignore"):
        return np.clip(x * (1 / A)[:, None], -1, 1), A


def dequantised(theirs: Any, codes: Any, state: Any) -> np.ndarray:
    """By the code that every machine has: one for AVX-512 is wrong for some widths, and passes odd ones on."""
    state.shape = type(state.shape)((state.shape.numel(), 1))
    return theirs.dequantize_4bit(codes, state).float().numpy()


# ---- NF4 ----


def test_the_levels_are_theirs(theirs):
    assert same_bits(theirs.get_4bit_type("nf4", device="cpu").numpy(), LEVELS)
    assert same_bits(theirs.create_dynamic_map().numpy(), LEVELS8)
    assert same_bits(dynamic_map(), LEVELS8)


@pytest.mark.parametrize("block", BLOCKS)
def test_codes_scales_and_numbers_of_nf4_are_theirs_to_the_bit(torch, theirs, block):
    for W in all_matrices():
        codes, state = theirs.quantize_4bit(
            torch.tensor(W), blocksize=block, quant_type="nf4", compress_statistics=False
        )
        Q = NF4(NF4.encode(W, block), W.shape, block=block)
        assert same_bits(Q.arrays["codes"], codes.numpy())
        assert same_bits(Q.arrays["absmax"], state.absmax.numpy())
        assert same_bits(Q.dense(), dequantised(theirs, codes, state))


@pytest.mark.parametrize("block", BLOCKS)
def test_double_quantisation_is_theirs_to_the_bit_given_the_mean_and_the_rule(torch, theirs, block):
    for W in all_matrices():
        codes, state = theirs.quantize_4bit(
            torch.tensor(W), blocksize=block, quant_type="nf4", compress_statistics=True
        )
        q, a = nf4_codes(W, block)
        assert same_bits(packed(q), codes.numpy())
        mean = state.offset.numpy()[()]
        if np.isinf(mean):  # the sum of huge scales, which is taken in float64 here
            continue
        assert abs(mean - a.mean(dtype=float)) <= 1e-6 * a.mean(dtype=float) + 1e-44  # they add up in another order
        x, A = scaled(a, mean)
        their_p = np.where((A == 0)[:, None], np.uint8(0), by_table(np.nan_to_num(x))).reshape(-1)[: len(a)]
        assert same_bits(their_p, state.absmax.numpy())
        p, our_A, _ = double_quantised(a, mean)
        assert same_bits(our_A, state.state2.absmax.numpy())
        if np.isfinite(x).all():
            off = abs(LEVELS8.astype(float)[:, None] - x.reshape(-1)[: len(a)].astype(float))
            assert (off[p, np.arange(len(a))] <= off.min(axis=0) + 1e-7).all()
        arrays = {"codes": packed(q), "absmax": their_p, "nested_absmax": our_A, "offset": mean}
        Q = DoubleNF4(arrays, W.shape, block=block, levels=state.state2.code.numpy())
        assert same_bits(Q.dense(), dequantised(theirs, codes, state))


def test_their_table_is_off_the_nearest_level_in_a_few_of_a_thousand_scales(torch, theirs, rng):
    W = (0.02 * rng.standard_normal((2048, 1024))).astype(np.float32)
    _, state = theirs.quantize_4bit(torch.tensor(W), quant_type="nf4", compress_statistics=True)
    p, _, _ = double_quantised(nf4_codes(W)[1], state.offset.numpy()[()])
    off = p != state.absmax.numpy()
    assert 0 < off.mean() < 5e-3
    assert (abs(p[off].astype(int) - state.absmax.numpy()[off]) == 1).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_have_the_codes_of_the_same_numbers_in_float32(torch, theirs, dtype, rng):
    half = torch.tensor(0.02 * rng.standard_normal((45, 77)), dtype=getattr(torch, dtype))
    codes, state = theirs.quantize_4bit(half, quant_type="nf4", compress_statistics=False)
    Q = NF4.of(half.float().numpy())
    assert same_bits(Q.arrays["codes"], codes.numpy())
    assert same_bits(Q.arrays["absmax"], state.absmax.numpy())
    back = torch.tensor(Q.dense()).to(half.dtype).float().numpy()
    assert same_bits(back, dequantised(theirs, codes, state))


def test_their_kernel_for_avx_512_decodes_some_widths_wrongly(torch, theirs, rng):
    W = rng.standard_normal((45, 96)).astype(np.float32)
    codes, state = theirs.quantize_4bit(torch.tensor(W), blocksize=64, quant_type="nf4")
    got = theirs.dequantize_4bit(codes, state).numpy()
    right = NF4({"codes": codes.numpy()[:, 0], "absmax": state.absmax.numpy()}, W.shape).dense()
    assert same_bits(right, dequantised(theirs, codes, state))
    if same_bits(got, right):
        pytest.skip("this machine has no AVX-512, or the fault is mended")
    assert abs(got - right).max() > 0.1  # scales of other blocks
    for width in (64, 128, 320, 95):  # whole blocks to a row, and odd widths, are right
        codes, state = theirs.quantize_4bit(torch.tensor(W[:, :1] * np.ones(width, "f4")), quant_type="nf4")
        assert same_bits(
            theirs.dequantize_4bit(codes, state).numpy(), dequantised(theirs, codes, state).reshape(45, width)
        )


# ---- int8 ----


def int8_cases() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    W, halves = rng.standard_normal((17, 33)), np.round(rng.uniform(-127, 127, (9, 33)) * 2) / 2
    halves[:, 0] = 127
    return {
        "random": W,
        "a row of zeros": np.where(np.arange(17)[:, None] == 3, 0, W),
        "halves": halves,
        "outliers": W * np.where(np.arange(33) % 11 == 0, 30, 1),
        "float16's grid, with ties": rng.standard_normal((400, 40)).astype(np.float16),
        "one row": W[:1] * 5,
        "all outliers": np.full((3, 5), 7.0),
    }


@pytest.mark.parametrize("outlier", [0.0, OUTLIER])
@pytest.mark.parametrize("case", int8_cases())
def test_codes_scales_and_outlier_columns_of_int8_are_theirs_to_the_bit(torch, theirs, case, outlier):
    A = int8_cases()[case].astype(np.float32)
    codes, scales, columns = theirs.int8_vectorwise_quant(torch.tensor(A), threshold=outlier)
    q, a, ours = int8_codes(A, outlier)
    assert same_bits(q, codes.numpy())
    assert same_bits(a, scales.numpy())
    assert ours.tolist() == ([] if columns is None else columns.tolist())
    if not outlier:
        decoded = theirs.int8_vectorwise_dequant(codes, scales).numpy()
        assert np.allclose(Int8.of(A).dense(), decoded, rtol=3e-7, atol=0)


def test_llm_int8_multiplies_as_theirs(torch, theirs, rng):
    x = rng.standard_normal((9, 64)) * np.where(np.arange(64) % 13 == 0, 20, 1)
    x, W = x.astype(np.float32), rng.standard_normal((31, 64)).astype(np.float32)
    exact = x @ W.T
    errors = []
    for outlier in (0.0, OUTLIER):
        CA, SCA, columns = theirs.int8_vectorwise_quant(torch.tensor(x), threshold=outlier)
        CB, SCB, _ = theirs.int8_vectorwise_quant(torch.tensor(W))
        y, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(torch.tensor(x), CA, CB, SCA, SCB, columns)
        ours = llm_int8(x, Int8.of(W), outlier)
        assert abs(ours - y.numpy()).max() <= 1e-6 * abs(exact).max()
        errors.append(np.linalg.norm(ours - exact) / np.linalg.norm(exact))
    assert errors[1] < 0.6 * errors[0]


# ---- half precision ----


def test_bfloat16_and_float16_are_torchs_to_the_bit(torch, rng):
    special = [0, 0x80000000, 0x7F7FFFFF, 1, 0x8000, 0x18000, 0x3F808000, 0x3F818000, 0x7F7F8000, 0x7F800000]
    u = np.concatenate([rng.integers(0, 2**32, 400_000), special, np.arange(0x3F800000, 0x3F840000)]).astype(np.uint32)
    x = u.view(np.float32)
    x = x[~np.isnan(x)]
    assert same_bits(bfloat16_bits(x), torch.tensor(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16))
    with np.errstate(over="ignore"):
        assert same_bits(x.astype(np.float16), torch.tensor(x).to(torch.float16).numpy())


# ---- a step of QLoRA ----


def peft_step(torch: Any, layer: Any, flag: str, x: np.ndarray, dy: np.ndarray, A: np.ndarray, B: np.ndarray, s: float):
    """y, dx, dA, dB of PEFT's LoRA on a layer of bitsandbytes."""
    peft = pytest.importorskip("peft")
    model = torch.nn.Sequential(OrderedDict(layer=layer))
    setattr(model, flag, True)
    config = peft.LoraConfig(r=len(A), lora_alpha=s * len(A), target_modules=["layer"])
    adapted = peft.get_peft_model(model, config).base_model.model.layer
    assert type(adapted).__module__ == "peft.tuners.lora.bnb"
    a, b = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
    with torch.no_grad():
        a.copy_(torch.tensor(A))
        b.copy_(torch.tensor(B))
    given = torch.tensor(x, requires_grad=True)
    y = adapted(given)
    y.backward(torch.tensor(dy))
    return [t.detach().numpy() for t in (y, given.grad, a.grad, b.grad)]


def our_step(Q: Quantized, bias: np.ndarray, x: np.ndarray, dy: np.ndarray, A: np.ndarray, B: np.ndarray, s: float):
    base = Linear(Parameter(Q, trainable=False), Parameter(bias, trainable=False))
    adapter = LoRALinear.of(base, {"lora_A": A, "lora_B": B}, r=len(A), alpha=s * len(A))
    y, cache = adapter.forward(x)
    grads = Gradients()
    dx = adapter.backward(dy, cache, grads)
    assert set(grads) == set(adapter.own_parameters().values())
    return [y, dx, grads[adapter.lora_A], grads[adapter.lora_B]]


@pytest.fixture
def step(rng) -> list[Any]:
    """W, b, and x, dy, A, B, s of a layer of 128 inputs and 192 outputs, as wide as their kernels are right for."""
    shapes = (192, 128), (192,), (2, 7, 128), (2, 7, 192), (4, 128), (192, 4)
    return [rng.standard_normal(shape).astype(np.float32) / np.float32(shape[-1] ** 0.5) for shape in shapes] + [1.5]


ROUNDING = 192**0.5 * 2**-24  # of float32 sums of up to 192 numbers, which each BLAS forms in an order of its own


def check_step(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for name, a, b in zip(("y", "dx", "dA", "dB"), ours, theirs, strict=True):
        assert a.shape == b.shape
        assert abs(a - b).max() <= ROUNDING * abs(b).max(), name


@pytest.mark.parametrize("double", [False, True])
def test_a_step_of_qlora_is_pefts_over_linear4bit(torch, step, double):
    bnb = pytest.importorskip("bitsandbytes")
    W, b, *rest = step
    layer = bnb.nn.Linear4bit(128, 192, quant_type="nf4", compress_statistics=double, compute_dtype=torch.float32)
    layer.load_state_dict({"weight": torch.tensor(W), "bias": torch.tensor(b)})
    layer = layer.to("cpu")
    theirs = peft_step(torch, layer, "is_loaded_in_4bit", *rest)
    Q = (DoubleNF4 if double else NF4).of(W)
    if double:  # by their rule, of the same scales
        state = layer.weight.quant_state
        Q.arrays |= {"absmax": state.absmax.numpy(), "offset": state.offset.numpy()}
        Q.arrays["nested_absmax"] = state.state2.absmax.numpy()
    check_step(our_step(Q, b, *rest), theirs)


def test_a_step_of_lora_over_int8_is_pefts_over_linear8bitlt(torch, step):
    bnb = pytest.importorskip("bitsandbytes")
    W, b, *rest = step
    W = W.astype(np.float16).astype(np.float32)  # which theirs rounds to
    layer = bnb.nn.Linear8bitLt(128, 192, has_fp16_weights=False, threshold=OUTLIER)
    layer.load_state_dict({"weight": torch.tensor(W), "bias": torch.tensor(b)})
    layer = layer.to("cpu")
    theirs = peft_step(torch, layer, "is_loaded_in_8bit", *rest)
    Q = Int8.of(W)
    assert same_bits(Q.arrays["codes"], layer.weight.data.numpy())
    check_step(our_step(Q, b, *rest), theirs)
