"""Fixtures for all tests. One BLAS thread: with more, small products wait for each other."""

import gc
import os

gc.disable()  # what is imported and collected stays: see pytest_collection_finish
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # read when NumPy is imported
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the Hub: a name that is misspelt would be looked up there

import re  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from types import ModuleType  # noqa: E402

import examples  # noqa: E402
import fakecupy  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from rich.cells import cell_len  # noqa: E402

pytest.register_assert_rewrite("commands", "real", "small_runs")
sys.path.append(str(Path(__file__).parent.parent))  # for benchmarks/; what is installed comes first

from minilora.backend import load_backend  # noqa: E402
from minilora.cli import main  # noqa: E402
from minilora.jobs import language_model  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    examples.every = "not slow" not in config.option.markexpr
    settings.register_profile("minilora", max_examples=examples.count(100), deadline=None)
    settings.load_profile("minilora")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    examples.mark_slow(items)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _quick() -> Iterator[None]:
    """The samples of a run on a small model take longer than the run, and so does waiting for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "SAMPLE", 6)
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Path:
    """A copy of the folder that the test file's fixture `made` has filled, to damage at will; the working directory."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    capfd.readouterr()  # what was printed before the test
    return tmp_path / "here"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(params=["numpy", "fakecupy", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Each array library in turn: NumPy, CuPy's test double in CuPy's place, and CuPy where it finds a GPU."""
    if request.param == "fakecupy":
        monkeypatch.setitem(sys.modules, "cupy", fakecupy)
        monkeypatch.setitem(sys.modules, "cupyx.scipy.special", fakecupy.special)
    if request.param != "cupy":
        return load_backend("numpy" if request.param == "numpy" else "cupy")
    try:
        return load_backend("cupy")
    except (ImportError, RuntimeError) as error:
        pytest.skip(str(error))


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[list[str]], list[str]]:
    """What a command prints into a file, and into a terminal of 80 columns, of which no line may be longer."""

    def run(words: list[str], main: Callable[[list[str]], int] = main) -> list[str]:
        said = []
        for terminal in (False, True):
            if terminal:
                monkeypatch.setenv("FORCE_COLOR", "1")
                monkeypatch.setenv("COLUMNS", "80")
            capfd.readouterr()
            assert main(words) == 0
            said.append(re.sub(r"\x1b\[[\d;]*m", "", capfd.readouterr().out))
        table = [line for line in said[1].splitlines() if line[:1] in "┏┃┡│├└ "]
        assert max(map(cell_len, table)) <= 80
        return said

    return run
