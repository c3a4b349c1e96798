"""06 · Seven adapters that do not adapt

Each of the seven classes below was published as LoRA, or happened to people
who meant it to be; each is rewritten here in a few lines. None adapts.

    adapter = Class(weights, r, alpha, rng)
    adapter.trained                {name: array}, all that the optimizer gets,
                                   which changes these arrays in place
    adapter.forward(x)             y; x (batch, tokens, in)
    adapter.merge()                {name: W}: all weights, the update added
    Class.base(weights, x)         the frozen model's y; it is right as it is

weights is {name: W (out, in)}, and stays as it is. The factors of the weight n
are trained[n + ".A"] (r, in) and trained[n + ".B"] (out, r); its update is
α/r B A. Class.targets holds the last parts of the names that get factors.

First write five(make, weights, r, alpha). It makes an adapter of the class
make and returns five bools, in this order:

    start   before training, forward gives what base gives
    learns  before training, the output has a slope in what is trained:
            moving all of it at random by 1e-6 moves the output by far more
            than 1e-6 squared
    count   trained holds r (in + out) numbers for each target, and no others
    scale   for each target, merge() minus W is α/r B A
    merge   base of the merged weights gives what forward gives, the adapter's
            forward is the same after merge(), and weights are as they were

x is the input of the first weight, whose in it has. Then repair the seven,
until all five hold of each. forward may add s (x Aᵀ) Bᵀ or use merged weights.

By hand: W is 4 × 3, r = 2, α = 6. There are 2 (3 + 4) = 14 numbers to train,
and where A and B are all ones, each entry of the update is 6/2 · 2 = 6.
"""

import numpy as np


def five(make, weights, r, alpha):
    """Return start, learns, count, scale, merge.

    >>> five(ScaleLeftOut, {"proj": np.ones((4, 3))}, 2, 6.0)
    (True, True, True, True, True)
    """
    ### BEGIN SOLUTION
    rng, before = np.random.default_rng(0), {name: W.copy() for name, W in weights.items()}
    x = rng.standard_normal((2, 3, next(iter(weights.values())).shape[1]))
    targets = [name for name in weights if name.split(".")[-1] in make.targets]
    adapter = make(weights, r, alpha, rng)
    trained, y = adapter.trained, adapter.forward(x)

    def move(size):
        for array in trained.values():
            array += size * rng.standard_normal(array.shape)

    start = np.allclose(y, make.base(before, x))
    count = sum(a.size for a in trained.values()) == sum(r * sum(weights[name].shape) for name in targets)
    move(1e-6)
    learns = np.abs(adapter.forward(x) - y).max() > 1e-9
    move(1.0)
    y, merged = adapter.forward(x), adapter.merge()
    scale = all(
        f"{n}.A" in trained and np.allclose(merged[n] - before[n], alpha / r * trained[f"{n}.B"] @ trained[f"{n}.A"])
        for n in targets
    )
    merge = np.allclose(make.base(merged, x), y) and np.allclose(adapter.forward(x), y)
    unchanged = all(np.array_equal(weights[name], before[name]) for name in before)
    return bool(start), bool(learns), bool(count), bool(scale), bool(merge and unchanged)
    ### END SOLUTION


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def start(W, r, rng):
    """A and B of exercise 02."""
    return rng.uniform(-1, 1, (r, W.shape[1])) / np.sqrt(W.shape[1]), np.zeros((len(W), r))


def linear(weights, x):
    return x @ weights["proj"].T


def attention(weights, x):
    q, k, v = (x @ weights[name].T for name in ("q_proj", "k_proj", "v_proj"))
    return softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])) @ v


def classifier(weights, x):
    return np.tanh(x @ weights["encoder"].T).mean(axis=1) @ weights["head"].T


def layers(weights, x):
    for W in weights.values():
        x = np.tanh(x @ W.T)
    return x


