"""benchmarks/: everyone does the same work, and what is said of it follows from the rounds."""

import io
import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import in_color

from benchmarks import bench, figure, lengths, ours, report, rounds, show, threads, worker
from benchmarks.__main__ import main
from benchmarks.cases import MALLOCS, NEW, SIZES, Case, Contestant, Job, cases, pairs, read_size
from benchmarks.figures import COLORS
from benchmarks.report import pays_after, rows_of
from benchmarks.roofline import roofline
from minilora import gpt2
from minilora.models.config import Config

TINY = Case("tiny", 2, 8, "lora")


@pytest.fixture
def alone(monkeypatch):
    """As where PyTorch is not installed."""
    for module in (rounds, report):
        monkeypatch.setattr(module, "missing", lambda library: ["torch"])
    monkeypatch.setattr(report, "IMPORTS", {name: report.IMPORTS[name] for name in ("numpy", "minilora")})


def made(walls, theirs=None, measure="lora", compiled=None, **changes):
    """A result of these rounds. The first run of torch compiled took 10 s longer than another, those of others 1 s."""
    case = replace(TINY, measure=measure, **changes)
    sides = [("minilora", walls), ("torch", theirs), ("torch compiled", compiled)]
    sides = [(name, side) for name, side in sides if side]
    processes = [
        SimpleNamespace(name=name, peak=2**20, rounds=[{"n": 1, "wall": w, "cpu": w} for w in side])
        for name, side in sides
    ]
    contestants = [
        {"name": p.name, "library": p.name, "peak": p.peak, "rounds": p.rounds, "wall": float(np.median(side)),
         "about": {"numpy": "2", "threads": "1 × 1"}, "results": [1.0], "waits": None,
         "first": float(np.median(side)) + (10 if "compiled" in p.name else 1)}
        for p, (_, side) in zip(processes, sides, strict=True)
    ]  # fmt: skip
    ratios = [rounds.ratio(processes[0], other) for other in processes[1:]]
    return {"case": asdict(case), "contestants": contestants, "ratios": ratios}


def whole(results, missing=()):
    """A report of these results alone."""
    machine = {"processor": "one", "cores": 2, "system": "x", "python": "3"}
    return {"machine": machine, "missing": list(missing), "cases": results, "threads": [], "imports": [], "ops": []}


# ---- what is measured ----


