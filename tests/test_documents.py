"""README.md and docs/: their examples run, their links lead somewhere, their numbers are those of a run."""

import doctest
import json
import re
import shlex
from pathlib import Path

import pytest

from benchmarks.report import pays_after, warm_up
from minilora.accounting import METHODS, NAMED
from minilora.cli import main
from minilora.verify.problems import problems

ROOT = Path(__file__).parent.parent
DOCUMENTS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
README = DOCUMENTS["README.md"]


LONG = {"quantization.md", "many.md", "variants.md"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LONG else ())
        for name, text in DOCUMENTS.items()
        if "\n>>> " in text
    ],
)
def test_the_lines_of_a_document_print_what_it_shows(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(DOCUMENTS[name], {}, name, None, 0)
    assert test.examples
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    output: list[str] = []
    runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)


def test_the_commands_of_the_documents_print_what_they_show(capsys):
    shown = [
        found
        for text in DOCUMENTS.values()
        for found in re.findall(r"^```\n\$ minilora (.+)\n((?:.+\n)+)```$", text, re.MULTILINE)
    ]
    assert shown
    for words, expected in shown:
        assert main(shlex.split(words)) == 0
        assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == expected.splitlines()


def test_the_first_screen_is_the_two_commands():
    first_screen = README.splitlines()[:20]
    assert any(line.endswith(".venv/bin/minilora demo") for line in first_screen)
    assert any(line.endswith('".[test]" && .venv/bin/pytest') for line in first_screen)
    assert len(README.splitlines()) <= 130


def test_what_a_document_links_to_is_there():
    for name, text in DOCUMENTS.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (folder / target).exists(), f"{name}: {target}"


def test_every_page_of_docs_is_linked_from_the_readme():
    assert {name for name in DOCUMENTS if f"(docs/{name})" in README} == DOCUMENTS.keys() - {"README.md"}


