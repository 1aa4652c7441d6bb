"""Texts of graphs in which one thing is hostile: a call, a constant, a size, a name, a note, a number of guards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

from tools.trust.calls import CALLS
from tools.trust.hostile import CODE, CONSTANTS, NAMES, NOTES, SHELL, SIZES

_WORDS = (
    *(f'"{CODE}"', f'"{SHELL}"', f'["{CODE}"]', '"cuda"', '"meta"', "meta", "f32", "nan", "None", "True", "6", "-1"),
    *('"x\\ry"', "[[1]]", "x", "channels_last"),
)
"""What stands for a keyword whose type is another."""

_KEYWORDS = (
    "aten.batch_norm(x, None, None, None, None, True, 0.1, {0}, True)",
    "aten.batch_norm(x, None, None, None, None, True, {0}, 1e-05, True)",
    "aten.batch_norm(x, None, None, None, None, {0}, 0.1, 1e-05, True)",
    "aten.layer_norm(x, [4], None, None, eps={0})",
    "aten.layer_norm(x, {0})",
    "aten.dropout(x, p={0}, train=False)",
    "aten.dropout(x, 0.5, train={0})",
    "aten.gelu(x, approximate={0})",
    "aten.add.Tensor(x, x, alpha={0})",
    "aten.mul.Tensor(x, {0})",
    "aten.zeros([4], dtype={0})",
    "aten.zeros([4], device={0})",
    "aten.zeros([4], layout={0})",
    "aten.zeros([4], pin_memory={0})",
    "aten.to.dtype(x, {0})",
    "aten.mean.dim(x, {0})",
    "aten.mean.dim(x, [1], keepdim={0})",
    "aten.sum(x, dtype={0})",
    "aten.softmax.int(x, {0})",
    "aten.einsum({0}, [x, x])",
    "aten.reshape(x, {0})",
    "aten.reshape(x, [{0}, 4])",
    "aten.slice.Tensor(x, 0, {0})",
    "aten.clone(x, memory_format={0})",
    "aten.full([4], {0})",
    "aten.pad(x, [1, 1], {0}, 0.0)",
    "aten.div.Tensor_mode(x, x, rounding_mode={0})",
    "aten.cat([x, {0}])",
    "aten.leaky_relu(x, {0})",
    "aten.chunk(x, {0})",
    "aten.unsqueeze(x, {0})",
    "operator.add({0}, 1)",
    "operator.floordiv(1, {0})",
    "operator.mod(7, {0})",
)
"""Calls with one argument left open."""

MANY = 10_000
"""Guards and calls of the longest texts."""


def quoted(name: str) -> str:
    """Return a name as it stands in a text where it is none of plain letters."""
    return "`" + json.dumps(name)[1:-1].replace("`", "\\u0060") + "`"


@cache
def known_texts() -> Sequence[str]:
    """Return the texts."""
    calls = [*CALLS, *(f"%0 = {k.format(w)}" for k in _KEYWORDS for w in _WORDS)]
    calls += [f"%0 = aten.relu({c})" for c in CONSTANTS] + [f"%0 = aten.relu(x)  {note}" for note in NOTES]
    calls += [f"%0 = aten.relu(x, {quoted(n)}=1)" for n in NAMES]
    found = [around(call) for call in calls]
    found += [around("%0 = aten.relu(x)", inputs=f"x: f32[{size}]") for size in SIZES]
    found += [around("%0 = aten.relu(x)", inputs=f"x: f32[B, {size}], y: f32[C]") for size in SIZES[:20]]
    found += [around("%0 = aten.relu(x)", inputs=f"x: int({size})") for size in SIZES]
    found += [around(f"%0 = aten.relu({quoted(n)})", inputs=f"{quoted(n)}: f32[B, 4]", result="%0") for n in NAMES]
    found += [around(f"%0 = aten.add.Tensor(x, @{quoted(n)}[4])") for n in NAMES]
    found += [around(f"%0 = aten.relu(x)  #: module={json.dumps(n)} kind={json.dumps(n)}") for n in NAMES]
    found += [f"graph net(x: f32[B, 4]) where {guards} {{\n  return x\n}}" for guards in _GUARDS]
    found += [around("%0 = aten.relu(x)", inputs=f"x: f32[{', '.join(['2'] * rank)}]") for rank in (26, 65, 100, 5000)]
    found += [around(f"%0 = aten.zeros([{', '.join(['1'] * rank)}])") for rank in (65, 100, 5000)]
    found += [around("\n  ".join(f"%{i} = aten.relu(x)" for i in range(MANY // 10)))]
    found += [around("\n  ".join(f"%{i} = {c}" for i, c in enumerate(calls))) for calls in _DOUBLED]
    return tuple(dict.fromkeys(found))


_DOUBLED = (
    ["aten.linear(x, @w[4, 4])", *(f"aten.cat([%{i}, %{i}], 1)" for i in range(40))],
    ["aten.linear(x, @w[4, 4])", *(f"aten.repeat(%{i}, [1, 2])" for i in range(40))],
)
"""Calls each of which doubles the parts of an axis."""

_GUARDS = (
    ", ".join(f"B >= {i}" for i in range(1, MANY)),
    ", ".join(f"B % {i} != 1" for i in range(2, MANY)),
    ", ".join(f"B != {i}" for i in range(1, MANY)),
    *("B >= 1/0", "B % 0 == 0", "B // 0 > 1", "1 == 2", "B == C", "B >= 9**9**9", f"B >= {'9' * 5000}", "B > 2, B < 2"),
    *("B < 1", f"{CODE} == 1", "B", "B >= 1 >= 0", "B >= ", "B*B*B*B*B*B*B*B*B*B == 1024", "Mod(B, 2) == 0"),
    *("(" * 3000 + "B" + ")" * 3000 + " > 1", "B + " * 3000 + "1 > 1", "floor(B/2)*2 == B", "max(B, 3) == B"),
)


def around(calls: str, *, inputs: str = "x: f32[B, 4]", result: str | None = None, name: str = "net") -> str:
    """Return the text of a graph around some calls, the last of which it returns."""
    last = calls.rpartition("\n")[2].split()[0]
    return f"graph {name}({inputs}) {{\n  {calls}\n  return {last if result is None else result}\n}}"
