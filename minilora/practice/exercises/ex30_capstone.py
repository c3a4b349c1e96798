"""30 · Capstone

LoRA from the embedding to the file, in NumPy, with every gradient by hand.
Five functions are asked for, at the end of this file; how you write the rest
is up to you. The base is a Llama of one block, in float64:

    x = E[ids]     h1 = norm(x, g1)     q, k, v = q(h1), k(h1), v(h1)
    x1 = x + o(attention(rope(q), rope(k), v))      causal, scores / √D
    h2 = norm(x1, g2)    x2 = x1 + down(silu(gate(h2)) ∘ up(h2))
    logits = norm(x2, g3) Eᵀ      silu(z) = z / (1 + e⁻ᶻ)

    norm(x, g) = g ∘ x / √(mean(x²) + 1e-5), the mean over the last axis
    q k v o gate up down:  y = x Wᵀ + s (x Aᵀ) Bᵀ,  s = α/r, without biases

Heads lie side by side, each of width D. At position t, from 0 on, rope turns
each pair (a, b) = (x_i, x_{i+D/2}) of a head by φ = t θ^(-2i/D), i < D/2, to
(a cos φ - b sin φ, b cos φ + a sin φ).

base     a dict: E (vocabulary, width), g1, g2, g3, W_q, ..., W_down, each
         (out, in), and the numbers heads and theta. It is frozen.
adapter  a dict of 14: A_q (r, in), B_q (out, r), ..., A_down, B_down
ids      (batch, tokens), integers

logits(ids, base, adapter, alpha)     logits (batch, tokens, vocabulary)
gradients(ids, base, adapter, alpha)  loss and a dict: dA_q, dB_q, ... The loss
    is the mean cross-entropy of each next token, batch · (tokens - 1) of them.
train(texts, base, r, alpha)          an adapter for all seven layers; start,
    optimizer (AdamW, say) and number of steps are free. texts (n, tokens) are
    those of a task. On other texts of it, its loss may be 1 % above that of
    the reference, in 60 s of CPU; base stays as it is, to the last bit.
merge(base, adapter, alpha)           a base without need of an adapter
save(folder, adapter, alpha)          PEFT's adapter_config.json and
    adapter_model.safetensors, in float64 or float32, into a folder that is
    there. PEFT knows the block as model.layers.0 of base_model.model, with
    self_attn.q_proj to o_proj, mlp.gate_proj to down_proj; a tensor's name
    ends in .lora_A.weight or .lora_B.weight. It is a LORA for CAUSAL_LM.

task(seed) makes a task to practise on: a base, texts, other texts. The check
draws its own. By hand: where all 8 logits are equal, the loss is ln 8 = 2.079.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

LAYERS = "q", "k", "v", "o", "gate", "up", "down"


def task(seed):
    """A base and two sets of texts (512, 16) for practice: most tokens follow from the one before the last."""
    rng = np.random.default_rng([seed, 30])
    vocabulary, width, hidden = 8, 24, 32
    sizes = dict.fromkeys("qkvo", (width, width)) | dict.fromkeys(["gate", "up"], (hidden, width))
    sizes["down"] = width, hidden
    base = {f"W_{name}": rng.standard_normal(shape) / np.sqrt(shape[1]) for name, shape in sizes.items()}
    base |= {"E": rng.standard_normal((vocabulary, width)) / np.sqrt(width), "heads": 2, "theta": 10.0}
    base |= {f"g{i}": np.ones(width) for i in (1, 2, 3)}
    texts, follows = rng.integers(vocabulary, size=(1024, 16)), rng.permutation(vocabulary)
    for t in range(2, 16):
        texts[:, t] = np.where(rng.random(1024) < 0.9, follows[texts[:, t - 2]], texts[:, t])
    return base, texts[:512], texts[512:]


# Your own functions come here, as many as you like.


### BEGIN SOLUTION
def norm(x, g):
    """g ∘ x / rms, and its backward."""
    rms = np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    n = x / rms

    def back(dy):
        dn = dy * g
        return (dn - n * (dn * n).mean(-1, keepdims=True)) / rms

    return g * n, back


def swiglu(gate, up):
    """silu(gate) ∘ up, and its backward."""
    sigma = 1 / (1 + np.exp(-gate))
    silu = gate * sigma

    def back(dy):
        return dy * up * (sigma + silu * (1 - sigma)), dy * silu

    return silu * up, back


def rope(x, theta, sign=1):
    """Every pair of a head turned by its angle; back again with sign = -1, which is the backward."""
    tokens, half = x.shape[-2], x.shape[-1] // 2
    angles = sign * np.outer(np.arange(tokens), theta ** (-np.arange(half) / half))
    a, b, cos, sin = x[..., :half], x[..., half:], np.cos(angles), np.sin(angles)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def split(x, heads):
    """(batch, tokens, width) -> (batch, heads, tokens, D)"""
    batch, tokens, _ = x.shape
    return x.reshape(batch, tokens, heads, -1).swapaxes(1, 2)


def merged(x):
    """(batch, heads, tokens, D) -> (batch, tokens, width)"""
    batch, _, tokens, _ = x.shape
    return x.swapaxes(1, 2).reshape(batch, tokens, -1)


def softmax(S):
    E = np.exp(S - S.max(-1, keepdims=True))
    return E / E.sum(-1, keepdims=True)


def attention(q, k, v, heads, theta):
    """softmax(q kᵀ/√D + mask) v with rotated q and k, and its backward."""
    q, k, v = (split(x, heads) for x in (q, k, v))
    q, k = rope(q, theta), rope(k, theta)
    root_D = np.sqrt(q.shape[-1])
    P = softmax(np.where(np.tri(q.shape[-2]), q @ k.swapaxes(-1, -2) / root_D, -np.inf))

    def back(do):
        do = split(do, heads)
        dP = do @ v.swapaxes(-1, -2)
        dS = P * (dP - (P * dP).sum(-1, keepdims=True)) / root_D
        dq, dk, dv = dS @ k, dS.swapaxes(-1, -2) @ q, P.swapaxes(-1, -2) @ do
        return merged(rope(dq, theta, -1)), merged(rope(dk, theta, -1)), merged(dv)

    return merged(P @ v), back


def lora(x, W, A, B, alpha):
    """x Wᵀ + s (x Aᵀ) Bᵀ, and its backward, which returns dx, dA, dB."""
    s, h = alpha / len(A), x @ A.T

    def back(dy):
        dh = s * dy @ B
        dA = np.einsum("btr,bti->ri", dh, x)
        dB = s * np.einsum("bto,btr->or", dy, h)
        return dy @ W + dh @ A, dA, dB

    return x @ W.T + s * h @ B.T, back


def cross_entropy(logits, targets):
    """The mean of -log softmax(logits)[target], and its gradient."""
    P, targets = softmax(logits), targets[..., None]
    loss = -np.log(np.take_along_axis(P, targets, -1)).mean()
    one_hot = np.arange(P.shape[-1]) == targets
    return loss, (P - one_hot) / targets.size


def model(ids, base, adapter, alpha):
    """The logits, and a function of dlogits that returns the gradients of the adapter."""
    grads = {}

    def layer(name, x):
        y, back = lora(x, base[f"W_{name}"], adapter[f"A_{name}"], adapter[f"B_{name}"], alpha)

        def kept(dy):
            dx, grads[f"dA_{name}"], grads[f"dB_{name}"] = back(dy)
            return dx

        return y, kept

    x = base["E"][ids]
    h1, _ = norm(x, base["g1"])
    (q, q_back), (k, k_back), (v, v_back) = (layer(name, h1) for name in "qkv")
    a, attention_back = attention(q, k, v, base["heads"], base["theta"])
    o, o_back = layer("o", a)
    x1 = x + o
    h2, norm2_back = norm(x1, base["g2"])
    (gate, gate_back), (up, up_back) = layer("gate", h2), layer("up", h2)
    u, swiglu_back = swiglu(gate, up)
    down, down_back = layer("down", u)
    h3, norm3_back = norm(x1 + down, base["g3"])

    def backward(dlogits):
        dx2 = norm3_back(dlogits @ base["E"])
        dgate, dup = swiglu_back(down_back(dx2))
        dx1 = dx2 + norm2_back(gate_back(dgate) + up_back(dup))
        dq, dk, dv = attention_back(o_back(dx1))
        q_back(dq), k_back(dk), v_back(dv)  # below, nothing is trained: their dx is not needed
        return grads

    return h3 @ base["E"].T, backward


def adamw(weights, grads, state, t, lr, decay=0.0):
    """Step t, from 1. state holds the two means of each weight."""
    for name, w in weights.items():
        g = grads[f"d{name}"]
        m, v = state.get(name, (0, 0))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        state[name] = m, v
        step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        weights[name] = w - lr * (step + decay * w)


def start(base, r, rng):
    """A random, B zero."""
    adapter = {}
    for name in LAYERS:
        n_out, n_in = base[f"W_{name}"].shape
        adapter[f"A_{name}"] = rng.uniform(-1, 1, (r, n_in)) / np.sqrt(n_in)
        adapter[f"B_{name}"] = np.zeros((n_out, r))
    return adapter


### END SOLUTION


def logits(ids, base, adapter, alpha):
    """Return the logits."""
    ### BEGIN SOLUTION
    return model(ids, base, adapter, alpha)[0]
    ### END SOLUTION


def gradients(ids, base, adapter, alpha):
    """Return loss, grads.

    >>> base, texts, _ = task(0)
    >>> adapter = {f"A_{name}": np.ones((2, base[f"W_{name}"].shape[1])) for name in LAYERS}
    >>> adapter |= {f"B_{name}": np.zeros((len(base[f"W_{name}"]), 2)) for name in LAYERS}
    >>> loss, grads = gradients(texts[:5], {**base, "E": np.ones((8, 24))}, adapter, 3.0)
    >>> float(loss.round(3)), grads["dA_q"].shape, float(abs(grads["dA_q"]).max())
    (2.079, (2, 24), 0.0)
    """
    ### BEGIN SOLUTION
    predictions, backward = model(ids[:, :-1], base, adapter, alpha)
    loss, dlogits = cross_entropy(predictions, ids[:, 1:])
    return loss, backward(dlogits)
    ### END SOLUTION


def train(texts, base, r, alpha):
    """Return the trained adapter."""
    ### BEGIN SOLUTION
    rng, state, steps = np.random.default_rng(0), {}, 600
    adapter = start(base, r, rng)
    for t in range(1, steps + 1):
        _, grads = gradients(rng.choice(texts, 32), base, adapter, alpha)
        adamw(adapter, grads, state, t, lr=0.03 * (1 - t / steps))
    return adapter
    ### END SOLUTION


def merge(base, adapter, alpha):
    """Return another base, with W + s B A instead of each W.

    >>> base, adapter = {}, {}
    >>> for name in LAYERS:
    ...     base[f"W_{name}"] = np.diag([3.0])
    ...     adapter |= {f"A_{name}": np.diag([5.0]), f"B_{name}": np.diag([7.0])}
    >>> merge(base, adapter, 4.0)["W_q"]
    array([[143.]])
    """
    ### BEGIN SOLUTION
    base = dict(base)
    for name in LAYERS:
        A, B = adapter[f"A_{name}"], adapter[f"B_{name}"]
        base[f"W_{name}"] = base[f"W_{name}"] + alpha / len(A) * B @ A
    return base
    ### END SOLUTION


def save(folder, adapter, alpha):
    """Write the two files into the folder."""
    ### BEGIN SOLUTION
    names = {name: f"{'self_attn' if len(name) == 1 else 'mlp'}.{name}_proj" for name in LAYERS}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": len(adapter["A_q"]),
        "lora_alpha": alpha,
        "target_modules": [f"{name}_proj" for name in LAYERS],
    }
    tensors = {
        f"base_model.model.model.layers.0.{names[name]}.lora_{letter}.weight": adapter[f"{letter}_{name}"]
        for name in LAYERS
        for letter in "AB"
    }
    (Path(folder) / "adapter_config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, Path(folder) / "adapter_model.safetensors")
    ### END SOLUTION


### THE CHECK

import copy
import functools
import tempfile
import time
from typing import NamedTuple

from ...adapters.lora import LoRALinear
from ...adapters.merge import merge as merge_library
from ...adapters.peft import load_adapter
from ...data import Batch
from ...models.config import Config
from ...models.families.llama import llama
from ...nn.optim import linear_schedule
from ...training import fit, loss_and_gradients
from ...verify.explanations.finding import Finding
from ...verify.language import words
from ..edits import edited
from ..exercise import Exercise, Viva
from ..parts import Checked, Graded, Refused, Value, ValueAndGradients, equal, refuse, right

PATHS = {name: f"block_0.{'attention' if len(name) == 1 else 'mlp'}.{name}_proj" for name in LAYERS}
FACTORS = [f"{letter}_{name}" for name in LAYERS for letter in "AB"]
OWN = {"E": "embed.token.weight", "g1": "block_0.norm_1.weight", "g2": "block_0.norm_2.weight", "g3": "norm.weight"}
OWN |= {f"W_{name}": f"{path}.weight" for name, path in PATHS.items()}
# batch, tokens, vocabulary, heads, width of a head, hidden, r of each case
SHAPES = [
    (2, 5, 7, 2, 4, 9, 3),
    (3, 4, 11, 3, 2, 5, 2),
    (4, 3, 5, 1, 6, 10, 4),
    (1, 6, 9, 2, 2, 4, 1),
    (5, 3, 6, 4, 2, 8, 5),  # of 2 tokens the first alone predicts, and all of dq and dk is 0: rounding would decide
    (2, 7, 8, 2, 6, 7, 6),
]
RANK, ALPHA, MARGIN, CPU = 4, 8.0, 1.01, 60.0


# the same by the library


def library(base, adapter=None, alpha=1.0):
    """The base as a model of minilora, with the adapter on it."""
    V, C = base["E"].shape
    config = Config(
        V, 1, C, base["heads"], d_ff=len(base["W_up"]), rope_theta=base["theta"], eps=1e-5, tied=True, dtype="float64"
    )
    model = llama(config, np.random.default_rng(0))
    model.load_state_dict({path: base[name] for name, path in OWN.items()})
    model.freeze()
    for name, path in PATHS.items() if adapter else ():
        factors = {f"lora_{letter}": adapter[f"{letter}_{name}"] for letter in "AB"}
        model[path] = LoRALinear.of(model[path], factors, r=len(adapter["A_q"]), alpha=alpha, rslora=False, dropout=0.0)
    return model


def batch_of(ids):
    """Each token's label is the next one."""
    targets = np.full_like(ids, -100)
    targets[:, :-1] = ids[:, 1:]
    return Batch(ids, targets)