@pytest.mark.slow
def test_the_default_environment_is_measured_beside_one_blas_thread_quiet_and_busy(monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # not passed on to the default
    monkeypatch.setattr(threads, "WORK", {"check": threads.WORK["check"]})
    started, python = [], threads.python
    monkeypatch.setattr(threads, "python", lambda said, module, env: started.append(env) or python(said, module, env))
    assert main(["--measures", "threads", "--rounds", "2", "--seconds", "0.01"]) == 0
    assert [[env.get(name) for name in rounds.THREADS] for env in started] == [[None] * 3, ["1"] * 3]
    said = capsys.readouterr().out
    assert "check_gradient" in said
    assert "0 busy" in said
    assert "2 busy" in said


def test_a_size_has_its_own_batch_and_tokens_or_those_it_is_given():
    assert read_size("small") == ("small", *SIZES["small"][:2])
    assert read_size("small:1x32") == ("small", 1, 32)


@pytest.mark.parametrize(
    "word", ["large", "small:", "small:1", "small:1x", "small:0x8", "small:1x2x3", "small:axb", ""]
)
def test_a_word_that_is_no_size_is_refused_with_what_could_be_said(word):
    with pytest.raises(ValueError, match=r"choose from|is no size such as"):
        read_size(word)


def test_every_case_is_measured_once_and_ranks_and_targets_belong_to_lora():
    found = cases(
        ["tiny", "tiny:1x64", "minilm"], ["forward", "lora", "generate"], [1, 2], [4, 8],
        ["q_proj,v_proj", "all-linear"], "cpu",
    )  # fmt: skip
    assert len(found) == len(set(found))
    by_measure = {m: [case for case in found if case.measure == m] for m in ("forward", "lora", "generate")}
    assert len(by_measure["lora"]) == 2 * 3 * 2 * 2
    assert len(by_measure["forward"]) == 2 * 2  # not of a real model
    assert [case.batch for case in by_measure["generate"]] == [1, 1]  # of each number of cores: one sequence


@pytest.mark.each_value
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("measure", ["forward", "lora", "full", "generate"])
@pytest.mark.parametrize("targets", ["q_proj,v_proj", "all-linear"])
def test_a_pair_adapts_the_same_layers(size, measure, targets):
    for mine, other in pairs(Case(size, 1, 8, measure, targets=targets)):
        assert mine.library == "minilora"
        assert mine.targets == other.targets


def test_each_setting_of_malloc_is_measured_and_called_by_its_name():
    both = cases(["tiny"], ["forward", "lora"], [1], [8], ["all-linear"], "cpu", mallocs=MALLOCS)
    assert [(case.measure, case.malloc) for case in both] == [
        ("forward", "kept"), ("forward", "default"), ("lora", "kept"), ("lora", "default"),
    ]  # fmt: skip
    assert len(set(map(str, both))) == 4
    with pytest.raises(ValueError, match="no setting 'keep' of malloc"):
        cases(["tiny"], ["forward"], [1], [8], ["all-linear"], "cpu", mallocs=["keep"])


@pytest.mark.parametrize("malloc", MALLOCS)
@pytest.mark.parametrize("library", ["minilora", "torch"])
def test_every_contestant_keeps_freed_memory_or_none_does(malloc, library, monkeypatch):
    kept: list[str] = []
    monkeypatch.setattr(worker, "keep_freed_memory", lambda: kept.append(library))
    monkeypatch.setattr(worker, "ready", lambda *_: (None, {}, 0))
    monkeypatch.setattr(worker, "serve", lambda *_, **__: None)
    case = asdict(replace(TINY, malloc=malloc))
    said = {"case": case, "contestant": Contestant(library), "folder": ".", "threads": 1}
    monkeypatch.setattr(sys, "argv", ["worker", json.dumps(said)])
    worker.main()
    assert kept == [library] * (malloc == "kept")


def test_a_batch_is_halved_where_it_can_be_and_generation_is_not():
    assert replace(TINY, cores=2).shards == 2
    assert replace(TINY, cores=2, batch=1).shards == 1
    assert replace(TINY, cores=2, measure="generate").shards == 1
    assert replace(TINY, cores=2, device="cuda").shards == 1


# ---- everyone does the same ----


def test_three_matrices_for_q_k_and_v_are_the_fused_one(rng):
    model = gpt2(Config(vocab_size=32, n_layers=2, d_model=16, n_heads=2, max_length=8), rng)
    ids = rng.integers(0, 32, (2, 8))
    before = model.forward(ids)[0]
    ours.split(model)
    assert "block_0.attention.q_proj" in dict(model.named_modules())
    np.testing.assert_allclose(model.forward(ids)[0], before, atol=1e-6)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("measure", "targets", "library"),
    [
        ("forward", "", "torch"), ("lora", "q_proj,v_proj", "torch"), ("lora", "all-linear", "torch"),
        ("full", "", "torch"), ("lora", "qkv_proj", "peft"), ("lora", "all-linear", "peft"),
        ("dora-held", "qkv_proj", "peft"), ("dora-held", "all-linear", "peft"), ("vera", "qkv_proj", "peft"),
    ],
)  # fmt: skip
def test_pytorch_and_peft_find_the_same_losses(measure, targets, library, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    from benchmarks import theirs

    case = replace(TINY, measure=measure, targets=targets)
    ours.prepare(case, tmp_path)
    sides = ours.job(case, targets, False, tmp_path), theirs.job(case, library, targets, tmp_path)
    for _ in range(4):
        for side in sides:
            side.run()
        assert sides[0].wait() == pytest.approx(sides[1].wait(), rel=1e-5)


@pytest.mark.oracle
def test_pytorch_and_transformers_generate_the_same_tokens(tmp_path):
    pytest.importorskip("transformers")
    from benchmarks import theirs

    case = Case("small", 1, 64, "generate")
    ours.prepare(case, tmp_path)
    found = []
    for side in (ours.job(case, "", False, tmp_path), *(theirs.job(case, n, "", tmp_path) for n in ("torch", "hub"))):
        side.run()
        found.append(side.wait())
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == NEW


@pytest.mark.oracle
@pytest.mark.parametrize("why", ["switched off", "eager is forced", "two graphs"])
def test_what_is_called_compiled_is_one_graph_or_an_error(why):
    torch = pytest.importorskip("torch")
    from torch._dynamo import config, exc

    from benchmarks import theirs

    def breaks(x):
        return x if x.sum() > 0 else -x  # which branch, only the numbers say

    torch.compiler.reset()  # or the code stays marked as one to skip
    stance = torch.compiler.set_stance("force_eager" if why == "eager is forced" else "default")
    error = exc.Unsupported if why == "two graphs" else RuntimeError
    with config.patch(disable=why == "switched off"), stance, pytest.raises(error, match=r"compiled|branch"):
        theirs.compiled(breaks)(torch.ones(2))


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of PyTorch about itself
def test_torch_compile_generates_the_same_tokens_and_compiles_nothing_in_a_second_run(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from torch._dynamo.utils import counters

    from benchmarks import theirs

    if rounds.missing("torch compiled"):
        pytest.skip(f"torch.compile needs {rounds.COMPILER}")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    case, found, graphs = Case("tiny", 1, 64, "generate"), [], []
    ours.prepare(case, tmp_path)
    eager, compiled = (theirs.job(case, library, "", tmp_path) for library in ("torch", "torch compiled"))
    for side in (eager, compiled, compiled):
        side.run()
        found.append(side.wait())
        graphs.append(counters["stats"]["unique_graphs"])
    assert found[0] == found[1] == found[2]
    assert graphs[0] < graphs[1] == graphs[2]


def test_torch_compile_finds_nothing_that_was_compiled_before(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "of another run")
    monkeypatch.setattr(rounds, "python", lambda said, module, env: env)
    assert rounds.start({"folder": str(tmp_path)}, 1)["TORCHINDUCTOR_CACHE_DIR"] == f"{tmp_path}/compiled"


def test_without_a_compiler_torch_compile_is_left_out_and_a_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(rounds, "find_spec", lambda package: package)
    monkeypatch.setattr(rounds.shutil, "which", lambda name: name)
    assert rounds.missing("torch compiled") == []
    monkeypatch.setattr(rounds.shutil, "which", lambda name: None)
    assert rounds.missing("torch") == []
    assert rounds.missing("torch compiled") == [rounds.COMPILER]
    show(whole([], missing=[rounds.COMPILER]))
    said = capsys.readouterr().out
    assert f"no compiler {rounds.COMPILER}, and so torch.compile is not beside minilora" in said
    assert "pip install" not in said


def test_the_work_of_a_shard_is_the_work_of_the_whole(tmp_path):
    ours.prepare(TINY, tmp_path)
    whole, halves = (ours.job(replace(TINY, cores=n), TINY.targets, False, tmp_path) for n in (1, 2))
    for _ in range(3):
        whole.run()
        halves.run()
        assert whole.wait() == pytest.approx(halves.wait(), rel=1e-5)


def test_contestants_that_do_not_do_the_same_are_not_compared():
    mine, other = (SimpleNamespace(name=name, results=results) for name, results in
                   (("minilora", [4.5, 4.4]), ("peft", [4.5, 4.41])))  # fmt: skip
    with pytest.raises(RuntimeError, match=r"minilora finds 4.4, and peft 4.41"):
        rounds.check_same(TINY, mine, other)
    rounds.check_same(replace(TINY, measure="dora"), mine, other)  # the one through the norm, the other not
    with pytest.raises(RuntimeError, match=r"minilora finds 4.4, and peft 4.41"):
        rounds.check_same(replace(TINY, measure="dora-held"), mine, other)
    other.results[1] = 4.4 + 1e-6
    rounds.check_same(TINY, mine, other)


@pytest.mark.parametrize(("measure", "through_norm"), [("dora", True), ("dora-held", False)])
def test_the_two_measures_of_dora_are_its_two_gradients(measure, through_norm, tmp_path, monkeypatch):
    case, ran = replace(TINY, measure=measure), []
    ours.prepare(case, tmp_path)
    step = ours.step
    monkeypatch.setattr(ours, "step", lambda model, *a: ran.append(model) or step(model, *a))
    ours.job(case, "qkv_proj", False, tmp_path)
    adapters = [module for _, module in ran[0].named_modules() if module.is_adapter]
    assert [adapter.through_norm for adapter in adapters] == [through_norm] * 2


# ---- what is said follows from the rounds ----


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds():
    result = made([1.0, 8.0, 3.0], [2.0, 2.0, 2.0])
    assert result["ratios"][0]["wall"] == 1.5
    assert result["ratios"][0]["rounds"] == [0.5, 4.0, 1.5]


def test_of_generation_more_is_better():
    result = made([1.0, 1.0], [2.0, 4.0], "generate")
    ((_, mine, other, ratio, spread, _),) = rows_of(Case(**result["case"]), result)
    assert (mine, other) == (f"{NEW} tok/s", f"{NEW / 3:.0f} tok/s")
    assert (ratio, spread) == ("3.00", "2.00–4.00")


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 10**5), st.integers(0, 10**5))
def test_compiling_has_paid_at_the_first_run_at_which_the_sum_of_all_is_no_longer_more(fast, slow, warm, other_warm):
    def side(wall, warm):
        return {"first": wall + warm, "wall": wall, "rounds": [{"wall": wall}] * 3}

    def behind(n):
        return warm + n * fast > other_warm + n * slow

    n = pays_after(side(fast, warm), side(slow, other_warm))
    if fast >= slow:
        assert n is None
    else:
        assert not behind(n)
        assert n == 1 or behind(n - 1)


