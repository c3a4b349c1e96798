"""Four bits and eight: where the levels of NF4 come from, what they cost, and what a merge into them loses."""

import time
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np

from .... import ops
from ....accounting import count, nf4_bits
from ....adapters.initialisations.loftq import loftq
from ....backend import Array
from ....models.pretrained import load_pretrained
from ....models.quantized import formats_for
from ....models.sources import BUILTIN
from ....quantization import Quantized, formats
from ....quantization.base import PART
from ....quantization.bfloat16 import BFloat16
from ....quantization.int8 import Int8, int8_codes, llm_int8
from ....quantization.nf4 import LEVELS, NF4

SHAPE = 256, 256


def nf4_levels_are_quantiles_of_a_normal() -> str:
    """The 16 values by their formula; on normal weights NF4 errs less than int4, unless that has a zero point."""
    assert np.allclose(LEVELS, _quantiles(), atol=1e-5)  # the paper's and bitsandbytes'
    assert np.sum(LEVELS == 0) == 1
    assert (np.sum(LEVELS > 0), np.sum(LEVELS < 0)) == (8, 7)
    rng = np.random.default_rng(0)
    of = {"N": rng.standard_normal(SHAPE), "U": rng.uniform(-1, 1, SHAPE), "t₄": rng.standard_t(4, SHAPE)}
    error = {name: [_relative(q(W), W) for q in (_nf4, _int4, _int4_with_zero)] for name, W in of.items()}
    assert error["N"][0] < 0.9 * error["N"][1]
    assert abs(error["N"][0] / error["N"][2] - 1) < 0.03  # a tie
    assert error["U"][0] > 1.1 * error["U"][1]
    assert error["t₄"][0] < min(error["t₄"][1:])
    steps = np.diff(LEVELS)
    lines = "; ".join("{}: {:.3f}, {:.3f}, {:.3f}".format(name, *errors) for name, errors in error.items())
    return f"‖Ŵ - W‖/‖W‖ (NF4, int4, int4 + zero): {lines}; NF4 steps {steps.min():.3f} … {steps.max():.3f}"


def double_quantisation_saves_0_373_bits() -> str:
    """Bits a weight: 4 + 32/64 = 4.5, and 4 + 8/64 + 32/(64 · 256) = 4.127."""
    n = 2**24
    plain, double = nf4_bits(n, double=False) / n, nf4_bits(n, double=True) / n
    assert plain == 4 + 32 / 64
    assert np.isclose(double, 4 + 8 / 64 + 32 / (64 * 256), atol=1e-4)
    assert np.isclose(plain - double, 0.373, atol=1e-3)
    assert (plain - double) / plain < 0.09  # not 30 %
    saved = plain - double
    return f"{plain:.3f} - {double:.3f} = {saved:.3f} bit ({saved / plain:.1%}); 65·10⁹ W: {65 * saved / 8:.2f} GB"


def seven_billion_weights_in_four_bits() -> str:
    """Llama-2-7B, LoRA on all linear layers, r = 8: bytes in bf16, NF4, NF4 doubled; those of A, B are the same."""
    of = {d: count("llama-2-7b", "qlora" if d != "bfloat16" else "lora", targets="all-linear", dtype=d) for d in DTYPES}
    weights = {dtype: account.memory()["weights"] / 1e9 for dtype, account in of.items()}
    trained = {account.memory()["optimizer"] + account.memory()["gradients"] for account in of.values()}
    assert len(trained) == 1  # what is trained is not in four bits
    assert weights["bfloat16"] > 3 * weights["nf4"] > 3 * weights["nf4-dq"]
    rng = np.random.default_rng(0)
    W, A, B = rng.standard_normal((48, 64)), rng.standard_normal((4, 64)), rng.standard_normal((48, 4))
    x, dy, q = rng.standard_normal((9, 64)), rng.standard_normal((9, 48)), _nf4(W)
    dx = dy @ q + ops.lora_backward(dy, A, B, 2.0)[0]  # the gradient of y = x Ŵᵀ + s x Aᵀ Bᵀ
    v = rng.standard_normal(x.shape)
    assert np.isclose(np.sum(dx * v), np.sum(dy * (v @ q.T + ops.lora_forward(v, A, B, 2.0)[0])))
    gigabytes = ", ".join(f"{dtype} {size:.2f}" for dtype, size in weights.items())
    return f"W + A, B: {gigabytes} GB; dA, dB, m, v: {trained.pop() / 1e9:.2f} GB"


def four_bits_swallow_a_small_update() -> str:
    """cos(what a merge into NF4 changes, ΔW) by ‖ΔW‖/‖W‖; from the W before quantisation all of it arrives."""
    W, D = _weights()
    quantised, kept, share = _nf4(W), {}, {}
    for size in (0.01, 0.1, 0.3):
        twice, once = _nf4(quantised + size * D) - quantised, _nf4(W + size * D) - quantised
        kept[size] = float(np.sum(twice * D) / np.linalg.norm(twice) / np.linalg.norm(D))
        share[size] = [float(np.sum(change * D) / np.sum(size * D * D)) for change in (twice, once)]
    assert kept[0.01] < 0.1 < 0.6 < kept[0.1] < 0.9 < kept[0.3]  # a larger update is safer
    assert abs(share[0.01][0]) < 0.2
    assert all(abs(once - 1) < 0.25 for _, once in share.values())
    return "; ".join(
        f"‖ΔW‖/‖W‖ {size}: cos {cos:.2f}, κ {share[size][0]:.2f} (W: {share[size][1]:.2f})"
        for size, cos in kept.items()
    )


