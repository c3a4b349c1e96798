"""A double of Pyodide, the Python of a browser: `python in_a_browser.py SCRIPT ARGUMENT...` runs a script after taking
away what Pyodide 314 lacks. FACTS is what the two have in common; a test compares it with Pyodide itself.

NumPy is not in that comparison, since its wheel for Pyodide is on no package index. Its own tests say what else
differs: "fp errors don't work in wasm", so that errstate warns of nothing and raises nothing, and neither does a
singular matrix. Of its 32-bit integers the double has those of np.arange.
"""

import _thread
import atexit
import errno
import json
import os
import runpy
import signal
import socket
import sys
import sysconfig
import tempfile
import threading
import zipfile
from typing import Any, NoReturn

# Modules of the standard library, and packages that have no wheel for Pyodide and are not pure Python.
MODULES = [
    "_curses", "_curses_panel", "_dbm", "_gdbm", "_hashlib", "_interpchannels", "_interpqueues", "_interpreters",
    "_multiprocessing", "_posixshmem", "_pydecimal", "_tkinter", "_uuid", "curses", "dbm", "ensurepip", "grp",
    "idlelib", "pwd", "pydoc_data", "readline", "resource", "syslog", "tkinter", "turtle", "turtledemo", "venv",
]  # fmt: skip
PACKAGES = [
    "bitsandbytes", "cupy", "hf_xet", "huggingface_hub", "peft", "tokenizers", "torch", "transformers",
    "watchfiles",
]  # fmt: skip

FACTS = {  # what an expression gives, or the name of what it raises; the last line of several
    "sys.platform": "emscripten",
    "os.name": "posix",
    "os.cpu_count()": 1,
    "sys._emscripten_info.pthreads": False,
    "zipfile.is_zipfile(os.path.dirname(os.__file__))": True,
    "'subprocess.py' in zipfile.ZipFile(os.path.dirname(os.__file__)).namelist()": True,
    "threading.Thread(target=print).start()": "RuntimeError",
    "threading.Timer(0, print).start()": "RuntimeError",
    "_thread.start_new_thread(print, ())": "RuntimeError",
    "threading.Lock().acquire(timeout=0.01)": True,
    "threading.Event().wait(0.01)": False,
    "concurrent.futures.ThreadPoolExecutor(1).submit(abs, -1)": "RuntimeError",
    "faulthandler.dump_traceback_later(60)": "RuntimeError",
    "subprocess.run([sys.executable, '-V'])": "OSError",
    "subprocess.Popen('true', shell=True)": "OSError",
    "os.fork()": "OSError",
    "os.popen('true')": "OSError",
    "hasattr(os, 'forkpty')": False,
    "hasattr(os, 'posix_spawn')": False,
    "hasattr(os, 'link')": False,
    "hasattr(os, 'mkfifo')": False,
    "hasattr(os, 'openpty')": False,
    "hasattr(os, 'sched_getaffinity')": False,
    "os.get_terminal_size()": "OSError",
    "multiprocessing.cpu_count()": 1,
    "multiprocessing.parent_process()": None,
    "multiprocessing.get_context('spawn').Process(target=print).start()": "ModuleNotFoundError",
    "multiprocessing.Pool(1)": "ModuleNotFoundError",
    "multiprocessing.Queue()": "ModuleNotFoundError",
    "multiprocessing.RLock()": "ModuleNotFoundError",
    "hasattr(signal, 'alarm')": False,
    "hasattr(signal, 'setitimer')": False,
    "hasattr(signal, 'pthread_kill')": False,
    "signal.signal(signal.SIGINT, signal.default_int_handler) is signal.default_int_handler": True,
    "socket.socketpair()": "OSError",
    "fcntl.flock(os.open(os.devnull, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)": None,
    "tempfile.mkdtemp() != tempfile.mkdtemp()": True,
    "sys.stdout.isatty()": False,
    **{f"importlib.util.find_spec({name!r}) is None": True for name in MODULES},
}


def facts() -> dict[str, Any]:
    """FACTS as they are in this Python."""
    names = dict(globals())
    for name in ("concurrent.futures", "faulthandler", "fcntl", "importlib.util", "multiprocessing", "subprocess"):
        names[name.partition(".")[0]] = __import__(name)
    found = {}
    for expression in FACTS:
        try:
            found[expression] = eval(expression, names)
        except Exception as error:
            found[expression] = type(error).__name__
    return found


def no_thread(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("can't start new thread")


def no_process(*_: Any) -> NoReturn:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def zipped(library: str) -> str:
    """The top of the standard library as a zip."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    path = os.path.join(folder.name, "python3.zip")
    with zipfile.ZipFile(path, "w") as file:
        for entry in os.scandir(library):
            if entry.name.endswith(".py"):
                file.write(entry, entry.name)
    return path


def enter() -> None:
    """Take it away. The subprocess module sees by sys.platform that there are no processes, multiprocessing and
    concurrent.futures by the modules that they lack; so they must not have been imported."""
    assert not {"subprocess", "multiprocessing", "concurrent.futures", "numpy"} & set(sys.modules)
    sysconfig.get_config_vars()  # read once, from a module that is named after the platform
    sys.platform = "emscripten"
    sys._emscripten_info = type("info", (), {"pthreads": False})()  # type: ignore[attr-defined]
    sys.modules.update(dict.fromkeys([*MODULES, *PACKAGES]))  # None: there is no such module
    os.__file__ = os.path.join(zipped(os.path.dirname(os.__file__)), "os.py")
    os.cpu_count = os.process_cpu_count = lambda: 1  # type: ignore[attr-defined]
    os.fork = no_process
    os.system = lambda command: -1
    os.get_terminal_size = no_process
    lacks = {os: ["forkpty", "posix_spawn", "posix_spawnp", "link", "mkfifo", "openpty", "sched_getaffinity"]}
    lacks |= {signal: ["alarm", "setitimer", "pthread_kill"]}
    for module, names in lacks.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for module in (_thread, threading):
        for name in ("start_new_thread", "start_joinable_thread", "_start_new_thread", "_start_joinable_thread"):
            if hasattr(module, name):
                setattr(module, name, no_thread)
    import faulthandler

    faulthandler.dump_traceback_later = no_thread
    socket.socketpair = no_process
    socket.socket.bind = socket.socket.connect = no_process  # stricter: there, connect() returns and nothing arrives
    import numpy as np

    class Ignored(np.errstate):
        def __init__(self, **_: Any):
            super().__init__(all="ignore")

    np.seterr(all="ignore")
    np.seterr = lambda **_: np.geterr()
    arange = np.arange

    def arange32(*arguments: Any, dtype: Any = None) -> Any:
        x = arange(*arguments, dtype=dtype)
        wide = dtype or any(hasattr(argument, "dtype") for argument in arguments)
        return x if wide or x.dtype != np.int64 else x.astype(np.int32)

    np.arange = arange32
    np.errstate = np.linalg._linalg.errstate = Ignored  # type: ignore[misc]


if __name__ == "__main__":
    enter()
    sys.argv = sys.argv[1:]
    if sys.argv:
        sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        print(json.dumps(facts()))
