"""Training in simulated 16 bits: with and without a float32 copy of the weights, and a loss scale (notebook 09). LoRA
of rank 8 on all linear layers; rank 0 is full fine-tuning.

`kept` is what stays in float32 from step to step: "copy", the weights and AdamW's moments; "moments" alone; or
"nothing". `loss` multiplies the loss before backward, and its gradients are divided by it in float32: 1/256 is the mean
over 256 times as many tokens, of which one in 256 is ours. S is the first loss scale, 1 none at all.
"""

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import adapting
import numpy as np

import minilora
from minilora.data import random_windows
from minilora.nn import Sequential
from minilora.nn.optim import clip_by_global_norm
from minilora.quantization.arithmetic import HALF, half_precision
from minilora.training import loss_and_gradients
from minilora.training.loss_scale import LossScale

SEEDS, STEPS = range(3), 25
RATES, FULL_RATES = (1e-4, 2e-3, 8e-3), (1e-4, 1e-3)
PLAIN = {"format": "float32", "kept": "copy", "S": 1, "loss": 1}

WAYS = [
    (PLAIN, RATES),
    *((PLAIN | {"format": "bfloat16", "kept": kept}, RATES) for kept in ("copy", "moments", "nothing")),
    *((PLAIN | {"format": "float16", "kept": kept}, RATES) for kept in ("copy", "moments")),
    (PLAIN | {"format": "float16", "kept": "nothing"}, (2e-3,)),
    *((PLAIN | {"format": "float16", "S": 2**16, "loss": loss}, (2e-3,)) for loss in (1, 2.0**-8, 2.0**-12)),
    *((PLAIN | {"format": "float16", "loss": loss}, (2e-3,)) for loss in (2.0**-8, 2.0**-12)),
    (PLAIN | {"format": "bfloat16", "loss": 2.0**-12}, (2e-3,)),
    (PLAIN | {"rank": 0}, FULL_RATES),
    *((PLAIN | {"rank": 0, "format": "bfloat16", "kept": kept}, FULL_RATES) for kept in ("copy", "moments")),
]
RUNS = [{**how, "lr": lr, "seed": seed} for how, rates in WAYS for lr in rates for seed in SEEDS]


def train(
    format: str, kept: str, S: float, loss: float, lr: float, seed: int, rank: int = 8, steps: int = STEPS
) -> tuple[Sequential, dict[str, Any]]:
    """The model, its parameters in float32, and what happened on the way: the loss of each step in nats, the share of
    the updates of A, of B, or of W where the rank is 0, that rounding took back, and how many steps were left out.
    `steps` ends the schedule of STEPS early."""
    model = minilora.load_pretrained("builtin")
    if rank:
        minilora.attach_lora(model, "all-linear", r=rank, alpha=2 * rank, rng=seed)
    batches = random_windows(adapting.source().train, batch=8, length=64, seed=seed)
    schedule, scale = minilora.cosine_schedule(STEPS, warmup=3), LossScale(S)
    trained = model.trainable_parameters()
    moved, lost = Counter(), Counter()

    def rounded(here: bool) -> AbstractContextManager:
        return half_precision(model.parameters(), format) if here and format != "float32" else nullcontext()

    curve, left_out = [], 0
    with rounded(kept == "nothing"), np.errstate(all="ignore"):
        optimizer = minilora.AdamW(trained, lr)
        for step in range(steps):
            with rounded(kept != "nothing"):
                L, grads = loss_and_gradients(model, batches(step), dL=scale.S * loss)
            curve.append(float(L))
            if kept != "nothing":
                grads, finite = scale.unscaled(grads)
                grads = minilora.Gradients({parameter: g / loss for parameter, g in grads.items()})
                if S != 1:
                    scale.update(finite)
                if not finite:
                    left_out += 1
                    continue
            before = {path: parameter.data for path, parameter in trained.items()}
            optimizer.step(clip_by_global_norm(grads, 1.0)[0], schedule(step))
            for path, parameter in trained.items() if kept == "moments" else ():
                wanted, parameter.data = parameter.data, np.asarray(HALF[format].of(parameter.data))
                moved[path[-1] if rank else "W"] += np.count_nonzero(wanted != before[path])
                lost[path[-1] if rank else "W"] += np.count_nonzero(
                    (wanted != before[path]) & (parameter.data == before[path])
                )
    shares = {f"lost_{name}": round(float(lost[name] / moved[name]), 4) for name in moved}
    return model, {"curve": [round(x, 4) for x in curve], **shares, "left_out": left_out, "last_S": scale.S}


def run(**how: Any) -> dict[str, Any]:
    """Bits per byte of text that it has not seen; infinity where the weights are no longer numbers."""
    model, happened = train(**how)
    finite = all(np.isfinite(parameter.data).all() for parameter in model.trainable_parameters().values())
    losses = adapting.losses(model) if finite else {"new": float("inf"), "old": float("inf")}
    return {name: round(value, 4) for name, value in losses.items()} | happened
