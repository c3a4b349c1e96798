"""Starts and variants of LoRA on one linear layer, each at many learning rates, by Adam and by SGD (notebook 13).

y = x (W₀ + Δ)ᵀ + noise is learned from 400 examples: W₀ (48, 48) Gaussian, r = 4, and Δ of four large singular values
and many small ones. Δ lies in random directions, or along the principal ones of W₀.
"""

import numpy as np

import minilora

D, N, R, NOISE = 48, 400, 4, 0.1
SIGMA = np.array([1, 0.7, 0.5, 0.35] + [0.15 / i for i in range(1, D - R + 1)])  # the singular values of Δ
SIZES = np.linspace(1.5, 0.5, D)  # the standard deviations of the inputs
VARIANTS = ["LoRA", "A = 0, B random", "α × 4", "LoRA+", "minor vectors", "PiSSA"]
RATES = {  # finer where the best rate stands near the edge of divergence
    ("Adam", 300): [0.00025 * 2**i for i in range(10)],
    ("Adam", 40): [0.001 * 2 ** (i / 2) for i in range(15)],
    ("SGD", 300): [0.005 * 2 ** (i / 2) for i in range(15)],
}

RUNS = [
    {"optimizer": optimizer, "steps": steps, "change": change, "variant": variant, "lr": lr, "seed": seed}
    for (optimizer, steps), rates in RATES.items()
    for change, variants in [("random", VARIANTS), ("principal", ["LoRA", "PiSSA"])]
    for variant in variants
    for lr in rates
    for seed in range(5)
    if change == "random" or (optimizer, steps) == ("Adam", 300)
]


def weights(change: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """W₀ and Δ."""
    rng = np.random.default_rng([seed, 0])
    W0 = rng.standard_normal((D, D)) / np.sqrt(D)
    U, V = (np.linalg.qr(rng.standard_normal((D, D)))[0] for _ in range(2))
    if change == "principal":
        U, _, Vt = np.linalg.svd(W0)
        V = Vt.T
    return W0, (U * SIGMA) @ V.T


def adapter(variant: str, W0: np.ndarray, seed: int) -> minilora.LoRALinear:
    """The layer at step 0. It gives what W₀ gives, whatever the variant."""
    rng = np.random.default_rng([seed, 1])
    scale = {"α × 4": 8.0, "PiSSA": 1.0}.get(variant, 2.0)
    U, sigma, Vt = np.linalg.svd(W0)
    layer = minilora.LoRALinear(minilora.Linear(W0.copy()), r=R, alpha=scale * R, rng=rng)
    A, B = layer.lora_A, layer.lora_B
    if variant == "A = 0, B random":
        A.data, B.data = np.zeros((R, D)), rng.uniform(-1, 1, (D, R)) / np.sqrt(D)
    if variant == "minor vectors":  # B holds the last left singular vectors of W₀
        A.data, B.data = np.zeros((R, D)), U[:, -R:].copy()
    if variant == "PiSSA":  # A and B hold the principal part of W₀, and the frozen layer the rest
        A.data, B.data = np.sqrt(sigma[:R])[:, None] * Vt[:R], U[:, :R] * np.sqrt(sigma[:R])
        layer.base.weight.data = W0 - B.data @ A.data
    return layer


def optimizer_of(optimizer: str, variant: str, layer: minilora.LoRALinear, lr: float):
    """LoRA+ gives B 16 times the rate of A; `lr` is that of A."""
    groups = [
        minilora.nn.optim.ParamGroup({"A": layer.lora_A}, lr),
        minilora.nn.optim.ParamGroup({"B": layer.lora_B}, 16 * lr if variant == "LoRA+" else lr),
    ]
    return {"Adam": minilora.AdamW, "SGD": minilora.SGD}[optimizer](groups)


def run(optimizer: str, steps: int, change: str, variant: str, lr: float, seed: int) -> dict[str, float]:
    """½ E ‖error‖² over new inputs, without noise, computed and not sampled; infinity for a run that diverges."""
    W0, delta = weights(change, seed)
    rng = np.random.default_rng([seed, 2])
    x = rng.standard_normal((N, D)) * SIZES
    t = x @ (W0 + delta).T + NOISE * rng.standard_normal((N, D))
    layer = adapter(variant, W0, seed)
    updates, schedule = optimizer_of(optimizer, variant, layer, lr), minilora.cosine_schedule(steps)
    with np.errstate(all="ignore"):
        for step in range(steps):
            y, cache = layer.forward(x)
            grads = minilora.Gradients()
            layer.backward((y - t) / N, cache, grads)
            updates.step(grads, schedule(step))
        loss = (((layer.merged()[0] - W0 - delta) * SIZES) ** 2).sum() / 2
    return {"loss": float(loss) if np.isfinite(loss) else float("inf")}


def floor(variant: str, change: str, seed: int) -> float:
    """The least loss that the variant can reach, of which no step is trained.

    It can reach its frozen matrix and anything of rank 4. By Eckart and Young (1936) the best such thing leaves the
    singular values after the fourth of what is to be learned, here weighted by the sizes of the inputs.
    """
    W0, delta = weights(change, seed)
    frozen = adapter(variant, W0, seed).base.weight.data
    left = np.linalg.svd((W0 + delta - frozen) * SIZES, compute_uv=False)[R:]
    return float((left**2).sum() / 2)