class SoftmaxOverTheRank:
    """(a) A "LoRA adapter" of an article's interview questions."""

    base, targets = staticmethod(linear), ("proj",)

    def __init__(self, weights, r, alpha, rng):
        ### BEGIN SOLUTION
        self.W, self.s = weights["proj"], alpha / r
        A, B = start(self.W, r, rng)
        self.trained = {"proj.A": A, "proj.B": B}
        ### END SOLUTION
        #| self.W = weights["proj"]
        #| n_out, n_in = self.W.shape
        #| A, B, gate = rng.random((r, n_in)), rng.random((n_out, r)), rng.random((r, n_in))
        #| self.trained = {"proj.A": A, "proj.B": B, "gate": gate, "bias": rng.random(n_out)}

    def forward(self, x):
        ### BEGIN SOLUTION
        A, B = self.trained.values()
        return x @ self.W.T + self.s * (x @ A.T) @ B.T
        ### END SOLUTION
        #| A, B, _, bias = self.trained.values()
        #| return softmax(x @ A.T) @ B.T + bias

    def merge(self):
        ### BEGIN SOLUTION
        A, B = self.trained.values()
        return {"proj": self.W + self.s * B @ A}
        ### END SOLUTION
        #| return {"proj": self.trained["proj.B"] @ self.trained["proj.A"]}


class FactorsForWeights:
    """(b) "Decompose the weights of attention": q and v are to be adapted."""

    base, targets = staticmethod(attention), ("q_proj", "v_proj")

    def __init__(self, weights, r, alpha, rng):
        self.weights, self.s, self.trained = weights, alpha / r, {}
        for name in self.targets:
            self.trained[f"{name}.A"], self.trained[f"{name}.B"] = start(weights[name], r, rng)

    def forward(self, x):
        ### BEGIN SOLUTION
        return attention(self.merge(), x)
        ### END SOLUTION
        #| q, v = (x @ self.trained[f"{name}.A"].T @ self.trained[f"{name}.B"].T for name in self.targets)
        #| k = x @ self.weights["k_proj"].T
        #| return softmax(q @ k.swapaxes(-1, -2)) @ v

    def merge(self):
        ### BEGIN SOLUTION
        updates = {name: self.s * self.trained[f"{name}.B"] @ self.trained[f"{name}.A"] for name in self.targets}
        return self.weights | {name: self.weights[name] + update for name, update in updates.items()}
        ### END SOLUTION
        #| updates = {name: self.s * self.trained[f"{name}.B"] @ self.trained[f"{name}.A"] for name in self.targets}
        #| return self.weights | updates


class NeverCalled:
    """(c) A classifier with `self.lora`, and an optimizer that gets model.parameters()."""

    base, targets = staticmethod(classifier), ("encoder",)

    def __init__(self, weights, r, alpha, rng):
        self.weights, self.s = weights, alpha / r
        A, B = start(weights["encoder"], r, rng)
        ### BEGIN SOLUTION
        self.trained = {"encoder.A": A, "encoder.B": B}
        ### END SOLUTION
        #| self.weights = {name: W.copy() for name, W in weights.items()}
        #| self.trained = {"encoder.A": A, "encoder.B": B} | self.weights

    def forward(self, x):
        ### BEGIN SOLUTION
        return classifier(self.merge(), x)
        ### END SOLUTION
        #| return classifier(self.weights, x)

    def merge(self):
        update = self.s * self.trained["encoder.B"] @ self.trained["encoder.A"]
        return self.weights | {"encoder": self.weights["encoder"] + update}


class ScaleLeftOut:
    """(d) Small code that is copied much: alpha is taken, and not used."""

    base, targets = staticmethod(linear), ("proj",)

    def __init__(self, weights, r, alpha, rng):
        ### BEGIN SOLUTION
        self.W, self.s = weights["proj"], alpha / r
        ### END SOLUTION
        #| self.W = weights["proj"]
        self.A, self.B = start(self.W, r, rng)
        self.trained = {"proj.A": self.A, "proj.B": self.B}

    def forward(self, x):
        ### BEGIN SOLUTION
        return x @ self.W.T + self.s * (x @ self.A.T) @ self.B.T
        ### END SOLUTION
        #| return x @ self.W.T + (x @ self.A.T) @ self.B.T

    def merge(self):
        ### BEGIN SOLUTION
        return {"proj": self.W + self.s * self.B @ self.A}
        ### END SOLUTION
        #| return {"proj": self.W + self.B @ self.A}


