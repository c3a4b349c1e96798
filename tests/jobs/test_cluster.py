"""A Dask cluster of two workers, started here by the lines of docs/cluster.md: sweeps and a comparison on it."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from commands import assert_refused, code_of, lines, make_inputs, outside, tree
from small_runs import run_small, small_comparison

from minilora.cli import main, parser
from minilora.files import LOCK, read_json
from minilora.jobs import cluster as jobs_cluster
from minilora.jobs import language_model, methods, sweep
from minilora.jobs.cluster import PROBE, connected, on_cluster

distributed = pytest.importorskip("distributed")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
LINES = [shlex.split(line) for line in re.findall(r"^dask (.*) &$", PAGE, re.MULTILINE)]
SWEEP = [
    "sweep", "--base", "base", "--data", "words.txt", "--steps", "2", "--batch", "8", "--length", "16", "--lr", "0.05",
    "--evaluate-every", "1", "--checkpoint-every", "1", "--dropout", "0.1", "--ranks", "1,2", "--seeds", "2",
    "--out", "out",
]  # fmt: skip
LONG = [*SWEEP, "--steps", "300", "--evaluate-every", "300", "--checkpoint-every", "20"]
STOPPED = "minilora: stopped; what is done is kept in out; the same command with --resume goes on"


class Cluster(NamedTuple):
    address: str
    processes: list[subprocess.Popen[bytes]]  # the scheduler, and what starts the workers
    client: Any

    def ask(self, function: Any) -> dict[str, Any]:
        """{worker: what the function of a worker returns there}"""
        found: dict[str, Any] = self.client.run(function)
        return found

    def runs(self) -> dict[str, int]:
        """{worker: calls that it has made}"""
        return self.ask(lambda dask_worker: dask_worker.state.executed_count)


@contextlib.contextmanager
def started(folder: Path, workers: int = 2, preload: str = "", deaths: int = 1) -> Iterator[Cluster]:
    """The lines of the page, at a port that is free, in a folder where the runs do not happen. `preload` is what the
    workers do first; a call is given up after more than `deaths` of workers that make it."""
    (folder / "first.py").write_text(preload)
    first = ["--preload", str(folder / "first.py")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(deaths), "DASK_TEMPORARY_DIRECTORY": str(folder)}
    running: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(folder / "log", "wb"))
        for words, more in list(zip(LINES, ([], first), strict=True))[: 1 + bool(workers)]:
            command = [sys.executable, "-m", "dask", *(word.replace("8786", port) for word in words), *more]
            process = subprocess.Popen(command, cwd=folder, env=outside() | settings, stdout=log, stderr=log)
            running.append(process)
            stack.callback(end, process)
        with distributed.Client(f"tcp://127.0.0.1:{port}", timeout=60, set_as_default=False) as client:
            if workers:
                client.wait_for_workers(workers, timeout=60)
            yield Cluster(f"tcp://127.0.0.1:{port}", running, client)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # Dask ends the workers with it
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with started(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("made") / "inputs")


@pytest.fixture(autouse=True)
def _as_on_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The length of the samples that conftest.py shortens here is not shortened there; a figure takes long."""
    monkeypatch.setattr(language_model, "SAMPLE", 48)
    monkeypatch.setattr(sweep, "sweep_figure", lambda report, title: title.encode())


# ---- results ----


def test_a_sweep_on_a_cluster_runs_on_both_workers_and_writes_the_bytes_of_one_without(two, here, capfd):
    before = two.runs()
    assert main([*SWEEP, "--cluster", two.address]) == 0
    assert lines(capfd.readouterr().err) == []
    after = two.runs()
    assert len(after) == 2
    assert all(after[worker] > before[worker] for worker in after)
    assert sum(after.values()) - sum(before.values()) == 4
    found = tree(here / "out")
    assert not {LOCK, PROBE} & {name.rpartition(os.sep)[2] for name in found}
    shutil.rmtree(here / "out")
    assert main([*SWEEP, "--jobs", "1"]) == 0
    assert found == tree(here / "out")


def test_a_sweep_goes_on_from_processes_to_a_cluster_and_back(two, here):
    assert main([*SWEEP, "--jobs", "1"]) == 0
    whole = tree(here / "out")
    shutil.rmtree(here / "out")
    assert main([*SWEEP, "--ranks", "1", "--seeds", "1", "--jobs", "1"]) == 0
    assert main([*SWEEP, "--ranks", "1", "--resume", "--cluster", two.address]) == 0
    assert main([*SWEEP, "--resume", "--jobs", "1"]) == 0
    assert tree(here / "out") == whole


