"""Every fault is named as itself, never as another; what has no name is a correct generic finding, or unknown."""

import dataclasses
import itertools
import re
import time

import numpy as np
import pytest

from minilora.verify import Case, check_gradient, diagnose
from minilora.verify.problem import Problem, apply, relative_error
from minilora.verify.problems import problems, signatures

BANK = problems()
FAULTS = [(problem, name) for problem in BANK.values() for name in problem.faults]


def learner(problem: Problem, *names: str):
    """The textbook gradient with these faults in it."""

    def grad(dy, *inputs, **constants):
        tensors = problem.backward(dy, *inputs, **constants)
        for name in names:
            tensors |= problem.faults[name].wrong(dy, *inputs, **constants)
        return list(tensors.values())

    return grad


@pytest.mark.parametrize("problem", BANK.values(), ids=BANK)
def test_the_textbook_is_right_and_is_called_right(problem):
    for case in problem.cases():
        check_gradient(
            problem.forward, learner(problem), case.inputs, constants=case.constants, zero=problem.zero
        ).raise_if_wrong()
    assert diagnose(learner(problem), problem).ok


@pytest.mark.parametrize("problem", BANK.values(), ids=BANK)
def test_the_terms_of_a_gradient_add_up_to_it_and_its_laws_hold(problem):
    for case in problem.cases():
        truth = apply(problem.backward, case)
        for tensor, parts in (apply(problem.terms, case) if problem.terms else {}).items():
            assert relative_error(sum(parts.values()), truth[tensor]) < 1e-12
        assert all(law(truth, case) < 1e-6 for law in problem.laws.values())


@pytest.mark.parametrize("problem", BANK.values(), ids=BANK)
def test_every_fault_is_visible_fails_the_check_and_is_named_as_itself(problem):
    for name, fault in problem.faults.items():
        for case in problem.cases():
            wrong, truth = apply(fault.wrong, case), apply(problem.backward, case)
            assert wrong.keys() <= truth.keys(), name
            assert any(relative_error(wrong[tensor], truth[tensor]) > 1e-4 for tensor in wrong), name
        case = problem.cases()[0]
        report = check_gradient(
            problem.forward, learner(problem, name), case.inputs, constants=case.constants, zero=problem.zero
        )
        assert not report.ok, name
        assert set(diagnose(learner(problem, name), problem).names()) == {name}


@pytest.mark.parametrize("problem", BANK.values(), ids=BANK)
def test_a_fault_that_is_not_in_the_bank_is_never_given_the_name_of_another(problem):
    for name in problem.faults:
        rest = {other: fault for other, fault in problem.faults.items() if other != name}
        found = diagnose(learner(problem, name), dataclasses.replace(problem, faults=rest))
        assert not found.ok, name
        assert found.names() == [], name


