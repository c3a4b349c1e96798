"""A quarter of a finished update: LoRA of rank 8 at its best rate, B times 1/4 (notebook 12)."""

from adapting import adapt, losses

import minilora

RUNS = [{"rank": 8, "lr": 1.6e-2, "seed": seed} for seed in range(5)]


def run(rank, lr, seed):
    model = adapt(lr, seed, rank)
    for _, module in model.named_modules():
        if isinstance(module, minilora.LoRALinear):
            module.lora_B.data *= 0.25  # s (t B) A = t ΔW
    return losses(model)
