"""Every fault is named as itself, never as another; what has no name is a correct generic finding, or unknown."""

import ast
import dataclasses
import functools
import itertools
import json
import pkgutil
import re
import time
from importlib import import_module
from pathlib import Path

import examples
import numpy as np
import pytest

from minilora.verify import Case, check_gradient, diagnose, language
from minilora.verify.case import apply, relative_error
from minilora.verify.explanations.of_entries import ENTRIES
from minilora.verify.faults import identifier
from minilora.verify.problem import Problem
from minilora.verify.problems import problems, signatures

BANK = problems()
some_problems = pytest.mark.parametrize("problem", examples.some_of(BANK.values(), 3), ids=lambda problem: problem.name)
FAULTS = [(problem, name) for problem in BANK.values() for name in problem.faults]


def learner(problem: Problem, *names: str):
    """The textbook gradient with these faults in it."""

    def grad(dy, *inputs, **constants):
        tensors = problem.backward(dy, *inputs, **constants)
        for name in names:
            tensors |= problem.faults[name].wrong(dy, *inputs, **constants)
        return list(tensors.values())

    return grad


def checked(problem: Problem, case: Case, *names: str):
    return check_gradient(problem.forward, learner(problem, *names), case.inputs, constants=case.constants)


@functools.cache
def diagnosis(problem: str, fault: str):
    return diagnose(learner(BANK[problem], fault), BANK[problem])


@pytest.mark.parametrize("problem", BANK.values(), ids=BANK)
def test_the_textbook_is_right_and_is_called_right(problem):
    for case in problem.cases():
        checked(problem, case).raise_if_wrong()
    assert diagnose(learner(problem), problem).ok


@pytest.mark.parametrize("problem", BANK.values(), ids=BANK)
def test_the_terms_of_a_gradient_add_up_to_it_and_its_laws_hold(problem):
    for case in problem.cases():
        truth = apply(problem.backward, case)
        for tensor, parts in apply(problem.terms, case).items():
            assert relative_error(sum(parts.values()), truth[tensor]) < 1e-12
        assert all(law(truth, case) < 1e-6 for law in problem.laws.values())


@pytest.mark.parametrize("problem", BANK.values(), ids=BANK)
def test_every_fault_is_visible_fails_the_check_and_is_named_as_itself(problem):
    truths = [(case, apply(problem.backward, case)) for case in problem.cases()]
    for name, fault in problem.faults.items():
        for case, truth in truths:
            wrong = apply(fault.wrong, case)
            assert wrong.keys() <= truth.keys(), name
            assert any(relative_error(wrong[tensor], truth[tensor]) > 1e-4 for tensor in wrong), name
    for name in examples.some_of(problem.faults, 10):
        report = checked(problem, problem.cases()[0], name)
        assert not report.ok, name
        assert set(diagnosis(problem.name, name).names()) == {name}


@some_problems
def test_a_fault_that_is_not_in_the_bank_is_never_given_the_name_of_another(problem):
    for name in examples.some_of(problem.faults, 24):
        rest = {other: fault for other, fault in problem.faults.items() if other != name}
        found = diagnose(learner(problem, name), dataclasses.replace(problem, faults=rest))
        assert not found.ok, name
        assert found.names() == [], name


