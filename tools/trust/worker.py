"""A process in which trials run, one after another, each under limits of time and memory, and watched."""

from __future__ import annotations

import faulthandler
import importlib
import os
import resource
import shutil
import signal
import sys
import traceback
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from archir.errors import ArchirError
from tools.trust.attack import Attack, Files, Outcome, Ran, Wrong, changes, place
from tools.trust.watch import VICTIM, Watch


def serve(connection: Connection, home: Path) -> None:
    """Run the trials that come through a connection until it closes.

    A trial that uses up its processor time ends the process by `SIGPROF`.

    Args:
        connection: receives `(attack, files)`, sends `Outcome`.
        home: an empty folder, which becomes the working directory.
    """
    nest, trial = home / "nest", home / "trial"
    nest.mkdir(parents=True)
    nest.joinpath(VICTIM).write_text("nothing may touch this")
    nest.joinpath("canary.py").write_text("raise SystemError('a file imported the canary')\n")
    os.chdir(nest)
    os.environ["HOME"] = os.environ["TMPDIR"] = str(nest)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(trial)  # else PyTorch sets it when it is first asked
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # if memory is short all the same, the system ends this process and not the one that counts
        Path("/proc/self/oom_score_adj").write_text("1000")
    with home.joinpath("out").open("wb") as out, home.joinpath("err").open("wb") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        faulthandler.enable(err)
        faulthandler.register(signal.SIGPROF, err, all_threads=False, chain=True)
        warnings.simplefilter("ignore")
        importlib.import_module("tools.trust.preload")  # forked in vain where another started the process to fork
        watch = Watch(home, trial)
        base = _address_space()
        connection.send(None)
        while True:
            try:
                attack, files = connection.recv()
            except EOFError:
                return
            resource.setrlimit(resource.RLIMIT_AS, (base + attack.memory, resource.RLIM_INFINITY))
            outcome = attempt(attack, files, trial, watch)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            connection.send(outcome)
            if outcome.kind == "ran":
                return


def attempt(attack: Attack, files: Files, folder: Path, watch: Watch) -> Outcome:
    """Carry out one trial in a folder, which is made anew."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    place(files, folder)
    effects: list[str] = []
    signal.setitimer(signal.ITIMER_PROF, attack.seconds)
    with watch.armed(effects):
        outcome = _use(attack, folder)
    signal.setitimer(signal.ITIMER_PROF, 0)
    if attack.reads:
        effects += changes(files, folder)
    if effects and attack.watched and outcome.kind != "ran":
        return Outcome("ran", effects[0], "\n".join([*effects, outcome.detail]))
    return outcome


def _use(attack: Attack, folder: Path) -> Outcome:
    try:
        attack.use(folder)
    except ArchirError as error:
        text = str(error)
        if not error.what.strip():
            return Outcome("crashed", "an error without a message", traceback.format_exc())
        return Outcome("rejected", text.splitlines()[0][:500], _shortened(text))
    except Ran as error:
        return Outcome("ran", str(error).partition("\n")[0][:500], _shortened(traceback.format_exc()))
    except Wrong as error:
        return Outcome("wrong", str(error).partition("\n")[0][:500], _shortened(traceback.format_exc()))
    except BaseException as error:  # a fault whatever it is; SystemExit and KeyboardInterrupt would be, too
        return Outcome("crashed", cause_of(error), _shortened(traceback.format_exc()))
    return Outcome("accepted")


def cause_of(error: BaseException) -> str:
    """Return the type of an error and the line of the package it went through last."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f for f in frames if any(f"{os.sep}{part}{os.sep}" in f.filename for part in ("archir", "passes", "frontends"))
    ]
    last = (own or frames)[-1] if frames else None
    place = f" at {'/'.join(Path(last.filename).parts[-3:])}:{last.name}" if last else ""
    return f"{type(error).__name__}{place}"


def _shortened(text: str, most: int = 6000) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}\n...\n{text[-most // 2 :]}"


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


assert sys.platform != "win32", "limits of processes are those of POSIX"
