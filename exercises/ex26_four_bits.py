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
    raise NotImplementedError


def dequantise(codes, absmax, block, shape):
    """Return Ŵ.

    >>> dequantise(np.array([242, 127], np.uint8), np.array([2.0, 0.5]), 2, (2, 2)).round(5).tolist()
    [[2.0, -1.05015], [0.0, 0.5]]
    """
    raise NotImplementedError


def bits(block, nested):
    """Return single, double.

    >>> single, double = bits(64, 256)
    >>> single, round(double, 3)
    (4.5, 4.127)
    """
    raise NotImplementedError


def qlora_backward(dy, x, codes, absmax, block, A, B, alpha):
    """Return {"dx": ..., ...}.

    >>> one, codes, absmax = np.ones((1, 1, 1)), np.array([247], np.uint8), np.array([3.0])  # Ŵ = 3
    >>> found = qlora_backward(one, 2 * one, codes, absmax, 4, 5 * one[0], 7 * one[0], 4.0)
    >>> float(found["dx"][0, 0, 0])
    143.0
    """
    raise NotImplementedError


def merge_forecast(codes, absmax, block, D):
    """Return moved, error.

    >>> codes, absmax, D = np.array([242, 127], np.uint8), np.array([2.0, 0.5]), np.array([[0.0, 0.1], [0.0, 0.0]])
    >>> [round(float(x), 4) for x in merge_forecast(codes, absmax, 2, D)]
    [0.0, 1.0]
    >>> [round(float(x), 4) for x in merge_forecast(codes, absmax, 2, 2 * D)]
    [0.25, 0.4349]
    """
    raise NotImplementedError
