"""05 · Write the gradient check

A check that sees nothing is worse than none. Write one, and inputs for it.

accepts(forward, backward, inputs, constants) returns True if backward is the
gradient of forward, and False if not:

    inputs, constants                        {name: value}
    forward(**inputs, **constants)           y, an array
    backward(dy, **inputs, **constants)      {"dx": ..., ...}: for each input x
                                             ∂L/∂x of L = Σ dy ∘ y

dy, of the shape of y, is your check's choice. inputs are float64 arrays, and
you may call both functions as often as you like, at other values of the inputs
too; constants stay as they are. No slope of a right function is infinite; it
may have a kink, as max(z, 0) has, but none is nearer to the inputs than 1e-4.
A wrong gradient is off by 1 % or more in at least one tensor, relative to the
norm of that tensor. Gradients may be as small as 1e-10, and entries of them 0;
none is 0 as a whole. y may be a million times larger than they are.

lora_case(rng) returns inputs and constants at which no mistake in LoRA's
gradient stays hidden. (At badly chosen ones the best check sees nothing.)

    y = x Wᵀ + α/r (x ∘ keep) Aᵀ Bᵀ

    inputs       x (batch, tokens, in)    A (r, in)    B (out, r)
    constants    W (out, in)    keep (batch, tokens, in)    alpha, r, p

in that order, each width your choice (at most 10). keep is 0 where dropout of
probability p drops x, else 1/(1-p).

Your check meets 12 right functions and 68 wrong gradients; your inputs meet
all the mistakes in LoRA's backward that are known here.

One slope by hand: y = x², x = 3, dy = 5, h = 0.1. L goes from 5 · 2.9² = 42.05
to 5 · 3.1² = 48.05: 6 / 0.2 = 30 = dy · 2x.
"""

import numpy as np


def accepts(forward, backward, inputs, constants):
    """Return True where backward is the gradient of forward.

    >>> x = {"x": np.array([3.0, -2.0])}
    >>> accepts(lambda x: x * x, lambda dy, x: {"dx": dy * 2 * x}, x, {})
    True
    >>> accepts(lambda x: x * x, lambda dy, x: {"dx": dy * x}, x, {})
    False
    """
    ### BEGIN SOLUTION
    h, rng = 1e-5, np.random.default_rng(0)
    dy = rng.standard_normal(forward(**inputs, **constants).shape)
    gradients = backward(dy, **inputs, **constants)
    for name, x in inputs.items():
        slopes = np.zeros(x.shape)
        for i in np.ndindex(x.shape):
            step = np.zeros(x.shape)
            step[i] = h
            after = forward(**{**inputs, name: x + step}, **constants)
            before = forward(**{**inputs, name: x - step}, **constants)
            slopes[i] = (dy * (after - before)).sum() / (2 * h)
        if np.linalg.norm(gradients[f"d{name}"] - slopes) > 1e-3 * np.linalg.norm(slopes):
            return False
    return True
    ### END SOLUTION


def lora_case(rng):
    """Return inputs, constants.

    >>> inputs, constants = lora_case(np.random.default_rng(0))
    >>> list(inputs), list(constants)
    (['x', 'A', 'B'], ['W', 'keep', 'alpha', 'r', 'p'])
    """
    ### BEGIN SOLUTION
    n_in, n_out, r, p = 5, 4, 3, 0.3
    x = rng.standard_normal((2, 3, n_in))
    A, B = rng.standard_normal((r, n_in)), rng.standard_normal((n_out, r))
    W = rng.standard_normal((n_out, n_in))
    keep = np.array([0, 1, 1, 0, 1]) / (1 - p) * np.ones(x.shape)
    return {"x": x, "A": A, "B": B}, {"W": W, "keep": keep, "alpha": 7.0, "r": r, "p": p}
    ### END SOLUTION


### THE CHECK

import copy
import functools
from typing import Any, NamedTuple