class BothZero:
    """(e) "Zeros, so that the output is unchanged at first": in four code bases."""

    base, targets = staticmethod(linear), ("proj",)

    def __init__(self, weights, r, alpha, rng):
        self.W, self.s = weights["proj"], alpha / r
        ### BEGIN SOLUTION
        self.A, self.B = start(self.W, r, rng)
        ### END SOLUTION
        #| self.A, self.B = np.zeros((r, self.W.shape[1])), np.zeros((len(self.W), r))
        self.trained = {"proj.A": self.A, "proj.B": self.B}

    def forward(self, x):
        return x @ self.W.T + self.s * (x @ self.A.T) @ self.B.T

    def merge(self):
        return {"proj": self.W + self.s * self.B @ self.A}


class MergedAndStillOn:
    """(f) Merged for inference, as in many a server."""

    base, targets = staticmethod(linear), ("proj",)

    def __init__(self, weights, r, alpha, rng):
        self.weights, self.s = dict(weights), alpha / r
        self.A, self.B = start(weights["proj"], r, rng)
        self.trained = {"proj.A": self.A, "proj.B": self.B}

    def forward(self, x):
        return linear(self.weights, x) + self.s * (x @ self.A.T) @ self.B.T

    def merge(self):
        ### BEGIN SOLUTION
        return {"proj": self.weights["proj"] + self.s * self.B @ self.A}
        ### END SOLUTION
        #| self.weights["proj"] = self.weights["proj"] + self.s * self.B @ self.A
        #| return self.weights


class NamesThatMatchNothing:
    """(g) Attached by name, to square matrices: with grouped queries v is not square."""

    base, targets = staticmethod(layers), ("q_proj", "v_proj")

    def __init__(self, weights, r, alpha, rng):
        self.weights, self.s, self.trained = weights, alpha / r, {}
        ### BEGIN SOLUTION
        chosen = [name for name in weights if name.split(".")[-1] in self.targets]
        ### END SOLUTION
        #| chosen = [name for name, W in weights.items() if name in self.targets and W.shape[0] == W.shape[1]]
        for name in chosen:
            self.trained[f"{name}.A"], self.trained[f"{name}.B"] = start(weights[name], r, rng)

    def forward(self, x):
        return layers(self.merge(), x)

    def merge(self):
        merged = dict(self.weights)
        for name in {key[:-2] for key in self.trained}:
            merged[name] = merged[name] + self.s * self.trained[f"{name}.B"] @ self.trained[f"{name}.A"]
        return merged


### THE CHECK

import copy
import functools
from pathlib import Path

from ...adapters.lora import LoRALinear
from ...nn import Linear
from ...verify.explanations.finding import Finding
from ...verify.language import words
from ..exercise import MARK, SOLUTION, Exercise, Viva, in_its_place
from ..parts import Checked, Graded, Refused, Value, line_of, right, same

# names and shapes of the weights, in letters whose sizes are drawn
WEIGHTS = {
    linear: {"proj": "oi"},
    attention: {"q_proj": "ki", "k_proj": "ki", "v_proj": "oi"},
    classifier: {"encoder": "oi", "head": "ko"},
    layers: {"0.q_proj": "ii", "0.v_proj": "oi", "0.up_proj": "ko"},
}


class Library:
    """The library's own layer. It is right."""

    base, targets = staticmethod(linear), ("proj",)

    def __init__(self, weights, r, alpha, rng):
        self.layer = LoRALinear(Linear(weights["proj"].copy()), r=r, alpha=alpha, rng=rng)
        self.trained = {"proj.A": self.layer.lora_A.data, "proj.B": self.layer.lora_B.data}

    def forward(self, x):
        return self.layer.forward(x)[0]

    def merge(self):
        return {"proj": self.layer.merged()[0]}


@functools.cache
def published():
    """The seven as the learner finds them, by name."""
    space = {}
    exec(SOLUTION.sub(in_its_place, Path(__file__).read_text(encoding="utf-8").partition(MARK)[0]), space)
    return space


