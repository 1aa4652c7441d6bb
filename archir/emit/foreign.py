"""Calls other people's exporters and runtimes: what they raise becomes archir's error, what they note is not told."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from archir.errors import EmitError


@contextmanager
def as_error(
    what: str, where: Callable[[str], str] = lambda message: "", why: str = "", hint: str = ""
) -> Iterator[None]:
    """Turn whatever goes wrong into an EmitError: which errors other people's exporters and runtimes raise is open.

    Args:
        what: what could not be done.
        where: finds the place in a message.
        why: said behind the reason.
        hint: what the user can do about it.

    Raises:
        EmitError: something went wrong that is not a matter of files.
    """
    try:
        yield
    except (EmitError, OSError):
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = str(cause).strip().splitlines()
        reason = f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__
        raise EmitError(
            what, where=where(f"{error}\n{cause}"), why=f"{reason}; {why}" if why else reason, hint=hint
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the notes of other packages about themselves to themselves: deprecations inside, packages not installed.

    Some note to the root logger, which gives it a handler for good where it has none; here it has one for a while.
    """
    root, silent = logging.getLogger(), logging.NullHandler()
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    root.addHandler(silent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeHandler(silent)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
