"""What may be wrong with one tensor. An explanation is given only if it holds on every case to 1e-7.

The first half compares values alone, and so works for any function; the second needs a problem's faults, terms and
source.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..backend import Array
from .mutants import calls, fault_within, mutants_of
from .problem import Case, Fault, Problem, Tensors, Words, apply, relative_error
from .scale import SAME, proportion, readings


@dataclass(frozen=True)
class Finding:
    """What was found out about one tensor. `kind`: right, random, shape, fault, scale, terms, mutant, law, unknown."""

    tensor: str
    kind: str
    says: Words
    asks: Words | None = None
    name: str = ""  # of the fault

    def text(self, language: str = "en") -> str:
        words = [self.says.in_language(language)]
        if self.asks:
            words.append(self.asks.in_language(language))
        return "\n    ".join(words)


@dataclass
class Wrong:
    """One wrong tensor. `given` and `truth` hold all tensors of each case, `sizes` the numbers a scale may be made of.

    `exact`: the cases are those of the problem, in which no constant hides another.
    """

    tensor: str
    given: Sequence[Tensors]
    truth: Sequence[Tensors]
    problem: Problem
    cases: Sequence[Case]
    sizes: Sequence[Mapping[str, float]]
    exact: bool
    known: dict[tuple[str, int], Tensors] = field(default_factory=dict)  # what faults return, shared by the tensors

    @cached_property
    def mine(self) -> list[Array]:
        return [tensors[self.tensor] for tensors in self.given]

    @cached_property
    def true(self) -> list[Array]:
        return [tensors[self.tensor] for tensors in self.truth]

    def where(self, kept: Sequence[bool]) -> Wrong:
        """In these of the cases."""
        chosen = [i for i, keep in enumerate(kept) if keep]

        def of(values: Sequence[Any]) -> list[Any]:
            return [values[i] for i in chosen]

        return replace(self, given=of(self.given), truth=of(self.truth), cases=of(self.cases), sizes=of(self.sizes))

    def wrong(self, fault: Fault, i: int) -> Tensors:
        """What the fault makes of case i; nothing where it is made for the shapes of the problem's own cases."""
        key = fault.name, id(self.cases[i])
        if key not in self.known:
            try:
                with np.errstate(all="ignore"):
                    self.known[key] = apply(fault.wrong, self.cases[i])
            except (ValueError, IndexError, TypeError, ZeroDivisionError):
                self.known[key] = {}
        return self.known[key]

    def all_wrong(self, name: str) -> list[Array]:
        """What the fault of this name makes of the tensor in every case."""
        fault = self.problem.faults[name]
        return [self.wrong(fault, i).get(self.tensor, np.zeros(0)) for i in range(len(self.cases))]

    def times(self, mine: Sequence[Array], other: Sequence[Array]) -> list[str]:
        """As what product of constants `mine` is a multiple of the other tensors, if it is one."""
        factors = []
        for a, b in zip(mine, other, strict=True):
            c = proportion(a, b)
            if c is None:
                return []
            factors.append(c)
        return readings(factors, self.sizes)

    def finding(self, kind: str, en: str, zh: str, ask_en: str = "", ask_zh: str = "") -> Finding:
        asks = Words(ask_en, ask_zh) if ask_en else None
        return Finding(self.tensor, kind, Words(f"{self.tensor} {en}", f"{self.tensor} {zh}"), asks)


def agree(mine: Array, true: Array, case: Case) -> bool:
    """Are they the same in this case? Where the true gradient is zero, what rounding leaves of it is zero too."""
    if mine.shape == true.shape and not np.any(true):
        return bool(np.linalg.norm(mine) <= 1e-10 * np.abs(case.dy).sum())
    return relative_error(mine, true) < SAME


def same(a: Sequence[Array], b: Sequence[Array]) -> bool:
    return all(relative_error(x, y) < SAME for x, y in zip(a, b, strict=True))


def sizes_of(cases: Sequence[Case]) -> list[dict[str, float]]:
    """Of each case, all numbers that a wrong scale may be made of; those that are always equal share a name.

    Those that the case names, then its constants, n - 1 for each length n that it names, the lengths of its axes, and
    what can be counted in its masks and labels.
    """
    names: dict[tuple[float, ...], list[str]] = {}
    numbers = [numbers_of(case) for case in cases]
    for name in numbers[0]:
        values = tuple(of.get(name, 0) for of in numbers)
        if min(values) > 0 and set(values) != {1}:
            names.setdefault(values, []).append(name)
    named = [(values, alike(found)) for values, found in names.items()][:12]
    return [{name: values[i] for values, name in named} for i in range(len(cases))]