@some_problems
def test_two_faults_in_different_tensors_are_both_named(problem):
    case = problem.cases()[0]
    touched = {name: set(apply(fault.wrong, case)) for name, fault in problem.faults.items()}
    apart = [pair for pair in itertools.combinations(problem.faults, 2) if not touched[pair[0]] & touched[pair[1]]]
    for pair in apart[:: max(1, len(apart) // examples.count(8))]:
        assert set(diagnose(learner(problem, *pair), problem).names()) == set(pair)


def test_the_bank_is_as_large_as_it_must_be_and_asks_questions():
    assert len(FAULTS) >= 400
    assert all(len(problem.faults) >= 5 for problem in BANK.values())
    for problem, name in FAULTS:
        fault = problem.faults[name]
        assert fault.asks.en.endswith("?"), name
        assert fault.asks.zh.endswith("？"), name
    for problem in BANK.values():
        sentences = [fault.says.en for fault in problem.faults.values()]
        assert len(set(sentences)) == len(sentences)


@pytest.mark.parametrize("problem", BANK.values(), ids=BANK)
def test_a_problem_has_the_mistakes_that_its_terms_and_factors_allow(problem):
    case = problem.cases(n=1)[0]
    expected = {"sign_flipped", "counted_twice", "upstream_forgotten"}
    for term in {identifier(name) for parts in apply(problem.terms, case).values() for name in parts}:
        expected |= {f"no_{term}", f"{term}_twice", f"{term}_with_wrong_sign"}
    for name in problem.factors:
        expected |= {f"no_{name}", f"{name}_twice"}
    assert expected <= set(problem.faults)


def test_a_common_mistake_around_one_of_the_problem_is_named_beside_it():
    problem = BANK["low_rank"]

    def grad(dy, *inputs, **constants):
        last = np.zeros_like(dy)
        last[-1] = dy[-1]
        wrong = problem.faults["no_mask_in_A"].wrong(last, *inputs, **constants)
        return problem.backward(dy, *inputs, **constants) | wrong

    assert set(diagnose(grad, problem).names()) == {"last_sample_only", "no_mask_in_A"}


def test_a_right_gradient_plus_a_wrong_one_is_not_called_counted_twice():
    problem = BANK["linear"]

    def grad(*arguments):
        true, wrong = problem.backward(*arguments), problem.faults["y_for_dy"].wrong(*arguments)
        return [true[name] + wrong[name] for name in true]

    assert diagnose(grad, problem).names() == []


# ---- the catalogues of Chinese sentences ----

VERIFY = Path(language.__file__).parent
COMMON = json.loads((VERIFY / "zh.json").read_text(encoding="utf-8"))


def english_of(problem: Problem) -> set[str]:
    """Every sentence that a problem adds to the common ones."""
    found = [sentence.en for fault in problem.faults.values() for sentence in (fault.says, fault.asks)]
    found += [factor.written for factor in problem.factors.values()]
    terms = apply(problem.terms, problem.cases(n=1)[0]).values()
    words = [problem.says.values(), problem.asks.values(), problem.laws, problem.simpler, *terms]
    return set(found).union(*words) - set(COMMON)


@pytest.mark.parametrize("name", [file.name for file in pkgutil.iter_modules([str(VERIFY / "problems")])])
def test_the_catalogue_beside_a_problem_has_its_sentences_and_no_other(name):
    found = vars(import_module(f"minilora.verify.problems.{name}")).values()
    english = set().union(*(english_of(problem) for problem in found if isinstance(problem, Problem)))
    path = VERIFY / "problems" / f"{name}.zh.json"
    chinese = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}  # of OPS alone
    assert set(chinese) == english


def test_the_common_catalogue_has_the_sentences_of_the_code_and_no_other():
    written, looked_up = set(), set()
    for path in VERIFY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                written.add(node.value)
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                arguments = {"words": node.args[:1], "joined": node.args[:1], "finding": node.args[1:]}.get(name, [])
                constants = [c.value for a in arguments for c in ast.walk(a) if isinstance(c, ast.Constant)]
                looked_up |= {text for text in constants if isinstance(text, str)}
    looked_up |= {text for text in written if text.startswith("{it} ")} | set(ENTRIES.values())
    assert set(COMMON) <= written
    assert looked_up <= set(language.catalogue())


def test_no_chinese_stands_in_the_code():
    assert not [path.name for path in VERIFY.rglob("*.py") if re.search("[一-鿿]", path.read_text(encoding="utf-8"))]


def test_a_sentence_and_its_chinese_have_the_same_slots():
    for english, chinese in language.catalogue().items():
        assert set(re.findall(r"{\w+}", english)) == set(re.findall(r"{\w+}", chinese)), english


@pytest.mark.parametrize("problem", BANK.values(), ids=BANK)
def test_a_finding_speaks_of_its_own_tensor_alone(problem):
    case = problem.cases()[0]
    for name in examples.some_of(problem.faults, 10):
        touched = apply(problem.faults[name].wrong, case)
        for finding in diagnosis(problem.name, name).findings:
            if finding.kind == "fault":
                others = "|".join(other for other in touched if other != finding.tensor) or "no other"
                for words in finding.says:
                    assert "{it}" not in words
                    assert not re.search(rf"\b({others})( and | 和 |, |、| or | 或 )", words), words


@pytest.mark.slow
def test_one_op_is_checked_and_diagnosed_in_a_fraction_of_a_second():
    slowest = 0.0
    for problem in BANK.values():
        name = next(iter(problem.faults))
        unlisted = dataclasses.replace(problem, faults={})
        case = problem.cases()[0]
        diagnose(learner(problem, name), unlisted)  # the mutants are compiled once
        start = time.process_time()
        checked(problem, case)
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
    assert fault.says.filled(it=tensor).en in str(found)
    assert fault.asks.en in str(found)
    assert fault.says.filled(it=tensor).zh in found.text("zh")
    with pytest.raises(ValueError, match=f"no problem is called 'soup': .*{name}"):
        diagnose(learner(problem), "soup")
    with pytest.raises(ValueError, match="needs cases"):
        diagnose(score_gradient, attention_score)
    with pytest.raises(ValueError, match="grad returns 1 array; it must return 2: dq, dk"):
        diagnose(lambda dy, q, k, alpha: [dy @ k], attention_score, own_cases())


@pytest.mark.slow
@pytest.mark.parametrize("problem", BANK.values(), ids=BANK)
def test_every_fault_fails_the_check_in_every_case(problem):
    for name in problem.faults:
        for case in problem.cases():
            report = checked(problem, case, name)
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
    "writes": (lambda dy, x: dy.__imul__(3 * x * x), "writes to its argument dy"),
    "draws": (lambda dy, x: dy * np.random.default_rng().random(dy.shape), "something else when it is called again"),
    "returns nothing": (lambda dy, x: None, "returned None: it must return dx"),
    "names": (lambda dy, x: {"dW": dy}, "the gradients are called dW; they must be dx"),
    "signature": (lambda x: x, r"diagnose calls grad\(dy, x\)"),
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
    assert few.says.en.endswith(
        "times 0.37, 0.37, a number for each case; with fewer than three cases it cannot be said of which constants "
        "these are made"
    )
    assert few.says.zh.endswith("0.37, 0.37 倍；要判断它由哪些常数构成，至少需要三个用例")
    three = product_cases((3, 4), (2, 5), (4, 3))
    (same,) = diagnose(odd, cube, three).findings
    assert same.says.en == "dx is 0.37 times the true gradient"
    (many,) = diagnose(lambda dy, x: np.linalg.norm(x) * cubic(dy, x), cube, three).findings
    assert "no product of up to three constants explains" in many.says.en
    assert "至多三个常数的乘积" in many.says.zh


def test_the_facts_are_those_of_a_case_that_is_wrong_and_say_which_it_is():
    def at_times(dy, x):
        return cubic(dy, x) + (np.sin(x) if len(x) == 2 else 0)

    (found,) = diagnose(at_times, cube, product_cases((3, 4), (2, 5), (4, 3))).findings
    assert found.kind == "unknown"
    assert "dx is right except in case 2 of 3" in found.says.en
    assert "2 号用例" in found.says.zh
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
        diagnose(lambda dy, x, A, B, **_: (dy @ A, dy @ B, x @ B), "low_rank")


def test_a_language_without_words_is_refused_and_the_others_named():
    found = diagnose(learner(BANK["linear"]), BANK["linear"])
    with pytest.raises(ValueError, match="no words in 'fr', only in 'en' and 'zh'"):
        found.text("fr")


# ---- a name that is wrong is worse than none ----


def test_a_copy_is_no_swap_and_a_swap_is_one():
    def copied(dy, gate, up):
        _dgate, dup = BANK["swiglu"].backward(dy, gate, up).values()
        return dup, dup

    found = diagnose(copied, "swiglu")
    assert [f.kind for f in found.findings] == ["terms", "right"]
    assert str(found).startswith("dgate holds the gradient dup")
    swapped = diagnose(lambda *inputs: list(BANK["swiglu"].backward(*inputs).values())[::-1], "swiglu")
    assert swapped.names() == ["gate_and_up_swapped"] * 2
    dq, dk, _dv = (f"d{name}" for name in "qkv")
    once = diagnose(
        lambda *a, **c: {**(g := BANK["causal_attention"].backward(*a, **c)), dk: g[dq]}, "causal_attention"
    )
    assert once.names() == []
    assert f"{dk} holds the gradient {dq}" in str(once)


def test_an_axis_of_dy_has_the_name_that_the_sizes_give_it_and_otherwise_a_number():
    def product(W, x):
        return W @ x

    def last_row(dy, W, x):
        return dy @ x.T, np.outer(W[-1], dy[-1])

    rng = np.random.default_rng(0)

    def cases(shapes, names):
        return [
            Case(rng.standard_normal((m, n)), {"W": rng.standard_normal((m, k)), "x": rng.standard_normal((k, n))}, {},
                 dict(zip(names, (m, k, n), strict=True)))
            for m, k, n in shapes
        ]  # fmt: skip

    apart, square = ((3, 4, 5), (4, 5, 6), (5, 6, 7)), ((3, 3, 3), (4, 4, 4), (5, 5, 5))
    for shapes, names, axis in (
        (apart, ("out", "in", "samples"), "the last entry of dy along axis 0 (out)"),
        (apart, ("channels", "in", "samples"), "the last channel"),
        (apart, ("samples", "in", "out"), "the last sample"),
        (square, ("samples", "in", "out"), "the last entry of dy along axis 0"),
    ):
        found = diagnose(last_row, product, cases(shapes, names)).findings[1]
        assert found.says.en.startswith(f"dx holds {axis} alone: ")

    def last_column(dy, W, x):
        return np.outer(dy[:, -1], x[:, -1]), W.T @ dy

    found = diagnose(last_column, product, cases(apart, ("out", "in", "samples"))).findings[0]
    assert found.says.en == "dW holds the last sample alone: the samples must add up"
    two = diagnose(last_column, product, cases(((3, 4, 2), (4, 5, 2), (5, 6, 2)), ("out", "in", "samples")))
    assert "or: dW lacks the first sample" in str(two)


def low_rank_path(x, A, B, alpha, r):
    return alpha / r * x @ A.T @ B.T


def scaled_twice(dy, x, A, B, alpha, r):
    s = alpha / r
    return s * dy @ B @ A, s * (dy @ B).T @ x, s * s * dy.T @ (x @ A.T)


def low_rank_cases(alpha_of_r):
    rng = np.random.default_rng(0)
    cases = []
    for n, width, r, out in ((3, 4, 2, 5), (4, 6, 3, 7), (5, 3, 4, 6)):
        inputs = {"x": (n, width), "A": (r, width), "B": (out, r)}
        inputs = {name: rng.standard_normal(shape) for name, shape in inputs.items()}
        constants = {"alpha": alpha_of_r(r), "r": r}
        cases.append(Case(rng.standard_normal((n, out)), inputs, constants, {"batch": n, **constants}))
    return cases


def test_a_scale_that_the_cases_cannot_tell_from_counting_twice_has_both_names():
    found = diagnose(scaled_twice, low_rank_path, low_rank_cases(lambda r: 2 * r)).findings[2]
    assert "is counted twice or is alpha/r times the true gradient" in found.says.en
    assert "被算了两次，或者是正确梯度的 alpha/r 倍" in found.says.zh
    apart = diagnose(scaled_twice, low_rank_path, low_rank_cases(lambda r: 2 * r + 1)).findings[2]
    assert apart.says.en == "dB is alpha/r times the true gradient"
    twice = diagnose(lambda *a, **c: [*[2 * g for g in scaled_twice(*a, **c)][:1], a[2], a[3]], low_rank_path,
                     low_rank_cases(lambda r: 2 * r + 1))  # fmt: skip
    assert twice.findings[0].says.en == "dx is counted twice"


def test_a_constant_with_no_name_among_the_sizes_is_still_seen():
    cases = [case._replace(sizes={}) for case in low_rank_cases(lambda r: 2 * r)]
    assert "or is alpha/r times" in diagnose(scaled_twice, low_rank_path, cases).findings[2].says.en


def test_the_library_tells_apart_what_the_cases_of_a_person_cannot():
    problem = BANK["low_rank"]
    case = problem.cases()[0]
    twice_r = case._replace(constants=case.constants | {"alpha": 2.0 * case.constants["r"]})
    assert set(diagnose(learner(problem, "scale_twice"), problem, twice_r).names()) == {"scale_twice"}

    def only_mine(dy, x, *inputs, **constants):
        if not np.array_equal(x, case.inputs["x"]):
            raise ValueError("another shape")
        return learner(problem, "scale_twice")(dy, x, *inputs, **constants)

    found = diagnose(only_mine, problem, twice_r)
    assert {"scale_twice", "counted_twice"} <= {f.name for f in found.findings if f.tensor == "dB"}
    assert "\ndB: or: " in str(found)
    assert "或者：" in found.text("zh")


# ---- what a reader would know ----


def test_two_mistakes_in_one_tensor_are_both_named():
    problem = BANK["low_rank"]

    def neither(dy, x, A, B, W, keep, alpha, r, p):
        return problem.backward(dy, x, A, B, W, keep, alpha, r, p) | {"dx": alpha / r * dy @ B @ A}

    found = diagnose(neither, problem)
    assert found.names() == ["no_base_path", "no_mask_in_x"]
    assert "\ndx: and: the low-rank path of dx lacks the dropout mask" in str(found)
    assert "此外，" in found.text("zh")

    def unscaled(dy, x, A, B, W, keep, alpha, r, p):
        return problem.backward(dy, x, A, B, W, keep, alpha, r, p) | {"dx": dy @ W + dy @ B @ A}

    assert set(diagnose(unscaled, problem).names()) == {"no_scale_in_low_rank_path", "no_mask_in_x"}


def test_a_mean_that_is_missing_beside_another_mistake_is_read():
    problem = BANK["cross_entropy"]

    def summed(dL, logits, targets, count):
        return count * problem.faults["softmax_at_ignored"].wrong(dL, logits, targets, count)["dlogits"]

    found = diagnose(summed, problem)
    assert found.names() == ["softmax_at_ignored", "no_mean"]

    def shared_out(dL, logits, targets, count):
        return summed(dL, logits, targets, count) / len(logits)

    assert "and: dlogits is then multiplied by count/batch" in str(diagnose(shared_out, problem))


def test_a_ratio_that_the_data_make_is_counted_in_the_data():
    def loss(z, targets):
        P = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
        seen = targets >= 0
        return -np.log(P[seen, targets[seen]]).mean()

    def summed(dL, z, targets):
        P = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
        return dL * (P - np.eye(z.shape[-1])[targets]) * (targets >= 0)[:, None]

    rng = np.random.default_rng(0)
    cases = []
    for n, V, ignored in ((7, 4, 2), (9, 5, 3), (8, 6, 1)):
        targets = rng.integers(V, size=n)
        targets[:ignored] = -100
        cases.append(Case(np.array(1.7), {"z": rng.standard_normal((n, V))}, {"targets": targets}, {}))
    found = diagnose(lambda dL, z, targets: summed(dL, z, np.where(targets < 0, -1, targets)), loss, cases)
    assert found.findings[0].says.en == "dz is (the number of targets ≥ 0) times the true gradient"


def test_weight_decay_inside_a_gradient_is_named():
    problem = BANK["low_rank"]
    for decay in (0.01, -0.3):

        def decayed(*arguments, decay=decay, **constants):
            g = problem.backward(*arguments, **constants)
            return g | {"dA": g["dA"] + decay * arguments[2]}

        found = diagnose(decayed, problem).findings[1]
        sign = "plus" if decay > 0 else "minus"
        assert found.says.en == f"dA is the true gradient {sign} {abs(decay)} A: weight decay inside the gradient"
        assert "权重衰减" in found.says.zh


def norm(*arrays):
    return sum(float((a * a).sum()) for a in arrays) ** 0.5


CLIPPED = {
    "is clipped to ±0.5, entry by entry": lambda g, all: np.clip(g, -0.5, 0.5),
    "is clipped: shortened to the norm 10": lambda g, all: g * min(1, 10 / norm(g)),
    "is clipped: shortened to the norm of all gradients together 25": lambda g, all: g * min(1, 25 / (all + 1e-6)),
    "is shortened to the norm 1 in every case: clipped, or normalised": lambda g, all: g / norm(g),
    "is normalised: the norm of all gradients together is 30 in every case": lambda g, all: 30 * g / all,
}


@pytest.mark.parametrize("says", CLIPPED)
def test_a_clipped_gradient_is_called_clipped(says):
    def grad(dy, x, W, b):
        right = BANK["linear"].backward(dy, x, W, b)
        return {"dx": CLIPPED[says](right["dx"], norm(*right.values())), **{k: right[k] for k in ("dW", "db")}}

    def all_of_them(dy, x, W, b):
        right = BANK["linear"].backward(dy, x, W, b)
        return {name: CLIPPED[says](g, norm(*right.values())) for name, g in right.items()}

    found = diagnose(all_of_them if "all" in says else grad, "linear")
    assert found.findings[0].says.en == f"dx {says}"


def test_a_mask_that_is_not_that_of_forward_is_found():
    def drawn_anew(dy, x, keep, p):
        return dy * (np.random.default_rng(7).random(x.shape) >= p) / (1 - p)

    assert "its dropout mask, which keeps other entries" in str(diagnose(drawn_anew, "dropout"))

    def in_the_path(dy, x, A, B, W, keep, alpha, r, p):
        g = BANK["low_rank"].backward(dy, x, A, B, W, keep, alpha, r, p)
        return g | {"dx": dy @ W + drawn_anew(alpha / r * dy @ B @ A, x, keep, p)}

    assert "dx is right except for its dropout mask" in str(diagnose(in_the_path, "low_rank"))


def test_a_norm_held_constant_is_said_to_be_the_convention_of_peft():
    found = diagnose(learner(BANK["dora"], "no_path_through_the_norm"), "dora")
    assert str(found).count("as PEFT and section 4.3 of the DoRA paper do: a convention, not a mistake of algebra") == 2
    assert found.text("zh").count("这是一种约定，不是推导错误") == 2
    assert not found.ok


def test_after_unknown_there_is_a_next_step():
    problem = BANK["low_rank"]

    def with_odd_mask(dy, x, A, B, W, keep, alpha, r, p):
        g = problem.backward(dy, x, A, B, W, keep, alpha, r, p)
        return g | {"dx": dy @ W + alpha / r * dy @ B @ A * keep**3.5}

    (found,) = [f for f in diagnose(with_odd_mask, problem).findings if f.kind == "unknown"]
    assert "dx is right without dropout" in found.asks.en
    assert "Take the smallest case, diagnosis.cases[3]" in found.asks.en
    assert "dA and dB are right" in found.asks.en
    assert "下一步：没有 dropout" in found.asks.zh
    place, entry, right, wrong = re.search(
        r"a 1 at (\[.*?\]): dx(\[.*?\]) must be (\S+), and is (\S+);", found.asks.en
    ).groups()
    case = problem.cases()[3]
    dy = np.zeros_like(case.dy)
    dy[tuple(eval(place))] = 1
    truth = apply(problem.backward, case._replace(dy=dy))["dx"]
    assert f"{truth[tuple(eval(entry))]:.4g}" == right != wrong

    def square(dy, x):
        return cubic(dy, x) + np.sin(dy) ** 2

    (found,) = diagnose(square, cube, GOOD).findings
    assert "Double dy: every gradient is linear in dy" in found.asks.en
    (found,) = diagnose(lambda dy, x: cubic(dy, x) + np.sin(x), cube, GOOD).findings
    assert "Set dy = 0" in found.asks.en
    (found,) = diagnose(lambda dy, x: cubic(dy, x) + np.where(x > 0.5, np.inf, 0), cube, GOOD).findings
    assert "diagnosis.cases[0]: is there a division by 0" in found.asks.en


def test_a_function_with_the_arguments_of_a_problem_is_pointed_to_it():
    found = diagnose(lambda dy, x, A, B, alpha, r: (np.sin(x), A, B), low_rank_path, low_rank_cases(lambda r: 3 * r))
    assert 'diagnose(grad, "low_rank")' in str(found)


# ---- the forms in which people write an op ----


def textbook(dy, x, A, B, alpha, r):
    s = alpha / r
    return s * dy @ B @ A, s * (dy @ B).T @ x, s * dy.T @ (x @ A.T)


def of_a_batch(dy, x, A, B, lora_alpha, r):
    s, each = lora_alpha / r, "bti,btj->ij"
    return s * dy @ B @ A, s * np.einsum(each, dy @ B, x), s * np.einsum(each, dy, x @ A.T)


def with_frozen_W(dy, x, W, A, B, alpha, r):
    dx, dA, dB = textbook(dy, x, A, B, alpha, r)
    return dy @ W + dx, dA, dB


def with_one_scale(dout, x, lora_A, lora_B, scaling):
    return textbook(dout, x, lora_A, lora_B, scaling, 1)


def with_the_rank_of_A(dy, x, keep, W, A, B, alpha, p):
    dx, dA, dB = textbook(dy, x * keep, A, B, alpha, len(A))
    return dy @ W + dx * keep, dA, dB


FORMS = {
    "no W and no dropout": textbook,
    "lora_alpha": of_a_batch,
    "no dropout": with_frozen_W,
    "one scale": with_one_scale,
    "no rank": with_the_rank_of_A,
}


@pytest.mark.parametrize("name", FORMS)
def test_low_rank_is_diagnosed_in_every_form_in_which_people_write_it(name):
    grad = FORMS[name]
    assert diagnose(grad, "low_rank").ok

    @functools.wraps(grad)
    def twice(*arguments, **constants):
        dx, dA, dB = grad(*arguments, **constants)
        return dx, 0 * dA, 2 * dB

    assert diagnose(twice, "lora").names() == ["as_if_B_were_zero", "counted_twice"]


def test_a_form_says_what_it_leaves_out():
    assert str(diagnose(textbook, "low_rank")).startswith("(compared without W, keep, p)\n")
    assert diagnose(textbook, "low_rank").text("zh").startswith("（按不含 W、keep、p 的形式比较）\n")
    assert str(diagnose(learner(BANK["low_rank"]), "low_rank")).startswith("dx is right")


def softmax(z):
    return np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)


