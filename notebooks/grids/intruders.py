"""Intruder dimensions: how many at which rate, what scaling them down does, and two random ΔW (notebook 12)."""

import numpy as np
from adapting import adapt, losses

import minilora
from minilora.adapters import spectrum

BEST = {0: 2e-3, 8: 1.6e-2, 32: 1.6e-2}  # where each learns the most: only here are parts of ΔW scaled
OTHERS = {0: [8e-3], 8: [8e-3, 3.2e-2], 32: [3.2e-2]}
SCALES = [0.9, 0.75, 0.5]

RUNS = [{"rank": rank, "lr": lr, "seed": seed} for seed in range(5) for rank, lr in BEST.items()]
RUNS += [{"rank": rank, "lr": lr, "seed": seed} for seed in range(3) for rank, rates in OTHERS.items() for lr in rates]

base = minilora.load_pretrained("builtin")
PATHS = [path for path, module in base.named_modules() if isinstance(module, minilora.Linear) and path != "lm_head"]
BEFORE = {path: spectrum.svd(base[path].weight.data) for path in PATHS}


def with_weights(weight, tuned=None, scale=1.0):
    """The losses with weight(path) for each of the 35 matrices, and with what else was tuned, its change scaled."""
    model = minilora.load_pretrained("builtin")
    for name, parameter in model.named_parameters().items():
        if name.removesuffix(".weight") in PATHS:
            parameter.data = weight(name.removesuffix(".weight")).astype(np.float32)
        elif tuned:
            parameter.data = parameter.data + scale * (tuned[name].data - parameter.data)
    return losses(model)


def count(deltas):
    """Intruders among the leading 10 of each matrix, the mean over the matrices: left and right vectors."""
    found = [spectrum.intruders(BEFORE[p], spectrum.svd(base[p].weight.data + d)) for p, d in deltas.items()]
    return np.mean([[len(left), len(right)] for left, right in found], axis=0).tolist()


def scaled(tuned, deltas):
    """The losses with parts of the tuned matrices scaled: the intruders; as many others of the ten; all of ΔW."""
    after = {path: spectrum.svd(base[path].weight.data + deltas[path]) for path in PATHS}
    intruders, others = {}, {}
    for path in PATHS:
        left, right = spectrum.intruders(BEFORE[path], after[path])
        intruders[path] = np.union1d(left, right)
        others[path] = np.setdiff1d(np.arange(10), intruders[path])[: len(intruders[path])]

    def terms(chosen, scale):
        def weight(path):
            (U, sigma, Vt), i = after[path], chosen[path]
            return base[path].weight.data + deltas[path] + (scale - 1) * (U[:, i] * sigma[i]) @ Vt[i]

        return with_weights(weight, tuned)

    def whole(scale):
        return with_weights(lambda path: base[path].weight.data + scale * deltas[path], tuned, scale)

    found = {"whole": [whole(scale) for scale in SCALES]}
    if any(map(len, intruders.values())):
        found["intruders"] = [terms(intruders, scale) for scale in SCALES]
        found["others"] = [terms(others, scale) for scale in SCALES]
    return {f"{kind}, {text}": [loss[text] for loss in at] for kind, at in found.items() for text in ("new", "old")}


def at_random(deltas, seed):
    """ΔW of the same norm with entries from a normal distribution, and ΔW with the same σ in random directions."""
    rng = np.random.default_rng(seed)
    normal, turned = {}, {}
    for path, delta in deltas.items():
        noise = rng.standard_normal(delta.shape)
        normal[path] = noise * np.linalg.norm(delta) / np.linalg.norm(noise)
        U, _, Vt = np.linalg.svd(noise, full_matrices=False)
        turned[path] = (U * spectrum.singular_values(delta)) @ Vt
    found = {}
    for name, drawn in {"normal": normal, "turned": turned}.items():
        after = with_weights(lambda path, drawn=drawn: base[path].weight.data + drawn[path])
        found |= {f"{name}, {text}": loss for text, loss in after.items()} | {f"{name}, found": count(drawn)}
    return found


def run(rank, lr, seed):
    model = adapt(lr, seed, rank)
    found = losses(model)
    tuned = None if rank else model.named_parameters()
    deltas = {p: model[p].delta() if rank else model[p].weight.data - base[p].weight.data for p in PATHS}
    left, right = count(deltas)
    found |= {"left": left, "right": right, "norm": float(np.mean([np.linalg.norm(d) for d in deltas.values()]))}
    if lr == BEST[rank]:
        found |= scaled(tuned, deltas) | at_random(deltas, seed)
    return found
