"""The mean of a sequence's real tokens, which a classifier may read in the place of the first one.

    y_b = 1/n_b Σ_t real_bt x_bt        n_b = Σ_t real_bt         x (B, T, C)   real (B, T) bool   y (B, C)

Backward: each real token has the share 1/n_b of y_b, and padding none:

    dx_bt = real_bt dy_b / n_b

The forward keeps the shares alone. A sequence without a real token has y = 0, and passes no gradient.
"""

from ..backend import Array, get_array_module


def mean_tokens_forward(x: Array, real: Array) -> tuple[Array, Array]:
    """y_b = Σ_t share_bt x_bt.  The cache is share = real / n (B, T, 1)."""
    n = get_array_module(x).maximum(real.sum(axis=1, keepdims=True), 1)
    share = (real / n).astype(x.dtype)[..., None]
    return (share * x).sum(axis=1), share


def mean_tokens_backward(dy: Array, share: Array) -> Array:
    """dx_bt = share_bt dy_b"""
    return share * dy[:, None]