@pytest.mark.parametrize("problem", BANK.values(), ids=BANK)
def test_two_faults_in_different_tensors_are_both_named(problem):
    case = problem.cases()[0]
    touched = {name: set(apply(fault.wrong, case)) for name, fault in problem.faults.items()}
    apart = [pair for pair in itertools.combinations(problem.faults, 2) if not touched[pair[0]] & touched[pair[1]]]
    for pair in apart[:: max(1, len(apart) // 8)]:
        assert set(diagnose(learner(problem, *pair), problem).names()) == set(pair)


def test_the_bank_is_as_large_as_it_must_be_and_speaks_two_languages():
    assert len(FAULTS) >= 100
    assert all(len(problem.faults) >= 5 for problem in BANK.values())
    for problem, name in FAULTS:
        fault = problem.faults[name]
        for english, chinese in (fault.says, fault.asks):
            assert english.isascii() or any(letter.isalpha() for letter in english)
            assert any("一" <= letter <= "鿿" for letter in chinese), name
        assert fault.asks.en.endswith("?"), name
        assert fault.asks.zh.endswith("？"), name
    for problem in BANK.values():
        sentences = [fault.says.en for fault in problem.faults.values()]
        assert len(set(sentences)) == len(sentences)


@pytest.mark.parametrize("problem", BANK.values(), ids=BANK)
def test_a_finding_speaks_of_its_own_tensor_alone(problem):
    case = problem.cases()[0]
    for name, fault in problem.faults.items():
        touched = apply(fault.wrong, case)
        for finding in diagnose(learner(problem, name), problem).findings:
            if finding.kind == "fault":
                others = "|".join(other for other in touched if other != finding.tensor) or "no other"
                for words in finding.says:
                    assert "{it}" not in words
                    assert not re.search(rf"\b({others})( and | 和 |, |、| or | 或 )", words), words


def test_one_op_is_checked_and_diagnosed_in_a_fraction_of_a_second():
    slowest = 0.0
    for problem in BANK.values():
        name = next(iter(problem.faults))
        unlisted = dataclasses.replace(problem, faults={})
        case = problem.cases()[0]
        diagnose(learner(problem, name), unlisted)  # the mutants are compiled once
        start = time.process_time()
        check_gradient(problem.forward, learner(problem), case.inputs, constants=case.constants, zero=problem.zero)
        diagnose(learner(problem, name), problem)
        slowest = max(slowest, time.process_time() - start)
    assert slowest < 0.3


# ---- the generic findings, on a person's own function ----


def attention_score(q, k, alpha):
    return alpha * q @ k.T


def score_gradient(dy, q, k, alpha):
    return alpha * dy @ k, alpha * dy.T @ q


def own_cases():
    rng = np.random.default_rng(3)
    cases = []
    for batch, keys, width, alpha in ((5, 3, 4, 0.7), (2, 6, 5, 1.9), (4, 7, 3, 2.6), (6, 5, 2, 0.4)):
        inputs = {"q": rng.standard_normal((batch, width)), "k": rng.standard_normal((keys, width))}
        sizes = {"batch": batch, "keys": keys, "width": width, "alpha": alpha}
        cases.append(Case(rng.standard_normal((batch, keys)), inputs, {"alpha": alpha}, sizes))
    return cases


def kinds_and_words(grad, f=attention_score):
    return [(finding.kind, finding.says.en) for finding in diagnose(grad, f, own_cases()).findings]


OWN = {
    "right": (score_gradient, [("right", "dq is right"), ("right", "dk is right")]),
    "scale": (
        lambda dy, q, k, alpha: (dy @ k, dy.T @ q * alpha / len(q)),
        [("scale", "dq is 1/alpha times the true gradient"), ("scale", "dk is 1/batch times the true gradient")],
    ),
    "sign and transpose": (
        lambda dy, q, k, alpha: (-alpha * dy @ k, (alpha * dy.T @ q).T),
        [("scale", "dq has the wrong sign"), ("shape", "dk is transposed")],
    ),
    "transpose and scale": (
        lambda dy, q, k, alpha: ((dy @ k).T, alpha * dy.T @ q),
        [("shape", "dq is transposed, and 1/alpha times the true gradient"), ("right", "dk is right")],
    ),
    "sum and last sample": (
        lambda dy, q, k, alpha: (alpha * dy[:, :, None] * k, alpha * np.outer(dy[-1], q[-1])),
        [
            ("shape", "dq is right once it is summed over axis 1"),
            ("terms", "dk holds the last sample alone: the samples must add up"),
        ],
    ),
    "swapped": (
        lambda dy, q, k, alpha: (2 * alpha * dy @ k, 0 * k),
        [("scale", "dq is counted twice"), ("scale", "dk is zero")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_a_persons_own_function_needs_no_bank(name):
    grad, expected = OWN[name]
    assert kinds_and_words(grad) == expected


def test_a_path_that_is_left_out_or_added_is_found_without_a_bank():
    def block(x, u):
        return x + np.tanh(x * u)

    def grad(dy, x, u):
        slope = 1 - np.tanh(x * u) ** 2
        return slope * u * dy, (slope * x * dy).sum(axis=0)

    rng = np.random.default_rng(0)
    cases = [Case(rng.standard_normal((n, m)), {"x": rng.standard_normal((n, m)), "u": rng.standard_normal(m)}, {}, {})
             for n, m in ((4, 3), (2, 5))]  # fmt: skip
    found = diagnose(grad, block, cases).findings
    assert [f.kind for f in found] == ["terms", "right"]
    assert found[0].says.en == "dx is the true gradient minus dy"
    extra = diagnose(lambda dy, x, u: (grad(dy, x, u)[0] + 2 * dy, grad(dy, x, u)[1]), block, cases)
    assert extra.findings[0].says.en == "dx is the true gradient plus dy"


def test_what_cannot_be_named_is_unknown_with_facts_and_no_guess():
    def odd(dy, q, k, alpha):
        dq, dk = score_gradient(dy, q, k, alpha)
        dq[1] += 0.3 * np.sin(dq[1])
        return dq, dk * np.nan

    found = diagnose(odd, attention_score, own_cases()).findings
    assert [f.kind for f in found] == ["unknown", "unknown"]
    assert "cosine" in found[0].says.en
    assert "wrong only at 1 along axis 0" in found[0].says.en
    assert "not finite" in found[1].says.en


def test_a_diagnosis_speaks_both_languages_and_refuses_what_it_does_not_know():
    name, problem = next(iter(BANK.items()))
    fault = next(iter(problem.faults.values()))
    found = diagnose(learner(problem, fault.name), name)
    tensor = next(finding.tensor for finding in found.findings if finding.name)
    assert fault.says.about(tensor).en in str(found)
    assert fault.asks.en in str(found)
    assert fault.says.about(tensor).zh in found.text("zh")
    with pytest.raises(ValueError, match=f"no problem is called 'soup': .*{name}"):
        diagnose(learner(problem), "soup")
    with pytest.raises(ValueError, match="needs cases"):
        diagnose(score_gradient, attention_score)
    with pytest.raises(ValueError, match="1 gradients were returned; 2 are needed: dq, dk"):
        diagnose(lambda dy, q, k, alpha: [dy @ k], attention_score, own_cases())


@pytest.mark.slow
@pytest.mark.parametrize("problem", BANK.values(), ids=BANK)
def test_every_fault_fails_the_check_in_every_case(problem):
    for name in problem.faults:
        for case in problem.cases():
            report = check_gradient(
                problem.forward, learner(problem, name), case.inputs, constants=case.constants, zero=problem.zero
            )
            assert not report.ok, name


def product_cases(*shapes):
    rng = np.random.default_rng(1)
    return [
        Case(
            rng.standard_normal(shape),
            {"x": rng.standard_normal(shape)},
            {},
            dict(zip(("N", "C"), map(float, shape), strict=True)),
        )
        for shape in shapes
    ]


def cube(x):
    return x * x * x


def test_a_scale_that_two_products_explain_is_not_named():
    def averaged(dy, x):
        return 3 * x * x * dy / len(x)

    for shapes in ([(5, 4)], [(2, 4), (3, 6)], [(2, 4), (3, 9), (5, 25)]):
        (found,) = diagnose(averaged, cube, product_cases(*shapes)).findings
        assert "/C" not in found.says.en
        assert "/N" not in found.says.en
    (found,) = diagnose(averaged, cube, product_cases((2, 7), (3, 4), (5, 6))).findings
    assert found.says.en == "dx is 1/N times the true gradient"


def test_an_input_whose_true_gradient_is_zero_is_right_at_zero_and_told_otherwise():
    def f(x, b):
        return x + b - b * 1.0

    cases = [
        Case(case.dy, {**case.inputs, "b": np.ones(case.dy.shape)}, {}, {}) for case in product_cases((3, 4), (2, 5))
    ]
    assert diagnose(lambda dy, x, b: (dy, 1e-17 * dy), f, cases).ok
    assert "db must be zero" in str(diagnose(lambda dy, x, b: (dy, dy), f, cases))


MISUSED = {
    "writes": (lambda dy, x: dy.__imul__(3 * x * x), "written to its argument 0"),
    "draws": (lambda dy, x: dy * np.random.default_rng().random(dy.shape), "another answer the second time"),
    "returns nothing": (lambda dy, x: None, "returned None: it must return dx"),
    "names": (lambda dy, x: {"dW": dy}, "the gradients are called dW; they must be dx"),
    "signature": (lambda x: x, r"cube calls grad\(dy, x\)"),
}


@pytest.mark.parametrize("name", MISUSED)
def test_a_gradient_that_cannot_be_asked_is_told_what_it_must_do(name):
    grad, says = MISUSED[name]
    with pytest.raises(ValueError, match=says):
        diagnose(grad, cube, product_cases((3, 4), (2, 5)))


def test_the_measured_gradient_of_a_sharp_function_is_sharp_enough():
    def layer_norm(x):
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-5)

    def grad(dy, x):
        xhat = layer_norm(x)
        sigma = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
        return (dy - dy.mean(-1, keepdims=True) - xhat * (dy * xhat).mean(-1, keepdims=True)) / sigma

    cases = [case._replace(inputs={"x": 0.03 * case.inputs["x"]}) for case in product_cases((3, 4), (2, 5))]
    assert diagnose(grad, layer_norm, cases).ok


def cubic(dy, x):
    return 3 * x * x * dy


SHAPE = (3, 4)
GOOD = product_cases(SHAPE)[0]
REFUSED = {
    "dy of ones": (GOOD._replace(dy=np.ones(SHAPE)), "dy is the same number everywhere"),
    "dy in float32": (GOOD._replace(dy=GOOD.dy.astype("f4")), "dy is float32"),
    "dy of another shape": (GOOD._replace(dy=GOOD.dy[0]), r"dy has shape \(4,\)"),
    "x in float32": (GOOD._replace(inputs={"x": GOOD.dy.astype("f4")}), "x is float32"),
    "another input": (GOOD._replace(inputs={"z": GOOD.dy}), "one case has the inputs x, another z"),
    "a size that is a word": (GOOD._replace(sizes={"N": "x"}), "positive and named"),
    "a size of zero": (GOOD._replace(sizes={"N": 0}), "positive and named"),
    "alpha = r": (GOOD._replace(constants={"alpha": 2, "r": 2}), "alpha = r"),
    "no case": ({"x": GOOD.dy}, r"a case is Case\(dy, inputs, constants, sizes\), and not dict"),
    "constants of another f": (GOOD._replace(constants={"p": 0.1}), r"a case calls cube\(x, p=...\): "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_case_that_would_be_worthless_is_refused_as_the_check_refuses_it(name):
    case, says = REFUSED[name]
    with pytest.raises(ValueError, match=says):
        diagnose(cubic, cube, [GOOD, case])


def test_the_cases_of_a_problem_of_the_library_are_refused_alike():
    case = BANK["layer_norm"].cases()[0]
    with pytest.raises(ValueError, match="dy is the same number everywhere"):
        diagnose(learner(BANK["layer_norm"]), "layer_norm", [case._replace(dy=np.ones_like(case.dy))])


def test_one_case_needs_no_list():
    assert diagnose(cubic, cube, GOOD).ok


def test_from_fewer_than_three_cases_no_constant_is_read_and_both_languages_say_so():
    def odd(dy, x):
        return 0.37 * cubic(dy, x)

    (few,) = diagnose(odd, cube, product_cases((3, 4), (2, 5))).findings
    assert few.says.en.endswith("times 0.37, 0.37: to say of which constants that is made takes three cases or more")
    assert few.says.zh.endswith("0.37, 0.37 倍：要说出它由哪些常数构成，至少需要三个案例")
    (many,) = diagnose(odd, cube, product_cases((3, 4), (2, 5), (4, 3))).findings
    assert "no product of up to three constants explains" in many.says.en
    assert "三个以内常数" in many.says.zh


def test_the_facts_are_those_of_a_case_that_is_wrong_and_say_which_it_is():
    def at_times(dy, x):
        return cubic(dy, x) + (np.sin(x) if len(x) == 2 else 0)

    (found,) = diagnose(at_times, cube, product_cases((3, 4), (2, 5), (4, 3))).findings
    assert found.kind == "unknown"
    assert "dx is right except in case 2 of 3" in found.says.en
    assert "第 2 个案例" in found.says.zh
    assert "ratios from 1 to 1" not in found.says.en
    assert "at  along" not in found.says.en


def test_a_gradient_that_is_zero_in_one_case_alone_is_right_where_rounding_leaves_a_little():
    def relu(x):
        return np.where(x > 0, x, 0 * x)

    cases = product_cases((3, 4), (2, 5))
    cases[0] = cases[0]._replace(inputs={"x": -1 - np.abs(cases[0].dy)})
    assert diagnose(lambda dy, x: dy * (x > 0) + 1e-17 * dy, relu, cases).ok
    found = diagnose(lambda dy, x: dy * (x > 0) - 0.01 * x * (x < -0.9), relu, cases).findings[0]
    assert "dx must be zero there" in found.says.en


def test_a_gradient_that_rounding_hides_is_not_diagnosed():
    def f(x):
        return np.abs(x) ** 2 + 1e12

    with pytest.raises(ValueError, match=r"the gradient of x can be measured to .* only"):
        diagnose(lambda dy, x: 2 * x * dy, f, product_cases((3, 4)))
    assert diagnose(lambda dy, x: 2 * x * dy, lambda x: x * x + 1e12, product_cases((3, 4))).ok
    with pytest.raises(ValueError, match="can be measured to"):
        diagnose(lambda dy, x: 0 * x, lambda x: x * x + 1e15, product_cases((3, 4)))


def test_a_gradient_whose_slope_jumps_is_diagnosed():
    cases = [case._replace(inputs={"x": np.round(2 * case.inputs["x"])}) for case in product_cases((3, 4), (4, 5))]

    def squared_relu(x):
        return np.maximum(x, 0) ** 2

    assert diagnose(lambda dy, x: 2 * dy * np.maximum(x, 0), squared_relu, cases).ok
    wrong = diagnose(lambda dy, x: 2 * dy * np.maximum(x, 0) + np.sin(x), squared_relu, cases)
    assert [found.kind for found in wrong.findings] == ["unknown"]


def test_a_sample_that_cannot_be_measured_alone_leaves_the_rest_of_the_diagnosis():
    def f(x):
        last = np.arange(len(x))[:, None] == len(x) - 1
        return np.where(last, 1e-6 * np.real(x) + 1e4, np.real(x) ** 2)

    def grad(dy, x):
        last = np.arange(len(x))[:, None] == len(x) - 1
        return dy * np.where(last, 1e-6, 2 * x) + np.sin(x)

    wrong = diagnose(grad, f, product_cases((3, 4), (4, 5)))
    assert [found.kind for found in wrong.findings] == ["unknown"]


@pytest.mark.parametrize("problem", BANK.values(), ids=BANK)
def test_the_signature_of_a_problem_is_that_of_its_gradient(problem):
    line = problem.signature()
    assert line in signatures()
    case = problem.cases()[1]
    for name in [*case.inputs, *case.constants]:
        assert f" {name} " in line
    shapes = dict(re.findall(r"(\w+) \(([^)]*)\)", line.removeprefix(f"{problem.name}: grad(")))
    for name, x in {"dy": np.asarray(case.dy), **case.inputs}.items():
        told = [case.sizes.get(size) or int(size) for size in filter(None, shapes[name].split(", "))]
        assert tuple(told) == x.shape


def test_a_boolean_mask_is_refused_where_a_mask_is_added():
    problem = BANK["causal_attention"]
    case = problem.cases()[0]
    boolean = case._replace(constants={"mask": case.constants["mask"] == 0})
    with pytest.raises(ValueError, match=r"mask is bool, and must be float64: .* mask \(tokens, tokens\) -1e\+09 or 0"):
        diagnose(learner(problem), problem, boolean)
    assert diagnose(learner(problem), problem, case).ok


def test_a_gradient_that_raises_is_told_the_shapes_that_it_is_given():
    with pytest.raises(
        ValueError, match=r"grad raises ValueError: .*; low_rank calls it with dy \(5, 3, 6\), x \(5, 3, 8\)"
    ):
        diagnose(lambda dy, x, A, B, **_: (dy @ B @ A, (B.T @ dy.T) @ x, dy.T @ (x @ A.T)), "low_rank")


def test_a_language_without_words_is_refused_and_the_others_named():
    found = diagnose(learner(BANK["linear"]), BANK["linear"])
    with pytest.raises(ValueError, match="no words in 'fr', only in 'en' and 'zh'"):
        found.text("fr")