def mean_of_rows(logits, targets):
    P = softmax(logits)
    P[np.arange(len(targets)), targets] -= 1
    return P / len(targets)


def mean_of_tokens(dL, logits, targets):
    B, T, V = logits.shape
    return dL * (softmax(logits) - np.eye(V)[targets]) / (B * T)


@pytest.mark.parametrize("grad", [mean_of_rows, mean_of_tokens])
def test_cross_entropy_is_diagnosed_as_a_mean_over_all_tokens(grad):
    assert diagnose(grad, "cross_entropy").ok
    wrong = functools.wraps(grad)(lambda *a, **c: grad(*a, **c) * (a[-1] if a else c["targets"]).size)
    assert diagnose(wrong, "cross_entropy").names() == ["no_mean"]


def test_the_named_faults_of_a_form_are_those_that_it_can_have():
    problem = BANK["low_rank"]
    for name in ("scale_twice", "no_scale", "product_of_sums", "h_for_dh"):

        def grad(dy, x, A, B, alpha, r, name=name):
            W, keep = np.zeros((len(B), x.shape[-1])), np.ones_like(x)
            rest = {"W": W, "keep": keep, "alpha": alpha, "r": r, "p": 0.0}
            return problem.backward(dy, x, A, B, **rest) | problem.faults[name].wrong(dy, x, A, B, **rest)

        assert set(diagnose(grad, problem).names()) == {name}