@pytest.mark.slow
def test_a_comparison_on_a_cluster_has_the_losses_and_rates_of_one_without(two, here, monkeypatch, capfd):
    small_comparison(monkeypatch)
    monkeypatch.setattr(methods, "run", run_small)
    monkeypatch.setattr(methods, "MOST", 1)  # a short search
    words = ["compare", "--methods", "lora,full", "--seeds", "2"]
    before = two.runs()
    assert main([*words, "--cluster", two.address, "--out", "there"]) == 0
    assert lines(capfd.readouterr().err) == []
    after = two.runs()
    assert all(after[worker] > before[worker] for worker in after)
    assert main([*words, "--jobs", "1", "--out", "here"]) == 0
    assert {path.name for path in Path("there", "runs").iterdir()} == {
        path.name for path in Path("here", "runs").iterdir()
    }
    assert sum(after.values()) - sum(before.values()) == len(list(Path("here", "runs").glob("*-*.json")))
    assert Path("there", "rates.json").read_bytes() == Path("here", "rates.json").read_bytes()
    reports = [read_json(Path(out, "methods.json")) for out in ("there", "here")]
    for report in reports:
        for timed in (report, *report["rows"]):
            timed.pop("seconds", None)
            timed.pop("step_time", None)
    assert reports[0] == reports[1]


def test_results_have_the_order_of_the_calls_and_progress_is_told_as_they_come(two, here):
    """The first call ends when progress has been told of another."""
    waits = "import os, time\nwhile not os.path.exists('told'): time.sleep(0.01)"
    told = here / "told"
    with connected(two.address, here, ()) as client:
        found = on_cluster(client, eval, [(f"exec({waits!r})",), ("2",), ("3",)], lambda: told.touch())
    assert found == [None, 2, 3]


# ---- what ends ----


def cells() -> int:
    return len(list(Path("out").glob("*/*/checkpoint.safetensors")))


def command(*words: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", "minilora", *words], env=outside(), stdout=pipe, stderr=pipe, text=True
    )


def until(running: subprocess.Popen[str], begun: int) -> None:
    while cells() < begun:
        assert running.poll() is None
        time.sleep(0.01)


def assert_nothing_is_written(folder: Path) -> None:
    time.sleep(1)
    left = tree(folder)
    time.sleep(1)
    assert tree(folder) == left


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_its_runs_which_others_make_to_the_same_bytes(two, here):
    psutil = pytest.importorskip("psutil")  # Dask brings it
    running = command(*LONG, "--cluster", two.address)
    until(running, 1)
    victim = next(iter(two.ask(os.getpid).values()))
    while not (its_runs := psutil.Process(victim).children()):  # between two runs
        assert running.poll() is None
    os.kill(victim, signal.SIGKILL)
    _, alive = psutil.wait_procs(its_runs, timeout=5)
    assert not alive
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (0, "")
    two.client.wait_for_workers(2, timeout=60)
    found = {name: content for name, content in tree(here / "out").items() if not name.endswith(".png")}
    shutil.rmtree(here / "out")
    assert main([*LONG, "--jobs", "1"]) == 0
    assert found == {name: content for name, content in tree(here / "out").items() if not name.endswith(".png")}


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_when_the_command_ends_the_workers_stop_and_it_can_be_resumed_at_once(how, code, two, here):
    endless = [*LONG, "--steps", "1000000", "--cluster", two.address]
    running = command(*endless)
    until(running, 2)
    running.send_signal(how)
    _, err = running.communicate(timeout=20)
    assert running.returncode == code
    assert lines(err) == ([STOPPED] if how == signal.SIGINT else [])
    again = command(*endless, "--resume")
    end_of_pause = time.monotonic() + 6
    while time.monotonic() < end_of_pause:  # a cell that is still locked would end it
        assert again.poll() is None
        time.sleep(0.1)
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=20)
    assert_nothing_is_written(here)


@pytest.mark.slow
def test_a_call_that_kills_its_worker_or_its_process_is_one_line(two, here):
    with connected(two.address, here, ()) as client:
        for pid, says in (("getppid", "2 workers died of it, the last at tcp://"), ("getpid", "ended with SIGKILL")):
            with pytest.raises(RuntimeError, match=says):
                on_cluster(client, eval, [(f"__import__('os').kill(__import__('os').{pid}(), 9)",)], lambda: None)
    two.client.wait_for_workers(2, timeout=60)


