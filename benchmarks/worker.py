"""One contestant, in a process of its own: it gets ready, works in bursts when told to, and says how long it took.

    python -m benchmarks.worker '{"case": {...}, "contestant": [...], "folder": "...", "threads": 1}'

A line of JSON when it is ready, a line for each burst (a line of input says how many seconds), and a line at "end".
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from minilora.process import blas_libraries, blas_threads, keep_freed_memory, peak_memory

from .cases import Case, Contestant, Job

WARM = 3  # times before the first burst
SHALLOW = 4  # layers; a GPU takes about a thousand calls ahead, and who asks it for more waits for room


def main() -> None:
    said = json.loads(sys.argv[1])
    case, contestant, folder = Case(**said["case"]), said["contestant"], Path(said["folder"])
    if contestant is None:
        from .ours import prepare

        return prepare(case, folder)
    with blas_threads(said["threads"]):
        if case.malloc == "kept":
            keep_freed_memory()  # PyTorch's too: what minilora's training commands do is not to be an advantage
        job, about, before = ready(case, Contestant(*contestant), folder)
        serve(job, about, before, shallow=not case.real and case.shape["n_layers"] <= SHALLOW)


def serve(job: Job, about: dict[str, str], before: int = 0, shallow: bool = False) -> None:
    """Get ready, and then work as standard input says."""
    results, start, first = [], time.perf_counter(), 0.0
    for _ in range(WARM):
        job.run()
        results.append(job.wait())
        first = first or time.perf_counter() - start
    tell({"results": results, "first": first, "about": about, "waits": waits(job) if shallow else None})
    for line in iter(sys.stdin.readline, "end\n"):
        tell(burst(job, float(line)))
    tell({"peak": job.peak(), "before": before})


def waits(job: Job) -> bool | None:
    """Does the host wait for the GPU? It is given half a second of work first: if that is done once the work of a case
    has been asked for too, then someone has waited."""
    if job.event is None:
        return None
    done = job.event()
    job.run()
    waited = done()
    job.wait()
    return waited


def ready(case: Case, contestant: Contestant, folder: Path) -> tuple[Job, dict[str, str], int]:
    """The job, versions, and the bytes of the process before it had a model."""
    targets = contestant.targets or case.targets
    if contestant.library == "minilora":
        from . import ours

        about, before = numpy_and_blas(), peak_memory()
        return ours.job(case, targets, contestant.plain, folder, contestant.base), about, before
    import torch

    from . import theirs

    about = {"torch": torch.__version__, "threads": str(torch.get_num_threads())}
    if not contestant.library.startswith("torch"):
        theirs.import_peft()
    before = peak_memory()
    return theirs.job(case, contestant.library, targets, folder, contestant.base), about, before


def numpy_and_blas() -> dict[str, str]:
    """Their versions, and for which processor the kernels are that OpenBLAS has chosen."""
    import numpy as np

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    kernels = ", ".join(library.architecture for library in blas_libraries() if library.internal_api == "openblas")
    return {"numpy": np.__version__, "blas": f"{blas['name']} {blas['version']}" + f" ({kernels})" * bool(kernels)}


def burst(job: Job, seconds: float) -> dict[str, float]:
    """Seconds for one time, of the wall clock and of the CPU, over as many as begin within `seconds`, at least one."""
    start, busy, n = time.perf_counter(), time.process_time(), 0
    while not n or time.perf_counter() - start < seconds:
        job.run()
        n += 1
    job.wait()
    return {"n": n, "wall": (time.perf_counter() - start) / n, "cpu": (time.process_time() - busy) / n}


def tell(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError, OSError) as error:  # what a person can mend, in a line
        raise SystemExit(f"minilora: {error}") from None