def test_parameters_that_fit_no_form_are_told_which_there_are():
    with pytest.raises(ValueError, match=r"\(dy, x, A, C\), fit no form of low_rank: B is missing; .* also without W"):
        diagnose(lambda dy, x, A, C: None, "low_rank")
    with pytest.raises(ValueError, match=r"no form of layer_norm: b, eps are missing; "):
        diagnose(lambda dy, x, gamma: None, "layer_norm")


@pytest.mark.parametrize("names", [("z", "y"), ("x", "y"), ("logits", "y_true"), ("scores", "t"), ("logits", "label")])
def test_logits_and_labels_go_by_any_of_their_usual_names(names):
    grad = {}
    exec(f"def f(dy, {', '.join(names)}): return dy * mean_of_tokens(1, {', '.join(names)})", globals(), grad)
    assert diagnose(grad["f"], "cross_entropy").ok
    assert diagnose(lambda pred, labels: 2 * (pred - labels) / pred.size, "mse").ok


def test_gradients_may_be_called_after_the_parameters_of_the_function():
    def named(dy, x, lora_A, lora_B, scaling):
        return dict(zip(["dx", "dlora_A", "lora_B"], with_one_scale(dy, x, lora_A, lora_B, scaling), strict=True))

    assert diagnose(named, "lora").ok


