"""What can be said of a wrong tensor that nothing explains: the laws it breaks, facts, and a next step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from .explanations import Finding, Wrong, agree
from .problem import Case, Tensors, Words, apply
from .scale import SAME

Run = Callable[[Case], Tensors]  # the learner's gradients in a case


def not_finite(w: Wrong) -> Finding:
    case = next(i for i, x in enumerate(w.mine) if not np.all(np.isfinite(x)))
    where = [int(i) for i in np.argwhere(~np.isfinite(w.mine[case]))[0]]
    return w.finding(
        "unknown",
        "is not finite",
        "含有 NaN 或无穷大",
        f"Look at {w.tensor}{where} in diagnosis.cases[{case}]: is there a division by 0, a logarithm of 0, or an "
        "exponential of a large number?",
        f"看 diagnosis.cases[{case}] 中的 {w.tensor}{where}：那里是否除以了 0、对 0 取了对数，或对很大的数取了指数？",
    )


def must_be_zero(w: Wrong) -> Finding:
    size, name = max(float(np.linalg.norm(x)) for x in w.mine), w.tensor[1:]
    return w.finding(
        "unknown",
        f"must be zero, and its norm is {size:.1e}",
        f"应为零，而它的范数是 {size:.1e}",
        f"Change {name} a little: does any output change?",
        f"把 {name} 改变一点：有哪个输出会变吗？",
    )


def unknown(w: Wrong, run: Run) -> list[Finding]:
    """The laws it breaks, facts, and what to look at next."""
    with np.errstate(all="ignore"):
        return [*broken_laws(w), Finding(w.tensor, "unknown", facts(w), next_step(w, run))]


def broken_laws(w: Wrong) -> list[Finding]:
    """The laws that this tensor breaks when every other tensor is right."""
    mixed = [{**t, w.tensor: g[w.tensor]} for g, t in zip(w.given, w.truth, strict=True)]
    broken = []
    for words, law in w.problem.laws.items():
        try:
            violated = max(law(tensors, case) for tensors, case in zip(mixed, w.cases, strict=True)) > 1e-6
        except (ValueError, ArithmeticError):  # it divides by the norm of a tensor that is 0
            continue
        if violated:
            broken.append(words)
    return [w.finding("law", f"breaks a law: {words.en}", f"违反了一条规律：{words.zh}") for words in broken]


def facts(w: Wrong) -> Words:
    """From the first case in which the tensor is wrong."""
    wrong_in = wrong_cases(w)
    a, b, case = w.mine[wrong_in[0]], w.true[wrong_in[0]], w.cases[wrong_in[0]]
    en, zh = [], []
    if len(wrong_in) < len(w.cases):
        listed = ", ".join(str(i + 1) for i in wrong_in)
        en.append(f"{w.tensor} is right except in case{'s' * (len(wrong_in) > 1)} {listed} of {len(w.cases)}")
        zh.append(f"{w.tensor} 只在第 {listed} 个案例（共 {len(w.cases)} 个）中出错")
    if np.any(b):
        cosine = float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b) or 1))
        more = np.abs(b) > SAME * np.abs(b).max()  # than rounding
        ratio = a[more] / b[more] + 0.0  # not -0
        en.append(f"{w.tensor} has a cosine of {cosine:.3f} with the true gradient")
        en.append(f"ratios from {ratio.min():.3g} to {ratio.max():.3g}")
        zh.append(f"{w.tensor} 与正确梯度的余弦相似度为 {cosine:.3f}")
        zh.append(f"逐元素的比值在 {ratio.min():.3g} 到 {ratio.max():.3g} 之间")
    else:
        en.append(f"{w.tensor} must be zero there, and its norm is {np.linalg.norm(a):.1e}")
        zh.append(f"{w.tensor} 在那里应为零，而它的范数是 {np.linalg.norm(a):.1e}")
    off = np.abs(a - b) > SAME * np.abs(b).max()
    for axis in range(a.ndim):
        wrong = np.flatnonzero(off.any(axis=tuple(i for i in range(a.ndim) if i != axis)))
        if 0 < len(wrong) < a.shape[axis]:
            listed = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
            en.append(f"wrong only at {listed} along axis {axis}")
            zh.append(f"只在第 {axis} 轴的 {listed} 处出错")
            if "ids" in case.constants and axis == 0:
                ids, counts = np.unique(case.constants["ids"], return_counts=True)
                if set(wrong) <= set(ids[counts > 1]):
                    en.append("these are repeated ids")
                    zh.append("这些正是重复出现的 id")
    return Words("unknown: " + "; ".join(en), "原因未知；" + "；".join(zh))


def wrong_cases(w: Wrong) -> list[int]:
    return [i for i, case in enumerate(w.cases) if not agree(w.mine[i], w.true[i], case)]


def smallest(w: Wrong) -> int:
    """Of the cases in which the tensor is wrong, the one of the fewest numbers."""
    return min(wrong_cases(w), key=lambda i: sum(x.size for x in w.cases[i].inputs.values()))


def next_step(w: Wrong, run: Run) -> Words:
    """What a learner can try: a part of the op switched off, then one entry of dy in the smallest case."""
    steps = [*linear_in_dy(w, run), *switched_off(w, run), one_entry(w, run)]
    together = list(zip(w.given, w.truth, w.cases, strict=True))
    right = [name for name in w.truth[0] if all(agree(g[name], t[name], case) for g, t, case in together)]
    if right:
        are, them, zh = ("is", "it", "它") if len(right) == 1 else ("are", "them", "它们")
        steps.append(
            Words(
                f"{' and '.join(right)} {are} right, and so is what {w.tensor} shares with {them}.",
                f"{'、'.join(right)} 正确，因此 {w.tensor} 与{zh}共用的部分也正确。",
            )
        )
    steps += in_the_library(w)
    return Words("What next? " + " ".join(s.en for s in steps), "下一步：" + "".join(s.zh for s in steps))


def linear_in_dy(w: Wrong, run: Run) -> Iterator[Words]:
    """Every gradient is linear in dy, and this one may not be."""
    case = w.cases[smallest(w)]
    mine = w.mine[smallest(w)]
    if np.ndim(case.dy) == 0 and case.dy == 1:  # it may not be handed in
        return
    try:
        zero = run(case._replace(dy=0 * case.dy))[w.tensor]
        double = run(case._replace(dy=2 * case.dy))[w.tensor]
    except ValueError:
        return
    if zero.shape != mine.shape or double.shape != mine.shape:
        return
    if np.linalg.norm(zero) > SAME * np.linalg.norm(mine):
        yield Words(
            f"Set dy = 0: the loss does not depend on y then, so that {w.tensor} must be 0, and it is not.",
            f"令 dy = 0：此时损失不依赖 y，{w.tensor} 应为 0，而它不是。",
        )
    elif np.linalg.norm(double - 2 * mine) > SAME * np.linalg.norm(double):
        yield Words(
            f"Double dy: every gradient is linear in dy, so that {w.tensor} must double, and it does not.",
            f"令 dy 加倍：梯度对 dy 是线性的，{w.tensor} 应当加倍，而它没有。",
        )


def switched_off(w: Wrong, run: Run) -> Iterator[Words]:
    """Of the parts of the op that can be, the one without which the tensor is right."""
    case = w.cases[smallest(w)]
    for words, change in w.problem.simpler.items():
        simpler = change(case)
        try:
            mine, true = run(simpler)[w.tensor], apply(w.problem.backward, simpler)[w.tensor]
        except ValueError:
            continue
        if agree(mine, true, simpler):
            yield Words(f"{w.tensor} is right {words.en}: the mistake lies in what that switches off.",
                        f"{words.zh}时 {w.tensor} 正确：错误就在这样关掉的那一部分里。")  # fmt: skip
            return


def one_entry(w: Wrong, run: Run) -> Words:
    """Numbers to compare by hand: with a 1 in one place of dy, one entry of the tensor, as it is and must be."""
    chosen = smallest(w)
    case = w.cases[chosen]
    shapes = ", ".join(f"{name} {x.shape}" for name, x in case.inputs.items())
    where = f"diagnosis.cases[{chosen}]"
    measured = w.problem.faults == {}  # then the truth takes long
    for at in itertools.islice(np.ndindex(np.shape(case.dy)), 3 if measured else 12):
        dy = np.zeros_like(case.dy)
        dy[at] = 1
        single = case._replace(dy=dy)
        try:
            mine, true = run(single)[w.tensor], apply(w.problem.backward, single)[w.tensor]
        except ValueError:
            continue
        if mine.shape == true.shape and not agree(mine, true, single):
            i = tuple(int(n) for n in np.unravel_index(np.abs(mine - true).argmax(), true.shape))
            place, entry = list(at), f"{w.tensor}{list(i)}" if i else w.tensor
            dy_en = f", with dy = 0 but for a 1 at {place}" if at else " with dy = 1"
            dy_zh = f"，令 dy 只在 {place} 处为 1、其余为 0" if at else "，令 dy = 1"
            return Words(
                f"Take the smallest case, {where} ({shapes}){dy_en}: {entry} must be {true[i]:.4g}, "
                f"and is {mine[i]:.4g}; work that entry out by hand.",
                f"取最小的案例 {where}（{shapes}）{dy_zh}：{entry} 应为 {true[i]:.4g}，而你的是 {mine[i]:.4g}；"
                "请手算这一个元素。",
            )
    return Words(
        f"In the smallest case, {where} ({shapes}), {w.tensor} is right as long as one entry of dy is not 0: "
        "look at how the contributions of several entries are put together.",
        f"在最小的案例 {where}（{shapes}）中，dy 只有一个元素不为 0 时 {w.tensor} 正确："
        "请检查多个元素的贡献是怎样合并的。",
    )


def in_the_library(w: Wrong) -> list[Words]:
    """Where a person's own function has the arguments of a problem whose mistakes are known."""
    from .problems import problems

    if w.problem.faults:
        return []
    names = set(w.cases[0].inputs) | set(w.cases[0].constants)
    alike = [name for name, p in problems().items() if set(p.cases()[0].inputs) == set(w.cases[0].inputs)]
    alike = [name for name in alike if names <= {*(c := problems()[name].cases()[0]).inputs, *c.constants, "s"}]
    if not alike:
        return []
    calls = ", ".join(f'diagnose(grad, "{name}")' for name in alike)
    return [Words(f"If this is your function, {calls} names the usual mistakes in it.",
                  f"如果你的函数就是它，{calls} 能指出其中的常见错误。")]  # fmt: skip