def true_logits(ids, base, adapter, alpha):
    return library(base, adapter, alpha).forward(ids)[0]


def true_gradients(ids, base, adapter, alpha):
    model = library(base, adapter, alpha)
    loss, grads = loss_and_gradients(model, batch_of(ids))
    return {"loss": loss} | {f"d{f}": grads[getattr(model[PATHS[f[2:]]], f"lora_{f[0]}")] for f in FACTORS}


def true_merge(base, adapter, alpha):
    model = library(base, adapter, alpha)
    merge_library(model)
    state = model.state_dict()
    return {**base, **{name: state[path] for name, path in OWN.items()}}


def loss_of(texts, base, adapter, alpha):
    return float(loss_and_gradients(library(base, adapter, alpha), batch_of(texts))[0])


class Reference(NamedTuple):
    base: dict
    texts: np.ndarray
    others: np.ndarray
    adapter: dict
    loss: float  # on the other texts


@functools.cache
def reference(seed):
    """A task, and what minilora makes of it."""
    base, texts, others = task(seed + 1000)
    rng = np.random.default_rng(seed)
    start = {f"A_{name}": rng.uniform(-1, 1, (RANK, base[f"W_{name}"].shape[1])) / 5 for name in LAYERS}
    start |= {f"B_{name}": np.zeros((len(base[f"W_{name}"]), RANK)) for name in LAYERS}
    model, steps = library(base, start, ALPHA), 150
    fit(
        model, lambda step: batch_of(rng.choice(texts, 32)), steps,
        lr=0.03, schedule=linear_schedule(steps), description=None,
    )  # fmt: skip
    adapter = {f: getattr(model[PATHS[f[2:]]], f"lora_{f[0]}").data for f in FACTORS}
    return Reference(base, texts, others, adapter, loss_of(others, base, adapter, ALPHA))


