"""LoRA, starts of it, and other adapters on one linear layer, at many learning rates, by Adam and SGD (notebook 13).

y = x (W₀ + Δ)ᵀ + noise is learned from 400 examples: W₀ (48, 48) Gaussian, r = 4, and Δ of four large singular values
and many small ones. Δ lies in random directions, or along the principal ones of W₀; or it rescales the rows of W₀, and
is as large.
"""

import numpy as np

import minilora
from minilora.adapters.base import Adapter
from minilora.adapters.dora import DoRALinear
from minilora.adapters.ia3 import IA3Linear
from minilora.adapters.loha import LoHaLinear
from minilora.adapters.lokr import LoKrLinear
from minilora.adapters.lora_fa import LoRAFALinear
from minilora.adapters.lora_xs import LoRAXSLinear
from minilora.adapters.svf import SVFLinear
from minilora.adapters.vera import VeRALinear

D, N, R, NOISE = 48, 400, 4, 0.1
SIGMA = np.array([1, 0.7, 0.5, 0.35] + [0.15 / i for i in range(1, D - R + 1)])  # the singular values of Δ
SIZES = np.linspace(1.5, 0.5, D)  # the standard deviations of the inputs
VARIANTS = ["LoRA", "A = 0, B random", "α × 4", "LoRA+", "minor vectors", "PiSSA"]
OTHERS: dict[str, tuple[type[Adapter], dict[str, float]]] = {  # of LoRA's 384 numbers, or the nearest there is
    "DoRA": (DoRALinear, {"r": R, "alpha": 2 * R}),
    "LoHa": (LoHaLinear, {"r": 2, "alpha": 4}),
    "LoKr": (LoKrLinear, {"r": 8, "alpha": 16, "decompose_factor": 2}),
    "LoRA-FA": (LoRAFALinear, {"r": 8, "alpha": 16}),
    "LoRA-XS": (LoRAXSLinear, {"r": 20, "alpha": 40}),
    "VeRA": (VeRALinear, {"r": 336}),
    "SVF": (SVFLinear, {}),
    "(IA)³": (IA3Linear, {}),
}
RATES = {  # finer where the best rate stands near the edge of divergence
    ("Adam", 300): [0.00025 * 2**i for i in range(10)],
    ("Adam", 40): [0.001 * 2 ** (i / 2) for i in range(15)],
    ("SGD", 300): [0.005 * 2 ** (i / 2) for i in range(15)],
}

OTHER_RATES = {  # coarser, for all of OTHERS but DoRA; longer where the best rate would be the last
    ("Adam", 300): [0.001 * 2**i for i in range(8)],
    ("Adam", 40): [0.004 * 2**i for i in range(6)],
    ("SGD", 300): [0.02 * 2**i for i in range(6)],
}
MORE = {
    ("LoHa", "Adam", 40): 2,
    ("LoHa", "SGD", 300): 3,
    ("LoKr", "Adam", 40): 2,
    ("VeRA", "Adam", 40): 2,
    ("VeRA", "SGD", 300): 4,
}


def rates(optimizer: str, steps: int, variant: str) -> list[float]:
    """Those at which this variant is raced."""
    given = (OTHER_RATES if variant in OTHERS and variant != "DoRA" else RATES)[optimizer, steps]
    more = MORE.get((variant, optimizer, steps), 0)
    return given + [given[-1] * (given[1] / given[0]) ** i for i in range(1, more + 1)]


