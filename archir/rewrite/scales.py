"""What makes up for a factor that a mean, or a normalisation, takes from the number of its units.

Let r be the part of the units of a width that it had before fresh ones came. A mean over all of them, to which the
fresh ones add nothing, is r times what it was. That goes on, as powers of r, through what is done with it: `rsqrt` of
it is `r ** -½` times what it was. Numbers that are added to it (ε) are multiplied alike, and a stored tensor that it,
or what it has become, is multiplied with makes up for it: the weight of the normalisation, or of the next layer.

Source: ours; Wang et al. 2024 (LEMON) for the weight and ε of a normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from archir.ir.graph import Graph
from archir.ir.node import Node, Use, Value
from archir.ir.operators.operator import Movement
from archir.ir.registry import operator_of
from archir.ir.types import is_float
from archir.rewrite.miss import Miss

HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Scales:
    """By what powers of r things have to be multiplied.

    Attributes:
        stored: stored tensors, by their nodes.
        numbers: numbers among the arguments of calls.
    """

    stored: Mapping[int, Fraction]
    numbers: Mapping[tuple[int, str], Fraction]


@dataclass
class _Powers:
    """The powers of r that values come with, so far.

    Attributes:
        graph: the program.
        values: of those that come with any.
        stored: what each use of a stored tensor wants it multiplied by.
        numbers: as in `Scales`.
    """

    graph: Graph
    values: dict[Value, Fraction] = field(default_factory=dict)
    stored: dict[Value, dict[Use, Fraction]] = field(default_factory=dict)
    numbers: dict[tuple[int, str], Fraction] = field(default_factory=dict)

    def give(self, value: Value, power: Fraction) -> bool:
        """Let a value come with a power."""
        if power:
            self.values[value] = power
        return True

    def of(self, node: Node, name: str) -> Fraction:
        """Return the power that an argument comes with."""
        found = node.arguments.get(name)
        return self.values.get(found, Fraction(0)) if isinstance(found, Value) else Fraction(0)

    def take(self, node: Node, name: str, power: Fraction) -> bool:
        """Let a stored tensor be multiplied by a power for its use here; say whether the argument is one that can."""
        found = node.arguments.get(name)
        if not isinstance(found, Value) or self.graph.node(found.node).parameter is None:
            return False
        type_ = self.graph.type_of(found)
        if not is_float(type_) or not type_.shape:
            return False
        self.stored.setdefault(found, {})[Use(node.id, name)] = power
        return True


def find_scales(graph: Graph, norms: Iterable[int], means: Iterable[int]) -> Scales | Miss:
    """Find out what makes up for fresh units that add nothing to means and to normalisations.

    Args:
        graph: the program.
        norms: fused normalisations over the width.
        means: means over the width, which become r times what they were.

    Returns:
        The powers of r, or what they run into.
    """
    powers, norms, means = _Powers(graph), set(norms), set(means)
    if not norms and not means:
        return Scales({}, {})
    for node in graph.nodes:
        if node.id in means:
            powers.give(Value(node.id), Fraction(1))
        if node.id in norms:
            powers.numbers[node.id, "eps"] = Fraction(1)
            if not powers.take(node, "weight", HALF):
                if node.arguments.get("bias") is not None:
                    return _unmended(node)
                powers.give(Value(node.id), -HALF)
        if any(value in powers.values for value in node.values):
            follow = FOLLOWED.get(node.op.rpartition(".")[0].removeprefix("aten."))
            follow = follow or (_move if node.is_call and operator_of(node.op).moves else None)
            if node.id in norms or node.id in means or follow is None or not follow(powers, node):
                return _unmended(node)
    stored: dict[int, Fraction] = {}
    for tensor, wanted in powers.stored.items():
        of_all = {wanted.get(Use(use.node, use.argument)) for use in graph.uses(tensor)}
        power = of_all.pop()
        if of_all or power is None:
            return Miss("what would make up for the number of its units does something else, too", (tensor.node,))
        stored[tensor.node] = power
    return Scales(stored, powers.numbers)


def _unmended(node: Node) -> Miss:
    what = node.op.removesuffix(".default")
    return Miss(f"{what} depends on the number of its units, and nothing makes up for that", (node.id,))


Follow = Callable[[_Powers, Node], bool]
"""Says what power the result of a call comes with; False if it is not known."""


def _keep(powers: _Powers, node: Node) -> bool:
    return all([powers.give(made, powers.values[node.values[0]]) for made in node.made])


def _move(powers: _Powers, node: Node) -> bool:
    """What moves elements: all that are in the result have to come with one power."""
    match operator_of(node.op).moves:
        case Movement.FILL:
            return True
        case Movement.CAST if not is_float(node.results[0]):
            return False
        case Movement.JOIN if len({powers.values.get(value) for value in node.values}) > 1:
            return False
        case Movement.PAD if node.arguments.get("value") not in (None, 0):
            return False
        case Movement.WRITE:
            return False
    return node.values[0] in powers.values and _keep(powers, node)


def _power(by: Fraction) -> Follow:
    def follow(powers: _Powers, node: Node) -> bool:
        return powers.give(Value(node.id), by * powers.of(node, "self"))

    return follow


def _raise(powers: _Powers, node: Node) -> bool:
    exponent = node.argument("exponent")
    if not isinstance(exponent, int | float) or not float(2 * exponent).is_integer():
        return False
    return _power(Fraction(exponent))(powers, node)


def _add(powers: _Powers, node: Node) -> bool:
    """`add`, `sub` of a number, which is multiplied alike."""
    other = node.argument("other")
    if isinstance(other, Value) or not isinstance(other, int | float):
        return powers.of(node, "self") == powers.of(node, "other") and _keep(powers, node)
    powers.numbers[node.id, "other"] = powers.of(node, "self")
    return _keep(powers, node)


def _multiply(powers: _Powers, node: Node) -> bool:
    """`mul`: a stored factor makes up for the other, or else the powers add up."""
    one, other = powers.of(node, "self"), powers.of(node, "other")
    if powers.take(node, "other", -one) or powers.take(node, "self", -other):
        return True
    return powers.give(Value(node.id), one + other)


def _divide(powers: _Powers, node: Node) -> bool:
    if node.arguments.get("rounding_mode") is not None:
        return False
    return powers.give(Value(node.id), powers.of(node, "self") - powers.of(node, "other"))


def _apply(powers: _Powers, node: Node) -> bool:
    """A layer: its weight makes up for what it is given."""
    given = powers.of(node, "input")
    alone = not powers.of(node, "weight") and not powers.of(node, "bias")
    return bool(given) and alone and powers.take(node, "weight", -given)


FOLLOWED: Mapping[str, Follow] = {
    **dict.fromkeys(("add", "sub"), _add),
    **dict.fromkeys(("mul", "multiply"), _multiply),
    **dict.fromkeys(("div", "true_divide"), _divide),
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d"), _apply),
    **dict.fromkeys(("neg", "abs", "relu"), _power(Fraction(1))),
    "pow": _raise,
    "square": _power(Fraction(2)),
    "sqrt": _power(HALF),
    "rsqrt": _power(-HALF),
    "reciprocal": _power(Fraction(-1)),
}