def test_what_is_right_for_rows_is_said_beside_what_is_wrong_for_a_batch_of_tokens():
    found = diagnose(lambda z, y: (softmax(z) - np.eye(z.shape[-1])[y]) / len(y), "cross_entropy")
    assert str(found) == (
        "(compared without count)\ndlogits is tokens times the true gradient\n"
        "With one axis of rows instead of batch and tokens, every gradient is right."
    )
    wrong = diagnose(lambda z, y: 2 * (softmax(z) - np.eye(z.shape[-1])[y]) / len(y), "cross_entropy")
    assert "rows" not in str(wrong)


@some_problems
def test_a_number_that_is_the_same_in_every_case_is_said_and_never_made_of_sizes(problem):
    for number in examples.some_of(("1.1", "6", "-0.3")):
        factor = float(number)
        found = diagnose(lambda *a, f=factor, **c: [f * g for g in problem.backward(*a, **c).values()], problem)
        says = {finding.says.en.split(" ", 1)[1] for finding in found.findings if finding.kind != "right"}
        assert says == {f"is {number} times the true gradient"}


def test_a_tensor_of_zeros_is_not_called_one_entry_of_many():
    problem = BANK["causal_attention"]
    found = diagnose(lambda *a, **c: [0 * g for g in problem.backward(*a, **c).values()], problem)
    assert [finding.says.en for finding in found.findings] == ["dq is zero", "dk is zero", "dv is zero"]