def test_what_a_call_raises_and_prints_comes_back_as_if_it_were_made_here(two, here):
    with connected(two.address, here, ()) as client:
        assert on_cluster(client, print, [("in between",)], lambda: None) == [None]
        with pytest.raises(FileNotFoundError, match="nowhere"):
            on_cluster(client, os.listdir, [("nowhere",)], lambda: None)
        with pytest.raises(RuntimeError, match="ended with code 3"):
            on_cluster(client, sys.exit, [(3,)], lambda: None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "says"),
    [
        (0, r"the Dask scheduler at tcp://\S+ is gone; --resume goes on$"),
        (1, r"has no worker any more: start one by dask worker tcp://\S+; --resume goes on$"),
    ],
)
def test_a_scheduler_or_all_workers_that_end_end_the_command_and_its_runs(
    which, says, tmp_path, here, monkeypatch, capfd
):
    monkeypatch.setattr(jobs_cluster, "PATIENCE", 2)
    ends = "import os, sys, time\nfrom pathlib import Path\n" + (
        "while not list(Path('out').glob('*/*/checkpoint.safetensors')): time.sleep(0.01)\n"
        "os.kill(int(sys.argv[1]), 9 if sys.argv[2] == '0' else 15)"  # 15: it ends the workers
    )
    with started(tmp_path, deaths=9) as cluster:
        cluster.client.close()  # it would print what it thinks of this
        with subprocess.Popen([sys.executable, "-c", ends, str(cluster.processes[which].pid), str(which)]):
            assert code_of([*LONG, "--steps", "1000000", "--cluster", cluster.address]) == 2
        (line,) = lines(capfd.readouterr().err)
        assert re.search(says, line)
        assert_nothing_is_written(here)


# ---- refused ----


def test_a_wrong_address_is_one_line(two, here, capfd):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        port = deaf.getsockname()[1]
        for address, says in {
            "tcp://127.0.0.1:1": "no Dask scheduler answers at tcp://127.0.0.1:1 within 0.5 seconds$",
            "127.0.0.1": "missing port number in address '127.0.0.1'$",
            "ftp://127.0.0.1:1": "unknown address scheme 'ftp'",
            next(iter(two.runs())): "a Dask worker is at tcp://.*: give the address of the scheduler$",
            f"127.0.0.1:{port}": f"no Dask scheduler answers at 127.0.0.1:{port} within 0.5 seconds$",
        }.items():
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(jobs_cluster, "CONNECT", 0.5)
                assert_refused(here, capfd, [*SWEEP, "--cluster", address], says)


def test_a_missing_dask_is_one_line_that_says_what_to_install(here, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    says = r"--cluster needs Dask: pip install '\.\[cluster\]' in the clone, here and on the workers$"
    assert_refused(here, capfd, [*SWEEP, "--cluster", "tcp://127.0.0.1:1"], says)


def test_a_scheduler_without_workers_is_refused(tmp_path_factory, here, capfd):
    with started(tmp_path_factory.mktemp("other"), workers=0) as cluster:
        assert_refused(here, capfd, [*SWEEP, "--cluster", cluster.address], "has no worker: start one by dask worker")


def test_workers_without_minilora_are_refused(tmp_path_factory, here, capfd):
    with started(tmp_path_factory.mktemp("other"), preload="import sys\nsys.modules['minilora'] = None") as cluster:
        says = r"worker tcp://\S+ cannot run minilora: .*No module named.*: install there what is installed here$"
        assert_refused(here, capfd, [*SWEEP, "--cluster", cluster.address], says)


def test_workers_with_other_versions_or_another_disk_are_refused_in_a_line(two, here, capfd, monkeypatch):
    words, worker = [*SWEEP, "--cluster", two.address], r"worker tcp://127\.0\.0\.1:\d+ "
    with monkeypatch.context() as patched:
        patched.setattr(jobs_cluster, "__version__", "0.0.9")
        assert_refused(here, capfd, words, worker + r"has minilora \S+, and here it is 0\.0\.9: install the same$")
    with monkeypatch.context() as patched:
        patched.setattr(jobs_cluster, "write_whole", lambda path, content: path.write_bytes(b"of another"))
        assert_refused(here, capfd, words, worker + "sees another .*out: it must be on a disk that all machines share$")


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="needs a file that one process sees")
def test_an_input_that_a_worker_does_not_see_is_refused_in_a_line(two, here, capfd):
    with open("words.txt") as file:
        os.dup2(file.fileno(), 200)
    try:
        words = [*SWEEP, "--data", "/dev/fd/200", "--cluster", two.address]
        assert_refused(here, capfd, words, r"does not see /dev/fd/200: all machines must have it under this path")
    finally:
        os.close(200)


def test_a_comparison_of_two_settings_has_no_cluster(here, capfd):
    words = ["compare", "--data", "words.txt", "--against", "--rank 2", "--cluster", "tcp://127.0.0.1:1"]
    assert_refused(here, capfd, words, "--cluster goes with --methods: leave it out")


def test_the_sweep_of_the_page_is_one_that_runs_on_the_scheduler_of_the_page():
    scheduler, worker = LINES
    (words,) = re.findall(r"^minilora (sweep .*)$", PAGE, re.MULTILINE)
    address = parser().parse_args(shlex.split(words)).cluster
    assert address == worker[1] == f"tcp://127.0.0.1:{scheduler[scheduler.index('--port') + 1]}"