# the five parts


def draw(rng, i):
    batch, tokens, vocabulary, heads, D, hidden, r = SHAPES[i]
    width = heads * D

    def normal(*shape):
        return rng.standard_normal(shape)

    sizes = dict.fromkeys("qkvo", (width, width)) | dict.fromkeys(["gate", "up"], (hidden, width))
    sizes["down"] = width, hidden
    base = {"E": normal(vocabulary, width), "heads": heads, "theta": float(rng.uniform(5, 50))}
    base |= {f"g{n}": rng.uniform(0.5, 2, width) for n in (1, 2, 3)}
    base |= {f"W_{name}": 1.5 * normal(*shape) / np.sqrt(shape[1]) for name, shape in sizes.items()}
    adapter = {}
    for name, (n_out, n_in) in sizes.items():
        adapter |= {f"A_{name}": normal(r, n_in) / np.sqrt(n_in), f"B_{name}": normal(n_out, r) / r}
    ids = rng.integers(vocabulary, size=(batch, tokens))
    return {"ids": ids, "base": base, "adapter": adapter, "alpha": r + float(rng.uniform(0.5, 3))}


def draw_weights(rng, i):
    case = draw(rng, i)
    return {"base": case["base"], "adapter": case["adapter"], "alpha": case["alpha"]}