def alike(names: Sequence[str]) -> str:
    """One name for what has the same values in every case: "batch or tokens"."""
    given = [name for name in names if "shape[" not in name and not name.endswith("-1")] or list(names)
    return " or ".join(given)


def numbers_of(case: Case) -> dict[str, float]:
    numbers = dict(case.sizes)
    arrays = {name: np.asarray(value) for name, value in case.constants.items()}
    numbers |= {name: float(a) for name, a in arrays.items() if a.ndim == 0 and a.dtype.kind in "iuf"}
    lengths = {length for a in (case.dy, *case.inputs.values()) for length in np.shape(a)}
    numbers |= {f"{name}-1": size - 1 for name, size in case.sizes.items() if size in lengths}
    everything = {"dy": np.asarray(case.dy), **case.inputs, **{name: a for name, a in arrays.items() if a.ndim}}
    for name, a in everything.items():
        numbers |= {f"{name}.shape[{axis}]": float(length) for axis, length in enumerate(a.shape)}
    for name, a in arrays.items():
        if a.ndim and a.dtype.kind in "iu" and np.any(a < 0):
            numbers[f"the number of {name} ≥ 0"] = float((a >= 0).sum())
        elif a.ndim and a.dtype.kind in "bf" and not np.all(a):
            numbers[f"the number of {name} ≠ 0"] = float((a != 0).sum())
            numbers[f"the number of {name} = 0"] = float((a == 0).sum())
    return numbers


def either(found: Sequence[Finding]) -> list[Finding]:
    """Explanations between which the cases cannot decide."""
    return [f if i == 0 else reworded(f, "or: ", "或者：") for i, f in enumerate(found)]


def reworded(f: Finding, en: str, zh: str) -> Finding:
    return Finding(f.tensor, f.kind, Words(en + f.says.en, zh + f.says.zh), f.asks, f.name)


# ---- from values alone ----


def rearranged(w: Wrong) -> Finding | None:
    """The right numbers, or a multiple of them, with axes exchanged."""
    axes = w.mine[0].ndim
    if any(x.ndim != axes for x in w.mine) or axes > 4:
        return None
    for order in itertools.islice(itertools.permutations(range(axes)), 1, None):
        words = w.times([x.transpose(order) for x in w.mine], w.true)
        if words and words[0] != "0":
            turned = axes == 2 or order == (*range(axes - 2), axes - 1, axes - 2)
            listed = ", ".join(map(str, np.argsort(order)))
            en, zh = ("is transposed", "被转置了") if turned else (f"has its axes in the order {listed}",
                                                               f"的轴顺序成了 {listed}")  # fmt: skip
            if words[0] != "1":
                en += ", and " + " or ".join(f"{word} times" for word in words) + " the true gradient"
                zh += "，并且是正确梯度的 " + " 或 ".join(words) + " 倍"
            return w.finding("shape", en, zh)
    return None


def other_tensor(w: Wrong) -> Finding | None:
    """The gradient of another input in its place."""
    for other in w.truth[0]:
        if other != w.tensor and same(w.mine, [t[other] for t in w.truth]):
            return w.finding(
                "terms",
                f"holds the gradient {other}",
                f"的位置上放的是 {other}",
                "Which name did you write twice, or in which order do you return the gradients?",
                "是哪个名字写了两次？或者，你按什么顺序返回这些梯度？",
            )
    return None


