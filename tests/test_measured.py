"""docs/measured.md: every command of the documents stands there, and parses; every recorded number is the record's."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import perplexity
from minilora.cli import parser
from minilora.practice.questions import questions

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
PATHS = "README.md", "notebooks/README.md", "exercises/README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))
TEXTS = {path: (ROOT / path).read_text(encoding="utf-8") for path in PATHS if path != "docs/measured.md"}
GRIDS = sorted(path.stem for path in (ROOT / "notebooks" / "grids").glob("*.py"))
MEASURED, _, TYPED = PAGE.partition("## Commands of which no number is quoted")
A_NUMBER = re.compile(r"\d ?(±|%|MiB|ms\b|bits per byte|tokens a second|seconds)")


def commands(text: str) -> set[str]:
    """The `minilora ...` and `python FILE ...` of a document, in its spans and blocks, without `--out` and comments."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    found = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    for line in lines + re.findall(r"^ {4}(.+)", prose, re.MULTILINE):
        found += re.split(r" && | \| ", re.sub(r"^\$ |\s+#.*", "", line))
    is_one = re.compile(r"minilora [a-z]|python (-m (benchmarks|minilora)|notebooks/|tests/)")
    return {re.sub(r" --out \S+", "", command).strip() for command in found if is_one.match(command)}


def stands_in(command: str, listed: set[str]) -> bool:
    """Whether it is listed, or begins as one that ends with an ellipsis."""
    return any(command == each or (each.endswith(" …") and command.startswith(each[:-2])) for each in listed)


def is_form(command: str) -> bool:
    """Whether it is a bare name or has words in capitals to be filled in, so that it prints no number of a document."""
    return bool(re.search(r"\b[A-Z]{2,}\b| [A-Z] |^minilora \w+( --methods)?$|^python -m benchmarks$", command))


def link(path: str) -> str:
    """As the page links to a document."""
    return f"]({path.removeprefix('docs/') if path.startswith('docs/') else '../' + path}"


ON_PAGE = commands(PAGE)
ALL_TYPED = {path for path in TEXTS if link(path) in TYPED}  # documents of whose commands no number is quoted
QUOTED = {command for text in TEXTS.values() for command in commands(text)}


@pytest.mark.parametrize("path", [path for path in TEXTS if path not in ALL_TYPED])
def test_a_command_of_a_document_is_on_the_page(path):
    missing = {c for c in commands(TEXTS[path]) if not is_form(c) and not stands_in(c, ON_PAGE)}
    assert not missing, "say in docs/measured.md where it was measured, or that no number of it is quoted"


def test_a_command_of_the_page_is_one_that_a_document_quotes():
    forms = [re.sub(r"\b[A-Z]{2,}\b", r"\\S+", re.escape(command)) for command in QUOTED if is_form(command)]
    stale = {
        command
        for command in ON_PAGE
        if not any(stands_in(each, {command}) for each in QUOTED) and not any(re.fullmatch(f, command) for f in forms)
    }
    assert not stale


@pytest.mark.parametrize("command", sorted(command for command in ON_PAGE if not command.endswith("…")))
def test_a_command_of_the_page_is_one_that_runs(command):
    program, *words = shlex.split(command)
    if program == "minilora":
        parser().parse_args(words + ["--out", "x"] * (words[0] in OUT_IS_REQUIRED))
    elif words[:2] in (["-m", "benchmarks"], ["-m", "benchmarks.perplexity"]):
        (perplexity if "." in words[1] else benchmarks).parser().parse_args(words[2:])
    else:
        script = ROOT / (words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0])
        text = script.read_text(encoding="utf-8")
        assert all(word[2:] in text for word in words if word.startswith("--"))


OUT_IS_REQUIRED = "finetune", "sweep", "pretrain"


def test_every_document_is_on_the_page_and_one_without_a_measurement_has_no_measured_number():
    for path, text in TEXTS.items():
        assert link(path) in PAGE, path
        if link(path) not in MEASURED:
            found = A_NUMBER.search(re.sub(r"```.*?```", "", text, flags=re.DOTALL))
            assert not found, f"{path}: {found}"


# ---- recorded grids ----


@pytest.fixture
def read(monkeypatch):
    """notebooks/record.py's."""
    monkeypatch.syspath_prepend(ROOT / "notebooks")
    return import_module("record").read


def test_the_page_has_every_grid_with_its_runs_its_seeds_and_the_notebooks_that_read_it(read):
    scripts = {path.name[:2]: path.read_text(encoding="utf-8") for path in ROOT.glob("notebooks/[0-9]*.py")}
    for grid in GRIDS:
        runs = read(grid)
        seeds = len({run["seed"] for run in runs if "seed" in run}) or 1
        readers = [number for number, text in sorted(scripts.items()) if f'record.read("{grid}")' in text]
        row = re.search(rf"^\| `{grid}` \| (.*?) \| (\d+) \| (\d+) \|", PAGE, re.MULTILINE)
        assert row, grid
        assert [int(row[2]), int(row[3])] == [len(runs), seeds], grid
        assert re.findall(r"\[(\d\d)\]", row[1]) == readers, grid
        head = json.loads((ROOT / "notebooks" / "grids" / f"{grid}.json").read_text(encoding="utf-8"))
        assert f"versions of Python and NumPy: {head['python']} and {head['numpy']} for all" in " ".join(PAGE.split())


