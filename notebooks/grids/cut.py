"""LoRA of rank 8 on all linear layers, with dx as it is and with dx cut at the frozen weights (notebook 04)."""

from contextlib import nullcontext
from unittest.mock import patch

import adapting

import minilora
from minilora import ops
from minilora.data import bits, random_windows
from minilora.training import loss_of

# a rate of 0 is the base, on the same batches
RATES = {False: (0.0, 4e-3, 8e-3, 1.6e-2), True: (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)}

RUNS = [
    {"cut": cut, "lr": lr, "seed": seed, "steps": 40}
    for seed in range(3)
    for cut, rates in RATES.items()
    for lr in rates
]


def backward_cut(layer, dy, cache, grads):
    """LoRALinear's backward without the product dy W₀."""
    dx, dh = ops.lora_backward(dy, layer.lora_A.data, layer.lora_B.data, layer.scaling)
    grads.add(layer.lora_A, ops.lora_A_gradients(dh, cache.x))
    grads.add(layer.lora_B, ops.lora_B_gradients(dy, cache.h, layer.scaling))
    return dx


def adapted(cut: bool, lr: float, seed: int, steps: int) -> tuple[minilora.Transformer, list[float]]:
    """The model after its training, and the loss of each step in nats."""
    model = minilora.load_pretrained("builtin")
    minilora.attach_lora(model, "all-linear", r=8, alpha=16, rng=seed)
    batches = random_windows(adapting.source().train, batch=8, length=64, seed=seed)
    if not lr:
        return model, [float(loss_of(model, batches(step))[0]) for step in range(steps)]
    schedule = minilora.cosine_schedule(steps, warmup=max(1, steps // 12))
    with patch.object(minilora.LoRALinear, "backward", backward_cut) if cut else nullcontext():
        history = minilora.fit(model, batches, steps, lr=lr, schedule=schedule, seed=seed, description=None)
    return model, history.loss


def run(**how) -> dict:
    """Bits per byte: of each step's batch, and afterwards of text that it has not seen."""
    model, curve = adapted(**how)
    return {"curve": [round(bits(loss), 4) for loss in curve], **adapting.losses(model)}