def shape(w: Wrong) -> Finding | None:
    """A wrong shape: the right numbers in another one, or not yet summed."""
    mine, true = w.mine, w.true
    if all(x.shape == t.shape for x, t in zip(mine, true, strict=True)):
        return None
    a, b = next((x.shape, t.shape) for x, t in zip(mine, true, strict=True) if x.shape != t.shape)
    if same([x.reshape(-1) for x in mine], [t.reshape(-1) for t in true]):
        return w.finding(
            "shape",
            f"has the right numbers in the shape {a}, it must be {b}",
            f"的数值正确，但形状是 {a}，应为 {b}",
        )
    for n in range(1, mine[0].ndim):
        for axes in itertools.combinations(range(mine[0].ndim), n):
            if same([x.sum(axis=axes) if x.ndim > max(axes) else x for x in mine], true):
                where = ", ".join(map(str, axes))
                return w.finding(
                    "shape", f"is right once it is summed over axis {where}", f"再对第 {where} 轴求和就正确了"
                )
    return w.finding(
        "shape",
        f"has shape {a}, it must have {b}",
        f"的形状是 {a}，应为 {b}",
        f"A gradient has the shape of what it belongs to, {w.tensor[1:]}: which axes are summed over, and in which "
        "order do the factors stand?",
        f"梯度的形状与它所属的 {w.tensor[1:]} 相同：应对哪些轴求和？各因子的先后次序是什么？",
    )


def scaled(w: Wrong) -> Finding | None:
    """The true gradient times a number that is written with the problem's constants."""
    factors = [proportion(a, b) for a, b in zip(w.mine, w.true, strict=True)]
    words = readings([c for c in factors if c is not None], w.sizes) if None not in factors else []
    return multiple(w, words) if words else None


def unread(w: Wrong) -> Finding | None:
    """The true gradient times numbers that no product of constants makes."""
    factors = [proportion(a, b) for a, b in zip(w.mine, w.true, strict=True)]
    if any(c is None for c in factors) or max(t.size for t in w.true) == 1:  # one number is a multiple of any other
        return None
    numbers = ", ".join(f"{c:.4g}" for c in factors)
    en, zh = f"is the true gradient times {numbers}, a number for each case", f"在各案例中分别是正确梯度的 {numbers} 倍"
    if len(w.cases) < 3:
        en += "; to say of which constants that is made takes three cases or more"
        zh += "；要说出它由哪些常数构成，至少需要三个案例"
    else:
        en += "; no product of up to three constants explains them, or more than one does"
        zh += "；至多三个常数的乘积都无法解释，或者能解释的不止一种"
    return w.finding(
        "scale",
        en,
        zh,
        "Print what you multiply and divide by in each case: which of it takes these values?",
        "打印每个案例中你乘以和除以的各个量：哪一个取到了这些值？",
    )


SCALES = {
    "-1": Words("has the wrong sign", "的符号反了"),
    "2": Words("is counted twice", "被算了两次"),
    "0": Words("is zero", "为零"),
}


def multiple(w: Wrong, words: Sequence[str]) -> Finding:
    default = [Words(f"is {word} times the true gradient", f"是正确梯度的 {word} 倍") for word in words]
    phrases = [SCALES.get(word, usual) for word, usual in zip(words, default, strict=True)]
    en, zh = " or ".join(p.en for p in phrases), "，或者".join(p.zh for p in phrases)
    if len(words) > 1:
        en, zh = f"{en}: the same number in these cases", f"{zh}：在这些案例中是同一个数"
    return w.finding("scale", en, zh)