@pytest.mark.parametrize("form", examples.some_of(FORMS))
def test_a_gradient_that_nothing_explains_is_unknown_in_every_form(form):
    @functools.wraps(FORMS[form])
    def grad(*arguments, **constants):
        return [np.maximum(g, 0) for g in FORMS[form](*arguments, **constants)]

    assert {finding.kind for finding in diagnose(grad, "lora").findings} == {"law", "unknown"}


def test_one_sample_of_a_tensor_that_has_samples_of_its_own_need_not_add_up():
    def last(dy, x, A, B, alpha, r):
        dx, dA, dB = textbook(dy, x, A, B, alpha, r)
        return np.where(np.arange(len(x)) == len(x) - 1, dx.T, 0).T, dA, dB

    assert "dx holds the last row alone, and is zero elsewhere" in str(
        diagnose(functools.wraps(textbook)(last), "lora")
    )


def test_what_is_no_function_is_refused_by_name():
    with pytest.raises(ValueError, match="grad is not a function, but str"):
        diagnose("x", "lora")
    with pytest.raises(ValueError, match="a problem is a name, a Problem or a function f, and not int"):
        diagnose(lambda dy, x: dy, 42)


def test_weight_decay_has_one_coefficient_in_all_cases():
    def without_target(dL, y, target):
        return dL * 2 * y / y.size

    found = diagnose(without_target, "mean_squared_error")
    assert "decay" not in str(found)