SEVEN = [
    SoftmaxOverTheRank,
    FactorsForWeights,
    NeverCalled,
    ScaleLeftOut,
    BothZero,
    MergedAndStillOn,
    NamesThatMatchNothing,
]


def draw(make, rng):
    """Arguments of five: all sizes differ."""
    i, o, k = (int(n) for n in rng.permutation([4, 5, 6, 7])[:3])
    sizes = {"i": i, "o": o, "k": k}
    shapes = WEIGHTS[next(base for base in WEIGHTS if base.__name__ == make.base.__name__)]
    weights = {name: rng.standard_normal([sizes[letter] for letter in shape]) for name, shape in shapes.items()}
    return {"make": make, "weights": weights, "r": int(rng.integers(2, 4)), "alpha": float(rng.uniform(5, 9))}


class Five(Value):
    """The learner's assertions, on the library's layer and on the seven as they are found."""

    def cases(self, seed=0):
        makes = [Library, *(published()[make.__name__] for make in SEVEN)]
        return [draw(make, np.random.default_rng([seed, i, 7])) for i, make in enumerate(makes)]


assertions = Five(five, "start learns count scale merge", truth=five)


def instead(place):
    """Decorate a value of five() in the place of the right one."""

    def of(value):
        @functools.wraps(value)
        def wrong(make, weights, r, alpha):
            found = list(five(make, weights, r, alpha))
            found[place] = bool(value(make, weights, r, alpha))
            return tuple(found)

        return wrong

    return of


def made(make, weights, r, alpha, size=1.0):
    """An adapter whose trained numbers were moved by this, and x."""
    rng = np.random.default_rng(1)
    adapter = make(weights, r, alpha, rng)
    for array in adapter.trained.values():
        array += size * rng.standard_normal(array.shape)
    return adapter, rng.standard_normal((2, 3, next(iter(weights.values())).shape[1]))


def targets_of(make, weights):
    return [name for name in weights if name.split(".")[-1] in make.targets]


def updates(adapter, make, weights, scale):
    """Is the update of each target scale · B A?"""
    merged, t = adapter.merge(), adapter.trained
    return all(
        f"{n}.A" in t and np.allclose(merged[n] - weights[n], scale * t[f"{n}.B"] @ t[f"{n}.A"])
        for n in targets_of(make, weights)
    )


@assertions.mistake("{it} compares shapes, and every layer passes", "Would the base without any adapter fail?")
@instead(0)
def start_by_shape(make, weights, r, alpha):
    adapter, x = made(make, weights, r, alpha, 0.0)
    return adapter.forward(x).shape == make.base(weights, x).shape


@assertions.mistake(
    "{it} is looked at after the factors have moved, when the output must differ from the base's",
    "For how long is B A = 0?",
)
@instead(0)
def start_after_training(make, weights, r, alpha):
    adapter, x = made(make, weights, r, alpha)
    return np.allclose(adapter.forward(x), make.base(weights, x))


@assertions.mistake(
    "{it} asks for a slope in each array by itself, which a right adapter lacks at its start: dA is 0 while B is",
    "Which gradient is zero in the first step of a right adapter?",
)
@instead(1)
def slope_in_each(make, weights, r, alpha):
    found = []
    for i in range(len(make(weights, r, alpha, np.random.default_rng(1)).trained)):
        adapter, x = made(make, weights, r, alpha, 0.0)
        y, array = adapter.forward(x), list(adapter.trained.values())[i]
        array += 1e-6
        found.append(np.abs(adapter.forward(x) - y).max() > 1e-9)
    return found and all(found)


@assertions.mistake(
    "{it} takes a large step, which moves the output also where the slope is 0",
    "A = B = 0, and both move by h: by which power of h does the output move?",
)
@instead(1)
def large_step(make, weights, r, alpha):
    adapter, x = made(make, weights, r, alpha, 0.0)
    after, _ = made(make, weights, r, alpha)
    return np.abs(after.forward(x) - adapter.forward(x)).max() > 1e-9


