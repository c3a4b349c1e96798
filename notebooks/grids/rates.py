"""Rank, scale and learning rate: LoRA on all linear layers, α = 16, beside full fine-tuning (notebooks 05 and 12)."""

from adapting import run as run

SEEDS = range(5)
FULL = [5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 4e-3, 8e-3]
ALPHA_OVER_R = [2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2]
ALPHA_OVER_ROOT_R = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]

RUNS = [{"rank": 0, "lr": lr, "seed": seed} for lr in FULL for seed in SEEDS]
RUNS += [
    {"rank": rank, "rslora": rslora, "lr": lr, "seed": seed}
    for rslora, ranks, rates in [(False, (1, 4, 16, 64), ALPHA_OVER_R), (True, (4, 16, 64), ALPHA_OVER_ROOT_R)]
    for rank in ranks  # at r = 1 the two scales are the same
    for lr in rates
    for seed in SEEDS
]