def test_the_table_says_what_compiling_takes_and_when_it_has_paid(capsys):
    show(whole([made([1.0, 1.0], [2.0, 2.0], compiled=[1.5, 1.5]), made([1.0], [2.0], "forward")]))
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "10.00 s" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][1:] == ["1.00 s", "1.00 s", "10.00 s", "never", "18"]
    show(whole([made([1.0], [2.0])]))
    assert "warm-up" not in capsys.readouterr().out


def test_the_first_run_is_timed_by_itself(monkeypatch):
    told, times = [], iter([0.3, 0.0, 0.0])
    monkeypatch.setattr(worker, "tell", told.append)
    monkeypatch.setattr("sys.stdin", io.StringIO("end\n"))
    worker.serve(Job(lambda: time.sleep(next(times)), lambda: 1.0), {})
    assert 0.3 <= told[0]["first"] < 0.6


def test_a_burst_lasts_as_long_as_it_was_told_and_counts_what_was_done():
    done = []
    job = Job(lambda: done.append("run"), lambda: done.append("wait"))
    burst = worker.burst(job, 0.01)
    assert burst["n"] == done.count("run") >= 1
    assert done[-1] == "wait"
    assert 0.01 <= burst["n"] * burst["wall"] < 0.1


def test_a_burst_that_gets_no_core_in_time_still_does_its_work_once():
    assert worker.burst(Job(lambda: None, lambda: None), 0.0)["n"] == 1