def added(w: Wrong) -> Finding | None:
    """The true gradient plus a multiple of dy, of an input, or of what it belongs to: weight decay, a path too many."""
    if not all(x.shape == t.shape for x, t in zip(w.mine, w.true, strict=True)):
        return None
    own = w.tensor[1:]
    for name in dict.fromkeys(["dy", own, *w.cases[0].inputs]):
        extra = [np.asarray(case.dy if name == "dy" else case.inputs[name]) for case in w.cases]
        fits = fitted(w.mine, [w.true, extra])
        if fits is None or max(x.size for x in extra) < 4:  # of a few numbers, any two tensors make any other
            continue
        whole, parts = readings(fits[:, 0].tolist(), w.sizes), fits[:, 1]
        steady = np.ptp(parts) < 1e-6 * np.abs(parts).max()
        if whole != ["1"] and (name != own or not steady or whole in ([], ["0"])):
            continue
        if len({*np.sign(parts)}) > 1 or not np.any(parts):
            continue
        sizes = readings(np.abs(parts), w.sizes) if not steady else []
        if not steady and not sizes:
            continue
        sizes = sizes or [f"{abs(parts[0]):.4g}"]
        times = "" if sizes == ["1"] else f"{', '.join(sizes)} "
        en = f"is {'' if whole == ['1'] else ' or '.join(whole) + ' times '}the true gradient"
        zh = f"等于正确梯度{'' if whole == ['1'] else '的 ' + ' 或 '.join(whole) + ' 倍'}"
        en, zh = (f"{en} plus {times}{name}", f"{zh}加上 {times}{name}") if parts[0] > 0 else (
            f"{en} minus {times}{name}", f"{zh}减去 {times}{name}")  # fmt: skip
        if name == "dy":
            return w.finding("terms", en, zh, "Is there a path that passes dy on unchanged, and how often?",
                             "有没有一条原样传递 dy 的路径？有几条？")  # fmt: skip
        if name == own and times and steady:
            return w.finding(
                "terms",
                f"{en}: weight decay inside the gradient",
                f"{zh}：梯度中混入了权重衰减",
                f"Does the loss hold a penalty on ‖{own}‖²? If not, who applies weight decay: gradient or optimizer?",
                f"损失里有 ‖{own}‖² 的惩罚项吗？如果没有，权重衰减由谁来做：梯度，还是优化器？",
            )
        return w.finding("terms", en, zh, f"What was in the array before the gradient was added to it, and why {name}?",
                         f"累加梯度之前，数组里是什么？为什么会有 {name}？")  # fmt: skip
    return None


def fitted(mine: Sequence[Array], parts: Sequence[Sequence[Array]]) -> Array | None:
    """The coefficients, a row for each case, with which the parts add up to `mine`; None unless there are just one."""
    rows = []
    for i, target in enumerate(mine):
        if any(part[i].shape != target.shape for part in parts):
            return None
        matrix = np.stack([part[i].reshape(-1) for part in parts], axis=1)
        lengths = np.linalg.norm(matrix, axis=0)
        if not np.all(lengths) or np.linalg.matrix_rank(matrix / lengths, tol=1e-6) < len(parts):
            return None
        solution = np.linalg.lstsq(matrix / lengths, target.reshape(-1))[0]
        if relative_error(matrix / lengths @ solution, target.reshape(-1)) > SAME:
            return None
        small = np.abs(solution) < 1e-9 * np.abs(solution).max()
        rows.append(np.where(small, 0, solution) / lengths)
    return np.array(rows)


def clipped(w: Wrong) -> Finding | None:
    """Cut off at a number, entry by entry, or shortened to a norm."""
    if not all(x.shape == t.shape and x.size > 1 for x, t in zip(w.mine, w.true, strict=True)):
        return None
    ask = Words(
        "Is clipping a part of forward, or of the step that comes after backward?",
        "裁剪是前向传播的一部分，还是反向传播之后那一步的事？",
    )
    off = [not relative_error(a, b) < SAME for a, b in zip(w.mine, w.true, strict=True)]
    bounds = [float(np.abs(a).max()) for a, wrong in zip(w.mine, off, strict=True) if wrong]
    bound = max(bounds)
    if np.ptp(bounds) < 1e-6 * bound and same(w.mine, [np.clip(t, -bound, bound) for t in w.true]):
        touched = sum(int((np.abs(t) > bound).sum()) for t in w.true)
        if touched > 1:
            return w.finding("scale", f"is clipped to ±{bound:.4g}, entry by entry",
                             f"的每个元素都被裁剪到 ±{bound:.4g} 以内", *ask)  # fmt: skip
    factors = [proportion(a, b) for a, b in zip(w.mine, w.true, strict=True)]
    if any(c is None or c <= 0 for c in factors) or sum(off) < 2:
        return None

    def norms(tensors: Sequence[Tensors], names: Sequence[str]) -> list[float]:
        squares = [sum(float((t[name] ** 2).sum()) for name in names) for t in tensors]
        return [float(np.sqrt(s)) for s, wrong in zip(squares, off, strict=True) if wrong]

    for names in ([w.tensor], list(w.truth[0])):
        if any(g[name].shape != t[name].shape for g, t in zip(w.given, w.truth, strict=True) for name in names):
            continue
        shortened = norms(w.given, names)
        if not np.ptp(shortened) < 1e-5 * max(shortened):  # as PyTorch divides by the norm + 1e-6
            continue
        norm, whose = f"{shortened[0]:.4g}", "" if len(names) == 1 else " of all gradients together"
        zh = f"{'所有梯度合起来的' if whose else ''}范数"
        shorter = all(c is not None and c < 1 + SAME for c in factors)
        if shorter and not all(off):
            en, zh = f"is clipped: shortened to the norm{whose} {norm}", f"被裁剪了：{zh}缩短到 {norm}"
        elif shorter:
            en = f"is shortened to the norm{whose} {norm} in every case: clipped, or normalised"
            zh = f"在每个案例中{zh}都缩短到 {norm}：被裁剪，或者被归一化了"
        elif all(off):
            en, zh = f"is normalised: the norm{whose} is {norm} in every case", f"被归一化了：每个案例中{zh}都是 {norm}"
        else:
            continue
        return w.finding("scale", en, zh, *ask)
    return None