@assertions.mistake("{it} accepts any number above 0", "How many entries do A and B of each target have?")
@instead(2)
def any_count(make, weights, r, alpha):
    return sum(a.size for a in make(weights, r, alpha, np.random.default_rng(1)).trained.values()) > 0


@assertions.mistake(
    "{it} expects the numbers of B A, in · out, and not those of A and B", "What is trained: B A, or A and B?"
)
@instead(2)
def count_of_the_product(make, weights, r, alpha):
    trained = make(weights, r, alpha, np.random.default_rng(1)).trained
    return sum(a.size for a in trained.values()) == sum(r * weights[n].size for n in targets_of(make, weights))


@assertions.mistake(
    "{it} is looked at while B = 0, where every scale gives the same update",
    "By which factor can you multiply B A = 0 without a trace?",
)
@instead(3)
def scale_at_the_start(make, weights, r, alpha):
    adapter, _ = made(make, weights, r, alpha, 0.0)
    return updates(adapter, make, weights, alpha / r)


@assertions.mistake("{it} expects α B A, not divided by r", "Which two numbers make up the scale?")
@instead(3)
def scale_is_alpha(make, weights, r, alpha):
    adapter, _ = made(make, weights, r, alpha)
    return updates(adapter, make, weights, alpha)


@assertions.mistake("{it} expects B A, without a scale", "What does the statement say that the update is?")
@instead(3)
def scale_is_one(make, weights, r, alpha):
    adapter, _ = made(make, weights, r, alpha)
    return updates(adapter, make, weights, 1.0)


@assertions.mistake(
    "{it} is looked at while B = 0, where there is nothing to merge",
    "A merge that does nothing: would your assertion see it?",
)
@instead(4)
def merge_at_the_start(make, weights, r, alpha):
    adapter, x = made(make, weights, r, alpha, 0.0)
    y, merged = adapter.forward(x), adapter.merge()
    return np.allclose(make.base(merged, x), y) and np.allclose(adapter.forward(x), y)


@assertions.mistake(
    "{it} does not look at the adapter's own forward after merge()",
    "The update is in the weights, and the low-rank path is still on: how often is it counted?",
)
@instead(4)
def forward_after_the_merge_forgotten(make, weights, r, alpha):
    adapter, x = made(make, weights, r, alpha)
    y = adapter.forward(x)
    return np.allclose(make.base(adapter.merge(), x), y)


# ---- the seven ----


class Adapter(Graded):
    """A class, graded by five() for several shapes."""

    def compared(self, make, seed):
        cases = [draw(self.solution, np.random.default_rng([seed, i, 8])) | {"make": make} for i in range(3)]
        try:
            found = [self.tried(five, case) for case in cases]
            if all(map(all, found)):
                return Checked([right(self.name)])
            mine = [self.tried(self.profile, case) for case in cases]
        except Refused as refused:
            return Checked([Finding(self.name, refused.kind, refused.says, refused.asks)])
        for mistake in self.mistakes.values():
            others = [case | {"make": mistake.wrong} for case in cases]
            if [self.tried(five, case) for case in others] == found and all(
                len(a) == len(b) and all(map(same, a, b))
                for a, b in zip(mine, (self.tried(self.profile, case) for case in others), strict=True)
            ):
                says = mistake.says.filled(it=self.name)
                return Checked([Finding(self.name, "fault", says, mistake.asks, mistake.name)])
        broken = [i for i in range(5) if not all(five_of[i] for five_of in found)]
        return Checked([Finding(self.name, "law", BROKEN[i][0].filled(it=self.name), BROKEN[i][1]) for i in broken])

    def check_forms(self, case):
        """Raise Refused where trained or merge() is not what the statement says."""
        adapter, _ = made(*case.values(), 0.0)
        for what, found in (("trained", adapter.trained), ("merge()", adapter.merge())):
            if not isinstance(found, dict) or not all(isinstance(value, np.ndarray) for value in found.values()):
                says = words("{it}: {what} must be a dict of arrays by name", it=self.name, what=what)
                raise Refused("type", says)
        if missing := [name for name in case["weights"] if name not in adapter.merge()]:
            says = words("{it}: merge() lacks the weight {name}", it=self.name, name=missing[0])
            raise Refused("type", says)

    def tried(self, function, case):
        try:
            self.check_forms(copy.deepcopy(case))
            return function(**copy.deepcopy(case))
        except Refused:
            raise
        except NotImplementedError:
            raise Refused("not written", words("{it} is not written yet", it=self.name)) from None
        except Exception as error:
            message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            says = words("{it} raises {error}", it=self.name, error=message)
            line = line_of(error, case["make"].forward)
            asks = words("It happens in line {line}.", line=str(line)) if line else None
            raise Refused("raises", says, asks) from error

    def profile(self, make, weights, r, alpha):
        """What tells one class from another: its output and merged weights, trained numbers all given."""
        adapter, x = made(make, weights, r, alpha, 0.0)
        rng = np.random.default_rng(2)
        for array in adapter.trained.values():
            array[...] = rng.standard_normal(array.shape)
        y = adapter.forward(x)
        return [y, *adapter.merge().values(), *adapter.trained.values()]


