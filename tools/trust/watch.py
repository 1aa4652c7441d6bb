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

    def __init__(self, home: Path, folder: Path) -> None:
        """Start to listen; there is no way to stop.

        Args:
            home: a folder of the process, which is to stay as it is, by whatever means it might be changed.
            folder: the folder of the trials, within the other; what is written there is written where it may be.
        """
        self._home = home
        self._armed = False
        self._folder = str(folder)
        self._seen: list[str] = []
        sys.addaudithook(self._hear)

    @contextmanager
    def armed(self, effects: list[str]) -> Iterator[None]:
        """Listen while a trial runs, and add to `effects` what should not have happened."""
        self._seen = effects
        before = self._state()
        self._armed = True
        try:
            yield
        finally:
            self._armed = False
            after = self._state()
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

    def _state(self) -> Mapping[str, object]:
        return {**_settings(), "files": dict(_contents(self._home, self._folder))}

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
        if not isinstance(code, CodeType):
            return
        if _is_generated(sys._getframe(2)):
            self._note(f"exec of {code.co_filename}")
        elif _holds_mark(code):
            self._note(f"exec of {code.co_filename}, in which there is code of a file")

    def _imported(self, name: str) -> None:
        top = name.partition(".")[0]
        if name in sys.modules:
            return
        if (top not in _KNOWN and top not in sys.stdlib_module_names) or _is_generated(sys._getframe(2)):
            self._note(f"import {name}")


def _holds_mark(code: CodeType) -> bool:
    """Say whether code, or a function in it, does what the payloads do: a name that is quoted holds more."""
    return any(part == MARK or (isinstance(part, CodeType) and _holds_mark(part)) for part in code.co_consts)


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


def _contents(folder: Path, aside: str) -> Iterator[tuple[str, object]]:
    """Yield what is in a folder, but for one within it: native code writes without a word."""
    for entry in os.scandir(folder):
        if entry.path == aside or entry.name == "err":
            continue
        if entry.is_dir(follow_symlinks=False):
            yield entry.path, "folder"
            yield from _contents(Path(entry.path), aside)
        else:
            found = entry.stat(follow_symlinks=False)
            small = found.st_size < 4096 and entry.is_file(follow_symlinks=False)
            # What is written by way of memory need not change the time.
            yield entry.path, (found.st_size, found.st_mtime_ns, Path(entry.path).read_bytes() if small else b"")


def _settings() -> Mapping[str, object]:
    """Return what a trial must leave as it was, files aside."""
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
        "standard output": os.fstat(1).st_size,
    }
