"""Rounds: the contestants of a case, each in a process of its own, work in short bursts, one after another, again and
again. What else the machine does meets them all alike, and a ratio is the median of the rounds' ratios."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from .cases import Case, Contestant, pairs

NEEDS = {"minilora": [], "torch": ["torch"], "torch compiled": ["torch"], "transformers": ["torch", "transformers"],
         "peft": ["torch", "transformers", "peft"],
         "bitsandbytes": ["torch", "transformers", "peft", "bitsandbytes"]}  # fmt: skip
AGREE = 1e-4  # by how much the losses of the same first steps may differ, in float32
ALIKE = 0.02  # the same, of bases in fewer bits: PEFT's embeddings stay in float32, and in bfloat16 it computes
COMPILER = os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))  # of torch.compile
CLONE = Path(__file__).parent.parent  # where `python -m benchmarks` is found
THREADS = "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"


def missing(library: str) -> list[str]:
    """The packages that a contestant lacks, and COMPILER where it needs one."""
    lacking = [package for package in NEEDS[library] if find_spec(package) is None]
    return lacking + [COMPILER] * (library == "torch compiled" and shutil.which(COMPILER) is None)


class Process:
    """One at work: a contestant (worker.py), or minilora as people start it (threads.py)."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name, self.process, self.peak, self.before = name, process, 0, 0
        self.rounds: list[dict[str, float]] = []
        said = self.read()
        self.results, self.about, self.waits, self.first = said["results"], said["about"], said["waits"], said["first"]

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}: what it said is above")
        said: dict[str, Any] = json.loads(line)
        return said

    def burst(self, seconds: float) -> None:
        self.tell(f"{seconds}")
        self.rounds.append(self.read())

    def end(self) -> None:
        self.tell("end")
        said = self.read()
        self.peak, self.before = said["peak"], said["before"]

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()


def threads(case: Case, contestant: Contestant) -> tuple[int, ...]:
    """Of BLAS; minilora's shards, and those of each."""
    return (case.shards, case.cores // case.shards) if contestant.library == "minilora" else (case.cores,)


def start(said: dict[str, Any], threads: int, module: str = "worker") -> subprocess.Popen[str]:
    """worker.py, or another of this folder, on so many BLAS threads. torch.compile finds nothing compiled before, and
    compiles on so many cores too."""
    env = dict.fromkeys(THREADS, str(threads)) | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    env |= {"TORCHINDUCTOR_CACHE_DIR": f"{said['folder']}/compiled", "TORCHINDUCTOR_COMPILE_THREADS": str(threads)}
    return python(said | {"threads": threads}, module, os.environ | env)


def python(said: dict[str, Any], module: str, env: Mapping[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{module}", json.dumps(said)]
    return subprocess.Popen(command, cwd=CLONE, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def measure(case: Case, rounds: int, seconds: float) -> dict[str, Any]:
    """One case: {"case", "contestants", "ratios"}, every round of each. Raises RuntimeError for contestants whose first
    losses, or tokens, show that they do not do the same."""
    wanted = [pair for pair in pairs(case) if not missing(pair[1].library)] or [(Contestant("minilora"),) * 2]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        said = {"case": asdict(case), "folder": name}
        with start(said | {"contestant": None}, 1) as prepared:
            if prepared.wait():
                raise RuntimeError(f"{case} could not be prepared: what went wrong is above")
        processes: dict[Contestant, Process] = {}
        for contestant in dict.fromkeys(c for pair in wanted for c in pair):
            process = stack.enter_context(start(said | {"contestant": contestant}, threads(case, contestant)[-1]))
            stack.callback(process.kill)  # and then the pipes are closed
            processes[contestant] = Process(str(contestant), process)
            processes[contestant].about["threads"] = " × ".join(map(str, threads(case, contestant)))
        for ours, theirs in wanted:
            if ours.base == theirs.base:
                check_same(case, processes[ours], processes[theirs], AGREE if ours.base in ("", "float32") else ALIKE)
        for _ in range(rounds):
            for each in processes.values():
                each.burst(seconds)
        for each in processes.values():
            each.end()
    return {
        "case": asdict(case),
        "contestants": [
            {"name": p.name, "library": c.library, "about": p.about, "peak": p.peak, "before": p.before,
             "rounds": p.rounds, "results": p.results, "waits": p.waits, "first": p.first,
             "wall": median(r["wall"] for r in p.rounds)}
            for c, p in processes.items()
        ],
        "ratios": [ratio(processes[ours], processes[theirs]) for ours, theirs in wanted if ours != theirs],
    }  # fmt: skip


def check_same(case: Case, ours: Process, theirs: Process, tolerance: float = AGREE) -> None:
    """Did they do the same, up to rounding? Greedy tokens of random weights may part where two are as good as equal.
    DoRA's gradient and PEFT's are not the same, so of the losses only the first is."""
    if case.measure == "generate":
        return
    steps = 1 if case.measure == "dora" else len(ours.results)
    for a, b in zip(ours.results[:steps], theirs.results[:steps], strict=True):
        if not math.isclose(a, b, rel_tol=tolerance):
            raise RuntimeError(f"{case}: {ours.name} finds {a}, and {theirs.name} {b}: they do not do the same")


def ratio(ours: Process, theirs: Process) -> dict[str, Any]:
    each = [a["wall"] / b["wall"] for a, b in zip(ours.rounds, theirs.rounds, strict=True)]
    cpu = [a["cpu"] / b["cpu"] for a, b in zip(ours.rounds, theirs.rounds, strict=True)]
    return {
        "ours": ours.name, "theirs": theirs.name, "wall": median(each), "cpu": median(cpu), "rounds": each,
        "peak": ours.peak / theirs.peak if theirs.peak else None,
    }  # fmt: skip
