"""One process writes a folder at a time, no worker outlives its sweep, and a command ends well whatever its streams."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import examples
import pytest
from commands import make_inputs
from rich.cells import cell_len

from minilora.cli import main
from minilora.display.tables import numbers_right, wide_console
from minilora.jobs.runs import read_settings
from minilora.process import LOCK, folder_lock

RUN = ["--data", "words.txt", "--batch", "2", "--length", "8", "--out", "out"]
SWEEP = ["sweep", *RUN, "--ranks", "1,2", "--seeds", "1", "--jobs", "2"]

posix = pytest.mark.skipif(os.name != "posix", reason="SIGKILL")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(root)} | options.pop("env", {})
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *arguments], **{"stdout": pipe, "stderr": pipe, "text": True, "env": env} | options
    )


# ---- one writer ----

HOLD = "from minilora.process import folder_lock\nwith folder_lock('out'):\n    print('held', flush=True); input()"


def test_a_folder_that_a_living_process_writes_is_refused_with_its_id(here, capsys, monkeypatch):
    monkeypatch.setattr("minilora.process.LOCK_TIMEOUT", 0.05)  # this one lives on
    with start("-c", HOLD, stdin=subprocess.PIPE) as other:
        assert other.stdout.readline() == "held\n"
        before = sorted(here.rglob("*"))
        for words in (["finetune", *RUN], SWEEP, ["demo", "--out", "out"], ["pretrain", "--out", "out"]):
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
        assert main(["finetune", *RUN, "--base", "base", "--steps", "1", *resume]) == 0
        assert not (here / "out" / LOCK).exists()
        for path in (here / "out").iterdir():
            path.unlink()


def test_two_locks_in_one_process_exclude_each_other_and_leave_nothing(here, monkeypatch):
    monkeypatch.setattr("minilora.process.LOCK_TIMEOUT", 0.05)
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
@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "method"), [("loky", ""), ("multiprocessing", "fork"), ("multiprocessing", "forkserver")]
)
def test_workers_of_a_sweep_that_is_killed_end_and_write_no_more_and_it_can_be_resumed(backend, method, here):
    (here / "run.py").write_text(BACKEND)
    env = {"JOBLIB_START_METHOD": method} if method else {}
    for moment in (0, 0.1, 0.2, 0.4, 0.8):  # from the first worker on
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


# ---- standard streams ----


def closed(*words: str, which: str) -> tuple[int, str, str]:
    """A command whose streams a shell has closed: exit code, and what reached the others."""
    shell = f"import os, sys; os.execv('/bin/sh', ['sh', '-c', 'exec \"$@\" {which}', 'sh', *sys.argv[1:]])"
    with start("-c", shell, sys.executable, "-m", "minilora", *words) as process:
        out, err = process.communicate()
    return process.returncode, out, err


@posix
@pytest.mark.parametrize(
    "words",
    [
        ["count"],
        *(
            pytest.param(words.split(), marks=pytest.mark.slow)
            for words in ("--help", "count --json", "verify --only gelu")
        ),
    ],
    ids=" ".join,
)
def test_a_command_whose_reader_is_gone_ends_with_141_and_no_word(words):
    read, write = os.pipe()
    os.close(read)
    with start("-m", "minilora", *words, stdout=write) as process:
        os.close(write)
        assert process.communicate() == (None, "")
    assert process.returncode == 141


@posix
def test_a_full_disk_behind_standard_output_is_one_line():
    with open("/dev/full", "w") as full, start("-m", "minilora", "--version", stdout=full) as process:
        assert process.communicate() == (None, "minilora: No space left on device\n")
    assert process.returncode == 2


@pytest.mark.slow
@posix
def test_with_streams_closed_a_run_is_made_and_errors_go_nowhere_else(here):
    words = ["finetune", "--base", "base", "--steps", "1", *RUN]
    assert closed(*words, which="2>&-")[::2] == (0, "")
    assert closed(*words, which="2>&-") == (2, "", "")  # the folder is taken
    assert closed(*words, "--out", "other", which="<&- >&- 2>&-") == (0, "", "")
    for folder in ("out", "other"):
        assert {path.name for path in (here / folder).iterdir()} == {
            "settings.json", "checkpoint.safetensors", "history.json", "samples.json", "adapter_config.json",
            "adapter_model.safetensors",
        }  # fmt: skip
        assert b"minilora:" not in b"".join(path.read_bytes() for path in (here / folder).iterdir())


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("words", examples.some_of([["fintune"], ["finetune", "--help"], ["count"]], 3))
def test_in_a_locale_without_letters_of_ours_a_command_says_all_it_has_to(words):
    with start("-m", "minilora", *words, env=ASCII) as process:
        out, err = process.communicate()
    assert process.returncode == 2 * (words == ["fintune"])
    assert (out + err).isascii()
    assert "Traceback" not in err


@pytest.mark.slow
def test_json_stays_json_in_a_locale_without_letters_of_ours():
    with start("-m", "minilora", "count", "--json", env=ASCII) as process:
        out, err = process.communicate()
    assert json.loads(out)
    assert out.isascii()
    assert err == ""


@pytest.mark.filterwarnings("default")
def test_what_a_terminal_would_obey_is_escaped_in_errors_notes_and_tables(monkeypatch, capsys):
    evil = "\x1b]0;owned\x07\x9b31m\u202e\r\x7f"

    def fail(*arguments: object) -> None:
        warnings.warn(evil, stacklevel=1)
        raise ValueError(evil)

    monkeypatch.setattr("minilora.cli.commands.pretrain.backend", fail)
    assert main(["pretrain", "--out", "x"]) == 2
    assert main(["info", evil]) == 2
    wide_console().print(numbers_right(evil, evil, evil))
    out, err = capsys.readouterr()
    assert err.count("\\x1b]0;owned\\x07\\x9b31m\\u202e") == 3
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out + err)


def test_an_error_that_quotes_a_file_is_bounded_and_keeps_its_advice(monkeypatch, capsys):
    def fail(*arguments: object) -> None:
        raise ValueError(f"what is {'long ' * 1000}: do this")

    monkeypatch.setattr("minilora.cli.commands.pretrain.backend", fail)
    assert main(["pretrain", "--out", "x"]) == 2
    said = capsys.readouterr().err
    assert len(said) < 640
    assert said.startswith("minilora: what is long")
    assert said.endswith(": do this\n")


# ---- near misses ----


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("fintune", "finetune"),
        ("finetune --task clasify --data x --out y", "classify"),
        ("finetune --dta x --out y", "--data"),
        ("finetune --data words.txt --targets q_porj --out out", "q_proj"),
        ("compare --data x --against '--rnk 2'", "--rank"),
        ("demo --device cud", "cuda"),
        ("generate --base smolm2 --prompt x", "smollm2"),
        ("count --method lorra", "lora"), ("count --compare full,Qlora2", "qlora"),
        ("count --model gpt3-175", "gpt3-175b"), ("count --targets q_prj", "q_proj"),
        ("count --dtype flaot16", "float16"), ("count --head clasify", "classify"), ("--verison", "--version"),
        ("finetune --data biultin --out x", "builtin"),
        ("verify --only op_atention", "op attention"),
        ("verify --mutants --only lora_bakward", "lora_backward"),
    ],
)  # fmt: skip
def test_a_near_miss_is_answered_with_what_was_meant(words, meant, here, capsys):
    try:
        code = main(shlex.split(words))
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert f"did you mean {meant!r}?" in capsys.readouterr().err


# ---- settings.json ----


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in ("steps", "batch", "length", "seed") for value in ("3", 1.5, True, -1, None, [8])),
        *((key, value) for key in ("base", "data") for value in (7, ["x"], {})),
        *(("labels", value) for value in ("ab", ["a"], ["a", 1], ["a", "a"], {"a": 0}, [])),
    ],
    ids=repr,
)
def test_settings_of_wrong_types_are_one_line_to_every_reader(key, value, tmp_path):
    settings = {"steps": 3, "batch": 2, "length": 8, "seed": 0, "labels": ["a", "b"], "base": "x", "data": "y"}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    assert read_settings(tmp_path) == settings
    (tmp_path / "settings.json").write_text(json.dumps(settings | {key: value}))
    with pytest.raises(ValueError, match=rf"settings\.json: {key} is .*, not a"):
        read_settings(tmp_path)


SAVED = {"accumulate", "alpha", "base", "base_sha256", "batch", "data", "data_sha256", "dropout", "evaluate_every"}
SAVED |= {"length", "lr", "patience", "rank", "rslora", "seed", "shards", "steps", "targets", "tokenizer_sha256"}
SAVED |= {"method", "init", "option", "quantize"}  # what their absence means: runs.ABSENT
SAVED |= {"schedule", "warmup", "weight_decay", "clip", "teacher", "temperature", "reverse_kl"}


@pytest.mark.parametrize(
    ("task", "more"), [("text", set()), ("classify", {"task", "text", "label", "labels", "epochs", "l1", "l2"})]
)
def test_settings_json_has_the_keys_of_runs_that_earlier_versions_began(task, more, here):
    (here / "rows.csv").write_text("text,label\n" + "abc,yes\ncba,no\n" * 4)
    data = ["--data", "words.txt", "--steps", "1"] if task == "text" else ["--data", "rows.csv", "--epochs", "1"]
    assert (
        main(["finetune", "--task", task, "--base", "base", *data, "--batch", "2", "--length", "8", "--out", "out"])
        == 0
    )
    assert json.loads((here / "out" / "settings.json").read_text()).keys() == SAVED | more


# ---- tables ----


@pytest.mark.parametrize("width", [40, 60, 80])
def test_no_word_and_no_number_of_a_table_is_broken_in_a_narrow_terminal(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    cell = "block_0.attention.q_proj.lora_A business 0.39M 体育新闻 3.5"
    rows = numbers_right("title", "name", "count", "of it", "note", words=(0, -1))
    rows.add_row(cell, "1,234,567,890", "99.9999%", "another.name of a thing")
    wide_console().print(rows)
    table = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert max(map(cell_len, table.splitlines())) <= width
    for word in re.findall(
        r"\w+\.?[\d,]*\w*%?", "block_0. attention. q_proj. lora_A business 0.39M 体育新闻 3.5 another."
    ):
        assert word in table
    assert "1,234,567,890" in table
    assert "99.9999%" in table
