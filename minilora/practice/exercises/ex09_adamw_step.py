"""09 · The step

After the backward, one step of AdamW (Loshchilov, Hutter, 2019), with LoRA+'s
own rate for B (Hayou et al., 2024). Change these three, and return nothing;
an array may be changed in place, or another put in its place in the dict:

    params   {name: array} of W, b, A and B
    grads    {name: array} of the same names, whether they are trained or not
    state    {"t": steps so far, "m": {name: array}, "v": {name: array}}

    trained  the names that are trained, such as ("A", "B"). Nothing else
             moves, and m and v hold nothing else
    lr, ratio, decay    numbers. The rate η is lr, and for B ratio · lr

For a parameter p with gradient g:

    m, v   running means of g and of g∘g. In each step a mean keeps β of what
           it was, and takes 1 - β of what is new: β₁ = 0.9 for m, β₂ = 0.999
           for v. A name that is not in them yet starts from zero
    m̂, v̂   the same, corrected: after t steps the weights in such a mean add
           up to 1 - βᵗ, not 1; divide by that. t counts this step too: it is
           1 in the first
    decay  decoupled: it does not pass through the gradient. p, be it a matrix
           or b, first shrinks by the share η · decay
    step   then p goes down by η times m̂ / (√v̂ + ε), ε = 1e-8

The backward adds to what is in grads: leave an array of zeros there for every
name, for the next one.

One number by hand, the first step of A = 2 with g = 0.5, lr = 0.1 and
decay = 0.5: m = 0.05, v = 0.00025, m̂ = 0.5, v̂ = 0.25, and
A = 2 · 0.95 - 0.1 · 0.5 / 0.5 = 1.8.
"""

import numpy as np


def adamw_step(params, grads, state, lr, ratio, decay, trained):
    """Change params, grads and state.

    >>> params, grads = {"A": np.array([2.0]), "W": np.array([3.0])}, {"A": np.array([0.5]), "W": np.array([0.7])}
    >>> state = {"t": 0, "m": {}, "v": {}}
    >>> adamw_step(params, grads, state, 0.1, 4.0, 0.5, ("A",))
    >>> params["A"].round(6), params["W"], grads["W"], state["t"]
    (array([1.8]), array([3.]), array([0.]), 1)
    """
    ### BEGIN SOLUTION
    b1, b2, eps = 0.9, 0.999, 1e-8
    state["t"] += 1
    for name in trained:
        p, g = params[name], grads[name]
        m = b1 * state["m"].get(name, 0) + (1 - b1) * g
        v = b2 * state["v"].get(name, 0) + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1 ** state["t"]), v / (1 - b2 ** state["t"])
        eta = ratio * lr if name == "B" else lr
        params[name] = (1 - eta * decay) * p - eta * m_hat / (np.sqrt(v_hat) + eps)
        state["m"][name], state["v"][name] = m, v
    for g in grads.values():
        g[:] = 0
    ### END SOLUTION


### THE CHECK

from ...nn import Parameter
from ...nn.optim import AdamW, ParamGroup
from ...verify.explanations.finding import Finding
from ...verify.language import words
from ..exercise import Exercise, Viva
from ..parts import Refused, Value

NAMES = "A", "B", "W", "b"  # what is trained in most cases first: it is worked out by hand
# steps so far, what is trained, the size of the gradients (beside ε), in, out, r of each case
CASES = [
    (3, ("A", "B"), 1.0, 4, 3, 2),
    (0, ("A", "B"), 1.0, 3, 5, 2),
    (7, ("B",), 1.0, 5, 4, 3),
    (1, ("A", "B", "b"), 1e-7, 6, 3, 1),
    (12, ("W", "b", "A", "B"), 1.0, 3, 4, 2),
    (2, ("A",), 1.0, 2, 6, 4),
]


