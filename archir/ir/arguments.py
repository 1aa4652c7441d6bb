"""Checks and opens what a module is called with besides tensors: constants, lists, dicts and classes of the user's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.utils import _pytree as pytree

from archir.errors import GraphError

_AGAIN = "call it as it was captured, or capture the model once more with that argument"


def fixed(value: object, captured: object, name: str) -> None:
    """Check that an argument has the value the program was captured for; one that is no number is itself.

    Raises:
        GraphError: it has another, or is of another type.
    """
    none = value != value and captured != captured
    if type(value) is not type(captured) or not (none or value == captured):
        raise GraphError(
            f"argument {name} is {value!r}, and the program was captured for {captured!r}",
            hint="capture the model once more with that value",
        )


def parts(value: object, keys: Sequence[str] | int, name: str) -> Sequence[object] | Mapping[str, object]:
    """Return the parts of an argument: of a list, a dict, or a class registered with `torch.utils._pytree`.

    Args:
        value: the argument.
        keys: the keys it has, or the number of its parts.
        name: what it is called.

    Raises:
        GraphError: it has other parts.
    """
    found = _opened(value)
    if isinstance(keys, int):
        if not isinstance(found, list | tuple):
            raise GraphError(f"argument {name} is a {type(value).__name__}, not a list of {keys}", hint=_AGAIN)
        if len(found) != keys:
            raise GraphError(f"argument {name} has {len(found)} parts, not {keys}", hint=_AGAIN)
    else:
        if not isinstance(found, Mapping):
            raise GraphError(f"argument {name} is a {type(value).__name__}, which has no keys", hint=_AGAIN)
        if set(found) != set(keys):
            has, wanted = (", ".join(map(repr, sorted(map(str, k)))) or "none" for k in (found, keys))
            raise GraphError(f"argument {name} has the keys {has}, not {wanted}", hint=_AGAIN)
    return found


def keys_of(context: object, count: int) -> tuple[str, ...] | None:
    """Return the keys of as many parts that a class tells `torch.utils._pytree`, None if it tells none."""
    for told in (context, *(context if isinstance(context, list | tuple) else ())):
        if isinstance(told, list | tuple) and len(told) == count and all(isinstance(key, str) for key in told):
            return tuple(told)
    return None


def _opened(value: object) -> Sequence[object] | Mapping[str, object] | None:
    if isinstance(value, list | tuple | Mapping):
        return value
    known = pytree.SUPPORTED_NODES.get(type(value))
    if known is None:
        return None
    children, context = known.flatten_fn(value)
    keys = keys_of(context, len(children))
    return children if keys is None else dict(zip(keys, children, strict=True))
