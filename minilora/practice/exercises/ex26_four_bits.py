"""26 · Four bits

    y = x Ŵᵀ + s (x Aᵀ) Bᵀ       s = α/r       Ŵ_i = a · LEVELS[q_i]

    x, dx (batch, tokens, in)    Ŵ, D (out, in)    y, dy (batch, tokens, out)
    A, dA (r, in)    B, dB (out, r)    absmax (blocks,)

QLoRA (Dettmers et al., 2023) holds the frozen W in NF4. W is read row by row
and cut into blocks of `block` numbers; the last may be short. absmax holds a,
the largest |W_i| of each block. q_i, from 0 to 15, is the place in LEVELS of
the level nearest to W_i/a (no two are as near), 7 in a block of zeros. Two of
them share a byte of codes (uint8), the first in the high four bits; a last one
alone is paired with 7. α is called alpha, and r is that of A.

    quantise_nf4     codes and absmax
    dequantise       Ŵ, of this shape
    bits             a weight's share of all that is held, as above (single),
                     and where each a takes 8 bits and every `nested` of them
                     share a float32 (double). All blocks are full
    qlora_backward   a dict of gradients: that of x, for the layers below, and
                     those of all that QLoRA trains
    merge_forecast   what a merge of D = s B A into the codes will keep. Let a′
                     be the largest |Ŵ + D| of a block. Number i then lies at
                     t_i = Ŵ_i + D_i - a′ LEVELS[q_i] from its own level, and
                     keeps its code as long as |t_i| is at most a′ times half
                     the gap to the next level on that side
        moved        the share of numbers whose code changes
        error        √(Σ e_i²)/‖D‖. Where the code stays, e_i = t_i; where it
                     changes, let any place in a cell be equally likely: e_i² =
                     c²/12, c the width, times a′, of the cell that it leaves:
                     half a gap on either side, for ±1 on one side alone

That c²/12 is rough: a level is not in the middle of its cell, and most numbers
that move have just crossed an edge. The library's forecast (minilora merge) has
the place of the level, and a normal density of t instead of a uniform one.

By hand: W = (2, -1), (0, 0.5) in blocks of 2. a = 2 and 0.5, W/a = 1, -0.5, 0,
1, q = 15, 2, 7, 15: bytes 242 and 127, Ŵ = (2, -1.05015), (0, 0.5). Blocks of
64, nested 256: 4.5 and 4.127 bits. D is 0.1 at the -1 and 0 elsewhere: half the
gap is 0.13, so no code changes, the error is 1, and the merge keeps nothing.
"""

import numpy as np

LEVELS = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip


def quantise_nf4(W, block):
    """Return codes, absmax.

    >>> codes, absmax = quantise_nf4(np.array([[2.0, -1.0], [0.0, 0.5]]), 2)
    >>> codes.tolist(), absmax.tolist()
    ([242, 127], [2.0, 0.5])
    """
    ### BEGIN SOLUTION
    absmax = np.maximum.reduceat(abs(W).ravel(), np.arange(0, W.size, block))
    a = np.repeat(absmax, block)[: W.size]
    q = np.searchsorted((LEVELS[1:] + LEVELS[:-1]) / 2, W.ravel() / np.where(a == 0, 1, a)).astype(np.uint8)
    q = np.append(q, np.full(W.size % 2, 7, np.uint8))
    return q[::2] << 4 | q[1::2], absmax
    ### END SOLUTION


def dequantise(codes, absmax, block, shape):
    """Return Ŵ.

    >>> dequantise(np.array([242, 127], np.uint8), np.array([2.0, 0.5]), 2, (2, 2)).round(5).tolist()
    [[2.0, -1.05015], [0.0, 0.5]]
    """
    ### BEGIN SOLUTION
    n = shape[0] * shape[1]
    q = np.stack([codes >> 4, codes & 15], axis=1).ravel()[:n]
    return (LEVELS[q] * np.repeat(absmax, block)[:n]).reshape(shape)
    ### END SOLUTION


def bits(block, nested):
    """Return single, double.

    >>> single, double = bits(64, 256)
    >>> single, round(double, 3)
    (4.5, 4.127)
    """
    ### BEGIN SOLUTION
    return 4 + 32 / block, 4 + 8 / block + 32 / (block * nested)
    ### END SOLUTION


