"""The names of an ONNX file as those of a graph: paths of modules, stored tensors, inputs.

Names are kept where a module may have them. Exporters leave others: `onnx::MatMul_12`, `val_7`; what has such a name is
called after the layer that uses it. The path of a module is read off what `torch.onnx.export` notes beside a node, off
the scopes in the name of the node (`/layers/layers.0/conv/Conv`), or off the name of a weight it uses.

Source: ours.
"""

from __future__ import annotations

import ast
import contextlib
import keyword
import re
import unicodedata
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from archir.errors import GraphError
from archir.ir.names import LONGEST, check_path
from archir.ir.node import Location

_ANONYMOUS = re.compile(r"((_?val|_v)_)?\d+|onnx::.*|const_fold_opt_.*|(.*/)?Constant(_\d+)?(_output_\d+)?", re.ASCII)
"""Numbers, and names that exporters count."""

_STATE = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
"""The names of a state dict that belong to a module."""

_SCOPES, _CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
_TARGET = re.compile(r"(\w+) target='([^']*)'")
_SIGNATURE = "pkg.torch.export.ExportedProgram.graph_signature"


def is_anonymous(name: str) -> bool:
    """Say whether an exporter has numbered a tensor instead of naming it."""
    if _STATE.fullmatch(name):
        return False
    return not name or bool(_ANONYMOUS.fullmatch(name))


def state_kinds(graph: ir.Graph) -> Mapping[str, str]:
    """Return what torch notes of the stored tensors, `PARAMETER` or `BUFFER`, by name; empty if nothing."""
    text = graph.metadata_props.get(_SIGNATURE, "")
    return {name: kind for kind, name in _TARGET.findall(text) if kind in ("PARAMETER", "BUFFER")}


def location(node: ir.Node) -> Location | None:
    """Return the module a node belongs to, as far as the file tells."""
    scopes, kinds = _texts(node, _SCOPES), _texts(node, _CLASSES)
    if scopes and len(scopes) == len(kinds):
        places = [(s, k) for s, k in zip(scopes[:-1], kinds[:-1], strict=True) if not s.startswith("_empty")]
        path, kind = places[-1] if places else ("", "")
        path = re.sub(r"@\d+", "", path)
        return Location(path, kind) if _is_path(path) else None
    path = scope_path(node.name or "")
    return Location(path) if path and _is_path(path) else None


def scope_path(name: str) -> str:
    """Return the path of the module in the name of a node: `layers.0.conv` of `/layers/layers.0/conv/Conv`."""
    if not name.startswith("/"):
        return ""
    parts: list[str] = []
    for scope in name.split("/")[1:-1]:
        # A child of a container is named with the container in front.
        if parts and scope.startswith(f"{parts[-1]}."):
            parts[-1] = scope
        else:
            parts.append(scope)
    return ".".join(parts)


def module_of(name: str) -> str:
    """Return the path of the module that a stored tensor belongs to by its name; empty if to none."""
    return name.rpartition(".")[0] if _STATE.fullmatch(name) else ""


class Names:
    """Gives every stored tensor a name of its own that a module may have."""

    def __init__(self) -> None:
        """Start with no names."""
        self._taken: set[str] = set()
        self._modules: set[str] = set()

    def is_free(self, name: str) -> bool:
        """Say whether a stored tensor can be called so."""
        parents = _parents(name)
        return name not in self._taken | self._modules and self._taken.isdisjoint(parents) and _is_path(name)

    def take(self, wanted: str) -> str:
        """Return the name, or one like it that is free and may be used, and keep it."""
        name = wanted if self.is_free(wanted) else self._like(_plain(wanted))
        self._taken.add(name)
        self._modules.update(_parents(name))
        return name

    def _like(self, name: str) -> str:
        path, _, leaf = name.rpartition(".")
        number = 0
        while not self.is_free(found := _numbered(path, leaf, number)):
            number += 1
        return found


def _numbered(path: str, leaf: str, number: int) -> str:
    """Return a name with a number, at the module if there is one."""
    end = f"_{number}" if number else ""
    return f"{path}{end}.{leaf}" if path else f"{leaf}{end}"


def argument_names(names: Sequence[str]) -> list[str]:
    """Return names that arguments of a function may have, each its own: those given where they may be."""
    found: list[str] = []
    for i, name in enumerate(names):
        word = unicodedata.normalize("NFKC", re.sub(r"\W", "_", name))[:LONGEST]
        word = word if word.isidentifier() else f"input_{word}"[:LONGEST] if word else f"input_{i}"
        word = f"{word}_" if keyword.iskeyword(word) or word in ("self", "__debug__") else word
        while word in found:
            word += "_"
        found.append(word)
    return found


def _plain(name: str) -> str:
    """Return a path that modules may have, as like a name as can be."""
    parts = [re.sub(r"\W", "_", unicodedata.normalize("NFKC", p)) for p in re.split(r"[./]", name)]
    parts = [p[:LONGEST] for p in parts if p][:16] or ["tensor"]
    return ".".join(p if _is_path(p) else f"{p[: LONGEST - 1]}_" for p in parts)


def _is_path(path: str) -> bool:
    if not path:
        return True
    with contextlib.suppress(GraphError):
        check_path(path)
        return True
    return False


def _parents(name: str) -> set[str]:
    return {name[:i] for i, sign in enumerate(name) if sign == "."}


def _texts(node: ir.Node, key: str) -> list[str]:
    """Return a list of texts that is noted beside a node; empty if there is none."""
    try:
        found = ast.literal_eval(node.metadata_props.get(key, "[]"))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    return found if isinstance(found, list) and all(isinstance(part, str) for part in found) else []
