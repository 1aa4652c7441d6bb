"""What was measured, as plain data: changes of the loss in nats, predicted and true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Single:
    """One candidate.

    Attributes:
        morphism: its kind.
        spec: its text.
        predicted: predicted change of the loss, from the examples it is scored on.
        stderr: standard error of that.
        in_sample: true change on the same examples.
        held_out: true change on others.
    """

    morphism: str
    spec: str
    predicted: float
    stderr: float
    in_sample: float
    held_out: float

    @property
    def clear(self) -> bool:
        """Whether the change exceeds twice the standard error of its prediction."""
        return abs(self.predicted) > 2 * self.stderr


@dataclass(frozen=True)
class Together:
    """A set of candidates.

    Attributes:
        chosen: what chose it: `random`, `additive`, `joint` or `linearised`.
        learned: how its θ was learned: `alone`, each member as if it were alone, or `together`.
        size: number of candidates.
        additive: predicted change of the loss, the sum of what each does alone.
        joint: the same by the joint model.
        linearised: the same by the linearised network.
        in_sample: true change on the examples predicted from.
        held_out: true change on others.
    """

    chosen: str
    learned: str
    size: int
    additive: float
    joint: float
    linearised: float
    in_sample: float
    held_out: float


@dataclass(frozen=True)
class Ruled:
    """The set that a rule chooses when nothing but its number of candidates is given.

    Attributes:
        rule: name of the rule.
        size: number of candidates.
        in_sample: true change of the loss on the examples the rule was given.
        held_out: true change on others.
    """

    rule: str
    size: int
    in_sample: float
    held_out: float


@dataclass(frozen=True)
class Committed:
    """What a growth step did.

    Attributes:
        size: number of candidates committed, 0 for none.
        chosen: number of candidates chosen, before backing off.
        predicted: predicted change of the loss on the examples the set was chosen on.
        in_sample: true change on these.
        expected: predicted change on the examples the set was checked on.
        realised: true change on these.
        held_out: true change on examples the growth step never saw.
    """

    size: int
    chosen: int
    predicted: float
    in_sample: float
    expected: float
    realised: float
    held_out: float


@dataclass(frozen=True)
class Moment:
    """One network at one stage of its training.

    Attributes:
        subject: `images`, `text` or `dilated`.
        data: what the data are.
        seed: seed of everything random.
        stage: `early`, `middle` or `late`.
        loss: held-out loss of the network.
        candidates: number of candidates screened.
        singles: single candidates, some of every morphism.
        sets: sets of the refined candidates.
        rules: what each rule chooses.
        committed: a growth step.
    """

    subject: str
    data: str
    seed: int
    stage: str
    loss: float
    candidates: int
    singles: tuple[Single, ...]
    sets: tuple[Together, ...]
    rules: tuple[Ruled, ...]
    committed: Committed


def to_json(moments: Sequence[Moment]) -> list[dict[str, Any]]:
    """Return moments as what JSON can hold."""
    return [asdict(m) for m in moments]


def from_json(found: Sequence[Mapping[str, Any]]) -> list[Moment]:
    """Return the moments that `to_json` made this of."""
    return [
        Moment(
            **{
                **m,
                "singles": tuple(Single(**s) for s in m["singles"]),
                "sets": tuple(Together(**s) for s in m["sets"]),
                "rules": tuple(Ruled(**s) for s in m["rules"]),
                "committed": Committed(**m["committed"]),
            }
        )
        for m in found
    ]