def test_a_law_that_divides_by_a_tensor_of_zeros_is_left_out():
    problem = BANK["grouped_query_attention"]

    def grad(dy, q, k, v, mask):
        dq, dk, dv = problem.backward(dy, q, k, v, mask).values()
        return dq, np.tanh(dk) * (q.shape[1] % 2), dv

    assert "dk: unknown" in str(diagnose(grad, problem))


def test_chinese_lines_have_chinese_punctuation():
    found = diagnose(lambda dy, x, A, B, alpha, r: [2 * np.tanh(g) for g in textbook(dy, x, A, B, alpha, r)], "lora")
    assert "\ndx：原因未知；" in found.text("zh")


def test_a_problem_is_found_by_other_names_and_a_near_miss_is_answered():
    for name, found in {"LoRA": "low_rank", "Layer Norm": "layer_norm", "gqa": "grouped_query_attention"}.items():
        assert diagnose(learner(BANK[found]), name).ok
    with pytest.raises(ValueError, match=r"no problem is called 'layer_nrom': did you mean 'layer_norm'\?"):
        diagnose(cubic, "layer_nrom")


def test_the_signatures_print_each_forward_as_a_formula():
    for problem in BANK.values():
        assert "=" in problem.formula or "→" in problem.formula
        assert problem.formula in signatures()
    assert signatures("lora").startswith("low_rank: grad(")
    assert "y = x Wᵀ + s (x ∘ keep) Aᵀ Bᵀ" in signatures("lora")
    with pytest.raises(ValueError, match="no problem has 'soup' in its name"):
        signatures("soup")


