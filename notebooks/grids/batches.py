"""Batches of 4, 16 and 64 windows, the same number of tokens in all: LoRA of rank 8 and full fine-tuning (13)."""

from adapting import run as run

RATES = {0: (1e-3, 2e-3, 4e-3, 8e-3), 8: (4e-3, 8e-3, 1.6e-2, 3.2e-2)}

RUNS = [
    {"rank": rank, "batch": batch, "steps": 960 // batch, "lr": lr, "seed": seed}
    for batch in (4, 16, 64)
    for rank, rates in RATES.items()
    for lr in rates
    for seed in range(5)
]