def qlora_backward(dy, x, codes, absmax, block, A, B, alpha):
    """Return {"dx": ..., ...}.

    >>> one, codes, absmax = np.ones((1, 1, 1)), np.array([247], np.uint8), np.array([3.0])  # Ŵ = 3
    >>> found = qlora_backward(one, 2 * one, codes, absmax, 4, 5 * one[0], 7 * one[0], 4.0)
    >>> float(found["dx"][0, 0, 0])
    143.0
    """
    ### BEGIN SOLUTION
    s = alpha / len(A)
    W_hat = dequantise(codes, absmax, block, (len(B), A.shape[1]))
    dh = s * dy @ B
    return {
        "dx": dy @ W_hat + dh @ A,
        "dA": np.einsum("btr,bti->ri", dh, x),
        "dB": s * np.einsum("bto,btr->or", dy, x @ A.T),
    }
    ### END SOLUTION


def merge_forecast(codes, absmax, block, D):
    """Return moved, error.

    >>> codes, absmax, D = np.array([242, 127], np.uint8), np.array([2.0, 0.5]), np.array([[0.0, 0.1], [0.0, 0.0]])
    >>> [round(float(x), 4) for x in merge_forecast(codes, absmax, 2, D)]
    [0.0, 1.0]
    >>> [round(float(x), 4) for x in merge_forecast(codes, absmax, 2, 2 * D)]
    [0.25, 0.4349]
    """
    ### BEGIN SOLUTION
    n = D.size
    q = np.stack([codes >> 4, codes & 15], axis=1).ravel()[:n]
    merged = dequantise(codes, absmax, block, D.shape).ravel() + D.ravel()
    new = np.repeat(np.maximum.reduceat(abs(merged), np.arange(0, n, block)), block)[:n]
    t = merged - new * LEVELS[q]
    middles = (LEVELS[1:] + LEVELS[:-1]) / 2
    low, high = np.append(-1, middles), np.append(middles, 1)
    moved = (t > new * (high - LEVELS)[q]) | (t < new * (low - LEVELS)[q])
    e2 = np.where(moved, (new * (high - low)[q]) ** 2 / 12, t**2)
    return moved.mean(), np.sqrt(e2.sum()) / np.linalg.norm(D)
    ### END SOLUTION


### THE CHECK

from ..exercise import Exercise, Viva
from ..parts import Gradient, Value

MIDDLES = (LEVELS[1:] + LEVELS[:-1]) / 2
# out, in, block of each case: blocks that end within a row, a short last one, an odd number of weights
SHAPES = [(6, 9, 4), (5, 7, 6), (8, 8, 16), (3, 11, 5), (9, 6, 8), (7, 5, 64)]


def draw_W(rng, i):
    out, width_in, block = SHAPES[i]
    W = rng.standard_normal((out, width_in)) * np.exp(rng.uniform(-1, 1, (out, 1)))
    if i == 3:  # a block of zeros
        W.ravel()[block : 2 * block] = 0
    return {"W": W, "block": block}


def draw_codes(rng, i):
    W, block = draw_W(rng, i).values()
    codes, absmax = quantise_nf4(W, block)
    return {"codes": codes, "absmax": absmax, "block": block, "shape": W.shape}


def draw_sizes(rng, i):
    block = (48, 64, 8, 96, 24, 128)[i]  # with 8 and 24 the quotients of whole numbers are not all 0
    return {"block": block, "nested": int(rng.integers(100, 500))}


def draw_merge(rng, i):
    """D of rank 2, from 0.02 to 0.4 of Ŵ's length."""
    codes, absmax, block, shape = draw_codes(rng, (0, 1, 2, 4, 5, 0)[i]).values()
    D = rng.standard_normal((shape[0], 2)) @ rng.standard_normal((2, shape[1]))
    size = (0.1, 0.3, 0.05, 0.2, 0.02, 0.4)[i] * np.linalg.norm(dequantise(codes, absmax, block, shape))
    return {"codes": codes, "absmax": absmax, "block": block, "D": D * size / np.linalg.norm(D)}


def q_of(codes, n):
    return np.array([q for byte in codes for q in divmod(int(byte), 16)][:n])


def each_alone(W, block):
    """Codes and scales, a block and a number at a time."""
    flat, q, absmax = W.ravel(), [], []
    for start in range(0, W.size, block):
        part = flat[start : start + block]
        absmax.append(abs(part).max())
        q += [int(abs(LEVELS - w / absmax[-1]).argmin()) if absmax[-1] else 7 for w in part]
    return packed(q), np.array(absmax)