from ...verify.case import Case, apply, relative_error
from ...verify.explanations.finding import Finding
from ...verify.language import Words, words
from ...verify.problems import problems
from ..exercise import Exercise, Viva
from ..parts import Checked, Graded, Refused, right

# ---- what the check meets ----

PLAIN = ["linear", "low_rank", "gelu", "swiglu", "layer_norm", "rms_norm", "masked_attention", "embedding", "rope"]
SMALL_SLOPES, BESIDE_A_KINK = "1 + 2e-6 residual", "max(linear, 0)"
OFF = 1e-2  # a wrong gradient is off by this at least
ALSO = ["low_rank", "layer_norm", "masked_attention", "1e-10 swiglu"]  # these have two more, off by 1.5 %
EACH = 5  # wrong gradients of each function, of which one is
COMMON = ["upstream_forgotten", "sign_flipped", "counted_twice"]  # in turn, as far as it is a mistake of the problem


class Function(NamedTuple):
    """A forward with its gradient, values to check it at, and wrong gradients with what each says."""

    name: str
    forward: Any
    backward: Any
    case: Case
    faults: dict


class Wrong(NamedTuple):
    """A wrong gradient, and what it is beside the true one, for each tensor."""

    function: Function
    says: Words
    backward: Any
    errors: list  # relative
    sizes: list  # ‖wrong‖/‖true‖
    cosines: list


def small(case):
    """Two samples of three tokens, so that every entry is soon checked."""
    rows = case.dy.shape[:2]

    def cut(value):
        if np.ndim(value) == 4 and value.shape[1:3] == (1, 1):  # a mask over samples and keys
            return value[:2, ..., :3]
        of_rows = np.ndim(value) > 2 or np.asarray(value).dtype.kind == "i"  # a weight may have that shape too
        return value[:2, :3] if of_rows and np.shape(value)[:2] == rows else value

    inputs, constants = ({name: cut(value) for name, value in given.items()} for given in (case.inputs, case.constants))
    return Case(cut(case.dy), inputs, constants)


def followed(name, problem, case, after=lambda y: y, back=lambda dy, y: dy):
    """The problem with a function after it, and `back`, which takes dy back through that."""

    def forward(*inputs, **constants):
        return after(problem.forward(*inputs, **constants))

    def through(backward):
        def gradient(dy, *inputs, **constants):
            dy = back(dy, problem.forward(*inputs, **constants))
            return {**problem.backward(dy, *inputs, **constants), **backward(dy, *inputs, **constants)}

        return gradient

    faults = {fault.name: (fault.says, through(fault.wrong)) for fault in problem.faults.values()}
    return Function(name, forward, through(problem.backward), case, faults)


def beside_a_kink(case):
    """Another b for x Wᵀ + b: of its values one is 5e-4 from 0, and no other is near."""
    z = np.sort((case.inputs["x"] @ case.inputs["W"].T).reshape(-1, len(case.inputs["b"])), axis=0)
    widest, column = np.diff(z, axis=0).argmax(axis=0), np.arange(z.shape[1])
    below, above = z[widest, column], z[widest + 1, column]
    return case._replace(inputs=case.inputs | {"b": -np.where(column == 0, below + 5e-4, (below + above) / 2)})


@functools.cache
def functions(seed):
    bank = problems()
    cases = {name: small(bank[name].cases(seed)[0]) for name in [*PLAIN, "residual"]}
    tiny, beside = (lambda y: 1e-10 * y, lambda dy, y: 1e-10 * dy), (lambda y: 1 + 2e-6 * y, lambda dy, y: 2e-6 * dy)
    relu = lambda y: np.maximum(y, 0), lambda dy, y: dy * (y > 0)
    return [
        *(followed(name, bank[name], cases[name]) for name in PLAIN),
        followed("1e-10 swiglu", bank["swiglu"], cases["swiglu"], *tiny),
        followed(SMALL_SLOPES, bank["residual"], cases["residual"], *beside),
        followed(BESIDE_A_KINK, bank["linear"], beside_a_kink(cases["linear"]), *relu),
    ]