def another_grid_is_another_model() -> str:
    """Error against Ŵ + ΔW, as trained: none with ΔW parallel to Ŵ; merged into W₀ or another grid, about 10 %."""
    W, D = _weights()
    x = np.random.default_rng(1).standard_normal((64, SHAPE[1]))
    quantised, update = _nf4(W), 0.1 * D
    y = x @ (quantised + update).T
    deployed = {
        "Ŵ, ΔW": x @ quantised.T + x @ update.T,
        "bf16(Ŵ + ΔW)": x @ BFloat16.of(quantised + update).dense().T,
        "W₀ + ΔW": x @ (W + update).T,
        "int4(Ŵ + ΔW)": x @ _int4(quantised + update, 128).T,
        "int4(W₀ + ΔW)": x @ _int4(W + update, 128).T,
    }
    error = {name: _relative(found, y) for name, found in deployed.items()}
    assert error["Ŵ, ΔW"] < 1e-12 < error["bf16(Ŵ + ΔW)"] < 3e-3
    assert min(list(error.values())[2:]) > 0.05
    assert error["int4(W₀ + ΔW)"] > error["W₀ + ΔW"]
    return "; ".join(f"{name} {size:.2g}" for name, size in error.items())


def loftq_minimises_what_is_left_of_W() -> str:
    """‖W - Ŵ - s B A‖ falls by turns of NF4 and SVD; a forgotten 1/s reflects or enlarges the error."""
    rng = np.random.default_rng(0)
    W, s = rng.standard_normal(SHAPE), 2.0
    left: dict[int, list[float]] = {}
    start = _relative(_nf4(W), W)
    for r in (8, 32):
        left[r] = []
        for rounds in (1, 2, 3):
            A, B, Q = loftq(W, r, s, rounds=rounds)
            assert isinstance(Q, Quantized)
            L = s * B @ A
            left[r].append(_relative(Q.dense() + L, W) / start)
        assert 1 > left[r][0] > left[r][1] > left[r][2] > 0.5
    E = W - _nf4(W)
    U, S, Vt = np.linalg.svd(E)
    best = U[:, :8] * S[:8] @ Vt[:8]
    forgotten = [float(np.linalg.norm(E - s * best) / np.linalg.norm(E)) for s in (1, 2, 4)]
    assert np.isclose(forgotten[1], 1)  # E - 2 E₈ is a reflection
    assert forgotten[0] < 1 < forgotten[2]
    printed = _relative(_nf4(W - L), W)  # ‖W - Q(W - L)‖ without the + L outside
    assert printed > start > left[32][-1] * start
    lines = "; ".join(f"r = {r}: " + ", ".join(f"{e:.3f}" for e in errors) for r, errors in left.items())
    without = ", ".join(f"{e:.3f}" for e in forgotten)
    return f"{lines}; 1/s forgotten, s = 1, 2, 4: {without}; ‖W - Q(W - L)‖: {printed / start:.3f}"


def what_a_merge_keeps_by_format() -> str:
    """cos(what a merge changes, ΔW) in each format by ‖ΔW‖/‖W‖, where W lies on the format's grid; into a base that was
    not rounded before, all of it arrives on average."""
    W, D = _weights()
    names, sizes = ("nf4", "int8", "bfloat16", "float16"), (0.001, 0.01, 0.1)
    cos: dict[str, list[float]] = {}
    for name in names:
        held = formats()[name]
        base = held.of(W).dense()
        kept = [held.of(base + size * D).dense() - base for size in sizes]
        cos[name] = [float(np.sum(k * D) / np.linalg.norm(k) / np.linalg.norm(D)) for k in kept]
        assert cos[name] == sorted(cos[name])
    assert cos["nf4"][1] < 0.1 < 0.7 < cos["int8"][1] < 0.9 < cos["bfloat16"][1] < cos["float16"][1]
    assert cos["bfloat16"][0] < 0.7 < 0.95 < cos["float16"][0]
    lines = "; ".join(f"{name} " + ", ".join(f"{c:.2f}" for c in cos[name]) for name in names)
    return f"cos(kept, ΔW) at ‖ΔW‖/‖W‖ {', '.join(map(str, sizes))}: {lines}"


