"""All of it in one report, and the report in tables."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from minilora.display.tables import numbers_right, wide_console
from minilora.spelling import choose_from, counted

from .cases import BASES, BITSANDBYTES, MALLOCS, MEASURES, NEW, SIZES, Case, cases, pairs, read_size
from .rounds import COMPILER, THREADS, measure, missing
from .threads import default_and_pinned

ALL = *MEASURES, "threads", "import", "ops"
IMPORTS = {
    "numpy": "import numpy",
    "minilora": "import minilora",
    "minilora, used": "from minilora import attach_lora, fit, generate, load_pretrained",
    "torch": "import torch",
    "peft": "import peft",
}
DEFAULT = "tiny", "tiny:1x64", "small", "small:1x128", "gpt2", "gpt2:1x128"
LENGTHS = 256, 512, 1024, 2048, 4096


def lengths() -> list[str]:
    """Sizes that differ in the number of tokens alone, for what grows with it."""
    return [f"small:1x{T}" for T in LENGTHS]


def bench(
    sizes: Sequence[str] = DEFAULT,
    measures: Sequence[str] = ALL,
    *,
    cores: Sequence[int] = (1,),
    ranks: Sequence[int] = (8,),
    targets: Sequence[str] = ("q_proj,v_proj",),
    rounds: int = 7,
    seconds: float = 0.2,
    device: str = "cpu",
    bases: Sequence[str] = BASES,
    malloc: Sequence[str] = MALLOCS[:1],
) -> dict[str, Any]:
    """{"machine", "device", "missing", "cases", "threads", "imports", "ops"}: each measure of each size, in `rounds`
    rounds of bursts of `seconds`. "missing" are the packages that a comparison lacks, and a compiler for torch.compile:
    who needs them is left out.

    `sizes` are names of SIZES, or with another batch and number of tokens "small:1x128"; `measures` are of ALL;
    `targets` are those of attach_lora, with commas; `bases` are how "qlora" holds the base; `malloc` are of MALLOCS.
    PyTorch, Transformers and PEFT are contestants where they are installed, torch.compile where there is a compiler.
    Raises ValueError for a name that is not known, RuntimeError for contestants that do not do the same.
    """
    from tqdm import tqdm

    for name in measures:
        if name not in ALL:
            raise ValueError(f"no measure {name!r}: {choose_from(name, ALL)}")
    asked = [m for m in measures if m in MEASURES]
    wanted = cases(list(sizes), asked, list(cores), list(ranks), list(targets), device, list(bases), list(malloc))
    if asked and asked == list(measures) and not wanted:
        raise ValueError(
            f"{', '.join(asked)} on {device} measures nothing of {', '.join(sizes)}: minilm and smollm2 are measured "
            "with adapters alone, and qlora is for them alone, on cpu"
        )
    lacking = {package for case in wanted for _, theirs in pairs(case) for package in missing(theirs.library)}
    if "import" in measures:
        lacking |= {*missing("torch"), *missing("peft")}
    report: dict[str, Any] = {"machine": machine(), "device": device, "missing": sorted(lacking)}
    report |= {"cases": [], "threads": [], "imports": [], "ops": []}
    bar = tqdm(wanted, "measuring", disable=None, leave=False)
    for case in bar:
        bar.set_postfix_str(str(case))
        report["cases"].append(measure(case, rounds, seconds))
    if "threads" in measures:
        report["threads"] = default_and_pinned(rounds, seconds)
    if "import" in measures:
        report["imports"] = imports(rounds)
    if "ops" in measures:
        for name, shape in {size[0]: size[1:] for size in map(read_size, reversed(sizes))}.items():  # the first of each
            if SIZES[name].shape is not None:
                report["ops"].append(ops_of(Case(name, *shape, "ops", device=device)))
    return report


def machine() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    about = {"processor": processor, "cores": os.cpu_count(), "system": platform.system()}
    return about | {"python": platform.python_version()}


def imports(rounds: int) -> list[dict[str, Any]]:
    """Seconds and memory of imports, each in a process of its own, in turn."""
    found: dict[str, list[dict[str, float]]] = {
        name: [] for name, code in IMPORTS.items() if find_spec(code.split()[1])
    }
    for _ in range(rounds):
        for name, each in found.items():
            code = f"import time; t = time.perf_counter(); {IMPORTS[name]}; t = time.perf_counter() - t"
            code += "; from minilora.process import peak_memory; print(t, peak_memory())"
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
            )
            took, peak = done.stdout.split()
            each.append({"seconds": float(took), "peak": int(peak)})
    return [
        {"name": name, "code": IMPORTS[name], "rounds": each, "seconds": median(r["seconds"] for r in each),
         "ratio": median(a["seconds"] / b["seconds"] for a, b in zip(each, found["numpy"], strict=True)),
         "peak": median(r["peak"] for r in each)}
        for name, each in found.items()
    ]  # fmt: skip


def ops_of(case: Case) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.roofline", json.dumps(asdict(case))]
    done = subprocess.run(command, env=os.environ | dict.fromkeys(THREADS, "1"), stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


# ---- for people ----


def show(report: dict[str, Any]) -> None:
    console = wide_console()
    console.print(machine_line(report), soft_wrap=True)
    if COMPILER in report["missing"]:
        line = f"no compiler {COMPILER}, and so torch.compile is not beside minilora (CXX names another compiler)"
        console.print(line, soft_wrap=True)
    if names := " ".join(name for name in report["missing"] if name != COMPILER):
        console.print(f"not installed, and so not beside minilora: {names} (pip install {names})", soft_wrap=True)
    for line in libraries(report):
        console.print(line, soft_wrap=True)
    for table in (
        *case_tables(report),
        *compile_table(report),
        *quantised_tables(report),
        *threads_table(report),
        *import_table(report),
        *op_tables(report),
    ):
        console.print(table)


def machine_line(report: dict[str, Any]) -> str:
    about = report["machine"]
    return f"{about['processor']}, {about['cores']} cores, {about['system']}, Python {about['python']}"


def libraries(report: dict[str, Any]) -> list[str]:
    """What each contestant is, as it said itself: versions, BLAS, threads; of minilora its shards × those of BLAS."""
    versions: dict[str, str] = {}
    threads: dict[str, dict[str, None]] = {}
    for result in report["cases"]:
        for contestant in result["contestants"]:
            about, library = dict(contestant["about"]), contestant["library"]
            said = f"{about.pop('threads')} on {counted(result['case']['cores'], 'core')}"
            threads.setdefault(library, {})[said] = None  # in their order
            versions[library] = ", ".join(f"{name} {version}" for name, version in about.items())
    return [f"{library}: {said}; threads {', '.join(threads[library])}" for library, said in versions.items()]


def case_tables(report: dict[str, Any]) -> list[Any]:
    tables: dict[tuple[int, str], Any] = {}
    for result in report["cases"]:
        case = Case(**result["case"])
        if case.bases:
            continue
        where = f"{counted(case.cores, 'core')} each" if case.device == "cpu" else "on the GPU"
        key = (case.cores, where)
        if key not in tables:
            title = f"{where}; ratio: median of {len(result['contestants'][0]['rounds'])} rounds, and their range"
            compares = ["the other", "ratio", "rounds", "memory"] if any(r["ratios"] for r in report["cases"]) else []
            tables[key] = numbers_right(title if compares else where, "work", "minilora", *compares)
        for row in rows_of(case, result):
            tables[key].add_row(*row[: len(tables[key].columns)])
    return list(tables.values())


def rows_of(case: Case, result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Seconds, and ours / theirs; of generation tokens per second, and again ours / theirs."""
    by_name = {contestant["name"]: contestant for contestant in result["contestants"]}
    generates = case.measure == "generate"

    def said(contestant: dict[str, Any]) -> str:
        return f"{NEW / contestant['wall']:,.0f} tok/s" if generates else milliseconds(contestant["wall"])

    if not result["ratios"]:
        return [(str(case), said(by_name["minilora"]), "", "", "", "")]
    rows: list[tuple[str, ...]] = []
    for pair in result["ratios"]:
        each = [1 / r if generates else r for r in pair["rounds"]]
        rows.append((
            f"{case}, beside {pair['theirs']}", said(by_name[pair["ours"]]), said(by_name[pair["theirs"]]),
            f"{median(each):.2f}", f"{min(each):.2f}–{max(each):.2f}", f"{pair['peak']:.2f}" if pair["peak"] else "",
        ))  # fmt: skip
    return rows