class Files(Value):
    """A function that writes an adapter into a folder. Its results are what minilora reads there."""

    def run(self, function, arguments):
        base, adapter, alpha = arguments.values()
        with tempfile.TemporaryDirectory() as folder:
            try:
                super().run(function, {"folder": folder, "adapter": adapter, "alpha": alpha})
                model = library(base)
                load_adapter(model, Path(folder))
            except (ValueError, OSError) as error:
                message = str(error).replace(folder, "").lstrip("/")[:300]
                says = words("what {it} writes cannot be loaded: {error}", it=self.name, error=message)
                raise Refused("file", says, detail=message) from None
            layers = {name: model[path] for name, path in PATHS.items()}
            if bare := [name for name, layer in layers.items() if not isinstance(layer, LoRALinear)]:
                says = words("what {it} writes has no adapter for {names}", it=self.name, names=", ".join(bare))
                raise Refused("file", says, detail=says.en)
            loaded = {f: getattr(layers[f[2:]], f"lora_{f[0]}").data for f in FACTORS}
            return {"scale": layers["q"].scaling, **loaded}

    def by_name(self, result):
        return {}

    def truths(self, cases):
        return [{"scale": case["alpha"] / len(case["adapter"]["A_q"]), **case["adapter"]} for case in cases]


def grade(function, seed):
    """Train on a task that nobody has seen, and look at the base, the adapter, the loss and the time."""
    base, texts, others, _, best = reference(seed)
    given = {"texts": texts.copy(), "base": copy.deepcopy(base), "r": RANK, "alpha": ALPHA}
    started = time.process_time()
    adapter = training.run(function, given)
    seconds = time.process_time() - started
    for factor in FACTORS:
        n_out, n_in = base[f"W_{factor[2:]}"].shape
        shape = (RANK, n_in) if factor[0] == "A" else (n_out, RANK)
        refuse(factor, adapter[factor], {factor: np.zeros(shape)}, given)
    if not equal(base, given["base"]):
        return Checked([listed("base", "base_trained")])

    def reaches(alpha):
        return loss_of(others, base, adapter, alpha) <= MARGIN * best

    findings = [right("base")]
    if reaches(ALPHA):
        findings.append(right("loss"))
    elif not any(np.any(adapter[factor]) for factor in FACTORS if factor[0] == "B"):
        findings.append(listed("loss", "not_trained"))
    elif reaches(ALPHA * RANK):
        findings.append(listed("loss", "trained_without_division_by_r"))
    elif reaches(RANK):
        findings.append(listed("loss", "trained_without_scale"))
    else:
        loss, of_base = loss_of(others, base, adapter, ALPHA), loss_of(others, base, None, ALPHA)
        most = f"{MARGIN * best:.4f}"
        says = words("{it} on other texts is {loss}, and may be {most}", it="loss", loss=f"{loss:.4f}", most=most)
        asks = words("The base alone has {base}. How does it fall on the texts themselves?", base=f"{of_base:.4f}")
        findings.append(Finding("loss", "unknown", says, asks))
    if seconds > CPU:
        says = words("{it} took {n} s of CPU, and may take {most}", it="train", n=f"{seconds:.0f}", most=f"{CPU:g}")
        findings.append(Finding("train", "unknown", says, words("Which loop could be one product of arrays?")))
    return Checked(findings)