def beside_the_truth(function, says, backward, dy=None):
    """`dy` is the check's own, where that is not to be the case's."""
    case = function.case if dy is None else function.case._replace(dy=dy)
    true, wrong = apply(function.backward, case), apply(backward, case)
    errors = [relative_error(wrong[name], true[name]) for name in true]
    norms = [(float(np.linalg.norm(wrong[name])), float(np.linalg.norm(true[name]))) for name in true]
    cosines = [float(np.sum(wrong[name] * true[name])) / (a * b or 1) for name, (a, b) in zip(true, norms, strict=True)]
    it = next((name for name, error in zip(true, errors, strict=True) if error > OFF), "")
    return Wrong(function, says.filled(it=it), backward, errors, [a / (b or 1) for a, b in norms], cosines)


@functools.cache
def wrongs(seed):
    """Five mistakes of each function, a common one and others spread over the list of its problem; then small ones."""
    found = []
    for i, function in enumerate(functions(seed)):
        seen = {name: beside_the_truth(function, *fault) for name, fault in function.faults.items()}
        seen = {name: wrong for name, wrong in seen.items() if max(wrong.errors) > OFF}
        first = seen.pop(COMMON[i % len(COMMON)])
        rest = list(seen.values())
        found += [first, *(rest[(i + k * len(rest) // (EACH - 1)) % len(rest)] for k in range(EACH - 1))]
    return found + [small for function in functions(seed) if function.name in ALSO for small in slightly_off(function)]


def slightly_off(function):
    """Its smallest gradient alone, then its largest alone, is too large by little."""
    true = apply(function.backward, function.case)
    says = words("{it} is 1.5 % too large")

    def off(name):
        def backward(*inputs, **constants):
            gradients = function.backward(*inputs, **constants)
            return gradients | {name: 1.015 * gradients[name]}

        return backward

    return [
        beside_the_truth(function, says, off(extreme(true, key=lambda name: np.linalg.norm(true[name]))))
        for extreme in (min, max)
    ]


# ---- what the check does ----


class Trial(NamedTuple):
    """What a check did. The rest was seen while it looked at one right gradient."""

    rejected: list  # right functions
    accepted: list  # wrong gradients
    wrongs: list  # all of them
    dys: list
    moves: dict  # {name: how far from its value an input was in each call of forward}
    dtypes: set

    def names(self):
        return {function.name for function in self.rejected}

    def doubles(self):
        return all(dtype.itemsize >= 8 for dtype in self.dtypes)

    def step(self):
        """The largest."""
        return max((float(np.abs(d).max()) for moves in self.moves.values() for d in moves), default=0.0)


def met_with(function, backward, seen=lambda dy, given: None):
    """What a check of a gradient is called with. `seen` is called with every call that it makes."""
    names, case = list(function.case.inputs), function.case

    def forward(**given):
        seen(None, given)
        return function.forward(*[given.pop(name) for name in names], **given)

    def gradient(dy, **given):
        seen(dy, given)
        return backward(dy, *[given.pop(name) for name in names], **given)

    given = copy.deepcopy((case.inputs, case.constants))
    return dict(zip(("forward", "backward", "inputs", "constants"), (forward, gradient, *given), strict=True))


def called(check, function, backward, *seen):
    """The check's answer on a gradient."""
    answer = check(*met_with(function, backward, *seen).values())
    if not isinstance(answer, bool | np.bool_):
        says = words("{it} returns {found}, and must return True or False", it="accepts", found=type(answer).__name__)
        raise Refused("type", says)
    return bool(answer)


def trial(check, seed):
    rejected = [function for function in functions(seed) if not called(check, function, function.backward)]
    all_wrong, accepted = [], []
    for wrong in wrongs(seed):
        dys = []
        answer = called(check, wrong.function, wrong.backward, lambda dy, given, dys=dys: dys.append(dy))
        used = [dy for dy in dys if np.shape(dy) == wrong.function.case.dy.shape]
        all_wrong.append(beside_the_truth(wrong.function, wrong.says, wrong.backward, used[-1] if used else None))
        accepted += all_wrong[-1:] if answer else []
    return Trial(rejected, accepted, all_wrong, *watched(check, functions(seed)[0]))


def watched(check, function):
    """dys, moves and dtypes of a check of this right function."""
    inputs = function.case.inputs
    dys, moves, dtypes = [], {name: [] for name in inputs}, set()

    def seen(dy, given):
        dys.extend([] if dy is None else [np.array(dy)])
        for name, x in inputs.items():
            dtypes.add(np.asarray(given[name]).dtype)
            if np.shape(given[name]) == x.shape and np.any(away := np.abs(given[name] - x)):
                moves[name].append(away)

    called(check, function, function.backward, seen)
    return dys, moves, dtypes


class Check(Graded):
    """accepts(), which meets right and wrong gradients. SIGNS says by what each listed mistake is known."""

    def compared(self, function, seed):
        try:
            found = trial(functools.partial(self.safely, function), seed)
        except Refused as refused:
            return Checked([Finding(self.name, refused.kind, refused.says, refused.asks)])
        if not found.rejected and not found.accepted:
            return Checked([right(self.name)])
        listed = next((m for name, m in self.mistakes.items() if SIGNS[name](found)), None)
        return Checked([self.finding(found, listed)])

    @property
    def results(self):
        return [self.name]

    def cases(self, seed=0):
        """The right functions, then the wrong gradients."""
        right_ones = [met_with(function, function.backward) for function in functions(seed)]
        return right_ones + [met_with(wrong.function, wrong.backward) for wrong in wrongs(seed)]

    def safely(self, function, *arguments):
        return self.run(function, dict(zip(self.arguments, arguments, strict=True)))["answer"]

    def finding(self, found, listed):
        n, killed = len(functions(0)), len(found.wrongs) - len(found.accepted)
        says = words(
            "of {n} right gradients it accepts {right}, of {all} wrong ones it rejects {killed}",
            right=str(n - len(found.rejected)), n=str(n), killed=str(killed), all=str(len(found.wrongs)),
        )  # fmt: skip
        if listed:
            says = words("{score}: {says}", score=says, says=listed.says.filled(it=self.name))
            return Finding(self.name, "fault", says, listed.asks, listed.name)
        if found.rejected:
            names = list(dict.fromkeys(wrong.function.name for wrong in found.wrongs))
            i = names.index(found.rejected[0].name)
            asks = words("It rejects the right gradient of {name} (case {i}). Why?", name=names[i], i=str(i))
        else:
            wrong = found.accepted[0]
            i = n + next(i for i, each in enumerate(found.wrongs) if each is wrong)
            asks = words(
                "It accepts a wrong gradient of {name} (case {i}): {says}. Why?",
                name=wrong.function.name, says=wrong.says, i=str(i),
            )  # fmt: skip
        return Finding(self.name, "unknown", says, asks)


check = Check(accepts, "answer")
SIGNS: dict[str, Any] = {}


def with_zeros(t):
    """The functions whose gradient has entries that are 0, by name."""
    met = {id(wrong.function): wrong.function for wrong in t.wrongs}.values()
    return {f.name for f in met if any(np.any(g == 0) for g in apply(f.backward, f.case).values())}


def same_list(found, wanted):
    return list(map(id, found)) == list(map(id, wanted))


def all_near(numbers, off):
    return all(abs(number - 1) < off for number in numbers)


def all_but_some(t, surely, perhaps):
    """Are those accepted of which this is surely so, and none but those of which it perhaps is?"""
    return (
        bool(t.accepted)
        and all(map(perhaps, t.accepted))
        and all(any(w is a for a in t.accepted) for w in t.wrongs if surely(w))
    )


def largest_error(t):
    return max((max(w.errors) for w in t.accepted), default=0)


def relative(found, slopes):
    return np.linalg.norm(found - slopes) <= 1e-3 * np.linalg.norm(slopes)


def normal(y):
    return np.random.default_rng(1).standard_normal(y.shape)


def entries(x):
    """A direction for each entry."""
    return np.eye(x.size).reshape(-1, *x.shape)


def blind(
    name, sign, says, asks, *, h=1e-5, dy=normal, dy_of_L=None, along=entries, agree=relative, over=all, dtype=float
):
    """List a check that is right but for what is given, and the sign by which it is known."""

    def wrong(forward, backward, inputs, constants):
        inputs = {key: x.astype(dtype) for key, x in inputs.items()}
        y = forward(**inputs, **constants)
        gradients, answers = backward(dy(y), **inputs, **constants), []
        for key, x in inputs.items():
            us = along(x).astype(dtype)
            ahead, back = ([forward(**{**inputs, key: x + dtype(t) * u}, **constants) for u in us] for t in (h, -h))
            slopes = [((dy_of_L or dy)(y) * (a - b)).sum() / (2 * h) for a, b in zip(ahead, back, strict=True)]
            answers.append(agree(np.array([(gradients[f"d{key}"] * u).sum() for u in us]), np.array(slopes)))
        return bool(over(answers))

    wrong.__name__ = name
    check.mistake(says, asks)(wrong)
    SIGNS[name] = sign


blind(
    "always_true",
    lambda t: len(t.accepted) == len(t.wrongs) and not t.rejected,
    "it accepts everything",
    "Which wrong gradient have you tried it on?",
    agree=lambda found, slopes: True,
)
blind(
    "float32",
    lambda t: not t.doubles(),
    "it computes in float32, of whose seven digits the difference of two y leaves none",
    "How many digits do y(x + h) and y(x - h) share, and how many are left?",
    dtype=np.float32,
    h=1e-4,
)
blind(
    "step_too_small",
    lambda t: t.rejected and 0 < t.step() < 2e-7 and t.doubles(),
    "its step h is so small that the difference of two y is rounding",
    "y has 16 digits: if h is 1e-8, how many does y(x + h) - y(x - h) have?",
    h=1e-9,
)
blind(
    "step_too_large",
    lambda t: BESIDE_A_KINK in t.names() and t.step() > 1.5e-4 and t.doubles(),
    "its step h is so large that it reaches over a kink",
    "How near may a kink be, and how far do you go?",
    h=1e-2,
)
blind(
    "dy_of_ones",
    lambda t: t.accepted and t.dys and all(np.ptp(dy) == 0 for dy in t.dys),
    "its dy is the same number everywhere, as when L is the sum of y: what a gradient does with dy is not seen",
    "What is the gradient of softmax for a dy of ones, and would a wrong sign in it be seen?",
    dy=np.ones_like,
)
blind(
    "always_false",
    lambda t: len(t.rejected) == len(functions(0)),
    "it rejects every right gradient",
    "What slope does your check measure in the example of the statement, and with which dy is L made?",
    dy_of_L=lambda y: normal(y)[::-1],
)
blind(
    "all_entries_moved_alike",
    lambda t: t.accepted and all(np.ptp(d) < 1e-3 * d.max() for moves in t.moves.values() for d in moves if d.size > 1),
    "it moves all entries of an input by the same amount, and so sees the sum of the gradient's entries alone",
    "Two entries of dx are exchanged: does your check see it?",
    along=lambda x: np.ones((1, *x.shape)),
)
blind(
    "some_entries",
    lambda t: t.accepted and any(moves and not np.all(np.any(moves, axis=0)) for moves in t.moves.values()),
    "it looks at some entries of a gradient, and the others may be anything",
    "The last sample is left out of dW: which entries show it?",
    along=lambda x: entries(x)[:1],
)
blind(
    "one_tensor",
    lambda t: t.accepted and any(same_list(t.accepted, [w for w in t.wrongs if w.errors[k] < OFF]) for k in (0, -1)),
    "one of the gradients decides alone: the answers for the others are lost, or never asked for",
    "How many inputs are there, and when is your answer certain: at the first wrong one, or at the first right one?",
    over=lambda answers: answers[-1],
)
blind(
    "any_tensor",
    lambda t: t.accepted and same_list(t.accepted, [w for w in t.wrongs if min(w.errors) < OFF]),
    "it is content when one of the gradients is right",
    "dx is right and dW is not: what must the answer be?",
    over=any,
)
blind(
    "absolute_tolerance",
    lambda t: t.accepted and all(w.function.name[0] == "1" for w in t.accepted),
    "its tolerance is absolute, and where gradients are small anything passes (np.allclose has atol=1e-8)",
    "If y is divided by a million, does a wrong gradient become right?",
    agree=lambda found, slopes: np.allclose(found, slopes, rtol=1e-4, atol=1e-4),
)
blind(
    "sizes_alone",
    lambda t: all_but_some(
        t,
        lambda w: all(abs(abs(c) - 1) < 1e-9 for c in w.cosines) and all_near(w.sizes, 1e-9),
        lambda w: all_near(w.sizes, OFF),
    ),
    "it compares sizes alone: a wrong sign, or a right norm in a wrong direction, passes",
    "What is left of a minus sign in a norm, or in an absolute value?",
    agree=lambda found, slopes: abs(np.linalg.norm(found) / np.linalg.norm(slopes) - 1) < 1e-3,
)
blind(
    "directions_alone",
    lambda t: all_but_some(t, lambda w: all_near(w.cosines, 1e-9), lambda w: all_near(w.cosines, OFF)),
    "it compares directions alone, as a cosine does: a missing or double factor passes",
    "A gradient is counted twice: what is its cosine with the true one?",
    agree=lambda found, slopes: found @ slopes > 0.99999 * np.linalg.norm(found) * np.linalg.norm(slopes),
)
blind(
    "tolerance_too_large",
    lambda t: all_but_some(
        t,
        lambda w: max(w.errors) < max(0.4 * largest_error(t), 1.6e-2),
        lambda w: 5e-3 < max(w.errors) < 0.6,
    ),
    "its tolerance is so large that what is off by little passes",
    "By how much, relative to its norm, is a wrong gradient off at least?",
    agree=lambda found, slopes: np.linalg.norm(found - slopes) <= 0.3 * np.linalg.norm(slopes),
)
blind(
    "zero_entries",
    lambda t: not t.accepted and with_zeros(t) <= t.names() <= with_zeros(t) | {SMALL_SLOPES},
    "it divides by each entry of the gradient, and an entry may be 0",
    "Which entries of an embedding's gradient are 0, and what does your check divide by there?",
    agree=lambda found, slopes: np.all(np.abs(found - slopes) / np.abs(slopes) < 1e-3),
)
blind(
    "tolerance_too_small",
    lambda t: (
        SMALL_SLOPES in t.names()
        and len(t.names()) < len(functions(0))
        and not t.accepted
        and 2e-7 < t.step() < 1.5e-4
        and t.doubles()
    ),
    "its tolerance is smaller than what rounding and the step make of a right gradient",
    "How many digits of the slope are left where y is a million times larger?",
    agree=lambda found, slopes: np.linalg.norm(found - slopes) <= 1e-7 * np.linalg.norm(slopes),
)


# ---- what the inputs hide ----


class Inputs(Graded):
    """lora_case(): a mistake of LoRA's gradient is hidden where it gives the true numbers, whatever dy is."""

    def compared(self, function, seed):
        try:
            found = self.hidden(function, seed)
        except Refused as refused:
            return Checked([Finding(self.name, refused.kind, refused.says, refused.asks)])
        if not found:
            return Checked([right(self.name)])
        case = self.case_of(function, seed)
        so = [name for name in self.mistakes if BLIND_SPOTS[name][0](case.inputs | case.constants)]
        alone = {name: self.hidden(self.mistakes[name].wrong, seed) for name in so}
        widest = [name for name, hidden in alone.items() if not any(hidden < other for other in alone.values())]
        faults = problems()["low_rank"].faults
        first = faults[min(found, key=list(faults).index)]
        says = words(
            "with these inputs {hidden} of {all} wrong gradients give the true numbers",
            hidden=str(len(found)), all=str(len(faults)),
        )  # fmt: skip
        if not so or found != self.hidden(changed(so), seed):
            asks = words("One is hidden: {says}. Why?", says=first.says.filled(it="dA"))
            return Checked([Finding(self.name, "unknown", says, asks)])
        return Checked(
            [
                Finding(self.name, "fault", words("{score}: {says}", score=says, says=m.says), m.asks, m.name)
                for m in (self.mistakes[name] for name in widest)
            ]
        )

    @property
    def results(self):
        return [self.name]

    def cases(self, seed=0):
        return [{"rng": np.random.default_rng([seed, 5])}]

    def hidden(self, function, seed):
        """Names of the mistakes that change no number."""
        case = self.case_of(function, seed)
        bank = problems()["low_rank"]
        true = apply(bank.backward, case)
        return {
            name
            for name, fault in bank.faults.items()
            if all(
                relative_error(a, true[it]) < 1e-9 or np.array_equal(a, true[it])
                for it, a in apply(fault.wrong, case).items()
            )
        }

    def case_of(self, function, seed):
        """The learner's inputs with a random dy. Raises Refused where they do not fit together."""
        inputs, constants = self.run(function, self.cases(seed)[0]).values()
        for given, names in ((inputs, "x A B"), (constants, "W keep alpha r p")):
            if not isinstance(given, dict) or list(given) != names.split():
                says = words(
                    "{it} must return two dicts, of {inputs}, and of {constants}, in this order",
                    it=self.name,
                    inputs="x, A, B",
                    constants="W, keep, alpha, r, p",
                )
                raise Refused("shape", says)
        arrays = {
            name: np.asarray(value)
            for name, value in (inputs | constants).items()
            if name in ("x", "A", "B", "W", "keep")
        }
        try:
            rows, (r, n_in), (n_out, _) = arrays["x"].shape[:-1], arrays["A"].shape, arrays["B"].shape
        except ValueError:
            rows, r, n_in, n_out = (), 0, 0, 0
        shapes = {"x": (*rows, n_in), "A": (r, n_in), "B": (n_out, r), "W": (n_out, n_in), "keep": (*rows, n_in)}
        wrong = [name for name, value in arrays.items() if value.shape != shapes[name] or max(value.shape) > 10]
        if wrong or len(rows) != 2 or constants["r"] != r:
            name = wrong[0] if wrong else "x" if len(rows) != 2 else "r"
            raise Refused("shape", words("{it}: the shapes do not fit together, or are above 10", it=name))
        p, kept = constants["p"], arrays["keep"] != 0
        if not 0 <= p < 1 or not np.allclose(arrays["keep"], kept / (1 - p)):
            raise Refused("keep", words("keep is not 0 where x is dropped and 1/(1-p) elsewhere"))
        for name, value in arrays.items():
            if value.dtype != np.float64:
                raise Refused("type", words("{it} is not an array of float64", it=name))
        dy = np.random.default_rng([seed, 6]).standard_normal((*rows, n_out))
        return Case(dy, inputs, constants)


inputs_for_lora = Inputs(lora_case, "inputs constants")


BLIND_SPOTS: dict[str, Any] = {}  # {name: (is it so in these inputs and constants?, changes)}


def changed(names):
    """The solution's lora_case, but for the changes of these blind spots."""

    def wrong(rng):
        inputs, constants = lora_case(rng)
        given = inputs | constants
        for name in names:
            given |= {key: change(given) for key, change in BLIND_SPOTS[name][1].items()}
        return {key: given[key] for key in inputs}, {key: given[key] for key in constants}

    return wrong


def hides(name, so, says, asks, **changes):
    """List inputs that are the solution's but for `changes`, functions of what is given."""
    BLIND_SPOTS[name] = so, changes
    wrong = changed([name])
    wrong.__name__ = name
    inputs_for_lora.mistake(says, asks)(wrong)


hides(
    "B_is_zero",
    lambda g: not np.any(g["B"]),
    "B = 0, as at the start of training: what has B as a factor is then 0, right or wrong, and dx has one path",
    "What is left of dA and of dx where B = 0?",
    B=lambda g: 0 * g["B"],
)
hides(
    "A_is_zero",
    lambda g: not np.any(g["A"]),
    "A = 0: what has A as a factor is then 0, right or wrong, and dx has one path",
    "What is left of dB and of dx where A = 0?",
    A=lambda g: 0 * g["A"],
)
hides(
    "rank_of_one",
    lambda g: g["r"] == 1,
    "r = 1: dividing by r, by √r or not at all is the same",
    "For which r do α, α/√r and α/r differ?",
    A=lambda g: g["A"][:1],
    B=lambda g: g["B"][:, :1],
    r=lambda g: 1,
)
hides(
    "alpha_is_r",
    lambda g: g["alpha"] == g["r"],
    "α = r, so that the scale is 1: one that is missing, doubled or upside down is not seen",
    "By which numbers can you multiply without a trace?",
    alpha=lambda g: float(g["r"]),
)
hides(
    "no_dropout",
    lambda g: np.all(g["keep"] == 1),
    "nothing is dropped: no mistake with the mask is seen",
    "Where can a mask that is forgotten be seen?",
    keep=lambda g: np.ones_like(g["keep"]),
    p=lambda g: 0.0,
)
hides(
    "one_row",
    lambda g: g["x"].shape[:2] == (1, 1),
    "there is one row, one sample of one token: a mean over rows, or a product of sums, is the same as the sum",
    "Over what are dA and dB summed?",
    x=lambda g: g["x"][:1, :1],
    keep=lambda g: g["keep"][:1, :1],
)
hides(
    "one_sample",
    lambda g: len(g["x"]) == 1,
    "there is one sample: a loop that keeps the last one only is not seen",
    "Over what are dA and dB summed?",
    x=lambda g: g["x"][:1],
    keep=lambda g: g["keep"][:1],
)
hides(
    "no_base",
    lambda g: not np.any(g["W"]),
    "W = 0: the base path of dx, missing, doubled or scaled, is not seen",
    "By how many paths does x reach y?",
    W=lambda g: 0 * g["W"],
)


EXERCISE = Exercise(
    title="Write the gradient check",
    kind="write the test",
    minutes=40,
    difficulty=3,
    needs=["03"],
    parts=[check, inputs_for_lora],
    hints=(
        "L = Σ dy ∘ y is one number. Move one entry of one input by h either way, and see by how much L changes.",
        "What must a difference be small beside, for the answer not to depend on the unit of y? And at which values of "
        "A, B, α, r, p and how many rows would a mistake in LoRA's backward change nothing?",
    ),
    viva=[
        Viva(
            "Why must dy be random?",
            "With a dy of ones the gradient of anything whose outputs have a fixed sum, as softmax, is 0, and that of "
            "many a mistake too; and a dy that is left out is not seen.",
            "So that the check is different each time.",
        ),
        Viva(
            "Why not h = 1e-12? A smaller step is a better derivative.",
            "The error of the step falls as h², and that of rounding grows as 1e-16 |y|/h. The best h lies near the "
            "cube root of 1e-16.",
            "It is slower.",
        ),
    ],
    asks=["B6"],
)
