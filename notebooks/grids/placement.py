"""Where to put an adapter: four placements of about 55,000 parameters, α = 2r (notebook 08).

q, v is there once more at the rank that all layers have, which is how placements are usually compared.
"""

from adapting import ATTENTION, MLP
from adapting import run as run

PLACES = {
    "q, v": (["q_proj", "v_proj"], 24),
    "q, k, v, o": (ATTENTION, 12),
    "MLP": (MLP, 8),
    "all": ("all-linear", 5),
    "q, v at r = 5": (["q_proj", "v_proj"], 5),
}

RUNS = [
    {"targets": targets, "rank": rank, "alpha": 2 * rank, "lr": lr, "seed": seed}
    for targets, rank in PLACES.values()
    for lr in (4e-3, 8e-3, 1.6e-2, 3.2e-2)
    for seed in range(5)
]
