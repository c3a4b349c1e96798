"""23 · One batch, many adapters

A server holds one base and many adapters. In one batch each sample asks for
its own adapter, or for none:

    y[n] = x[n] Wᵀ + s (x[n] Aᵀ) Bᵀ     with the A, B and s of adapter idx[n]
    y[n] = x[n] Wᵀ                      where idx[n] = -1

    x (batch, tokens, in)    W (out, in)    y (batch, tokens, out)
    As       a list of matrices A (r, in), Bs of matrices B (out, r), in the
             same order; r may differ from adapter to adapter
    scales   (adapters,), the scale s of each
    idx      (batch,), integers from -1 to adapters - 1. Several samples may
             share an adapter, and an adapter may have no sample

Two things are asked of a server. Samples are not taken one by one in Python: a
loop may go over the adapters, of which there are few, not over the samples.
And no (out, in) matrix B A is formed: each would be as large as W.

One number by hand, with in = out = tokens = 1, and a batch of two: x = 2, 3,
W = 5. One adapter, A = 7, B = 11, s = 0.5, and idx = 0, -1.
y = 10 + 0.5 · 2 · 77 = 87, and 15.
"""

import numpy as np


def multi_lora_forward(x, W, As, Bs, scales, idx):
    """Return y.

    >>> x, W, A, B = np.array([[[2.0]], [[3.0]]]), np.array([[5.0]]), np.array([[7.0]]), np.array([[11.0]])
    >>> multi_lora_forward(x, W, [A], [B], np.array([0.5]), np.array([0, -1])).ravel()
    array([87., 15.])
    """
    raise NotImplementedError