def draw(rng, i):
    t, trained, size, n, m, r = CASES[i]
    shapes = {"W": (m, n), "b": (m,), "A": (r, n), "B": (m, r)}

    def arrays(names, size):
        return {name: size * rng.standard_normal(shapes[name]) for name in names}

    kept = trained if t else ()
    squares = {name: v**2 for name, v in arrays(kept, size).items()}
    return {
        "params": arrays(NAMES, 1.0),
        "grads": arrays(NAMES, size),
        "state": {"t": t, "m": arrays(kept, size), "v": squares},
        "lr": float(rng.uniform(0.01, 0.1)),
        "ratio": float(rng.uniform(2, 16)),
        "decay": float(rng.uniform(0.1, 0.6)),
        "trained": trained,
    }


def truth(params, grads, state, lr, ratio, decay, trained):
    """The library's AdamW, with B in a group of its own."""
    each = {name: Parameter(params[name]) for name in trained}
    groups = [ParamGroup({n: p for n, p in each.items() if n != "B"}, lr, decay)]
    groups += [ParamGroup({"B": each["B"]}, ratio * lr, decay)] if "B" in each else []
    optimizer = AdamW(groups)
    known = {f"{slot}.{name}": state[slot][name] for slot in "mv" for name in state[slot]}
    optimizer.load_state(optimizer.state | known, state["t"])
    optimizer.step({p: grads[name] for name, p in each.items()})
    params |= {name: p.data for name, p in each.items()}
    state |= {slot: {name: optimizer.state[f"{slot}.{name}"] for name in trained} for slot in "mv"}
    state["t"] = optimizer.t
    grads |= {name: 0 * g for name, g in grads.items()}


def compared(tensors):
    """Each array by the name under which it is found, in the order of the computation.

    An m or v that is not there, or is of what is not trained, counts as zeros.
    """
    params, grads, state, trained = tensors.values()
    if set(params) != {*NAMES} or set(grads) != {*NAMES}:
        raise Refused("shape", words("the names in params and in grads must stay as they are"))
    if set(state) != {"t", "m", "v"} or not all(isinstance(state[slot], dict) for slot in "mv"):
        raise Refused("shape", words("state must hold what it held: the number t, and the dicts m and v"))
    found = {"t": state["t"]}
    for slot in "mv":
        of_trained = {name: state[slot][name] for name in trained if name in state[slot]}
        found |= {f'{slot}["{name}"]': of_trained.get(name, np.zeros_like(params[name])) for name in NAMES}
    found |= {name: params[name] for name in NAMES}
    for name in NAMES:
        if np.isscalar(grads[name]):
            says = words(
                'grads["{name}"] is the number {value}, and must be an array of zeros of the shape of {name}',
                name=name, value=f"{grads[name]:g}",
            )  # fmt: skip
            raise Refused("shape", says, detail=name)
        found[f'grads["{name}"]'] = grads[name]
    return found


def keeps_more(function):
    """Is there an m or v of what is not trained?"""
    for i in range(len(CASES)):
        case = draw(np.random.default_rng(i), i)
        function(*case.values())
        if {*case["state"]["m"], *case["state"]["v"]} - {*case["trained"]}:
            return True
    return False


class Step(Value):
    """What is wrong, nobody knows why, is worked out by hand only where nothing before it is wrong."""

    def explained(self, name, mine, true, cases, listed):
        rest = "lr", "ratio", "decay", "trained"
        plain = [{**c["params"], "t": c["state"]["t"], **{key: c[key] for key in rest}} for c in cases]
        return super().explained(name, mine, true, plain, listed)

    def of_values(self, mine, cases, true):
        checked = super().of_values(mine, cases, true)
        wrong = [finding for finding in checked.findings if finding.kind != "right"]
        later = {finding.tensor for finding in wrong[1:] if finding.kind == "unknown"}
        says = words("first repair what is wrong above, then {it}")
        return checked._replace(
            findings=[
                Finding(f.tensor, "unknown", says.filled(it=f.tensor)) if f.tensor in later else f
                for f in checked.findings
            ]
        )


# `trained` does not change: compared() reads it
step = Step(adamw_step, changes="params grads state trained", compared_as=compared, truth=truth, draw=draw)


def rate_of(name, lr, ratio):
    return ratio * lr if name == "B" else lr


def means_of(m, v, g):
    return 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2


def corrected(m, v, t):
    return m / (1 - 0.9**t), v / (1 - 0.999**t)