ENTRIES = {
    "batch": Words("sample", "样本"), "samples": Words("sample", "样本"), "batch_size": Words("sample", "样本"),
    "tokens": Words("token", "词元"), "heads": Words("head", "头"), "rows": Words("row", "行"),
    "channels": Words("channel", "通道"),
}  # fmt: skip


def name_of_axis(axis: int, cases: Sequence[Case]) -> str:
    """The name among the sizes that this axis of dy has in every case, if there is only one."""
    lengths = [np.shape(case.dy)[axis] for case in cases]
    others = [i for i in range(np.ndim(cases[0].dy)) if i != axis]
    if any(lengths == [np.shape(case.dy)[i] for case in cases] for i in others):
        return ""
    names = [name for name in cases[0].sizes if lengths == [case.sizes.get(name) for case in cases]]
    return names[0] if len(names) == 1 else ""


def one_of_many(w: Wrong) -> list[Finding]:
    """A sum over an axis of dy of which the last, or the first, entry alone is left, or missing."""
    found = []
    for axis in range(np.ndim(w.cases[0].dy)):
        name = name_of_axis(axis, w.cases)
        noun = ENTRIES.get(name, Words("entry", "分量"))
        also = f" ({name})" if name else ""
        of = Words("", "") if name in ENTRIES else Words(f" of dy along axis {axis}{also}", f" dy 第 {axis} 轴{also}上")
        for index, en, zh in ((-1, "last", "最后一个"), (0, "first", "第一个")):
            kept, lacked = entries(w, axis, index)
            which = Words(f"the {en} {noun.en}{of.en}", f"{of.zh}{zh}{noun.zh}")
            must = Words(f": the {noun.en.replace('entry', 'entrie')}s must add up", f"：各{noun.zh}应当累加")
            lengths = [np.shape(case.dy)[axis] for case in w.cases]
            lost = [np.delete(np.arange(n), index) if kept else np.arange(n)[[index]] for n in lengths]
            if all(zero_at(mine, axis, n, at) for mine, n, at in zip(w.mine, lengths, lost, strict=True)):
                must = (
                    Words(", and is zero elsewhere", "，其余为零")
                    if kept
                    else Words(", and is zero there", "，那里为零")
                )
            if kept:
                found.append(w.finding("terms", f"holds {which.en} alone{must.en}", f"只包含{which.zh}{must.zh}"))
            if lacked:
                found.append(w.finding("terms", f"lacks {which.en}{must.en}", f"缺少{which.zh}{must.zh}"))
    return found


def zero_at(mine: Array, axis: int, length: int, indices: Array) -> bool:
    """Has it this axis of dy too, and is it zero at these indices?"""
    return mine.shape[axis : axis + 1] == (length,) and not np.any(np.take(mine, indices, axis))


def entries(w: Wrong, axis: int, index: int) -> tuple[bool, bool]:
    """Is the tensor in every case what this entry of dy makes, or is that missing? A gradient is linear in dy."""
    kept = lacked = True
    for mine, true, case in zip(w.mine, w.true, w.cases, strict=True):
        if axis >= np.ndim(case.dy) or np.shape(case.dy)[axis] < 2:
            return False, False
        dy = np.zeros_like(case.dy)
        at = tuple(index if i == axis else slice(None) for i in range(dy.ndim))
        dy[at] = case.dy[at]
        try:
            part = apply(w.problem.backward, case._replace(dy=dy))[w.tensor]
        except ValueError:  # a gradient that is measured may not be measurable from one entry
            return False, False
        kept, lacked = kept and bool(np.any(part)) and same([mine], [part]), lacked and same([mine], [true - part])
        if not kept and not lacked:
            break
    return kept, lacked


