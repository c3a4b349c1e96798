"""One process writes a folder at a time, no worker outlives its sweep, and a command ends well whatever its streams."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minilora.cli import main
from minilora.process import LOCK, folder_lock

RUN = ["--data", "words.txt", "--batch", "2", "--length", "8", "--out", "out"]
SWEEP = ["sweep", *RUN, "--ranks", "1,2", "--seeds", "1", "--jobs", "2"]
WORDS = "".join(f"def f{i}(x):\n    return x + {i}\n\n" for i in range(120))

posix = pytest.mark.skipif(os.name != "posix", reason="SIGKILL")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "words.txt").write_text(WORDS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
    root = Path(__file__).parent.parent
    env = os.environ | {"PYTHONPATH": str(root)} | options.pop("env", {})
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *arguments], **{"stdout": pipe, "stderr": pipe, "text": True, "env": env} | options
    )


# ---- one writer ----

HOLD = "from minilora.process import folder_lock\nwith folder_lock('out'):\n    print('held', flush=True); input()"


@pytest.mark.parametrize("words", [["finetune", *RUN], SWEEP, ["demo", "--out", "out"], ["pretrain", "--out", "out"]])
def test_a_folder_that_a_living_process_writes_is_refused_with_its_id(words, here, capsys):
    with start("-c", HOLD, stdin=subprocess.PIPE) as other:
        assert other.stdout.readline() == "held\n"
        before = sorted(here.rglob("*"))
        assert main(words) == 2
        assert f"out is being written by process {other.pid}: wait" in capsys.readouterr().err
        assert sorted(here.rglob("*")) == before
        other.communicate("\n")
    assert not (here / "out").exists()


@posix
def test_the_lock_of_a_killed_process_holds_no_one_and_its_run_can_be_resumed_or_begun(here):
    for resume in ([], ["--resume"]):
        with start("-c", HOLD, stdin=subprocess.PIPE) as other:
            assert other.stdout.readline() == "held\n"
            other.kill()
        assert (here / "out" / LOCK).exists()
        with folder_lock("out") as killed:
            assert killed
        with start("-c", HOLD, stdin=subprocess.PIPE) as other:
            other.stdout.readline()
            other.kill()
        assert main(["finetune", *RUN, "--steps", "1", *resume]) == 0
        assert not (here / "out" / LOCK).exists()
        for path in (here / "out").iterdir():
            path.unlink()


def test_two_locks_in_one_process_exclude_each_other_and_leave_nothing(here):
    with folder_lock("new/out") as killed:
        assert not killed
        with pytest.raises(ValueError, match=f"is being written by process {os.getpid()}"), folder_lock("new/out"):
            pass
    assert not (here / "new").exists()


# ---- no worker outlives its parent ----


def session(leader: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                state, _, _, session, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            found += [int(folder.name)] * (int(session) == leader and state != "Z")
    return found


def gone(leader: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while session(leader) and time.monotonic() < end:
        time.sleep(0.02)
    return not session(leader)


BACKEND = """
import sys, joblib
from minilora.cli import main
if __name__ == "__main__":
    with joblib.parallel_config(backend=sys.argv[1]):
        sys.exit(main(sys.argv[2:]))
"""
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@linux
@pytest.mark.parametrize(
    ("backend", "method", "moments"),
    [
        ("loky", "", [0]),
        *(
            pytest.param(*case, [0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0], marks=pytest.mark.slow)
            for case in (("loky", ""), ("multiprocessing", "fork"), ("multiprocessing", "forkserver"))
        ),
    ],
)
def test_workers_of_a_sweep_that_is_killed_end_and_write_no_more_and_it_can_be_resumed(backend, method, moments, here):
    (here / "run.py").write_text(BACKEND)
    env = {"JOBLIB_START_METHOD": method} if method else {}
    for moment in moments:  # from the first worker on
        words = ["run.py", backend, *SWEEP, "--steps", "2000", "--checkpoint-every", "20"]
        words += ["--resume"] * (here / "out").exists()
        with start(*words, env=env, start_new_session=True) as parent:
            while len(session(parent.pid)) < 2:
                assert parent.poll() is None
                time.sleep(0.005)
            time.sleep(moment)
            parent.kill()
            parent.wait()
            assert gone(parent.pid, 5)  # 0.2 s after they could run; a process that starts must first be Python
        left = sorted(here.rglob("*"))
        time.sleep(0.1)
        assert sorted(here.rglob("*")) == left
        assert (here / "out" / LOCK).exists()
    with start("run.py", backend, *SWEEP, "--steps", "2000", "--resume", env=env, start_new_session=True) as again:
        while not list((here / "out").glob("*/*/checkpoint.safetensors")):
            assert again.poll() is None
            time.sleep(0.01)
        os.killpg(again.pid, signal.SIGKILL)