def four_columns_cost_int8_its_steps() -> str:
    """x Wᵀ in int8, 4 of 256 columns of x 20 times as large: kept in float32, they leave the others small steps."""
    rng = np.random.default_rng(0)
    W, x = rng.standard_normal(SHAPE).astype(np.float32), rng.standard_normal((64, SHAPE[1])).astype(np.float32)
    Q, outliers = Int8.of(W), [3, 77, 130, 201]
    without = _relative(llm_int8(x, Q, outlier=0), x @ W.T)
    x[:, outliers] *= 20
    y = x @ W.T
    found = {"W alone": x @ Q.dense().T, "all of x": llm_int8(x, Q, outlier=0), "LLM.int8": llm_int8(x, Q)}
    error = {name: _relative(each, y) for name, each in found.items()}
    codes, a, _ = int8_codes(x)
    rest = _relative(np.delete(codes * a[:, None] / 127, outliers, 1), np.delete(x, outliers, 1))
    assert int8_codes(x, 6.0)[2].tolist() == outliers
    assert without < 0.012 < 0.02 < error["all of x"]
    assert error["W alone"] < error["LLM.int8"] < 0.01
    assert rest > 0.05
    lines = ", ".join(f"{name} {size:.1%}" for name, size in error.items())
    return f"y off by: {lines}, before there were outliers {without:.1%}; the other 252 columns of x by {rest:.0%}"


def what_is_not_in_four_bits() -> str:
    """Embedding and head in bfloat16, gains in float32: their share of two models; a live model has them so."""
    live = load_pretrained(BUILTIN, quantize="nf4")
    kinds: dict[str, set[str]] = {"block_": set(), "": set()}
    for name, p in live.named_parameters().items():
        kind = p.data.name if isinstance(p.data, Quantized) else f"{p.data.dtype} ({p.data.ndim})"
        kinds["block_" * name.startswith("block_")].add(kind)
    assert kinds == {"block_": {"nf4", "float32 (1)"}, "": {"bfloat16", "float32 (1)"}}
    said = []
    for name in ("llama-2-7b", "smollm2-135m"):
        model = count(name, "qlora").model
        held, base = formats_for(model, "nf4-dq"), list(model.base_parameters().values())
        size = [held[p].nbytes_of(p.data.shape) if p in held else 4 * p.data.size for p in base]
        outside = [p not in held or held[p].name != "nf4-dq" for p in base]
        numbers = np.average(outside, weights=[p.data.size for p in base])
        share, whole = np.average(outside, weights=size), sum(size)
        said.append(f"{name}: {numbers:.0%} of the numbers, {share:.0%} of {whole / 1e9:.2f} GB")
    return f"not in NF4: {'; '.join(said)}"


def rows_share_the_decoding() -> str:
    """A product with Ŵ, 1024 × 1024, in NF4 and in float32: the decoding costs the same for 1 row and for 512."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((1024, 1024)).astype(np.float32)
    Q, ratio = NF4.of(W), {}
    for rows in (1, 512):
        x = rng.standard_normal((rows, 1024)).astype(np.float32)
        dense, four = _seconds(ops.linear_forward, x, W), _seconds(ops.quantized_linear_forward, x, Q)
        ratio[rows] = four / dense
    assert ratio[1] > 2 * ratio[512]
    whole = 4 * 4096 * 11008  # of one matrix of Llama 2 7B, in float32
    times = f"1 row {ratio[1]:.0f} ×, 512 rows {ratio[512]:.1f} ×"
    return f"NF4 / float32: {times}; at once {4 * PART / 2**20:.0f} MiB of Ŵ, of {whole / 2**20:.0f}"


DTYPES = "bfloat16", "nf4", "nf4-dq"


def _seconds(run: Callable[..., Any], *arguments: Any) -> float:
    """The shortest of nine runs, in seconds."""
    taken = []
    for _ in range(9):
        start = time.perf_counter()
        run(*arguments)
        taken.append(time.perf_counter() - start)
    return min(taken)


def _quantiles() -> Array:
    """Quantiles of a normal at equal steps of probability, 8 above 0 and 7 below, divided by the largest."""
    end, ppf = 0.9677083, NormalDist().inv_cdf
    above, below = ([ppf(p) for p in np.linspace(end, 0.5, n)[:-1]] for n in (9, 8))
    levels = np.sort([*above, 0.0, *(-x for x in below)])
    return levels / levels.max()


def _nf4(W: Array) -> Array:
    """Ŵ"""
    return NF4.of(W).dense()


def _int4(W: Array, block: int = 64) -> Array:
    """Ŵ by rounding to equal steps of absmax/7."""
    blocks = W.reshape(-1, block)
    step = abs(blocks).max(axis=1, keepdims=True) / 7
    return (np.round(blocks / step) * step).reshape(W.shape)


def _int4_with_zero(W: Array, block: int = 64) -> Array:
    """Ŵ by rounding to 16 levels from the least to the largest, one of them at 0; its index takes 4 bits a block."""
    blocks = W.reshape(-1, block)
    step = np.ptp(blocks, axis=1, keepdims=True) / 15
    zero = np.round(-blocks.min(axis=1, keepdims=True) / step)
    return ((np.clip(np.round(blocks / step) + zero, 0, 15) - zero) * step).reshape(W.shape)


def _weights() -> tuple[Array, Array]:
    """W normal, and a ΔW of rank 8 and of its norm."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal(SHAPE)
    D = rng.standard_normal((SHAPE[0], 8)) @ rng.standard_normal((8, SHAPE[1]))
    return W, D * np.linalg.norm(W) / np.linalg.norm(D)


def _relative(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