def compile_table(report: dict[str, Any]) -> list[Any]:
    """What the first run took beyond an ordinary one, and after how many runs torch.compile has paid for its own."""
    sides = "minilora", "torch", "torch compiled"
    title = "warm-up: the first run less an ordinary one; and the runs after which torch.compile has paid for its own"
    columns = "warm-up: minilora", "torch", "compiled", "pays, beside minilora", "beside torch"
    table = numbers_right(title, "work", *columns)
    for result in report["cases"]:
        by_name = {contestant["name"]: contestant for contestant in result["contestants"]}
        if sides[2] in by_name:
            found = [by_name[side] for side in sides]
            after = (pays_after(found[2], other) for other in found[:2])
            cores = f", {counted(result['case']['cores'], 'core')}"
            table.add_row(
                f"{Case(**result['case'])}{cores}", *(f"{max(warm_up(each), 0):,.2f} s" for each in found),
                *("never" if n is None else f"{n:,}" for n in after),
            )  # fmt: skip
    return [table] if table.rows else []


def warm_up(contestant: dict[str, Any]) -> float:
    """Seconds of the first run beyond those of an ordinary one."""
    return contestant["first"] - contestant["wall"]


def pays_after(compiled: dict[str, Any], other: dict[str, Any]) -> int | None:
    """The number of runs after which `compiled` has taken no more time in all than `other`, both warm-ups included.
    What a run saves is the median over the rounds; None if that is nothing."""
    saved = median(b["wall"] - a["wall"] for a, b in zip(compiled["rounds"], other["rounds"], strict=True))
    return max(1, math.ceil((warm_up(compiled) - warm_up(other)) / saved)) if saved > 0 else None