def packed(q, alone=7, low_first=False):
    q = [int(x) for x in q]
    q += [alone] * (len(q) % 2)
    pairs = zip(q[1::2], q[::2], strict=True) if low_first else zip(q[::2], q[1::2], strict=True)
    return np.array([16 * a + b for a, b in pairs], np.uint8)


def decoded(codes, absmax, block, shape):
    n = shape[0] * shape[1]
    return np.array([LEVELS[q] * absmax[i // block] for i, q in enumerate(q_of(codes, n))]).reshape(shape)


def truth_of_bits(block, nested):
    """Of so many weights that every block, and every group of scales, is full."""
    n = block * nested
    return (4 * n + 32 * nested) / n, (4 * n + 8 * nested + 32) / n


quantised = Value(quantise_nf4, "codes absmax", truth=each_alone, draw=draw_W)
restored = Value(dequantise, "W_hat", truth=decoded, draw=draw_codes)
sizes = Value(bits, "single double", truth=truth_of_bits, draw=draw_sizes)
backward = Gradient(qlora_backward, "dx dA dB", problem="qlora", without="W r")


# ---- quantise_nf4 ----


def coded(W, block, levels=LEVELS, scales=None, place=None, **how):
    """The solution with something changed."""
    flat = W.ravel(how.pop("order", "C"))
    parts = [flat[i : i + block] for i in range(0, W.size, block)]
    absmax = np.array([abs(part).max() for part in parts]) if scales is None else scales(parts)
    a = np.repeat(absmax, block)[: W.size]
    if place is None:
        place = (levels[1:] + levels[:-1]) / 2
    return packed(np.clip(np.searchsorted(place, flat / np.where(a == 0, 1, a)), 0, 15), **how), absmax


@quantised.mistake(
    "{it} has levels at equal steps, which are int4's and not NF4's",
    "How far apart are two neighbouring entries of LEVELS near 0, and how far at the end?",
)
def even_grid(W, block):
    absmax = coded(W, block)[1]
    a = np.repeat(np.where(absmax == 0, 1, absmax), block)[: W.size]
    return packed(np.round(7.5 * (W.ravel() / a + 1))), absmax


@quantised.mistake(
    "{it} has the scale of the whole matrix in every block", "How many numbers share one entry of absmax?"
)
def absmax_of_the_matrix(W, block):
    return coded(W, block, scales=lambda parts: np.full(len(parts), abs(W).max()))


@quantised.mistake("{it} has a scale for each row, not for each block", "How many numbers share one entry of absmax?")
def absmax_of_rows(W, block):
    absmax = abs(W).max(axis=1)
    return packed(np.searchsorted(MIDDLES, (W / np.where(absmax == 0, 1, absmax)[:, None]).ravel())), absmax


@quantised.mistake(
    "{it} has the largest number of each block, where the largest absolute value is meant",
    "What becomes of a block whose largest number in size is negative?",
)
def largest_number(W, block):
    return coded(W, block, scales=lambda parts: np.array([part.max() for part in parts]))


@quantised.mistake(
    "{it} has the sign of the largest number of each block: absmax is |W_i| and never negative",
    "What becomes of the codes of a block if its a has the other sign?",
)
def scale_with_sign(W, block):
    return coded(W, block, scales=lambda parts: np.array([part[abs(part).argmax()] for part in parts]))


@quantised.mistake(
    "in {it} W itself is looked for among the levels, and not W_i/a", "Between which two numbers must every W_i/a lie?"
)
def not_divided(W, block):
    return coded(W, block, scales=lambda parts: np.ones(len(parts)))[0], coded(W, block)[1]


@quantised.mistake(
    "in {it} the scales take turns, a number each (np.tile); all numbers of a block share one (np.repeat)",
    "Which entry of absmax belongs to the second number of W?",
)
def scales_in_turn(W, block):
    absmax = coded(W, block)[1]
    a = np.resize(absmax, W.size)
    return packed(np.searchsorted(MIDDLES, W.ravel() / np.where(a == 0, 1, a))), absmax


@quantised.mistake(
    "{it} has a number of the first half of W and one of its second half in each byte, and not two neighbours",
    "Which two q share the first byte in the statement's example?",
)
def halves_paired(W, block):
    codes, absmax = coded(W, block)
    q = q_of(codes, 2 * len(codes))
    return 16 * q[: len(codes)].astype(np.uint8) + q[len(codes) :].astype(np.uint8), absmax


@quantised.mistake(
    "{it} has the standard deviation of each block for its scale",
    "Between which two numbers must every W_i/a lie?",
)
def deviation(W, block):
    return coded(W, block, scales=lambda parts: np.array([part.std() for part in parts]))


@quantised.mistake("{it} is cut into blocks column by column", "Which numbers of W follow one another when it is read?")
def columns_first(W, block):
    return coded(W, block, order="F")


@quantised.mistake(
    "in {it} every number goes to a level above it, and not to the nearest",
    "Where between two levels does the nearest one change?",
)
def level_above(W, block):
    return coded(W, block, place=LEVELS[:-1])


@quantised.mistake(
    "in {it} every number goes to a level below it, and not to the nearest",
    "Where between two levels does the nearest one change?",
)
def level_below(W, block):
    return coded(W, block, place=LEVELS[1:])


@quantised.mistake(
    "in {it} the first of two is in the low four bits", "Which half of a byte is worth more, and which q stands there?"
)
def low_bits_first(W, block):
    return coded(W, block, low_first=True)


@quantised.mistake(
    "in {it} a last one alone is paired with the code 0, which stands for -1", "Which code is that of the number 0?"
)
def paired_with_zero(W, block):
    return coded(W, block, alone=0)


@quantised.mistake("{it} has a byte for every number: two share one", "How many bytes are four bits?")
def not_packed(W, block):
    absmax = coded(W, block)[1]
    return q_of(coded(W, block)[0], W.size).astype(np.uint8), absmax


@quantised.mistake(
    "{it} is right except in a block of zeros: 0/0 is NaN, and no level is near it",
    "What is W_i/a where every number of a block is 0?",
)
def zeros_divided(W, block):
    codes, absmax = coded(W, block)
    q = q_of(codes, W.size)
    q[np.repeat(absmax == 0, block)[: W.size]] = 15
    return packed(q), absmax


@quantised.mistake(
    "{it} is right except in a block of zeros, which has the code 0, that of -1: argmin makes it of NaN",
    "What is W_i/a where every number of a block is 0?",
)
def zeros_by_argmin(W, block):
    codes, absmax = coded(W, block)
    q = q_of(codes, W.size)
    q[np.repeat(absmax == 0, block)[: W.size]] = 0
    return packed(q), absmax


# ---- dequantise ----


@restored.mistake(
    "in {it} the codes are numbers at equal steps, as int4's are", "What stands in LEVELS at the place of a code?"
)
def even_steps(codes, absmax, block, shape):
    n = shape[0] * shape[1]
    return (np.linspace(-1, 1, 16)[q_of(codes, n)] * np.repeat(absmax, block)[:n]).reshape(shape)


@restored.mistake(
    "in {it} the codes themselves are multiplied by the scales, and not the levels that they stand for",
    "What stands in LEVELS at the place of a code?",
)
def codes_for_levels(codes, absmax, block, shape):
    n = shape[0] * shape[1]
    return (q_of(codes, n) * np.repeat(absmax, block)[:n]).reshape(shape)


@restored.mistake(
    "in {it} the high halves of all bytes come first, then the low ones: the two numbers of a byte are neighbours",
    "Which numbers of Ŵ does the first byte hold?",
)
def halves_apart(codes, absmax, block, shape):
    n = shape[0] * shape[1]
    q = np.concatenate([codes >> 4, codes & 15])[:n]
    return (LEVELS[q] * np.repeat(absmax, block)[:n]).reshape(shape)


@restored.mistake(
    "in {it} the scales take turns, a number each (np.tile); all numbers of a block share one (np.repeat)",
    "How many numbers share one entry of absmax?",
)
def scales_take_turns(codes, absmax, block, shape):
    n = shape[0] * shape[1]
    return (LEVELS[q_of(codes, n)] * np.resize(absmax, n)).reshape(shape)


@restored.mistake("{it} lacks the scales of the blocks", "Between which two numbers are all levels?")
def scales_missing(codes, absmax, block, shape):
    return decoded(codes, 0 * absmax + 1, block, shape)


@restored.mistake("{it} has one scale for all blocks", "How many numbers share one entry of absmax?")
def one_scale(codes, absmax, block, shape):
    return decoded(codes, 0 * absmax + absmax.max(), block, shape)


@restored.mistake("{it} is divided by the scales", "By what was W divided before its codes were looked for?")
def divided_by_the_scales(codes, absmax, block, shape):
    return decoded(codes, 1 / np.where(absmax == 0, 1, absmax), block, shape)


@restored.mistake(
    "in {it} the two numbers of each byte are swapped", "Which half of a byte is worth more, and which q stands there?"
)
def bytes_swapped(codes, absmax, block, shape):
    return decoded((codes >> 4) | (codes << 4), absmax, block, shape)


@restored.mistake("{it} is filled column by column", "Which numbers of Ŵ (out, in) follow one another when it is read?")
def filled_by_columns(codes, absmax, block, shape):
    return decoded(codes, absmax, block, shape[::-1]).T


@restored.mistake("{it} has the scales of rows, not of blocks", "How many numbers share one entry of absmax?")
def scales_of_rows(codes, absmax, block, shape):
    n = shape[0] * shape[1]
    a = absmax[np.arange(shape[0]) % len(absmax)]
    return LEVELS[q_of(codes, n)].reshape(shape) * a[:, None]


# ---- bits ----


def right_single(block, nested):
    return 4 + 32 / block


def right_double(block, nested):
    return 4 + 8 / block + 32 / (block * nested)


@sizes.mistake("{it} leaves out the scales", "By what is a level multiplied when Ŵ is made, and where is that held?")
def no_scales(block, nested):
    return 4, 4


@sizes.mistake("{it} has 16 bits where a float32 is held", "How many bits does a float32 have?")
def half_scales(block, nested):
    return 4 + 16 / block, 4 + 8 / block + 16 / (block * nested)


@sizes.mistake(
    "{it} leaves out the second float32s, by which the 8 bits are multiplied", "What turns 8 bits into a scale again?"
)
def second_scales_left_out(block, nested):
    return right_single(block, nested), 4 + 8 / block


@sizes.mistake(
    "in {it} each weight has a share of a float32 for every `nested` weights, not for every `nested` scales",
    "How many weights stand behind `nested` scales?",
)
def nested_of_weights(block, nested):
    return right_single(block, nested), 4 + 8 / block + 32 / nested


@sizes.mistake("{it} holds the scales twice, in float32 and in 8 bits", "What becomes of the float32 scales?")
def both_scales(block, nested):
    return right_single(block, nested), right_double(block, nested) + 32 / block


@sizes.mistake(
    "in {it} the scales have 4 bits as the weights have, and they have 8", "How many levels has the second table?"
)
def four_bit_scales(block, nested):
    return right_single(block, nested), 4 + 4 / block + 32 / (block * nested)


@sizes.mistake(
    "{it} is an integer division, by //, which makes 0 of a share below 1",
    "What is 8 // 64, and what is 8 / 64?",
)
def whole_numbers(block, nested):
    return 4 + 32 // block, 4 + 8 // block + 32 // (block * nested)


@sizes.mistake(
    "in {it} the weights themselves are quantised again, and only their scales are",
    "What is quantised twice in double quantisation: the weights, or their scales?",
)
def weights_twice(block, nested):
    return right_single(block, nested), right_single(block, nested) / 2


# ---- qlora_backward ----


def right_gradients(dy, x, codes, absmax, block, A, B, alpha):
    """The gradients, and dyᵀ x."""
    return qlora_backward(dy, x, codes, absmax, block, A, B, alpha), np.einsum("bto,bti->oi", dy, x)


@backward.mistake(
    "{it} gives a gradient dW to the base: it is held in codes, integers, which nothing trains",
    "Can a step of 0.001 change a code, which is an integer from 0 to 15?",
)
def base_trained(*given):
    right, G = right_gradients(*given)
    return right | {"dW": G}


@backward.mistake(
    "{it} gives a gradient dW_hat to the base: Ŵ is made of codes and scales, which nothing trains",
    "Which tensors does QLoRA hand to the optimizer?",
)
def decoded_base_trained(*given):
    right, G = right_gradients(*given)
    return right | {"dW_hat": G}


@backward.mistake(
    "{it} gives a gradient dabsmax to the scales: they belong to the base, and are frozen with it",
    "Which tensors does QLoRA hand to the optimizer?",
)
def scales_trained(dy, x, codes, absmax, block, A, B, alpha):
    right, G = right_gradients(dy, x, codes, absmax, block, A, B, alpha)
    each = (G * decoded(codes, 0 * absmax + 1, block, G.shape)).ravel()
    return right | {"dabsmax": np.add.reduceat(each, np.arange(0, each.size, block))}


@backward.mistake(
    "{it} has no dx: the base is frozen, but the layers below still need it",
    "What does an adapter in the layer below learn from?",
)
def no_dx(*given):
    right, _ = right_gradients(*given)
    return {name: right[name] for name in ("dA", "dB")}


# ---- merge_forecast ----


def foretold(codes, absmax, block, D, **changes):
    """The truth, where one of `changes` is another: a scale, t, a limit, e², or what is made of them in the end."""
    get, n = changes.get, D.size
    q, W_hat = q_of(codes, n), decoded(codes, absmax, block, D.shape).ravel()
    merged = W_hat + D.ravel()
    largest = [abs(merged[i : i + block]).max() for i in range(0, n, block)]
    a = np.repeat(absmax if get("old_scale") else largest, block)[:n]
    unit = 1 if get("no_scale") else a
    t = D.ravel() if get("D_alone") else merged - a * LEVELS[q]
    gaps = np.diff(LEVELS) if not get("even") else np.full(15, 2 / 15)
    up, down = unit * np.append(gaps / 2, 0)[q], unit * np.append(0, gaps / 2)[q]  # to the middles
    limits = get("limits", lambda up, down: (up, down))(up, down)
    if get("open_ends"):
        limits = np.where(q == 15, np.inf, limits[0]), np.where(q == 0, np.inf, limits[1])
    moved = (t > limits[0]) | (t < -limits[1])
    if get("both_sides"):
        up, down = np.where(q == 15, down, up), np.where(q == 0, up, down)
    if get("entered"):
        into = np.searchsorted(MIDDLES, merged / a)
        up, down = a * np.append(gaps / 2, 0)[into], a * np.append(0, gaps / 2)[into]
    lands = get("lands", lambda moved: moved)(moved)
    e2 = np.where(lands, get("cell", lambda c: c**2 / 12)(up + down), get("lost", np.square)(t))
    if get("measured"):
        e2 = (merged - a * LEVELS[np.searchsorted(MIDDLES, merged / a)]) ** 2
    error = get("root", np.sqrt)(e2.sum()) / get("unit", lambda W_hat, D: np.linalg.norm(D))(W_hat, D)
    return get("share", np.mean)(moved), error


forecast = Value(merge_forecast, "moved error", truth=foretold, draw=draw_merge)


@forecast.mistake(
    "{it} keeps the old scales: where Ŵ + D is larger at its ends, a block's absmax grows",
    "What is the largest |Ŵ + D| of a block whose absmax D makes larger?",
)
def old_scale(*given):
    return foretold(*given, old_scale=True)


@forecast.mistake(
    "{it} keeps the old scales: where Ŵ + D is larger at its ends, a block's absmax grows",
    "What is the largest |Ŵ + D| of a block whose absmax D makes larger?",
)
def old_scale_with_open_ends(*given):
    return foretold(*given, old_scale=True, open_ends=True)


@forecast.mistake(
    "{it} takes D alone for t: the level itself moves when the scale of its block grows",
    "What is a number off its own level where D is 0, and absmax has doubled?",
)
def D_alone(*given):
    return foretold(*given, D_alone=True)


@forecast.mistake(
    "{it} lets a number keep its code up to the next level, and not to the middle between the two",
    "To which level does a number go that is two thirds of the way to the next?",
)
def whole_gap(*given):
    return foretold(*given, limits=lambda up, down: (2 * up, 2 * down))


@forecast.mistake(
    "{it} has equal cells, of int4: those of NF4 differ", "How wide is the cell of 0, and how wide is that next to 1?"
)
def equal_cells(*given):
    return foretold(*given, even=True)


@forecast.mistake(
    "{it} lacks a′: gaps and cells of LEVELS are in units of the block's scale, and t is not",
    "If W and D double, what becomes of t, and what of the gap that you compare it with?",
)
def cells_without_scale(*given):
    return foretold(*given, no_scale=True)


@forecast.mistake(
    "{it} has the cell that a number enters where that which it leaves is meant",
    "Which code do you know without rounding anything?",
)
def cell_that_it_enters(*given):
    return foretold(*given, entered=True)


@forecast.mistake(
    "{it} has cells on both sides of the levels ±1, and nothing lies beyond them",
    "How large can |Ŵ + D|/a′ become?",
)
def cells_beyond_the_ends(*given):
    return foretold(*given, both_sides=True)


@forecast.mistake(
    "{it} is measured, not predicted: Ŵ + D is rounded, where c²/12 is meant",
    "Which part of your function would be left if nothing could be quantised again?",
)
def measured_instead(*given):
    return foretold(*given, measured=True)


@forecast.mistake(
    "{it} compares a step up with the middle below, and a step down with that above",
    "Towards which neighbour does a positive t go?",
)
def other_side(*given):
    return foretold(*given, limits=lambda up, down: (down, up))


@forecast.mistake("{it} is the share of numbers that keep their code", "Which share is asked for?")
def share_that_stays(*given):
    return foretold(*given, share=lambda moved: 1 - moved.mean())


@forecast.mistake("{it} is a number of weights, and not a share", "Between which two numbers is a share?")
def number_of_weights(*given):
    return foretold(*given, share=np.sum)


@forecast.mistake(
    "{it} takes every number for one that moves, and leaves out what is lost whole",
    "What is the error of a number whose code stays, if D is tiny?",
)
def all_as_cells(*given):
    return foretold(*given, lands=np.ones_like)


@forecast.mistake(
    "{it} takes t for every number: one that moves lands in another cell, and is off by that cell's rounding",
    "How large can the error of a number that moves be, however large D is?",
)
def all_stay(*given):
    return foretold(*given, lands=np.zeros_like)


@forecast.mistake(
    "{it} leaves out the numbers that move: they are rounded too", "Does Ŵ + D lie on a level where its code changes?"
)
def moved_are_exact(*given):
    return foretold(*given, cell=np.zeros_like)


@forecast.mistake(
    "{it} leaves out the numbers that do not move: D is lost there",
    "What does a merge keep of D where no code changes?",
)
def lost_are_exact(*given):
    return foretold(*given, lost=np.zeros_like)


@forecast.mistake(
    "{it} has the whole square of a cell's width where a twelfth is meant",
    "What is the mean of u² for u from -c/2 to c/2?",
)
def no_twelfth(*given):
    return foretold(*given, cell=np.square)


@forecast.mistake("{it} lacks the square root", "If every e doubles, by what does the error grow?")
def no_root(*given):
    return foretold(*given, root=lambda total: total)


@forecast.mistake("{it} is relative to Ŵ, not to D", "Of what does the merge keep a part: of Ŵ, or of D?")
def relative_to_W(*given):
    return foretold(*given, unit=lambda W_hat, D: np.linalg.norm(W_hat))


@forecast.mistake("{it} is not relative: it must be divided by ‖D‖", "What is the error if nothing of D is kept?")
def not_relative(*given):
    return foretold(*given, unit=lambda W_hat, D: 1.0)


EXERCISE = Exercise(
    title="Four bits",
    kind="write",
    minutes=45,
    difficulty=4,
    needs=["04"],
    parts=[quantised, restored, sizes, backward, forecast],
    derivation="quantized_linear",
    hints=(
        "The nearest of sorted levels changes at the middle between two of them: np.searchsorted finds the place among "
        "the 15 middles. Do the statement's four numbers with pencil and paper before you write the packing.",
        "What has the backward that a frozen layer in float32 does not have? And for the forecast: Ŵ lies on its "
        "levels already, so how far must D push a number before its code changes?",
    ),
    viva=[
        Viva(
            "Somebody says: QLoRA trains 4-bit weights. What do you answer?",
            "The codes are whole numbers and constant, without a gradient. A and B learn, in 16 or 32 bits. The "
            "gradient passes through Ŵ, which is made anew for each product, on to x.",
            "By a straight-through estimator: the rounding's derivative is taken to be 1.",
        ),
        Viva(
            "You trained on Ŵ and merge. Into which weights, and what is lost?",
            "Into 4 bits most of a small ΔW: where it pushes a number by less than half the gap to the next level, it "
            "is lost whole. Into Ŵ in bf16 far less; but A and B have never seen the original W. Exact is to keep A "
            "and B beside Ŵ.",
            "Nothing is lost: merging is only an addition.",
        ),
    ],
    asks=["H2", "H3", "H4", "B9", "G5", "G11"],
)
