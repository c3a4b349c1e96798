"""What the gradients of an adapter are, at the start and later."""

import numpy as np

from minilora import ops


def only_B_moves_at_the_first_step() -> str:
    """At B = 0 and A random: dA = 0 and dB ≠ 0. At A = B = 0 both are zero."""
    rng = np.random.default_rng(0)
    x, dy, A = rng.standard_normal((9, 6)), rng.standard_normal((9, 5)), rng.standard_normal((2, 6))
    sizes = []
    for start in (A, 0 * A):
        B = np.zeros((5, 2))
        _, cache = ops.lora_forward(x, start, B, 3.0)
        _, dh = ops.lora_backward(dy, start, B, 3.0)
        dA, dB = ops.lora_A_gradients(dh, cache.x), ops.lora_B_gradients(dy, cache.h, 3.0)
        sizes.append((np.linalg.norm(dA), np.linalg.norm(dB)))
    (dA, dB), both_zero = sizes
    assert dA == 0
    assert dB > 1
    assert both_zero == (0, 0)
    return f"‖dA‖ = {dA:g}, ‖dB‖ = {dB:.1f}; with A = 0 too: ‖dA‖ = ‖dB‖ = 0"