CHANGES = [  # what is raced on which Δ; on the second and the third by 300 steps of Adam alone
    {"random": VARIANTS, "principal": ["LoRA", "PiSSA"]},
    {"random": [variant for variant in OTHERS if variant != "VeRA"], "principal": ["DoRA", "LoRA-XS", "SVF", "(IA)³"]},
    {"rows": ["LoRA", "DoRA", "LoRA-XS", "SVF", "(IA)³"]},
    {"random": ["VeRA"]},  # whose runs take longest
]
RUNS = [
    {"optimizer": optimizer, "steps": steps, "change": change, "variant": variant, "lr": lr, "seed": seed}
    for changes in CHANGES
    for optimizer, steps in RATES
    for change, variants in changes.items()
    for variant in variants
    for lr in rates(optimizer, steps, variant)
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
    if change == "rows":
        scaled = rng.standard_normal((D, 1)) * W0
        return W0, scaled * np.linalg.norm(SIGMA) / np.linalg.norm(scaled)
    return W0, (U * SIGMA) @ V.T


def adapter(variant: str, W0: np.ndarray, seed: int) -> Adapter:
    """The layer at step 0. It gives what W₀ gives, whatever the variant."""
    rng = np.random.default_rng([seed, 1])
    if variant in OTHERS:
        cls, options = OTHERS[variant]
        base, own = minilora.Linear(W0.copy()), {"seed": seed} if variant == "VeRA" else {}
        return cls.form(base, **options).start(base, rng=rng, **options, **own)
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


def optimizer_of(optimizer: str, variant: str, layer: Adapter, lr: float):
    """LoRA+ gives B 16 times the rate of A; `lr` is that of A."""
    trained = layer.trainable_parameters()
    groups = [
        minilora.nn.optim.ParamGroup({name: parameter}, 16 * lr if (variant, name) == ("LoRA+", "lora_B") else lr)
        for name, parameter in trained.items()
    ]
    return {"Adam": minilora.AdamW, "SGD": minilora.SGD}[optimizer](groups)


def run(optimizer: str, steps: int, change: str, variant: str, lr: float, seed: int) -> dict[str, float]:
    """½ E ‖error‖² over new inputs, without noise, computed and not sampled; infinity for a run that diverges.

    Every layer here is linear in x, so its gradients depend on the examples by xᵀx and tᵀx alone. They are replaced by
    48 rows that have the same, which takes less time.
    """
    W0, delta = weights(change, seed)
    rng = np.random.default_rng([seed, 2])
    x = rng.standard_normal((N, D)) * SIZES
    t = x @ (W0 + delta).T + NOISE * rng.standard_normal((N, D))
    Q, x = np.linalg.qr(x)
    t = Q.T @ t
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
    """The least loss that the variant can reach, of which no step is trained; nan where there is no closed form.

    LoRA and its starts can reach their frozen matrix and anything of rank 4. By Eckart and Young (1936) the best such
    thing leaves the singular values after the fourth of what is to be learned, here weighted by the sizes of the
    inputs. What is linear in its numbers reaches a projection. DoRA's floor is what two exact steps in turn come to:
    the best M of rank 4 for given g, and the best g for given M, in diag(g) W₀ + M.
    """
    W0, delta = weights(change, seed)
    layer = adapter(variant, W0, seed)
    W, T = W0 * SIZES, delta * SIZES
    if variant in ("LoHa", "LoKr", "VeRA"):
        return float("nan")
    if variant == "(IA)³":
        left = T - along_rows(T, W)
    elif variant == "SVF":
        U, V = layer.svf_U.data, layer.svf_V.data * SIZES[:, None]
        left = T - U * ((U.T @ T @ V).diagonal() / (V**2).sum(axis=0)) @ V.T
    elif variant in ("LoRA-FA", "LoRA-XS"):
        A = np.linalg.qr(SIZES[:, None] * layer.lora_A.data.T)[0]
        B = np.linalg.qr(layer.lora_B.data)[0] if variant == "LoRA-XS" else np.eye(D)
        left = T - B @ (B.T @ T @ A) @ A.T
    elif variant == "DoRA":
        along = np.zeros_like(T)
        for _ in range(100):
            along = along_rows(T - cut(T - along), W)
        left = T - along - cut(T - along)
    else:
        left = T + W - layer.base.weight.data * SIZES
        left = left - cut(left)
    return float((left**2).sum() / 2)


def along_rows(T: np.ndarray, W: np.ndarray) -> np.ndarray:
    """The part of each row of T along that of W: the best diag(g) W."""
    return (T * W).sum(axis=1, keepdims=True) / (W**2).sum(axis=1, keepdims=True) * W


def cut(T: np.ndarray) -> np.ndarray:
    """The nearest matrix of rank 4."""
    U, sigma, Vt = np.linalg.svd(T)
    return (U[:, :R] * sigma[:R]) @ Vt[:R]