def moved(p, m, v, eta, decay):
    return (1 - eta * decay) * p - eta * m / (np.sqrt(v) + 1e-8)


def adamw(given, rate=rate_of, gradient=lambda g, p, decay: g, means=means_of, hats=corrected, move=moved, t=0):
    """One step in which a part may be another; t is counted from there."""
    params, grads, state, lr, ratio, decay, trained = given
    state["t"] += 1
    for name in trained:
        g, before = gradient(grads[name], params[name], decay), [state[slot].get(name, 0) for slot in "mv"]
        m, v = means(*before, g)
        params[name] = move(params[name], *hats(m, v, state["t"] + t), rate(name, lr, ratio), decay)
        state["m"][name], state["v"][name] = m, v
    grads |= {name: 0 * g for name, g in grads.items()}


# ---- what is changed ----


@step.mistake(
    "in {it}, what is not trained moves too",
    "Which names may the loop go over?",
)
def base_trained(*given):
    adamw([*given[:-1], NAMES])


@step.rule(
    "{it} keeps m and v of what is frozen: twice the memory of the base, for what does not move",
    "How many numbers does the optimizer keep for W, and what are they for?",
    keeps_more,
)
def state_of_the_base(*given):
    adamw(given)
    for slot in "mv":
        given[2][slot] = {name: np.zeros(p.shape) for name, p in given[0].items()} | given[2][slot]


@step.mistake(
    "no zeros are left in {it}: the next backward adds to these gradients, and they are counted twice",
    "What is in grads when the next backward begins?",
)
def not_cleared(*given):
    grads = dict(given[1])
    adamw(given)
    given[1].update(grads)


@step.mistake(
    "zeros are left in {it} for what is trained alone: the other gradients go on adding up",
    "The backward adds to every array in grads. In which of them is there a zero now?",
)
def cleared_where_trained(*given):
    frozen = {name: g for name, g in given[1].items() if name not in given[-1]}
    adamw(given)
    given[1].update(frozen)


@step.mistake(
    "nothing has moved in {it}: what was computed is not put back",
    "Where does the new value of p go?",
)
def not_stored(*given):
    before = dict(given[0])
    adamw(given)
    given[0].update(before)


@step.mistake(
    "{it} is what it was before the step: the next step will know nothing of this one",
    "What does the second step know of the first?",
)
def means_not_kept(*given):
    state = given[2]
    before = {slot: dict(state[slot]) for slot in "mv"}
    adamw(given)
    state.update(before)


@step.mistake(
    "m and v start from zero in every step, whatever the last one left; that shows in {it}",
    "What is in state, and for whom?",
)
def means_not_read(*given):
    adamw(given, means=lambda m, v, g: means_of(0, 0, g))


@step.mistake(
    "{it} is not raised: every step takes itself for the same one",
    "What must state say after the step?",
)
def step_not_counted(*given):
    adamw(given)
    given[2]["t"] -= 1


@step.mistake(
    "t is raised once for each parameter, not once for the step; that shows in {it}",
    "How often is t raised in a step that trains A and B?",
)
def counted_for_each(*given):
    params, grads, state, lr, ratio, decay, trained = given
    kept = dict(grads)
    for name in trained:
        adamw([params, grads, state, lr, ratio, decay, (name,)])
        grads.update(kept)
    grads |= {name: 0 * g for name, g in grads.items()}


@step.mistake(
    "t is not raised, neither in state nor for the correction: in the first step it divides by 1 - β⁰ = 0; "
    "that shows in {it}",
    "What is t in the first step, and what must state say after it?",
)
def step_not_counted_at_all(*given):
    adamw(given, t=-1)
    given[2]["t"] -= 1


# ---- the means, and their correction ----


@step.mistake(
    "in {it}, the move lacks the bias correction of m and of v",
    "What are m and v in the first step?",
)
def no_correction(*given):
    adamw(given, hats=lambda m, v, t: (m, v))


@step.mistake(
    "in {it}, the move lacks the bias correction of v",
    "Which of m and v start from zero?",
)
def only_m_corrected(*given):
    adamw(given, hats=lambda m, v, t: (m / (1 - 0.9**t), v))