def test_who_waits_for_the_device_is_found_out():
    busy = [True]
    job = Job(lambda: None, lambda: None, event=lambda: lambda: not busy[0])
    assert worker.waits(job) is False
    assert worker.waits(job._replace(run=lambda: busy.__setitem__(0, False))) is True
    assert worker.waits(job._replace(event=None)) is None


@pytest.mark.slow
def test_the_products_of_an_op_are_counted_as_it_runs():
    found = roofline(replace(TINY, measure="ops"))
    rows = {row["op"]: row for row in found["ops"]}
    N, C = 2 * 8, SIZES["tiny"].shape["d_model"]
    assert rows["linear C → C"]["flops"] == 2 * N * C * C
    assert rows["linear C → C"]["bytes"] == 4 * (N * C + C * C + C + N * C)
    assert rows["lora"]["flops"] == 2 * N * 8 * 2 * C
    assert rows["  dq, dk, dv"]["flops"] == 2 * rows["attention"]["flops"]
    for row in found["ops"]:
        assert row["seconds"] > 0
        assert row["bound"] == max(row["flops"] / found["ceilings"]["flops"], row["bytes"] / found["ceilings"]["bytes"])


# ---- the command ----


@pytest.mark.slow
def test_without_pytorch_minilora_is_measured_alone(alone, narrow):
    said = narrow(["--sizes", "tiny:2x8", "--measures", "lora,import", "--rounds", "1", "--seconds", "0.01"], main)
    assert "tiny 2 × 8, lora" in said[0]
    assert "numpy" in said[0]


@pytest.mark.slow
def test_the_json_holds_every_round(alone, capsys):
    words = ["--sizes", "tiny:2x8", "--measures", "forward", "--rounds", "2", "--seconds", "0.01", "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    (case,) = report["cases"]
    assert len(case["contestants"][0]["rounds"]) == 2
    assert report["machine"]["cores"] >= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--sizes", "huge"], "no size 'huge'"), (["--measures", "speed"], "no measure 'speed'"),
     (["--plot", "a.jpg"], "not the name of a .png"), (["--targets", "o_proj"], "targets 'o_proj' are not compared")],
)  # fmt: skip
def test_a_word_that_is_not_known_is_said_before_anything_is_measured(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_contestant_that_cannot_start_is_named(monkeypatch):
    monkeypatch.setattr(rounds, "start", lambda said, threads: subprocess.Popen(
        [sys.executable, "-c", "raise SystemExit(3)" if said["contestant"] else ""], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE))  # fmt: skip
    with pytest.raises(RuntimeError, match="minilora ended with 3"):
        rounds.measure(TINY, 1, 0.01)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("cupy") is not None, reason="there is a GPU, perhaps")