def quantised_tables(report: dict[str, Any]) -> list[Any]:
    """How a base is held: seconds of a step and most memory, less what the process had before the model."""
    tables = []
    for result in report["cases"]:
        case = Case(**result["case"])
        if not case.bases:
            continue
        found = {contestant["name"]: contestant for contestant in result["contestants"]}
        before = {c["library"]: f"{c['library']}'s {c['before'] / 2**20:,.0f} MiB" for c in found.values()}
        title = f"{case}, {counted(case.cores, 'core')} each; memory beside {', '.join(before.values())}"
        columns = "base", "step", "float32 = 1", "memory", "float32 = 1", "PEFT", "memory", "its float32 = 1", "memory"
        table = numbers_right(title, *columns)
        for base in case.bases.split(","):
            name, theirs = f"minilora {base}", f"{'bitsandbytes' if base in BITSANDBYTES else 'peft'} {base}"
            (time, memory), beside = (times_and_memory(found, name, f"{x} float32") for x in ("minilora", "peft"))
            sides = [(milliseconds(found[x]["wall"]), megabytes(found[x])) for x in (name, theirs) if x in found]
            table.add_row(base, sides[0][0], time, sides[0][1], memory, *(sides[1] if sides[1:] else ("", "")), *beside)
        tables.append(table)
    return tables


def times_and_memory(found: dict[str, Any], ours: str, theirs: str) -> tuple[str, str]:
    """Two ratios, the first the median of the rounds', the second of the memory that both took for their models."""
    if ours == theirs or theirs not in found:
        return "", ""
    a, b = found[ours], found[theirs]
    walls = (x["wall"] / y["wall"] for x, y in zip(a["rounds"], b["rounds"], strict=True))
    return f"{median(walls):.2f}", f"{(a['peak'] - a['before']) / (b['peak'] - b['before']):.2f}"


def megabytes(contestant: dict[str, Any]) -> str:
    return f"{(contestant['peak'] - contestant['before']) / 2**20:,.0f} MiB"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.{2 if seconds < 0.01 else 1 if seconds < 0.1 else 0}f} ms"


def threads_table(report: dict[str, Any]) -> list[Any]:
    if not report["threads"]:
        return []
    title = (
        f"BLAS threads as the machine sets them, and 1; ratio: median of {len(report['threads'][0]['rounds'])} rounds"
    )
    table = numbers_right(title, "work", "shards", "beside", "default", "1 thread", "ratio", "rounds")
    for row in report["threads"]:
        table.add_row(
            row["work"], str(row["shards"]), f"{row['busy']} busy", milliseconds(row["default"]),
            milliseconds(row["pinned"]), f"{row['ratio']:.2f}", f"{min(row['rounds']):.2f}–{max(row['rounds']):.2f}",
        )  # fmt: skip
    return [table]


def import_table(report: dict[str, Any]) -> list[Any]:
    if not report["imports"]:
        return []
    table = numbers_right("", "import", "time", "of numpy's", "memory")
    for row in report["imports"]:
        table.add_row(
            row["name"], milliseconds(row["seconds"]), f"{row['ratio']:.2f}", f"{row['peak'] / 2**20:,.0f} MiB"
        )
    return [table]


def op_tables(report: dict[str, Any]) -> list[Any]:
    tables = []
    for found in report["ops"]:
        top = found["ceilings"]
        speeds = f"{top['flops'] / 1e9:,.0f} GFLOP/s, {top['bytes'] / 1e9:,.1f} GB/s"
        title = f"{found['case']} beside their bound, at {speeds}"
        table = numbers_right(title, "op", "time", "bound", "of it", "MFLOP", "MiB")
        for row in found["ops"]:
            table.add_row(
                row["op"], f"{1e6 * row['seconds']:,.0f} µs", f"{1e6 * row['bound']:,.0f} µs",
                f"{row['bound'] / row['seconds']:.0%}", f"{row['flops'] / 1e6:,.1f}", f"{row['bytes'] / 2**20:,.1f}",
            )  # fmt: skip
        tables.append(table)
    return tables