@step.mistake(
    "in {it}, the move lacks the bias correction of m",
    "Which of m and v start from zero?",
)
def only_v_corrected(*given):
    adamw(given, hats=lambda m, v, t: (m, v / (1 - 0.999**t)))


@step.mistake(
    "{it} corrects with the t of the step before: in the first step it divides by 1 - β⁰ = 0",
    "What is t in the first step?",
)
def t_from_zero(*given):
    adamw(given, t=-1)


@step.mistake(
    "{it} corrects with the t of the step before, and with 1 only where that is 0",
    "How many gradients are in m when it is corrected in the second step?",
)
def t_at_least_one(*given):
    adamw(given, hats=lambda m, v, t: corrected(m, v, max(t - 1, 1)))


@step.mistake(
    "β₂ is 0.99, not 0.999; that shows in {it}",
    "How much of itself does v keep in a step?",
)
def another_beta2(*given):
    adamw(
        given,
        means=lambda m, v, g: (0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2),
        hats=lambda m, v, t: (m / (1 - 0.9**t), v / (1 - 0.99**t)),
    )


@step.mistake(
    "{it} is kept corrected: state must hold m and v, not m̂ and v̂",
    "Would the next step correct once, or twice?",
)
def corrected_means_kept(*given):
    t = given[2]["t"] + 1
    adamw(given, means=lambda m, v, g: corrected(*means_of(m, v, g), t), hats=lambda m, v, t: (m, v))


@step.mistake(
    "m and v are sums, as the momentum of SGD: what is new comes in whole, without 1 - β; that shows in {it}",
    "If g were 1 in every step, what should m go to?",
)
def sums(*given):
    adamw(given, means=lambda m, v, g: (0.9 * m + g, 0.999 * v + g**2))


@step.mistake(
    "β₁ and β₂ are exchanged; that shows in {it}",
    "Which of the two means should remember longer?",
)
def betas_exchanged(*given):
    adamw(
        given,
        means=lambda m, v, g: (0.999 * m + 0.001 * g, 0.9 * v + 0.1 * g**2),
        hats=lambda m, v, t: (m / (1 - 0.999**t), v / (1 - 0.9**t)),
    )


@step.mistake(
    "each β stands where 1 - β should; that shows in {it}",
    "Does a mean change slowly, or nearly all at once?",
)
def betas_inverted(*given):
    adamw(given, means=lambda m, v, g: (0.1 * m + 0.9 * g, 0.001 * v + 0.999 * g**2))


# ---- the move ----


@step.mistake(
    "in {it}, the step is added: it goes up",
    "In which direction does the loss fall?",
)
def upwards(*given):
    adamw(given, move=lambda p, m, v, eta, decay: moved(p, -m, v, eta, decay))


@step.mistake(
    "in {it}, the move is m̂ / v̂, without the root",
    "If every gradient were ten times as large, would p move less?",
)
def no_root(*given):
    adamw(given, move=lambda p, m, v, eta, decay: (1 - eta * decay) * p - eta * m / (v + 1e-8))


@step.mistake(
    "in {it}, ε is under the root: the move is right where gradients are large, and too small where they are small",
    "With gradients of 1e-7, how large is v̂, and how large are ε and √ε compared with it?",
)
def epsilon_under_the_root(*given):
    adamw(given, move=lambda p, m, v, eta, decay: (1 - eta * decay) * p - eta * m / np.sqrt(v + 1e-8))


@step.mistake(
    "in {it}, ε is added to √v before its correction, as some libraries do: another convention, seen "
    "where gradients are small",
    "To which of √v and √v̂ is ε added in the statement?",
)
def epsilon_before_correction(*given):
    adamw(given, hats=lambda m, v, t: (m / (1 - 0.9**t), (np.sqrt(v) + 1e-8) ** 2 / (1 - 0.999**t)))


@step.mistake(
    "in {it}, ε is missing",
    "What is m̂ / √v̂ where the gradients are smaller than ε?",
)
def no_epsilon(*given):
    adamw(given, move=lambda p, m, v, eta, decay: (1 - eta * decay) * p - eta * m / np.sqrt(v))


# ---- the decay ----