@some_problems
def test_another_seed_gives_other_numbers_in_other_shapes_in_which_no_fault_hides(problem):
    usual, other = problem.cases(), problem.cases(5)
    assert [case.dy.shape for case in usual] != [case.dy.shape for case in other] or np.ndim(usual[0].dy) == 0
    assert [case.sizes for case in usual] != [case.sizes for case in other]
    for name, fault in problem.faults.items():
        pairs = [(apply(problem.backward, case), apply(fault.wrong, case)) for case in other]
        assert any(relative_error(wrong[key], true[key]) > 1e-6 for true, wrong in pairs for key in wrong), name


def test_a_law_is_said_to_be_broken_only_where_the_gradients_as_they_are_break_it():
    problem = BANK["causal_attention"]

    def balanced(dy, q, k, v, mask):  # dP is made with q in place of dy: dq and dk are wrong, yet Σ q ∘ dq = Σ k ∘ dk
        return problem.backward(q, q, k, v, mask) | {"dv": problem.backward(dy, q, k, v, mask)["dv"]}

    found = diagnose(balanced, problem).findings
    assert {finding.tensor for finding in found if finding.kind != "right"} == {"dq", "dk"}
    assert not [finding.says.en for finding in found if finding.kind == "law" and "q ∘ dq" in finding.says.en]

    def dq_alone(dy, q, k, v, mask):
        return problem.backward(dy, q, k, v, mask) | {"dq": balanced(dy, q, k, v, mask)["dq"]}

    alone = diagnose(dq_alone, problem).findings
    assert [finding for finding in alone if finding.kind == "law" and "q ∘ dq" in finding.says.en]