# ---- from the problem ----


def named(w: Wrong) -> list[Finding]:
    """The named faults that give just this tensor on every case."""
    found = [f for f in w.problem.faults.values() if fits(w, f)]
    findings = [of_fault(w.tensor, f) for f in found]
    if not found or w.exact:
        return findings
    words = w.times(w.mine, w.true)
    known = {word for f in found for word in usual_readings(w, f)}
    left = [word for word in words if word not in known]
    other = multiple(w, left) if left else None if words else unread(w)
    return [*findings, *([other] if other else [])]


def of_fault(tensor: str, fault: Fault) -> Finding:
    return Finding(tensor, "fault", fault.says.about(tensor), fault.asks, fault.name)


def fits(w: Wrong, fault: Fault) -> bool:
    for i in range(len(w.cases)):
        wrong = w.wrong(fault, i)
        if w.tensor not in wrong:
            return False
        names = wrong if fault.whole else [w.tensor]
        if not all(relative_error(wrong[name], w.given[i][name]) < SAME for name in names):
            return False
    return True


def usual_readings(w: Wrong, fault: Fault) -> list[str]:
    """As what multiple of the true gradient the fault reads where no constant hides another."""
    cases = w.problem.cases()
    factors = [proportion(*(apply(f, case)[w.tensor] for f in (fault.wrong, w.problem.backward))) for case in cases]
    return readings([c for c in factors if c is not None], sizes_of(cases)) if None not in factors else []


def other_mask(w: Wrong) -> Finding | None:
    """Right, but for a dropout mask that keeps other entries than that of forward."""
    if w.problem.masked is None or "keep" not in w.cases[0].constants:
        return None
    other = False
    for mine, case in zip(w.mine, w.cases, strict=True):
        found = apply(w.problem.masked, case).get(w.tensor)
        if found is None or mine.shape != found[1].shape:
            return None
        rest, path = found
        kept = np.abs(mine - rest) > np.abs(path) / 2
        if kept.all() or not kept.any() or relative_error(rest + path * kept, mine) >= SAME:
            return None
        other |= bool(np.any(kept != (np.asarray(case.constants["keep"]) != 0)))
    if not other:
        return None
    return w.finding(
        "terms",
        "is right but for its dropout mask, which keeps other entries than that of forward",
        "除 dropout 掩码外都正确：这个掩码保留的元素与前向传播不同",
        "Was a mask drawn anew in backward, or is it that of another sample? Which one did forward keep for you?",
        "反向传播是否重新抽取了掩码，或者用了另一个样本的掩码？前向传播为你保存的是哪一个？",
    )


def combination(w: Wrong) -> Finding | None:
    """The true gradient's terms, with other coefficients than 1."""
    if w.problem.terms is None:
        return None
    terms = [apply(w.problem.terms, case).get(w.tensor, {}) for case in w.cases]
    if len(terms[0]) < 2 or any(x.shape != t.shape for x, t in zip(w.mine, w.true, strict=True)):
        return None
    parts = [[np.broadcast_to(t[name], x.shape) for t, x in zip(terms, w.mine, strict=True)] for name in terms[0]]
    coefficients = fitted(w.mine, parts)
    if coefficients is None:
        return None
    says = []
    for name, column in zip(terms[0], coefficients.T, strict=True):
        words = readings(column, w.sizes)
        if not words:
            return None
        if words != ["1"]:
            says.append(coefficient_words(name, words))
    return Finding(
        w.tensor,
        "terms",
        Words(
            f"in {w.tensor}, " + " and ".join(s.en for s in says), f"{w.tensor} 中，" + "，".join(s.zh for s in says)
        ),
    )


def coefficient_words(term: Words, words: Sequence[str]) -> Words:
    usual = {
        "0": Words(f"{term.en} is missing", f"缺少{term.zh}"),
        "2": Words(f"{term.en} is counted twice", f"{term.zh}被算了两次"),
        "-1": Words(f"{term.en} has the wrong sign", f"{term.zh}的符号反了"),
    }
    says = [usual.get(w, Words(f"{term.en} is {w} times what it must be", f"{term.zh}是应有的 {w} 倍")) for w in words]
    return Words(" or ".join(s.en for s in says), "，或者".join(s.zh for s in says))