@step.mistake(
    "the decay is in the gradient, as Adam with an L2 penalty: √v̂ then scales it; that shows in {it}",
    "Does decay reach m and v?",
)
def decay_in_the_gradient(*given):
    adamw(
        given,
        gradient=lambda g, p, decay: g + decay * p,
        move=lambda p, m, v, eta, decay: moved(p, m, v, eta, 0),
    )


@step.mistake(
    "there is no decay in {it}",
    "Where g is 0 in every step, what becomes of p?",
)
def no_decay(*given):
    adamw(given, move=lambda p, m, v, eta, decay: moved(p, m, v, eta, 0))


@step.mistake(
    "what is not trained moves too, by its decay; that shows in {it}",
    "Which parameters may shrink at all?",
)
def decay_of_the_frozen(*given):
    params, _, _, lr, ratio, decay, trained = given
    adamw(given)
    for name in {*NAMES} - {*trained}:
        params[name] = (1 - rate_of(name, lr, ratio) * decay) * params[name]


@step.mistake(
    "the decay in {it} is not multiplied by the rate, as in the paper: another convention",
    "By which share does p shrink in the statement?",
)
def decay_without_rate(*given):
    adamw(given, move=lambda p, m, v, eta, decay: moved(p, m, v, eta, decay / eta))


@step.mistake(
    "the decay in {it} has the wrong sign: weights grow",
    "Where g is 0, should p come nearer to 0?",
)
def decay_grows(*given):
    adamw(given, move=lambda p, m, v, eta, decay: moved(p, m, v, eta, -decay))


@step.mistake(
    "in {it}, the decay comes after the step, and shrinks the step too",
    "Which p does the decay multiply, the old one or the one that has moved?",
)
def decay_after_the_step(*given):
    adamw(given, move=lambda p, m, v, eta, decay: (1 - eta * decay) * moved(p, m, v, eta, 0))


@step.mistake(
    "the decay in {it} has the rate lr, and not B's own",
    "Which rate does B have?",
)
def decay_with_the_rate_of_A(*given):
    _, _, _, lr, *_ = given
    adamw(given, move=lambda p, m, v, eta, decay: moved(p, m, v, eta, decay * lr / eta))


# ---- LoRA+ ----


@step.mistake(
    "{it} has the rate ratio · lr, which is B's alone",
    "Whose rate is multiplied in LoRA+?",
)
def larger_rate_for_all(*given):
    adamw(given, rate=lambda name, lr, ratio: ratio * lr)


@step.mistake(
    "{it} has the rate lr: LoRA+'s ratio is missing",
    "At ratio = 1000, should B move as A does?",
)
def no_ratio(*given):
    adamw(given, rate=lambda name, lr, ratio: lr)


@step.mistake(
    "{it} has the rate lr / ratio, the inverse",
    "At ratio = 16, does B learn faster or slower than A?",
)
def ratio_inverted(*given):
    adamw(given, rate=lambda name, lr, ratio: lr / ratio if name == "B" else lr)


EXERCISE = Exercise(
    title="The step",
    kind="write",
    minutes=30,
    difficulty=2,
    needs=["04"],
    parts=[step],
    hints=(
        "What happens once in a step, what once for each trained name, and what for every array in grads?",
        "In the first step m̂ is g and v̂ is g∘g: by how much does p move where g = 0.5, and where g = 5? Then add the "
        "decay, which does not look at g at all.",
    ),
    viva=[
        Viva(
            "Why is the decay not in the gradient?",
            "There it would be divided by √v̂ too: a parameter with large gradients would decay less, and one with "
            "small gradients more. Outside, every one shrinks by the same share η · decay.",
            "It makes no difference: the gradient of an L2 penalty is decay · p, so both are the same.",
        ),
        Viva(
            "What does decay on A and B do to the model? Is it decay on ΔW?",
            "It pulls ΔW to zero, so the model back to the frozen W; W itself does not decay. It is no decay on ΔW: "
            "without a gradient B A shrinks by the shares of both, and how large A and B are by themselves matters.",
            "Yes, since ΔW is made of A and B; and it keeps the weights of the model small.",
        ),
    ],
    asks=["C7", "I3"],
)