BROKEN = [
    (
        words("{it}: at the start the output is not the base's"),
        words("What must be added to the base's output, and what is it while B = 0?"),
    ),
    (
        words("{it}: the output has no slope in what is trained"),
        words("Which trained array reaches the output, and what is it multiplied by?"),
    ),
    (
        words("{it} does not train r (in + out) numbers for each target, and no others"),
        words("Print the names in trained and their shapes: what is missing, and what is too much?"),
    ),
    (words("{it}: merge() minus W is not α/r B A"), words("Which factors stand in front of B A?")),
    (
        words("{it}: merged and unmerged outputs differ, or weights have changed"),
        words("Which weights does forward use before and after merge(), and is the update in it once?"),
    ),
]

parts = {make.__name__: Adapter(make) for make in SEVEN}


def as_published(name, says, asks):
    parts[name].mistake(says, asks)(published()[name])


as_published(
    "SoftmaxOverTheRank",
    "{it} has no frozen W, starts at random, and takes a softmax over the rank: a gate, not an update of a matrix",
    "What does it give before training, and with which matrix W could its output be written as x Wᵀ?",
)
as_published(
    "FactorsForWeights",
    "{it} uses the factors instead of the weights: what was pretrained is gone, and so is the 1/√d",
    "Where are the pretrained weights of q and v in your output?",
)
as_published(
    "NeverCalled",
    "{it} never uses its factors in forward, and trains all the weights instead",
    "Which of the arrays that the optimizer moves does forward read?",
)
as_published(
    "ScaleLeftOut", "{it} leaves the scale out: α does nothing", "If α is doubled, what becomes of the output?"
)
as_published(
    "BothZero",
    "{it} starts with A = 0 and B = 0, where both gradients are 0 for ever",
    "Write down dA and dB: which matrix stands in each?",
)
as_published(
    "MergedAndStillOn",
    "{it} counts the update twice after merge(): it is in the weights, and the low-rank path is still on",
    "After merge(), by how many paths does the update reach the output?",
)
as_published(
    "NamesThatMatchNothing",
    "{it} adapts nothing: no name equals q_proj or v_proj, and nothing says so",
    "Print the names of the weights: how do they end?",
)


@parts["SoftmaxOverTheRank"].mistake(
    "{it} still has a softmax over the rank: the path is not linear, and cannot be merged",
    "Which operation stands between A and B in the equation?",
)
class SoftmaxKept(SoftmaxOverTheRank):
    def forward(self, x):
        A, B = self.trained.values()
        return x @ self.W.T + self.s * softmax(x @ A.T) @ B.T


@parts["SoftmaxOverTheRank"].mistake(
    "{it} still has no base path: the frozen W is left out of forward",
    "What must the output be where B = 0?",
)
class BranchAlone(SoftmaxOverTheRank):
    def forward(self, x):
        A, B = self.trained.values()
        return self.s * (x @ A.T) @ B.T