def mutant(w: Wrong) -> Finding | None:
    """An edit of the textbook gradient that gives just this tensor on every case."""
    if not w.exact:
        return None
    textbook = w.problem.textbook or w.problem
    for says, edited in mutants_of(textbook.backward):
        function = w.problem.around(edited)
        try:
            with np.errstate(all="ignore"):
                if all(
                    relative_error(apply(function, case)[w.tensor], mine) < SAME
                    for case, mine in zip(w.cases, w.mine, strict=True)
                ):
                    return w.finding("mutant", f"comes out as if {says.en}", f"的结果相当于{says.zh}")
        except Exception:  # an edit need not make sense
            continue
    return None


# ---- two mistakes in one tensor ----


def pair(w: Wrong) -> list[Finding]:
    """Two mistakes of which each is known: a fault and a scale, or two faults; nothing where two such pairs fit."""
    if not w.problem.pairs or not w.exact:
        return []
    shapes = [t.shape for t in w.true]
    faults = [
        fault.name
        for fault in w.problem.faults.values()
        if not fault.whole and getattr(w.wrong(fault, 0).get(w.tensor), "shape", None) == shapes[0]
    ]
    found = [*fault_and_scale(w, faults)] or [*two_faults(w, faults)]
    if len(found) != 1:
        return []
    first, second = found[0]
    return [first, reworded(second, "and: ", "并且：")]


def fault_and_scale(w: Wrong, faults: Sequence[str]) -> Iterator[tuple[Finding, Finding]]:
    for name in faults:
        fault = w.problem.faults[name]
        first = w.wrong(fault, 0)[w.tensor]
        if proportion(w.mine[0], first) is None or proportion(first, w.true[0]) is not None:
            continue  # it is no multiple, or any scale is
        words = w.times(w.mine, w.all_wrong(name))
        if words and words[0] not in ("0", "1"):
            en, zh = " or ".join(words), " 或 ".join(words)
            scale = w.finding("scale", f"is then multiplied by {en}", f"在此基础上又乘以 {zh}")
            known = (other for other in faults if w.times(w.all_wrong(other), w.true) == words)
            other = next(known, None)
            yield of_fault(w.tensor, fault), of_fault(w.tensor, w.problem.faults[other]) if other else scale


def two_faults(w: Wrong, faults: Sequence[str]) -> Iterator[tuple[Finding, Finding]]:
    """Two faults that add up, as in two terms, or one within the other, as in two factors."""
    if any(x.shape != t.shape for x, t in zip(w.mine, w.true, strict=True)):
        return
    textbook = w.problem.textbook or w.problem
    outer = {name for name in faults if calls(textbook.faults[name].wrong, textbook.backward.__name__)}
    for a, b in itertools.combinations(faults, 2):
        within = [names for names in ((a, b), (b, a)) if names[0] in outer]
        if sum_of(w, a, b) or any(nested(w, *names) for names in within):
            yield of_fault(w.tensor, w.problem.faults[a]), of_fault(w.tensor, w.problem.faults[b])


def sum_of(w: Wrong, a: str, b: str) -> bool:
    """Do the two mistakes add up to it?"""
    for i, (mine, true) in enumerate(zip(w.mine, w.true, strict=True)):
        x, y = (w.wrong(w.problem.faults[name], i).get(w.tensor, np.zeros(0)) for name in (a, b))
        if x.shape != true.shape or y.shape != true.shape or relative_error(x + y - true, mine) >= SAME:
            return False
    return True


def nested(w: Wrong, outer: str, inner: str) -> bool:
    """Is it what the outer fault makes of a textbook gradient that has the inner one?"""
    textbook = w.problem.textbook or w.problem
    a, b = textbook.faults[outer].wrong, textbook.faults[inner].wrong
    function = w.problem.around(fault_within(a, b, textbook.backward))
    try:
        with np.errstate(all="ignore"):
            return all(
                relative_error(apply(function, case)[w.tensor], mine) < SAME
                for case, mine in zip(w.cases, w.mine, strict=True)
            )
    except Exception:  # one fault need not make sense within another
        return False
