"""Sees what loading must never do: write, start, import, connect or delete anything, or change the process."""

from __future__ import annotations

import builtins
import mmap
import os
import random
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch

MARK = "archir_trust_mark"
"""A payload that runs sets this attribute of `builtins`."""

VICTIM = "victim"
"""A file in the working directory that nothing may touch."""

_NEVER = (
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "os.kill"),
    *("os.chdir", "os.fchdir", "os.putenv", "os.unsetenv", "os.chmod", "os.chown", "os.link", "os.symlink"),
    *("subprocess.", "socket.", "pickle.", "pty.", "ftplib.", "smtplib.", "http.", "urllib.", "webbrowser."),
    *("ctypes.", "sqlite3.", "shutil.", "sys.setprofile", "sys.settrace", "builtins.input", "builtins.breakpoint"),
    *("sys.addaudithook", "signal.", "syslog.", "mmap.", "fcntl.", "resource.", "cpython.run"),
)
_WITHIN = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.truncate",
    "os.utime",
    "tempfile.mkstemp",
    "tempfile.mkdtemp",
    "shutil.rmtree",
)
"""Events that are allowed on files of the trial."""

_ALLOWED = ("fcntl.flock", "fcntl.lockf", "os.chmod")
"""Locks, and modes of files of the trial, which the folder of a run needs."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_KNOWN = frozenset(
    (
        *("archir", "passes", "frontends", "tools", "tests", "torch", "torchgen", "functorch", "numpy", "sympy"),
        *("mpmath", "networkx", "safetensors", "sklearn", "scipy", "joblib", "threadpoolctl", "PIL", "olefile"),
        *("matplotlib", "mpl_toolkits", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "google", "ml_dtypes"),
        *("typer", "click", "rich", "typing_extensions", "packaging", "yaml", "jinja2", "markupsafe", "dateutil"),
        *("filelock", "fsspec", "optree", "opt_einsum", "kiwisolver", "cycler", "pyparsing", "fontTools", "contourpy"),
        *("setuptools", "pkg_resources", "defusedxml"),
        *("redis", "triton", "z3"),  # PyTorch asks for them where they are not there, too
    )
)
"""Packages that archir, PyTorch and PIL load when they are first needed."""

_GENERATED = ("archir lowering", "<eval_with_key", "<string>", "<unknown>")


class Watch:
    """Records, while it is armed, what should not happen."""

    def __init__(self, home: Path) -> None:
        """Start to listen; there is no way to stop.

        Args:
            home: the working directory of the process, which is to stay as it is.
        """
        self._home = home
        self._armed = False
        self._folder = ""
        self._seen: list[str] = []
        sys.addaudithook(self._hear)

    @contextmanager
    def armed(self, folder: Path, effects: list[str]) -> Iterator[None]:
        """Listen while a trial runs in a folder, and add to `effects` what should not have happened."""
        self._seen, self._folder = effects, str(folder)
        before = _state(self._home)
        self._armed = True
        try:
            yield
        finally:
            self._armed = False
            after = _state(self._home)
            effects += [f"changed {name}" for name, value in before.items() if after[name] != value]

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed:
            return
        if event == "open":
            self._opened(*arguments[:3])
        elif event == "exec":
            self._executed(arguments[0])
        elif event == "import":
            self._imported(str(arguments[0]))
        elif event.startswith(_WITHIN) or event in _ALLOWED:
            paths = [os.fsdecode(a) for a in arguments if isinstance(a, str | bytes | os.PathLike)]
            if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # relative to a folder that is open
                paths = [os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), paths[0])]
            if not all(map(self._is_within, paths)):
                self._note(f"{event} {paths}")
        elif event == "mmap.__new__" and len(arguments) > 2 and arguments[2] == mmap.ACCESS_READ:
            return  # PIL reads pictures so
        elif event == "os.putenv" and arguments[0] == b"TORCHINDUCTOR_CACHE_DIR":
            return  # PyTorch's compiler, when it is loaded, sets it to what it is; another value is a change
        elif event.startswith(_NEVER):
            self._note(f"{event} {arguments!r:.200}")

    def _note(self, what: str) -> None:
        armed, self._armed = self._armed, False
        self._seen.append(f"{what} by {' < '.join(_callers())}")
        self._armed = armed

    def _is_within(self, path: object) -> bool:
        if isinstance(path, int):
            return True
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
        return f"{os.path.abspath(text)}{os.sep}".startswith(self._folder + os.sep)

    def _opened(self, path: object, mode: object, flags: object) -> None:
        writes = (
            any(c in "wax+" for c in mode) if isinstance(mode, str) else isinstance(flags, int) and flags & _WRITING
        )
        if writes and path != os.devnull and not self._is_within(path):
            self._note(f"open {path!r:.200} {mode}")

    def _executed(self, code: object) -> None:
        if isinstance(code, CodeType) and _is_generated(sys._getframe(2)):
            self._note(f"exec of {code.co_filename}")

    def _imported(self, name: str) -> None:
        top = name.partition(".")[0]
        if name in sys.modules:
            return
        if (top not in _KNOWN and top not in sys.stdlib_module_names) or _is_generated(sys._getframe(2)):
            self._note(f"import {name}")


def _is_generated(frame: FrameType | None) -> bool:
    """Say whether the code that called, importing aside, was made from a graph or from text."""
    while frame is not None and frame.f_code.co_filename.startswith("<frozen"):
        frame = frame.f_back
    if frame is None:
        return False
    name = frame.f_code.co_filename
    return name.startswith(_GENERATED) and not frame.f_globals.get("__name__", "").startswith(("torch.", "sympy."))


def _callers() -> list[str]:
    frame: FrameType | None = sys._getframe(3)
    found: list[str] = []
    while frame is not None and len(found) < 4:
        name = Path(frame.f_code.co_filename).name
        if name != Path(__file__).name and not name.startswith("<frozen"):
            found.append(f"{name}:{frame.f_lineno}")
        frame = frame.f_back
    return found


def _state(home: Path) -> Mapping[str, object]:
    """Return what a trial must leave as it was."""
    return {
        "default element type": torch.get_default_dtype(),
        "gradient mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default device": torch.get_default_device(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "precision of products": torch.get_float32_matmul_precision(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "number of threads of torch": torch.get_num_threads(),
        "random numbers of torch": torch.get_rng_state().numpy().tobytes(),
        "random numbers of Python": random.getstate(),
        "random numbers of numpy": np.random.get_state(legacy=False)["state"]["key"].tobytes(),
        "environment": dict(os.environ),
        "working directory": os.getcwd(),
        "threads": threading.active_count(),
        "recursion limit": sys.getrecursionlimit(),
        "digits of integers": sys.get_int_max_str_digits(),
        "module path": tuple(sys.path),
        "builtins": len(vars(builtins)),
        "files": [(e.name, s.st_size, s.st_mtime_ns) for e in os.scandir(home) for s in [e.stat()]],
        "standard output": os.fstat(1).st_size,
    }