def test_the_documents_count_what_there_is():
    faults = sum(len(problem.faults) for problem in problems().values())
    assert f"It knows {faults} mistakes in {len(problems())} problems" in DOCUMENTS["gradients.md"]
    assert f"{len(METHODS)} methods on {len(NAMED)} models" in README
    assert f"{len(NAMED)} models by name" in DOCUMENTS["counting.md"]
    assert f"and {len(METHODS)} methods" in DOCUMENTS["counting.md"]
    theorems = re.findall(
        r"^def test_", (ROOT / "tests" / "verify" / "test_theorems.py").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert f"{len(theorems)} statements" in DOCUMENTS["rank.md"]


def speed_rows(report):
    """The table of docs/speed.md of speeds, from a run of `python -m benchmarks`: a column for each of these cases."""
    columns = [("tiny", 16, 64), ("tiny", 1, 64), ("small", 8, 128), ("gpt2", 2, 128), ("minilm", 32, 64),
               ("smollm2", 1, 128)]  # fmt: skip

    def find(size, batch, tokens, measure, cores, theirs):
        for result in report["cases"]:
            case = result["case"]
            if [case[key] for key in ("size", "batch", "tokens", "measure", "cores")] == [
                size, batch, tokens, measure, cores,
            ]:  # fmt: skip
                return next((r for r in result["ratios"] if r["theirs"].split()[0] == theirs), None)
        return None

    def row(name, value, measure, cores, theirs, batch_of=lambda column: column[1]):
        found = [find(c[0], batch_of(c), c[2], measure, cores, theirs) for c in columns]
        return f"| {name} | " + " | ".join(f"{value(ratio):.2f}" if ratio else "" for ratio in found) + " |"

    wall, peak = (lambda ratio: ratio["wall"]), (lambda ratio: ratio["peak"])
    for cores in (1, 2):
        for theirs, name in (("torch", "PyTorch"), ("peft", "PEFT")):
            yield row(f"a LoRA step, beside {name}, {cores} core{'s' * (cores > 1)}", wall, "lora", cores, theirs)
    yield row("most memory, beside PEFT", peak, "lora", 1, "peft")
    once = {("tiny", 16, 64), ("small", 8, 128), ("gpt2", 2, 128)}  # generation is of one sequence
    more = row("tokens a second, of PyTorch's (more is better)", lambda r: 1 / r["wall"], "generate", 1, "torch",
               lambda column: 1 if column in once else -1)  # fmt: skip
    yield more


def compiled_rows(report):
    """The table of docs/speed.md beside torch.compile, from the run that the page names: a column for each of these."""
    columns = {("tiny", 16, 64): "tiny 16 × 64", ("tiny", 1, 64): "tiny 1 × 64", ("small", 8, 128): "small 8 × 128",
               ("gpt2", 2, 128): "GPT-2 2 × 128"}  # fmt: skip
    names = {"torch": "PyTorch", "torch compiled": "torch.compile", "peft": "PEFT"}
    measures = {"forward": "a forward", "lora": "a LoRA step", "generate": "tokens a second (more is better)"}
    found = {}
    for result in report["cases"]:
        case, sides = result["case"], {each["name"]: each for each in result["contestants"]}
        key = case["malloc"], case["measure"], case["size"], case["tokens"]
        for ratio in result["ratios"]:
            found[*key, sides[ratio["theirs"]]["library"], case["batch"]] = ratio["wall"]
        compiled = sides["torch compiled"]
        found[*key, "warm-up", case["batch"]] = f"{warm_up(compiled):.0f} s"
        for other in ("torch", "minilora"):
            n = pays_after(compiled, sides[other])
            found[*key, f"pays {other}", case["batch"]] = "never" if n is None else f"{n:,}"

    def row(name, malloc, measure, what):
        cells = []
        for size, batch, tokens in columns:
            once = measure == "generate"  # of one sequence, in the first column of a size
            value = "" if once and (size, batch) == ("tiny", 1) else found.get(
                (malloc, measure, size, tokens, what, 1 if once else batch), "")  # fmt: skip
            cells.append(f"{1 / value if once else value:.2f}" if isinstance(value, float) else value)
        return f"| {name} | {' | '.join(cells)} |"

    yield f"| time of minilora / time of the other, 1 core | {' | '.join(columns.values())} |"
    yield "|---|" + "---|" * len(columns)
    for malloc, setting in (("kept", ""), ("default", ", default malloc")):
        for measure, words in measures.items():
            for library, name in names.items():
                if library != "peft" or measure == "lora":
                    yield row(f"{words}, beside {name}{setting}", malloc, measure, library)
    yield row("warm-up of torch.compile for a LoRA step", "kept", "lora", "warm-up")
    for other, name in (("torch", "PyTorch"), ("minilora", "minilora")):
        yield row(f"steps after which it has paid, beside {name}", "kept", "lora", f"pays {other}")


def slower(compiled, full):
    """What docs/speed.md says of what is slower than PyTorch, and of two shards, from the runs that it names."""
    beside = {}
    for result in compiled["cases"]:
        case, ratios = result["case"], {ratio["theirs"]: ratio["wall"] for ratio in result["ratios"]}
        beside[case["malloc"], case["size"], case["batch"], case["measure"]] = ratios["torch"]
    assert all(ratio < 1 for (*_, measure), ratio in beside.items() if measure != "generate")
    yield f"{beside['kept', 'tiny', 1, 'generate']:.1f} times: one token is a hundred calls of NumPy"
    sides = {
        (result["case"]["cores"], each["name"]): each for result in full["cases"] for each in result["contestants"]
    }
    one, two, torch = (sides[key] for key in ((1, "minilora"), (2, "minilora"), (2, "torch")))
    time, memory = (two[what] / one[what] for what in ("wall", "peak"))
    yield f"take {time:.2f} of the time of one, and {memory:.2f} of its memory"
    time, memory = (two[what] / torch[what] for what in ("wall", "peak"))
    yield f"That is {time:.2f} of PyTorch's time on two cores, and {memory:.2f} of its memory"


RESULTS = ROOT / "benchmarks" / "results"
COMPILED = RESULTS / "compiled.json"


def test_the_speeds_beside_torch_compile_are_those_of_the_run_beside_them():
    rows = list(compiled_rows(json.loads(COMPILED.read_text(encoding="utf-8"))))
    assert "\n".join(rows) in DOCUMENTS["speed.md"]


def test_what_is_slower_and_what_two_shards_take_are_of_the_runs_that_the_page_names():
    reports = (json.loads((RESULTS / name).read_text("utf-8")) for name in ("compiled.json", "full.json"))
    for words in slower(*reports):
        assert words in DOCUMENTS["speed.md"]


def test_the_speeds_of_the_documents_are_those_of_the_run_beside_it():
    report = json.loads((ROOT / "benchmarks" / "results" / "bench.json").read_text(encoding="utf-8"))
    for row in speed_rows(report):
        assert re.sub(r"  +", " ", row) in DOCUMENTS["speed.md"]
    assert all(len(c["rounds"]) == 7 for result in report["cases"] for c in result["contestants"])
    assert report["machine"]["processor"] in DOCUMENTS["speed.md"]