def listed(tensor, name):
    mistake = training.mistakes[name]
    return Finding(tensor, "fault", mistake.says.filled(it=tensor), mistake.asks, name)


class Gradients(ValueAndGradients):
    """Where nobody knows why, only what is nearest to the loss is explained: what lies below is wrong because of it."""

    def of_values(self, mine, cases, true):
        checked = super().of_values(mine, cases, true)
        unknown = [finding for finding in checked.findings if finding.kind == "unknown"]
        if not unknown:
            return checked
        first = unknown[0 if unknown[0].tensor == "loss" else -1]
        says = words("{it} is wrong too: repair {first} first, which is nearer to the loss", first=first.tensor)
        below = {finding.tensor for finding in unknown if finding is not first}
        return checked._replace(
            findings=[
                Finding(f.tensor, "unknown", says.filled(it=f.tensor)) if f.tensor in below else f
                for f in checked.findings
            ]
        )


class Training(Graded):
    def by_name(self, result):
        if not isinstance(result, dict) or set(result) != set(FACTORS):
            found = ", ".join(map(str, result)) if isinstance(result, dict) else type(result).__name__
            it, wanted = self.name, ", ".join(FACTORS)
            raise Refused(
                "shape", words("{it} returns {found}, and must return {wanted}", it=it, found=found, wanted=wanted)
            )
        return result


forward = Value(logits, "logits", truth=true_logits, draw=draw)
backward = Gradients(gradients, " ".join(["loss", *(f"d{f}" for f in FACTORS)]), truth=true_gradients, draw=draw)
training = Training(train, "base loss", grade=grade)
merging = Value(merge, " ".join([*OWN, "heads", "theta"]), truth=true_merge, draw=draw_weights)
saving = Files(save, " ".join(["scale", *FACTORS]), draw=draw_weights)


# the mistakes: the solution with a few characters changed