def test_what_a_process_cannot_prepare_is_said_in_a_line(alone, capfd):
    assert main(["--sizes", "tiny:2x8", "--measures", "lora", "--device", "cuda"]) == 2
    first, second = capfd.readouterr().err.strip().splitlines()[-2:]
    assert "needs CuPy" in first
    assert "what it said is above" in second


@pytest.mark.slow
def test_without_pytorch_minilora_is_measured_and_drawn_alone_and_what_is_missing_is_said(alone, tmp_path, capfd):
    measures = "forward,lora,full,generate,import,ops"
    words = ["--sizes", "tiny:2x8", "--measures", measures, "--rounds", "1", "--seconds", "0.01"]
    assert main([*words, "--plot", str(tmp_path / "a.png")]) == 0
    out, err = capfd.readouterr()
    for name in ("forward", "lora r = 8 on q_proj,v_proj", "full", "generate", "minilora", "AdamW"):
        assert name in out
    assert "not installed, and so not beside minilora: torch (pip install torch)\n" in out
    assert "the other" not in out
    assert "Traceback" not in err
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_a_case_loses_no_number(alone, tmp_path, capfd):
    assert main(["--measures", "import", "--rounds", "1", "--plot", str(tmp_path / "a.png")]) == 2
    out, err = capfd.readouterr()
    assert "of numpy's" in out
    assert "nothing to draw" in err


@pytest.mark.oracle
@pytest.mark.slow
def test_the_whole_command_compares_with_pytorch_and_peft(tmp_path, capsys):
    pytest.importorskip("peft")
    plot = tmp_path / "bench.png"
    words = ["--sizes", "tiny:2x8", "--measures", "lora,generate,ops", "--rounds", "2", "--seconds", "0.01"]
    words += ["--plot", str(plot)]
    assert main(words) == 0
    said = capsys.readouterr().out
    for name in ("torch", "torch compiled", "peft", "transformers", "AdamW", "layer norm", "warm-up"):
        assert name in said
    assert plot.read_bytes().startswith(b"\x89PNG")


# ---- figures ----


@pytest.mark.parametrize("kind", ["ratios", "tokens"])
def test_a_figure_is_a_png_and_the_same_report_gives_the_same_bytes(kind):
    results = [made([1.0, 2.0], [2.0, 2.0]), made([1.0, 2.0], [2.0, 2.0], "generate")]
    if kind == "tokens":
        results = [made([T / 1e3] * 2, [T / 2e3] * 2, tokens=T) for T in (256, 512)]
        for result in results:
            result["contestants"].append(result["contestants"][0] | {"name": str(Contestant("minilora", plain=True))})
    report = {"cases": results}
    png = figure(report)
    assert png.startswith(b"\x89PNG")
    assert figure(report) == png


@pytest.mark.slow
def test_the_figure_of_ratios_has_torch_compile_in_a_color_of_its_own():
    each = [COLORS["torch"], COLORS["torch compiled"]]
    assert in_color(figure(whole([made([1.0], [2.0], compiled=[1.5])])), each) == [True, True]
    assert in_color(figure(whole([made([1.0], [2.0])])), each) == [True, False]
    assert COLORS["torch compiled"] not in [color for name, color in COLORS.items() if name != "torch compiled"]


@pytest.mark.slow
def test_a_figure_of_minilora_alone_names_the_cores_where_they_differ():
    assert figure({"cases": [made([1.0, 2.0])]}) != figure({"cases": [made([1.0, 2.0]), made([1.0], cores=2)]})
    with pytest.raises(ValueError, match="nothing to draw"):
        figure({"cases": []})


def test_lengths_are_sizes():
    assert [read_size(word)[2] for word in lengths()] == [256, 512, 1024, 2048, 4096]


def test_bench_refuses_a_measure_it_does_not_know():
    with pytest.raises(ValueError, match="no measure 'loar'"):
        bench(["tiny"], ["loar"])


# ---- the process ----


def test_peak_memory_sees_what_was_held_and_let_go():
    code = "from minilora.process import peak_memory as p; a = p(); b = b'x' * 2**26; print(p() - a)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 2**25 or sys.platform == "win32"


@pytest.mark.slow
def test_importing_the_library_leaves_malloc_alone():
    code = (
        "import ctypes, pkgutil, importlib; ctypes.CDLL = lambda *a: (_ for _ in ()).throw(SystemExit('asked'));"
        "import minilora, minilora.training, minilora.cli, minilora.jobs.demo, minilora.process; print('quiet')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "quiet", done.stderr


def test_freed_memory_is_kept_without_harm():
    code = "from minilora.process import keep_freed_memory as k; k(); import numpy; print(numpy.ones(9**7).sum())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == 9**7
