"""Axis terms: what an axis of a tensor is made of, and the unification that finds it out.

    Axis ::= Atom | Product(axes, row-major) | Sum(axes, concatenated)

Two axes that must have the same units are unified. An atom is a variable: unifying it with a term binds it.
Where a reshape, a `chunk`, a grouped convolution or a concatenation shows that an axis has inner structure, its atom
is bound to a product or a sum of smaller atoms. What cannot be reconciled is frozen, with the reason.
A fused attention weight `qkv.weight` thus ends as `(h*dk)+(h*dk)+(h*dv)`, without a hint from anyone.

Source: ours; unification after Robinson (1965), without function symbols other than * and +.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import attrgetter

_NO_ROLES: frozenset[str] = frozenset()

MOST = 4096
"""The most atoms of a term: an axis that is made of more is frozen, as a few concatenations can double it for ever."""


class Atom:
    """An indivisible axis. Identity is the object; two atoms that were unified resolve to one.

    Attributes:
        size: number of units.
        binding: the term it was found to be, if any.
        reason: why it may not change, empty while it may.
        roles: what is done along it (see `archir.axes.widths.ROLES`).
    """

    __slots__ = ("binding", "reason", "roles", "size")

    def __init__(self, size: int, reason: str = "") -> None:
        self.size = size
        self.binding: Term | None = None
        self.reason = reason
        self.roles = _NO_ROLES

    def __repr__(self) -> str:
        return f"{self.size}{'!' if self.reason else ''}"


class Product:
    """A row-major product of axes: the first factor varies slowest.

    Attributes:
        parts: the factors.
        size: number of units.
        binding: its simplest form, if that is another term.
        atoms: the atoms in row-major order, once the term is in its simplest form.
    """

    __slots__ = ("atoms", "binding", "parts", "size")

    def __init__(self, parts: Iterable[Term]) -> None:
        self.binding: Term | None = None
        self.atoms: tuple[Atom, ...] = ()
        self.parts = tuple(parts)
        self.size: int = math.prod([p.size for p in self.parts])

    def __repr__(self) -> str:
        return f"({'*'.join(map(repr, self.parts))})"


class Sum:
    """A concatenation of axes.

    Attributes:
        parts: the axes.
        size: number of units.
        binding: its simplest form, if that is another term.
        atoms: the atoms in order, once the term is in its simplest form.
    """

    __slots__ = ("atoms", "binding", "parts", "size")

    def __init__(self, parts: Iterable[Term]) -> None:
        self.binding: Term | None = None
        self.atoms: tuple[Atom, ...] = ()
        self.parts = tuple(parts)
        self.size: int = sum([p.size for p in self.parts])

    def __repr__(self) -> str:
        return f"({'+'.join(map(repr, self.parts))})"


Term = Atom | Product | Sum


def unit() -> Atom:
    """Return an axis of size one, which never changes and couples to nothing."""
    return Atom(1, "size one")


def resolve(term: Term) -> Term:
    """Return the term in its simplest form: bindings followed, nested products and sums flattened."""
    bound = term.binding
    if bound is None:
        return term if isinstance(term, Atom) else _simplify(term)
    if bound.binding is None and isinstance(bound, Atom):
        return bound
    passed = [term]
    while bound.binding is not None:
        passed.append(bound)
        bound = bound.binding
    found = bound if isinstance(bound, Atom) else _simplify(bound)
    for other in passed:
        other.binding = found
    return found


_binding = attrgetter("binding")


def _simplify(term: Product | Sum) -> Term:
    """Return the simplest form of a product or a sum, and bind the term to it if it is another."""
    if term.atoms and not any(map(_binding, term.atoms)):
        return term  # none of its atoms has been bound since it was made
    kind, neutral = (Product, 1) if isinstance(term, Product) else (Sum, 0)
    parts: list[Term] = []
    atoms: list[Atom] = []
    for part in map(resolve, term.parts):
        if part.size != neutral:
            parts += part.parts if isinstance(part, kind) else (part,)
            atoms += (part,) if isinstance(part, Atom) else part.atoms
    found: Term
    if len(atoms) > MOST:
        found = Atom(term.size, f"an axis of more than {MOST:,} parts")
        for atom in dict.fromkeys(atoms):
            atom.reason = atom.reason or found.reason
    elif len(parts) == 1:
        found = parts[0]
    elif not parts:
        found = unit() if kind is Product else Atom(0, "size zero")
    else:
        found = term if tuple(parts) == term.parts else kind(parts)
        found.atoms = tuple(atoms)
    if found is not term:
        term.binding = found
    return found


def leaves(term: Term) -> tuple[Atom, ...]:
    """Return the atoms of a term in row-major order; one that occurs twice comes twice."""
    found = resolve(term)
    return (found,) if isinstance(found, Atom) else found.atoms


def freeze(term: Term, reason: str) -> None:
    """Forbid every atom of a term to change; the first reason given is kept."""
    for atom in leaves(term):
        if not atom.reason:
            atom.reason = reason


def add_role(term: Term, role: str) -> None:
    """Note what is done along an axis."""
    for atom in leaves(term):
        if role not in atom.roles:
            atom.roles |= {role}


def unify(left: Term, right: Term) -> None:
    """Make two axes one; where they have no common refinement, freeze both with the reason."""
    if left is right:
        return
    # Most are atoms that stand for themselves, for which a call would cost more than the test.
    left = left if left.binding is None and isinstance(left, Atom) else resolve(left)
    right = right if right.binding is None and isinstance(right, Atom) else resolve(right)
    if left is right:
        return
    if left.size != right.size:
        _freeze_both(left, right, f"used both as {left.size} and as {right.size} units")
    elif isinstance(right, Atom):
        _bind(right, left)
    elif isinstance(left, Atom):
        _bind(left, right)
    elif type(left) is type(right):
        _align(left, right)
    elif isinstance(left, Sum) and isinstance(right, Product):
        _distribute(left, right)
    elif isinstance(left, Product) and isinstance(right, Sum):
        _distribute(right, left)


def _freeze_both(left: Term, right: Term, reason: str) -> None:
    freeze(left, reason)
    freeze(right, reason)


def _bind(atom: Atom, term: Term) -> None:
    if isinstance(term, Atom):
        found: tuple[Atom, ...] = (term,)
    elif atom in (found := term.atoms):
        freeze(term, "an axis would contain itself")
        return
    if atom.reason or atom.roles:
        for leaf in found:
            leaf.reason = leaf.reason or atom.reason
            leaf.roles |= atom.roles
    atom.binding = term


def _align(left: Product | Sum, right: Product | Sum) -> None:
    """Unify two products, or two sums, part by part, splitting the larger part where they are not aligned."""
    kind = type(left)
    xs, ys = list(left.parts), list(right.parts)
    while xs and ys:
        x, y = resolve(xs[0]), resolve(ys[0])
        if type(x) is kind or type(y) is kind:
            xs[:1] = x.parts if isinstance(x, kind) else (x,)
            ys[:1] = y.parts if isinstance(y, kind) else (y,)
            continue
        if x.size == y.size:
            unify(x, y)
            xs.pop(0)
            ys.pop(0)
            continue
        if x.size < y.size:
            xs, ys, x, y = ys, xs, y, x
        pieces = _cut(kind, x.size, y.size)
        if pieces is None:
            _freeze_both(left, right, "two ways of cutting an axis have no common refinement")
            return
        unify(x, pieces)
        xs[:1] = pieces.parts


def _cut(kind: type[Product] | type[Sum], whole: int, first: int) -> Product | Sum | None:
    if kind is Sum:
        return Sum((Atom(first), Atom(whole - first)))
    return Product((Atom(first), Atom(whole // first))) if whole % first == 0 else None


def _distribute(total: Sum, product: Product) -> None:
    """Unify `a+b` with `p*c` by the law `(a'+b')*c = a'*c + b'*c`."""
    rest = Product(product.parts[1:])
    if any(part.size % rest.size for part in total.parts):
        _freeze_both(total, product, "a concatenation is cut across its parts")
        return
    sizes = [part.size // rest.size for part in total.parts]
    outer = [Atom(n, "a unit with a place of its own" if n == 1 else "") for n in sizes]
    for part, factor in zip(total.parts, outer, strict=True):
        unify(part, Product((factor, rest)))
    unify(product.parts[0], Sum(outer))


def regroup(axes: Iterable[Term], sizes: Sequence[int]) -> list[Term] | None:
    """Return the axes of a row-major reshape of `axes` to `sizes`, or None where the two cannot be aligned."""
    old = [a for a in axes if a.size != 1]
    count = math.prod([a.size for a in old])
    if count == 0 or count != math.prod(sizes):
        return None
    proper = [n for n in sizes if n != 1]
    new: list[Term] = []
    i = j = 0
    while i < len(old):
        first, last, left, right = i, j, old[i].size, proper[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left *= old[i].size
                i += 1
            else:
                right *= proper[j]
                j += 1
        whole = _product(old[first:i])
        if j - last == 1:
            new.append(whole)
        else:
            parts = [Atom(n) for n in proper[last:j]]
            unify(whole, Product(parts))
            new += parts
    if len(new) == len(sizes):
        return new
    rest = iter(new)
    return [unit() if n == 1 else next(rest) for n in sizes]


def _product(parts: Sequence[Term]) -> Term:
    return parts[0] if len(parts) == 1 else Product(parts)