SCALE = "s, h = alpha / len(A), x @ A.T"
FORWARD = [
    ("no_scale", "{it} has no scale: the low-rank paths are not multiplied by α/r", "At α = 0, what must a layer be?",
     (SCALE, "s, h = 1, x @ A.T")),
    ("not_divided_by_r", "the scale in {it} is α, not divided by r", "Which two numbers make up the scale?",
     (SCALE, "s, h = alpha, x @ A.T")),
    ("divided_by_root_r", "the scale in {it} is α/√r, that of rsLoRA", "Which of the two scales is asked for?",
     (SCALE, "s, h = alpha / np.sqrt(len(A)), x @ A.T")),
    ("adapter_left_out", "{it} is the base's: no adapter is in it", "Which line of yours reads an A?",
     ("return x @ W.T + s * h @ B.T, back", "return x @ W.T, back")),
    ("no_mask", "in {it}, a token sees those that come after it", "Which keys does the first token see?",
     ("np.tri(q.shape[-2])", "np.tri(q.shape[-2]) >= 0")),
    ("scores_not_divided", "in {it}, the scores are not divided by √D", "What does the width of a head do to a score?",
     ("root_D = np.sqrt(q.shape[-1])", "root_D = 1.0")),
    ("divided_by_root_of_width", "in {it}, the scores are divided by the root of the whole width, not of a head's",
     "How many products are summed up in one score?",
     ("root_D = np.sqrt(q.shape[-1])", "root_D = np.sqrt(q.shape[-1] * heads)")),
    ("no_rope", "in {it}, q and k are not rotated", "If two tokens before the last change places, may its logits stay?",
     ("q, k = rope(q, theta), rope(k, theta)", "")),
    ("values_rotated_too", "in {it}, v is rotated as q and k are", "Which of q, k and v does rope stand in front of?",
     ("q, k = rope(q, theta), rope(k, theta)", "q, k, v = rope(q, theta), rope(k, theta), rope(v, theta)")),
    ("neighbours_paired", "{it} follows another convention of rope, not a wrong one: it pairs neighbours; here x_i "
     "goes with x_{i+D/2}", "With which entry of a head is the first one turned?",
     ("a, b, cos, sin = x[..., :half], x[..., half:],", "a, b, cos, sin = x[..., ::2], x[..., 1::2],"),
     ("return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)",
      "return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)")),
    ("angles_over_the_whole_width", "in {it}, the exponent of θ is divided by the whole width, not by a head's D",
     "Do two heads of one token turn by the same angles?",
     ("q, k = rope(q, theta), rope(k, theta)",
      "q, k = rope(q, theta ** (1 / heads)), rope(k, theta ** (1 / heads))")),
    ("heads_not_moved", "in {it}, the heads are cut along the wrong axis: tokens and heads are mixed",
     "Of (batch, tokens, heads, D): which axis has to be next to D for the products?",
     ("return x.reshape(batch, tokens, heads, -1).swapaxes(1, 2)", "return x.reshape(batch, heads, tokens, -1)"),
     ("return x.swapaxes(1, 2).reshape(batch, tokens, -1)", "return x.reshape(batch, tokens, -1)")),
    ("no_skip_around_attention", "{it} lacks the skip path around the attention", "If o gave 0, what would x1 be?",
     ("x1 = x + o", "x1 = o")),
    ("no_skip_around_mlp", "{it} lacks the skip path around the MLP", "If down gave 0, what would x2 be?",
     ("norm(x1 + down, base", "norm(down, base")),
    ("mlp_reads_x1", "in {it}, the MLP reads x1, not the norm of it", "What stands between x1 and gate?",
     ("h2, norm2_back = norm(x1, base", "h2, norm2_back = x1, norm(x1, base")),
    ("attention_reads_x", "in {it}, the attention reads x, not the norm of it", "What stands between x and q?",
     ("h1, _ = norm(x, base", "h1, _ = x, norm(x, base")),
    ("no_last_norm", "in {it}, the last norm is missing", "What stands between x2 and E?",
     ("h3, norm3_back = norm(x1 + down, base", "h3, norm3_back = x1 + down, norm(x1 + down, base")),
    ("mean_taken_off", "the norm in {it} subtracts the mean, as layer norm does", "Is the norm of a constant row 0?",
     ("    rms = np.sqrt(", "    x = x - x.mean(-1, keepdims=True)\n    rms = np.sqrt(")),
    ("gate_and_up_exchanged", "in {it}, silu is taken of up, not of gate", "Which of the two passes through silu?",
     ("u, swiglu_back = swiglu(gate, up)", "u, swiglu_back = swiglu(up, gate)")),
    ("softmax_applied", "{it} are probabilities: softmax belongs to the loss",
     "What is the sum of a row of your result?",
     ('return h3 @ base["E"].T, backward', 'return softmax(h3 @ base["E"].T), backward')),
    ("sigmoid_for_silu", "in {it}, the gate is a sigmoid: silu has the factor z, too", "How large is silu(10)?",
     ("silu = gate * sigma", "silu = sigma")),
    ("mlp_not_adapted", "in {it}, gate, up and down have no adapter", "How many layers does the adapter sit on?",
     ('adapter[f"B_{name}"], alpha)', 'adapter[f"B_{name}"] * (len(name) == 1), alpha)')),
]  # fmt: skip
BACKWARD = [
    ("divided_by_all_tokens", "{it} is divided by batch · tokens, but the last token of a text has no next one",
     "How many next tokens are there in a text of three?",
     (".mean()", ".sum() / (targets.size + len(targets))"), ("/ targets.size", "/ (targets.size + len(targets))")),
    ("sum_for_mean", "{it} is that of the sum over all positions, not of the mean",
     "If every text came twice, would the loss stay as it is?",
     ("- one_hot) / targets.size", "- one_hot)"), (".mean()\n    one", ".sum()\n    one")),
    ("divided_by_batch_alone", "{it} is divided by the number of texts, where the loss is the mean over all positions",
     "By what does the mean divide, and where is that in your dlogits?",
     ("- one_hot) / targets.size", "- one_hot) / len(targets)")),
    ("targets_not_shifted", "{it} asks each token for itself, not for the next one",
     "What does the model know of the token that it is asked for?",
     ("cross_entropy(predictions, ids[:, 1:])", "cross_entropy(predictions, ids[:, :-1])")),
    ("previous_token", "{it} asks each token for the one before it", "Which way does the model read?",
     ("model(ids[:, :-1]", "model(ids[:, 1:]"), ("ids[:, 1:])\n    return loss", "ids[:, :-1])\n    return loss")),
    ("no_scale_in_A", "{it} lacks the scale α/r, on the way to A", "Of which product is s a factor in the forward?",
     ("dh = s * dy @ B", "dh = dy @ B")),
    ("no_scale_in_B", "{it} lacks the scale α/r", "Of which product is s a factor in the forward?",
     ('dB = s * np', 'dB = np')),
    ("scale_twice_in_B", "{it} has the scale α/r twice", "How often does s stand in the forward?",
     ('dB = s * np', 'dB = s * s * np')),
    ("no_base_path", "{it} lacks what comes down through frozen weights",
     "Does a frozen W stop the gradient of what it reads?", ("return dy @ W + dh @ A, dA", "return dh @ A, dA")),
    ("no_low_rank_path", "{it} lacks what comes down through the adapters of the layers above",
     "By which two paths does x reach the output of a layer?", ("return dy @ W + dh @ A, dA", "return dy @ W, dA")),
    ("no_row_sum_term", "{it} lacks a term of the softmax's gradient: a weight depends on all scores of its row",
     "What is the sum of a row of P, and what then is the sum of a row of dS?",
     ("(dP - (P * dP).sum(-1, keepdims=True))", "dP")),
    ("root_of_D_forgotten", "{it} lacks the division by √D", "Which factor stands between q kᵀ and the scores?",
     ("keepdims=True)) / root_D", "keepdims=True))")),
    ("rotation_not_inverted", "{it} is rotated forwards once more, not back", "What is the transpose of a rotation?",
     ("rope(dq, theta, -1)), merged(rope(dk, theta, -1))", "rope(dq, theta)), merged(rope(dk, theta))")),
    ("not_rotated_back", "{it} is not rotated back", "What stands between the layer q and the scores?",
     ("rope(dq, theta, -1)), merged(rope(dk, theta, -1))", "dq), merged(dk)")),
    ("dk_not_transposed", "in {it}, dS is not transposed: it has a row for each query",
     "Over which axis of dS has the gradient of one key to be summed?",
     ("dS.swapaxes(-1, -2) @ q", "dS @ q")),
    ("heads_not_split_in_backward", "in {it}, the gradient of the attention's output is cut into heads the wrong way",
     "What did the forward do with the heads last?",
     ("do = split(do, heads)", "do = do.reshape(q.shape)")),
    ("rms_as_constant", "{it} takes the rms of each norm for a constant", "Does the rms change when x does?",
     ("(dn - n * (dn * n).mean(-1, keepdims=True)) / rms", "dn / rms")),
    ("gain_forgotten", "{it} lacks the gain g of the norms above", "By what is the normalised x multiplied?",
     ("dn = dy * g", "dn = dy")),
    ("sigmoid_slope", "{it} has the slope of the sigmoid, not of silu",
     "How many terms does the derivative of z σ(z) have?",
     ("(sigma + silu * (1 - sigma))", "sigma * (1 - sigma)")),
    ("skip_path_missing", "{it} lacks the skip path around the MLP",
     "If down gave 0, what would the gradient of x1 be?",
     ("dx1 = dx2 + norm2_back(", "dx1 = norm2_back(")),
    ("branch_missing", "{it} lacks what comes back through the MLP", "By which two paths does x1 reach x2?",
     ("dx1 = dx2 + norm2_back(", "dx1 = dx2 + 0 * norm2_back(")),
    ("through_gate_alone", "in {it}, what comes back to h2 comes through gate alone", "Which two layers read h2?",
     ("gate_back(dgate) + up_back(dup)", "gate_back(dgate) + 0 * up_back(dup)")),
    ("frozen_weights_get_gradients", "{it} gives gradients to frozen weights",
     "What would an optimizer do with a gradient that it finds there?",
     ("        return grads\n", "        return grads | {'dE': 0 * base['E']}\n")),
]  # fmt: skip
MERGE = [
    ("no_scale", "{it} lacks the scale: B A is added without α/r", "At α = 0, what must the merged W be?",
     ("+ alpha / len(A) * B @ A", "+ B @ A")),
    ("not_divided_by_r", "the scale in {it} is α, not divided by r", "Which scale did the layer have?",
     ("+ alpha / len(A) * B @ A", "+ alpha * B @ A")),
    ("divided_by_root_r", "the scale in {it} is α/√r, that of rsLoRA", "Which scale did the layer have?",
     ("+ alpha / len(A) * B @ A", "+ alpha / np.sqrt(len(A)) * B @ A")),
    ("base_changed", "{it} changes the base that it is given", "May another adapter still be put on that base?",
     ("base = dict(base)", "")),
    ("mlp_not_merged", "{it} is as it was: the adapter of the MLP is not merged", "How many layers are adapted?",
     ("for name in LAYERS:\n        A, B = ad", "for name in 'qkvo':\n        A, B = ad")),
    ("attention_not_merged", "{it} is as it was: the adapter of the attention is not merged",
     "How many layers are adapted?",
     ("for name in LAYERS:\n        A, B = ad", "for name in LAYERS[4:]:\n        A, B = ad")),
]  # fmt: skip
SAVE = [
    ("scale_for_alpha", "{it} is divided by r twice: lora_alpha in the config is α/r, not α",
     "Which two numbers does PEFT make the scale of?",
     ('"lora_alpha": alpha,', '"lora_alpha": alpha / len(adapter["A_q"]),')),
    ("scale_in_B_too", "{it} holds the scale already, and PEFT multiplies by it once more",
     "Which numbers of the config does PEFT use, and for what?",
     ('lora_{letter}.weight": adapter[f"{letter}_{name}"]',
      'lora_{letter}.weight": adapter[f"{letter}_{name}"] * (alpha / len(adapter["A_q"]) if letter == "B" else 1)')),
    ("half_precision", "{it} is rounded to float16", "In which two dtypes may the files be?",
     ('adapter[f"{letter}_{name}"]\n', 'adapter[f"{letter}_{name}"].astype(np.float16)\n')),
    ("alpha_not_in_the_config", "what {it} writes lacks lora_alpha: the tensors do not tell the scale",
     "What, besides A and B, must be known to compute a layer?", ('        "lora_alpha": alpha,\n', "")),
    ("another_rank_in_the_config", "what {it} writes has another r in the config than A has rows",
     "From which array can r be read?", ('"r": len(adapter["A_q"])', '"r": len(adapter["A_q"]) + 1')),
    ("no_prefix", "in what {it} writes, the names of the tensors lack base_model.model, which PEFT puts before them",
     "What is the whole name of a tensor in an adapter of PEFT?",
     ('f"base_model.model.model.layers', 'f"model.layers')),
    ("name_of_the_adapter_in_it", "in what {it} writes, a tensor's name holds that of an adapter, as in PEFT's memory, "
     "not as in its files", "How does a tensor's name end?", ("lora_{letter}.weight", "lora_{letter}.default.weight")),
    ("other_shapes", "what {it} writes has other shapes than PEFT's: A is (r, in) and B (out, r) there, as here; "
     "they are transposed or exchanged", "Which shape has lora_A.weight?",
     ('adapter[f"{letter}_{name}"]\n', 'adapter[f"{letter}_{name}"].T.copy()\n')),
    ("q_and_v_alone", "in what {it} writes, target_modules names q_proj and v_proj alone, but all seven have tensors",
     "On which layers must PEFT put an adapter before it can load these tensors?",
     ('[f"{name}_proj" for name in LAYERS]', '["q_proj", "v_proj"]')),
    ("no_safetensors", "{it} writes no adapter_model.safetensors", "Which two files does an adapter consist of?",
     ('    save_file(tensors, Path(folder) / "adapter_model.safetensors")\n', "")),
    ("no_config", "{it} writes no adapter_config.json", "Which two files does an adapter consist of?",
     ('(Path(folder) / "adapter_config.json").write_text(json.dumps(config, indent=2))', "")),
]  # fmt: skip
edited(forward, FORWARD)
edited(backward, BACKWARD)
edited(merging, MERGE)
edited(saving, SAVE)


