"""docs/quantization.md: its tables are those of the runs beside it."""

import json
from pathlib import Path
from statistics import median

from benchmarks.perplexity import rows

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")


def record(name):
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


def memory_rows(result):
    """A row for each base: seconds of a step, memory of the model, and both of float32's; then PEFT's."""
    found = {contestant["name"]: contestant for contestant in result["contestants"]}

    def mebibytes(contestant):
        return (contestant["peak"] - contestant["before"]) / 2**20

    def beside(name, other):
        walls = [a["wall"] / b["wall"] for a, b in zip(found[name]["rounds"], found[other]["rounds"], strict=True)]
        return f"{mebibytes(found[name]) / mebibytes(found[other]):.2f}", f"{median(walls):.2f}"

    for base in result["case"]["bases"].split(","):
        name, theirs = f"minilora {base}", f"{'peft' if base in ('float32', 'bfloat16') else 'bitsandbytes'} {base}"
        cells = [f"`{base}`", f"{mebibytes(found[name]):,.0f} MiB", *beside(name, "minilora float32")]
        cells += [f"{mebibytes(found[theirs]):,.0f} MiB", *beside(name, "peft float32")]
        yield "| " + " | ".join(cells) + " |"


def test_the_memory_of_the_page_is_that_of_the_run_beside_it():
    results = record("qlora.json")
    for result in results["cases"]:
        for row in memory_rows(result):
            assert row in PAGE, row
    assert results["machine"]["processor"] in PAGE


def test_nf4_takes_half_the_memory_of_float32_and_a_third_of_pefts():
    small = next(r for r in record("qlora.json")["cases"] if (r["case"]["size"], r["case"]["batch"]) == ("smollm2", 1))
    nf4 = next(row for row in memory_rows(small) if row.startswith("| `nf4` |"))
    *_, ours, time, _, theirs, _ = (cell.strip() for cell in nf4.strip("|").split("|"))
    assert float(ours) <= 0.5
    assert float(theirs) <= 0.35
    assert float(time) <= 1.3


def test_the_perplexities_of_the_page_are_those_of_the_run_beside_it():
    for result in record("perplexity.json")["models"]:
        for base, *cells in rows(result):
            row = " ".join("".join(f"| {cell} " for cell in [f"`{base}`", *cells, ""]).split())
            assert row in PAGE, row


def test_a_step_over_nf4_is_no_slower_than_float32s_where_the_products_are_large():
    large = next(r for r in record("qlora.json")["cases"] if (r["case"]["size"], r["case"]["batch"]) == ("smollm2", 8))
    nf4 = next(row for row in memory_rows(large) if row.startswith("| `nf4` |"))
    time = nf4.split("|")[4].strip()
    assert float(time) <= 1
    assert f"the step over NF4 takes {time} of float32's" in " ".join(PAGE.split())
