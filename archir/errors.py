"""The errors archir raises: what happened, where, why, and a hint at what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class ArchirError(Exception):
    """Base of every error archir raises on purpose.

    Args:
        what: one sentence saying what could not be done.
        where: the place: node text, file and line, passes applied so far.
        why: the reason, if it is not clear from `what`.
        hint: what the user can do about it.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", hint: str = "") -> None:
        self.what = what
        self.where = where
        self.why = why
        self.hint = hint
        parts = [what]
        parts += [f"  where: {where}"] if where else []
        parts += [f"  why:   {why}"] if why else []
        parts += [f"  hint:  {hint}"] if hint else []
        super().__init__("\n".join(parts))


class CaptureError(ArchirError):
    """A model that cannot be captured as a graph."""


class CaptureWarning(UserWarning):
    """What a model does in training and its graph does not, since it is captured in evaluation mode.

    Args:
        model: name of the model.
        losses: one text for each place: where it is, and what is lost there.
    """

    def __init__(self, model: str, losses: Sequence[str]) -> None:
        self.model = model
        self.losses = tuple(losses)
        lines = [f"{model} does in training what its graph does not:", *(f"  {loss}" for loss in losses)]
        hint = "use layers of torch.nn that follow train() and eval(), or leave it out if the graph is not trained"
        super().__init__("\n".join([*lines, f"  hint: {hint}"]))


class GraphError(ArchirError):
    """A graph that is malformed, or an edit that would make it so."""


class ParseError(ArchirError):
    """Text that is not a graph or not a pass specification."""


class FileError(ArchirError):
    """A file that is missing, damaged or of the wrong kind."""


class PassError(ArchirError):
    """A rewrite that does not apply where it was asked for."""


class ScoreError(ArchirError):
    """A loss or a batch that cannot be scored."""


class GrowError(ArchirError):
    """A growth run that cannot start or go on."""


class AlikeError(GrowError):
    """What all processes of a run find alike, so that they may go on from it together."""


class UnnumberedError(GrowError, TypeError):
    """A length, or a number, of examples that can only be iterated.

    It is a TypeError for `list`, which goes on without a length where it finds one.
    """


class NotFiniteError(AlikeError):
    """A loss, or statistics of batches, over the parts of all processes, that are not finite."""


class DivergenceError(AlikeError):
    """A loss that is no longer finite, or far above what it was, while a network is trained.

    Args:
        what: what happened.
        step: number of the step.
        loss: the loss there.
        why: what was tried.
        hint: what the user can do about it.
    """

    def __init__(self, what: str, *, step: int, loss: float, why: str = "", hint: str = "") -> None:
        super().__init__(what, why=why, hint=hint)
        self.step = step
        self.loss = loss


class ProcessError(ArchirError):
    """Processes that cannot work on a run together: they differ, or one of them has failed or ended."""


class Told(Exception):
    """The cause of an error that another process has told of, or raised as well: it need not be told again."""


class EmitError(ArchirError):
    """A graph that cannot be emitted, or whose emission computes something else."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `did you mean ...?` for the known words close to `word`, or the list of all of them."""
    names = sorted(set(known))
    # Comparing takes time that grows with the product of the lengths.
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5) if len(word) <= 100 else []
    if close:
        return f"did you mean {' or '.join(close)}?"
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return f"known: {', '.join(names[:_MOST])}{more}" if names else "none are known"


_MOST = 60
"""The most known words an error lists."""
