"""Which values options may have: numbers of a kind, finite, and in a range; what is wrong with others, in words."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError, PydanticKnownError

from archir.errors import ArchirError, suggest
from archir.ir.seeds import MOST

T = TypeVar("T")

CLOSED = ConfigDict(extra="forbid", allow_inf_nan=False)
"""How options are read: no unknown keys, nothing infinite."""

LARGEST = 2**63 - 1
"""The largest whole number of an option: what torch counts with."""

SHOWN = 60
"""Characters of a wrong value that are shown."""

MOST_PROBLEMS = 40
"""The most that is said to be wrong at once."""


def plain(value: Any) -> Any:
    """Return a number of NumPy's as the number of Python's that it is, anything else as it is."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () else value


PLAIN = BeforeValidator(plain)
"""Takes NumPy's numbers; it stands behind the ranges."""

Whole = Annotated[int, Field(strict=True, ge=0, le=LARGEST), PLAIN]
Count = Annotated[int, Field(strict=True, ge=1, le=LARGEST), PLAIN]
Seed = Annotated[int, Field(strict=True, ge=0, le=MOST), PLAIN]
Real = Annotated[float, Field(strict=True, ge=0), PLAIN]
Positive = Annotated[float, Field(strict=True, gt=0), PLAIN]
Part = Annotated[float, Field(strict=True, ge=0, le=1), PLAIN]
Truth = Annotated[bool, Field(strict=True), PLAIN]


def _amount(value: Any) -> int | float:
    """Return a whole number from 0, or a part above 0 and at most 1."""
    if type(value) is float and not 0 < value <= 1:
        raise PydanticCustomError("amount", "it is no amount")
    if type(value) is int and not 0 <= value <= LARGEST:
        raise PydanticKnownError("greater_than_equal", {"ge": 0})
    if type(value) is int or type(value) is float:
        return value
    raise PydanticKnownError("int_type")


Amount = Annotated[int | float, PlainValidator(_amount, json_schema_input_type=Whole), PLAIN]
"""A whole number is an amount as it is; one with a point is a part, above 0 and at most 1, of what there is."""

Text = Annotated[
    str,
    Field(
        strict=True,
        pattern=r"^[^\x00]*[^\s\x00][^\x00]*$",
        description="text that says something, without the character 0",
    ),
]
"""Text that can be a name or a path."""


def among(what: str, known: Collection[str]) -> AfterValidator:
    """Return a check that a word is one of those known, whose message suggests the ones close to it."""

    def check(word: str) -> str:
        if word not in known:
            raise problem(f"there is no {what} {shown(word)}: {suggest(word, known)}")
        return word

    return AfterValidator(check)


def problem(sentence: str) -> PydanticCustomError:
    """Return what a validator raises to say in a sentence what is wrong."""
    return PydanticCustomError("sentence", "{sentence}", {"sentence": sentence})


def checked(error: type[ArchirError], what: str) -> Callable[[type[T]], type[T]]:
    """Return a decorator of a dataclass of pydantic's that has its constructor raise an error of archir.

    Args:
        error: the kind of error.
        what: what it says first; all that is wrong follows, a sentence each.
    """

    def decorate(kind: type[T]) -> type[T]:
        construct = kind.__init__

        @functools.wraps(construct)
        def init(self: T, /, *args: Any, **kwargs: Any) -> None:
            try:
                construct(self, *args, **kwargs)
            except ValidationError as found:
                raise error(what, where="; ".join(problems_of(found, kind))) from found

        kind.__init__ = init  # type: ignore[assignment]
        return kind

    return decorate


def problems_of(error: ValidationError, kind: type[Any]) -> list[str]:
    """Return what is wrong with the fields of a dataclass: `growth.refine is 0, not a whole number from 1`.

    Args:
        error: what pydantic found.
        kind: the dataclass.
    """
    schema, found = TypeAdapter(kind).json_schema(), error.errors(include_url=False)
    more = [f"and {len(found) - MOST_PROBLEMS} more"] if len(found) > MOST_PROBLEMS else []
    return [_sentence(details, schema) for details in found[:MOST_PROBLEMS]] + more


def _sentence(details: ErrorDetails, schema: Mapping[str, Any]) -> str:
    path, known, field = "", schema, schema
    for part in details["loc"]:
        known, field = field, _inside(field, part, schema.get("$defs", {}))
        named = list(known.get("properties", ()))
        name = named[part] if isinstance(part, int) and part < len(named) else part
        path += f"[{part}]" if isinstance(name, int) else f".{name}" if path else name
    match details["type"]:
        case "sentence":
            return f"{path}: {details['ctx']['sentence']}" if path else str(details["ctx"]["sentence"])
        case "unexpected_keyword_argument":
            return f"there is no {path:.80}: {suggest(str(details['loc'][-1]), known['properties'])}"
        case "amount":
            return f"{path} is {shown(details['input'])}, not a whole number, nor a part above 0 and at most 1"
        case "missing":
            return f"{path} is missing"
        case "unexpected_positional_argument" | "multiple_argument_values":
            return f"{path}: {details['msg']}"
    return f"{path} is {shown(details['input'])}, not {_words(field)}"


def _inside(schema: Mapping[str, Any], part: str | int, kinds: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the JSON schema of a field, by name or number, or of an item of a list; an empty one if there is none."""
    if isinstance(part, int):
        listed = schema.get("prefixItems", list(schema.get("properties", {}).values()))
        found = listed[part] if part < len(listed) else schema.get("items", {})
    else:
        found = schema.get("properties", {}).get(part, {})
    first, *others = [s for s in found.get("anyOf", ()) if s != {"type": "null"}] or [found]
    first = kinds[first["$ref"].rpartition("/")[2]] if "$ref" in first else first
    return {**first, "words": [s["const"] for s in others]}


def _words(schema: Mapping[str, Any]) -> str:
    """Return what the JSON schema of a field asks for: `a whole number from 1`."""
    match schema.get("type"):
        case "integer" | "number":
            kind = "a whole number" if schema["type"] == "integer" else "a finite number"
            low, high = schema.get("minimum"), schema.get("maximum")
            bounds = [f"from {low:g}" if low is not None else f"above {schema['exclusiveMinimum']:g}"]
            bounds += [f"to {high:g}"] if high not in (None, LARGEST) else []
            bounds += [f"and below {schema['exclusiveMaximum']:g}"] if "exclusiveMaximum" in schema else []
            return " ".join([kind, *bounds, *(f"or {word!r}" for word in schema.get("words", ()))])
        case "string":
            return str(schema.get("description", "text"))
        case "boolean":
            return "true or false"
        case "array":
            return f"a list of {len(schema['prefixItems'])} values" if "prefixItems" in schema else "a list of texts"
    return "a table"


def shown(value: Any) -> str:
    """Return a value as a message shows it: cut short, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, or a list nested as deep
        text = f"a {type(value).__name__} that is too large"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