def best(runs, **where):
    """The mean loss of these runs at the learning rate where it is least, and the mean of what was known before."""
    runs = [run for run in runs if all(run.get(name) == value for name, value in where.items())]
    at = {lr: [run for run in runs if run["lr"] == lr] for lr in {run["lr"] for run in runs}}
    return min(tuple(float(np.mean([run[text] for run in found])) for text in ("new", "old")) for found in at.values())


def test_the_losses_that_questions_quote_are_those_of_the_records(read):
    answers = {key: question.answer.en for key, question in questions().items()}
    rates, placement, batches = read("rates"), read("placement"), read("batches")
    at = {
        r: tuple(f"{x:.3f}" for x in best([x for x in rates if not x.get("rslora")], rank=r)) for r in (0, 1, 4, 16, 64)
    }
    assert f"r = 1 {at[1][0]}, 4 {at[4][0]}, 16 {at[16][0]}, 64 {at[64][0]}, full {at[0][0]}" in answers["D1"]
    assert f"full {at[0][0]} bits; r = 1, 4, 16, 64: {', '.join(at[r][0] for r in (1, 4, 16, 64))}" in answers["J7"]
    assert f"({at[64][0]}, {at[16][0]})" in answers["D2"]
    assert f"{at[1][0]} and {at[1][1]}, full fine-tuning at its best {at[0][0]} and {at[0][1]}" in answers["I7"]
    names = "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    q_v, attention, mlp, every = (
        f"{best(placement, targets=targets, rank=rank)[0]:.3f}"
        for targets, rank in ((["q_proj", "v_proj"], 24), ([*names[:4]], 12), ([*names[4:]], 8), ("all-linear", 5))
    )
    assert f"q, v {q_v}, q, k, v, o {attention}, MLP {mlp}, all {every} bits per byte" in answers["F2"]
    assert f"MLP {mlp}, all layers {every}, q, k, v, o {attention}, q, v {q_v}" in answers["F1"]
    gaps = [best(batches, rank=8, batch=n)[0] - best(batches, rank=0, batch=n)[0] for n in (4, 16, 64)]
    assert "{:.3f}, {:.3f} and {:.3f} bit at batches 4, 16 and 64".format(*gaps) in answers["I2"]


@pytest.mark.slow
def test_the_tables_of_loftq_are_what_its_command_prints(capsys, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "notebooks")
    import_module("grids.loftq").main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 + 1 + 5
    assert all(line in TEXTS["docs/variants.md"] for line in lines)


def test_the_best_rates_of_the_variants_are_those_that_were_tried():
    rates = json.loads((ROOT / "minilora" / "data" / "rates.json").read_text(encoding="utf-8"))["rates"]
    table = TEXTS["docs/variants.md"].partition("| best rate |")[2].partition("\n\n")[0]
    rows = {cells[1].strip(): float(cells[-2]) for line in table.splitlines()[2:] if (cells := line.split("|"))}
    expected = {}
    for name, found in rates.items():
        method, *options = name.split()
        label = f"`{method}`" + (f" {options[0].replace('=', ' = ')}" if options else "")
        label += f" ({', '.join(f'`{option}`' for option in options[1:])})" if options[1:] else ""
        expected[label] = float(min(found["bits_per_byte"], key=found["bits_per_byte"].get))
    assert rows == expected


# ---- benchmarks/results ----


def ratios(name):
    """{(size, measure, targets, theirs): (time, memory)} of a run of `python -m benchmarks`."""
    report = json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))
    return {
        (*(result["case"][key] for key in ("size", "measure", "targets")), library(result, ratio)): (
            ratio["wall"],
            ratio["peak"],
        )
        for result in report["cases"]
        for ratio in result["ratios"]
    }


def library(result, ratio):
    return next(each["library"] for each in result["contestants"] if each["name"] == ratio["theirs"])


def test_the_times_of_dora_and_vera_are_those_of_the_run_beside_them():
    found = ratios("variants.json")
    names = {
        "lora": "LoRA", "dora": "DoRA, the gradient through the norm",
        "dora-held": "DoRA, the norm held constant, as PEFT", "vera": "VeRA",
    }  # fmt: skip
    for measure, name in names.items():
        cells = [found["small", measure, targets, "peft"][0] for targets in ("q_proj,v_proj", "all-linear")]
        assert f"| {name} | {cells[0]:.2f} | {cells[1]:.2f} |" in TEXTS["docs/speed.md"]


def test_the_times_on_a_gpu_are_those_of_the_runs_beside_them():
    text = " ".join(TEXTS["docs/speed.md"].split())
    now, before = ratios("cuda.json"), ratios("cuda_before.json")

    def times(found, size):
        return [f"{found[size, 'lora', 'q_proj,v_proj', theirs][0]:.1f}" for theirs in ("torch", "peft")]

    said = "takes {} times PyTorch's time ({} times PEFT's) and of GPT-2 {} times ({}), with"
    assert said.format(*times(now, "small"), *times(now, "gpt2")) in text
    assert "it was {} ({}) and {} ({})".format(*times(before, "small"), *times(before, "gpt2")) in text
    peaks = [peak for (_, measure, *_), (_, peak) in now.items() if measure == "lora"]
    assert f"with {min(peaks):.2f} to {max(peaks):.2f} of the memory" in text