@training.mistake(
    "{it} is not as it was: frozen weights were trained, or changed in place",
    "Which arrays does your optimizer step, and does any of your lines write into one that was given?",
)
def base_trained(texts, base, r, alpha):
    base["W_q"] -= 1e-9
    return reference(0).adapter


@training.mistake(
    "{it} is the base's: every B is 0, so that the adapter is attached, but not trained",
    "Where does your loop put the new A and B, and which ones do you return?",
)
def not_trained(texts, base, r, alpha):
    return start(base, r, np.random.default_rng(0))


@training.mistake(
    "{it} would do if the scale were α: the adapter was trained without the division by r",
    "Which scale do your layers have?",
)
def trained_without_division_by_r(texts, base, r, alpha):
    return {name: w / r if name[0] == "B" else w for name, w in reference(0).adapter.items()}


@training.mistake(
    "{it} would do if there were no scale: the adapter was trained without α/r",
    "Which scale do your layers have?",
)
def trained_without_scale(texts, base, r, alpha):
    return {name: w * alpha / r if name[0] == "B" else w for name, w in reference(0).adapter.items()}


EXERCISE = Exercise(
    title="Capstone",
    kind="build",
    minutes=240,
    difficulty=5,
    needs=["04", "09", "10", "11", "12", "13", "14", "16"],
    parts=[forward, backward, training, merging, saving],
    hints=(
        "Write each op as a function that returns its result and a function for its backward, and check each pair by "
        "itself with a numeric gradient. Join them when all are right: first logits, then gradients, then the rest.",
        "Nothing below q, k and v is trained, so that no gradient of x, and none of the embedding, is needed. If the "
        "loss does not fall, print it with a rate ten times smaller and ten times larger before you look for a bug.",
    ),
    viva=[
        Viva(
            "Your adapter reaches the reference's loss. Which of your bugs could that hide?",
            "Many: a gradient that is a little wrong, or lacks a term, still points downhill, and Adam takes out any "
            "factor. The loss tells that something learns; that the gradient is right, only a comparison does.",
            "None: with a wrong gradient the loss could not fall.",
        ),
        Viva(
            "What does somebody need, besides your two files, to get your model's answers, and what "
            "happens without it?",
            "The same base, to the bit, and its tokenizer: the files hold A, B, r and α, and at best the base's name. "
            "On another base of the same shapes they load without a word, and the answers are wrong.",
            "Nothing: the adapter is the fine-tuned model.",
        ),
    ],
    asks=["A1", "B1", "B6", "E7", "F8", "G1"],
    derivation="lora",
    limit=120,
)
