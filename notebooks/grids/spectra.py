"""Singular values of ΔW, the loss of its cuts, and the directions that two runs share (notebook 06)."""

from functools import cache

import numpy as np
from adapting import adapt, losses, source

import minilora
from minilora.adapters import spectrum
from minilora.data import all_windows, bits, excerpts, random_windows

METHODS = {"full": (0, 2e-3), "matrices": (0, 2e-3), "LoRA, r = 8": (8, 1.6e-2), "LoRA, r = 32": (32, 1.6e-2)}
PAIRS = [("full", "full"), ("LoRA, r = 8", "LoRA, r = 8"), ("LoRA, r = 8", "full")]
RANKS = [0, 1, 2, 4, 8, 16, 32, 64]
SEEDS = range(5)

RUNS = [{"method": method, "seed": seed} for seed in SEEDS for method in METHODS]
RUNS += [{"method": one, "against": other, "seed": seed} for one, other in PAIRS for seed in SEEDS]  # and seed + 1

base = minilora.load_pretrained("builtin")
PATHS = [path for path, module in base.named_modules() if isinstance(module, minilora.Linear) and path != "lm_head"]


@cache
def trained(method, seed):
    rank, lr = METHODS[method]
    if method != "matrices":
        return adapt(lr, seed, rank)
    model = minilora.load_pretrained("builtin")  # as adapt() in full, with the embedding and the norms frozen
    for name, parameter in model.named_parameters().items():
        parameter.trainable = name.removesuffix(".weight") in PATHS
    batches = random_windows(source().train, batch=16, length=64, seed=seed)
    schedule = minilora.cosine_schedule(60, warmup=5)
    minilora.fit(model, batches, 60, lr=lr, schedule=schedule, seed=seed, description=None)
    return model


@cache
def updates(method, seed):
    """{path: the decomposition of ΔW} of the 35 matrices."""
    model = trained(method, seed)
    if METHODS[method][0]:
        layers = {path: model[path] for path in PATHS}
        return {p: spectrum.lora_svd(x.lora_A.data, x.lora_B.data, x.scaling) for p, x in layers.items()}
    return {path: spectrum.svd(model[path].weight.data - base[path].weight.data) for path in PATHS}


def cut(method, seed, order):
    """The new loss if of each ΔW the terms order(path) are kept. What else was trained keeps its change."""
    model, found = minilora.load_pretrained("builtin"), trained(method, seed).named_parameters()
    for name, parameter in model.named_parameters().items():
        parameter.data = found[name].data
    for path, (U, sigma, Vt) in updates(method, seed).items():
        kept = order(path)
        model[path].weight.data = base[path].weight.data + (U[:, kept] * sigma[kept]) @ Vt[kept]
    return bits(minilora.evaluate(model, all_windows(excerpts(source().validation, 4096), 16, 128)))


def shared(one, other):
    """φ(i, i) for i = 1 to 8, the mean over the matrices: of the directions of the input, and of the output."""
    grids = [
        [
            spectrum.subspace_similarity(one[path].Vt[:8].T, other[path].Vt[:8].T),
            spectrum.subspace_similarity(one[path].U[:, :8], other[path].U[:, :8]),
        ]
        for path in PATHS
    ]
    phi = np.diagonal(np.mean(grids, axis=0), axis1=1, axis2=2)
    return {"input": rounded(phi[0]), "output": rounded(phi[1])}


def spectra(method, seed):
    sigmas = [update.sigma for update in updates(method, seed).values()]
    shortest = min(map(len, sigmas))
    return {
        "effective": float(np.mean([spectrum.effective_rank(sigma) for sigma in sigmas])),
        "stable": float(np.mean([spectrum.stable_rank(sigma) for sigma in sigmas])),
        "for 90%": float(np.mean([spectrum.rank_for(sigma, 0.9) for sigma in sigmas])),
        "ratio": rounded(np.mean([sigma[:shortest] / sigma[0] for sigma in sigmas], axis=0)),
        "energy": rounded(spectrum.mean_energy(sigmas)),
    }


def of_full(method, seed):
    """The loss of the best cut to each rank; of "matrices" also that of as many terms of ΔW drawn at random."""
    rng = np.random.default_rng(seed)
    drawn = {path: rng.permutation(len(update.sigma)) for path, update in updates(method, seed).items()}
    found = {"cut": rounded([cut(method, seed, lambda path, r=r: slice(r)) for r in RANKS])}
    if method == "matrices":
        found["drawn"] = rounded([cut(method, seed, lambda path, r=r: drawn[path][:r]) for r in RANKS])
    return found


def of_lora(method, seed):
    """Where in W₀ the update acts, and how near its input directions are to those it started with."""
    start = minilora.load_pretrained("builtin")
    rank = METHODS[method][0]
    minilora.attach_lora(start, "all-linear", r=rank, rng=seed)
    sizes, near = [], []
    for path, update in updates(method, seed).items():
        W0 = base[path].weight.data
        own = [spectrum.projected_norm(W0, directions, 8) for directions in (update, spectrum.svd(W0))]
        sizes.append([*own, spectrum.random_projected_norm(W0, 8), spectrum.amplification(W0, update, 8)])
        rows = np.linalg.qr(start[path].lora_A.data.T)[0]
        near.append(spectrum.subspace_similarity(update.Vt[:rank].T, rows)[-1, -1])
    return {"projected": rounded(np.mean(sizes, axis=0)), "near the start": float(np.mean(near))}


def rounded(numbers):
    return [round(float(number), 4) for number in numbers]


def run(method, seed, against=None):
    if against:
        return shared(updates(method, seed), updates(against, (seed + 1) % len(SEEDS)))
    found = losses(trained(method, seed)) | spectra(method, seed)
    return found | (of_lora(method, seed) if METHODS[method][0] else of_full(method, seed))