@parts["FactorsForWeights"].mistake("{it} leaves out the scale α/r", "If α is doubled, what becomes of the output?")
class NoScale(FactorsForWeights):
    def merge(self):
        self.s = 1.0
        return super().merge()


@parts["NeverCalled"].mistake(
    "{it} uses its factors now, and still trains all the weights",
    "What does the optimizer get?",
)
class AllTrained(NeverCalled):
    def __init__(self, weights, r, alpha, rng):
        super().__init__({name: W.copy() for name, W in weights.items()}, r, alpha, rng)
        self.trained |= self.weights


@parts["NeverCalled"].mistake(
    "{it} trains its factors alone, and forward still does not use them",
    "Which of the arrays that the optimizer moves does forward read?",
)
class StillNotCalled(NeverCalled):
    def forward(self, x):
        return classifier(self.weights, x)


@parts["ScaleLeftOut"].mistake("{it} scales by α, not divided by r", "Which two numbers make up the scale?")
class NotDivided(ScaleLeftOut):
    def __init__(self, weights, r, alpha, rng):
        super().__init__(weights, r, alpha, rng)
        self.s = alpha


@parts["ScaleLeftOut"].mistake(
    "{it} scales in forward, and merge() still does not",
    "In how many places is the update used?",
)
class MergedWithoutScale(ScaleLeftOut):
    def merge(self):
        return {"proj": self.W + self.B @ self.A}


@parts["BothZero"].mistake(
    "{it} starts with both factors random: before training the output is not the base's any more",
    "What must B A be at the start?",
)
class BothRandom(BothZero):
    def __init__(self, weights, r, alpha, rng):
        super().__init__(weights, r, alpha, rng)
        self.B += rng.standard_normal(self.B.shape)


@parts["MergedAndStillOn"].mistake(
    "{it} merges nothing: merge() gives the frozen weights",
    "Which weights does a server get that knows no adapter?",
)
class NothingMerged(MergedAndStillOn):
    def merge(self):
        return dict(self.weights)


class Chosen(NamesThatMatchNothing):
    def __init__(self, weights, r, alpha, rng):
        self.weights, self.s, self.trained = weights, alpha / r, {}
        for name, W in weights.items():
            if self.choose(name, W):
                self.trained[f"{name}.A"], self.trained[f"{name}.B"] = start(W, r, rng)


@parts["NamesThatMatchNothing"].mistake(
    "{it} finds the names, and still adapts square matrices only: v is left out where queries share keys",
    "What shape must W have, for A (r, in) and B (out, r) to fit?",
)
class SquareOnly(Chosen):
    def choose(self, name, W):
        return name.split(".")[-1] in self.targets and W.shape[0] == W.shape[1]


@parts["NamesThatMatchNothing"].mistake("{it} adapts every matrix, not the targets alone", "Which names are targets?")
class EveryMatrix(Chosen):
    def choose(self, name, W):
        return True


EXERCISE = Exercise(
    title="Seven adapters that do not adapt",
    kind="repair",
    minutes=45,
    difficulty=3,
    needs=["01", "02"],
    parts=[assertions, *parts.values()],
    hints=(
        "Write five() first: at the start, B A = 0 hides a scale and a merge, so that these two are looked at after "
        "the trained arrays have been moved. Then let it tell you what is wrong with each class.",
        "All seven end as the same layer, W beside α/r B A. What does each read in forward, what does each train, and "
        "what is added to which weights in merge()?",
    ),
    viva=[
        Viva(
            "It trains, the loss does not fall, and the output does not change. Which causes do you look for?",
            "Names that matched nothing, factors that forward never reads, A and B both zero, an optimizer that holds "
            "other arrays than forward reads. The count of trained numbers and one gradient tell them apart.",
            "The learning rate is too low; train longer.",
        ),
        Viva(
            "Why must a merge not be tested right after attaching?",
            "B = 0 there, so that the update is 0: no merge, a merge without the scale and a double one all pass.",
            "It may be, the outputs agree to the last digit.",
        ),
    ],
    asks=["F8", "J4", "J5"],
    derivation="lora",
)
