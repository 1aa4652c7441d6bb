"""Writes the classes of a program: one for each kind of module, with arguments for the sizes that differ."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from archir.emit.body import Body, write_body
from archir.emit.code import (
    Code,
    Size,
    class_identifier,
    identifier,
    is_name,
    is_number,
    plain,
    quoted,
    replace_sizes,
    singular,
    size,
    sizes_in,
    wrap,
)
from archir.emit.layers import bare_source, layer_source
from archir.emit.names import Tree, unique
from archir.emit.scopes import Plan, Program, parent
from archir.emit.signature import Frame, result_source
from archir.emit.tensors import declaration


@dataclass
class _Class:
    """The class of one module before it is merged with others of its kind."""

    path: str
    init: list[str]
    body: Body | None
    forward: list[str]
    returns: str


class Classes:
    """Writes the classes of a program, innermost first."""

    def __init__(self, program: Program, plan: Plan, name: str, frame: Frame) -> None:
        """Prepare.

        Args:
            program: the program.
            plan: its division into modules.
            name: name of the outermost class.
            frame: its arguments and outputs.
        """
        self._program, self._plan, self._name, self._frame = program, plan, name, frame
        self._plans: dict[str, Plan] = {}
        for found in _walk(plan):
            self._plans.setdefault(found.path, found)
        self._layers = {p: text for p, found in self._plans.items() if (text := self._layer(found))}
        names = [n for node in program.graph.parameters for n in node.names]
        chains = {p for p, found in self._plans.items() if found.elements is not None and p}
        forwards = set(self._plans) - chains - set(self._layers) - {""}
        paths = {parent(n) for n in names} | set(program.layers.layers) | set(self._plans)
        self._tree = Tree(sorted(paths, key=_natural), names, forwards)
        self._classes = {""} | forwards | {p for p in self._modules() if self._is_class(p, chains)}
        self._chains = chains
        self._constructors: dict[str, str] = dict(self._layers)
        self._firsts: dict[str, int] = {}
        for id_, (first, *_) in sorted(program.names.items(), reverse=True):
            self._firsts |= dict.fromkeys(_above(first), id_)
        self._kinds: dict[str, str] = {}
        self._grown: set[str] = set()
        for node in (program.graph.node(i) for i in program.calls):
            if node.location and node.location.kind:
                self._kinds.setdefault(node.location.module, node.location.kind)
            if node.location and node.born:
                self._grown |= _above(parent(node.location.module))
        self._tied = [n for n in program.graph.parameters if len(n.names) > 1]
        found_layers = program.layers.layers.values()
        self._frozen_parts = [m for m in found_layers if 0 < len(m.frozen) < len(m.parameters)]
        self._taken: set[str] = {name}
        self.sources: list[str] = []

    def write(self) -> str:
        """Return the source of all classes, the outermost last."""
        bodies: dict[str, Body] = {}
        returned: dict[str, list[Code]] = {}
        for plan in _walk(self._plan):
            if plan.path in self._classes and plan.path not in bodies:
                frame = None if plan.path else self._frame
                bodies[plan.path], returned[plan.path] = write_body(self._program, self._tree, plan, bodies, frame)
        waiting = sorted(self._classes - {""}, key=lambda p: (-p.count("."), _natural(p)))
        heights = self._heights()
        for height in sorted(set(heights.values())):
            level = [p for p in waiting if heights[p] == height]
            kinds: dict[str, list[_Class]] = {}
            for path in sorted(level, key=self._rank):
                made = self._class(path, bodies.get(path), returned.get(path, []))
                kinds.setdefault(self._template(made), []).append(made)
            for group in kinds.values():
                self._merge(group)
        root = self._class("", bodies[""], returned[""])
        chain = self._plan.elements is not None and self._is_plain()
        self.sources.append(self._chain_class() if chain else _source(self._name, root, []))
        return "\n\n\n".join(self.sources)

    def _is_plain(self) -> bool:
        keywords = self._program.graph.signature.kwargs.keys
        return not keywords and len(self._frame.arguments) == 1 and not self._frame.prelude and self._frame.result == 0

    # which modules are classes

    def _layer(self, plan: Plan) -> str | None:
        """Return the constructor of a parameterless module that makes one call."""
        if len(plan.steps) != 1 or isinstance(plan.steps[0], Plan) or self._program.has_parameters(plan.path):
            return None
        return bare_source(self._program.graph.node(plan.steps[0]))

    def _modules(self) -> set[str]:
        return {f"{p}.{c}" if p else c for p, children in self._tree.children.items() for c in children}

    def _is_class(self, path: str, chains: set[str]) -> bool:
        if path in self._program.layers.layers or path in chains or path in self._layers:
            return False
        tree = self._tree
        return not (tree.is_list(path) or tree.is_dict(path) or tree.is_parameter_list(path))

    def _heights(self) -> dict[str, int]:
        """Return for each class how many classes stand inside each other below it, itself included."""
        heights = dict.fromkeys(self._classes - {""}, 1)
        for path in sorted(heights, key=lambda p: -p.count(".")):
            for outer in _above(parent(path)) & heights.keys():
                heights[outer] = max(heights[outer], 1 + heights[path])
        return heights

    # the text of one class

    def _rank(self, path: str) -> tuple[int, list[tuple[int, int, str]]]:
        """Return the place of a module among its siblings: that of its first tensor not stored elsewhere."""
        return self._firsts.get(path, 1 << 40), _natural(path)

    def _class(self, path: str, body: Body | None, returned: list[Code]) -> _Class:
        init: list[str] = []
        fields = [f"{path}.{f}" if path else f for f in self._tree.fields.get(path, [])]
        children = [f"{path}.{c}" if path else c for c in self._tree.children.get(path, [])]
        for name in sorted([*fields, *children], key=self._rank):
            leaf = name.rpartition(".")[2]
            if name in children:
                made = self._construct(name)
                init.append(f"self.{leaf} = {made}" if is_name(leaf) else f"self.add_module({quoted(leaf)}, {made})")
                continue
            node = self._program.graph.by_name[name]
            if node.parameter and name == node.parameter.names[0]:
                init.append(declaration(node, self._program.graph.tensors[node.id], leaf, is_name(leaf)))
        init += [*self._ties(path), *self._frozen(path)]
        forward = list(body.lines) if body else []
        if body is not None:
            texts = [code.text for code in returned]
            forward.append(f"return {result_source(self._frame.result, texts) if not path else ', '.join(texts)}")
        returns = "Tensor" if len(returned) == 1 else "tuple[Tensor, ...]"
        return _Class(path, init, body, forward, returns if path else self._frame.returns)

    def _ties(self, path: str) -> Iterator[str]:
        """Yield the statements that let several names stand for one tensor, in the innermost class that holds all."""
        for node in self._tied:
            assert node.parameter is not None
            first, *others = node.parameter.names
            for other in others:
                if self._innermost(_shared(first, other)) != path:
                    continue
                buffer = node.parameter.kind != "parameter"
                source = self._tree.access(parent(first), path, first.rpartition(".")[2], buffer)
                owner, leaf = self._tree.access(parent(other), path), other.rpartition(".")[2]
                if is_name(leaf) and (not buffer or parent(other) in self._program.layers.layers):
                    yield f"{owner}.{leaf} = {source}"
                elif not buffer:
                    yield f"{owner}.register_parameter({quoted(leaf)}, {source})"
                else:
                    keep = "" if node.parameter.persistent else ", persistent=False"
                    yield f"{owner}.register_buffer({quoted(leaf)}, {source}{keep})"

    def _frozen(self, path: str) -> Iterator[str]:
        """Yield the statements that freeze parameters of layers whose other parameters are trained."""
        for layer in self._frozen_parts:
            if self._innermost(parent(layer.path)) == path:
                owner = self._tree.access(layer.path, path)
                yield from (f"{owner}.{field}.requires_grad_(False)" for field in layer.frozen)

    def _innermost(self, path: str) -> str:
        """Return the path of the innermost class a module stands in."""
        while path not in self._classes:
            path = parent(path)
        return path

    def _construct(self, path: str) -> str:
        """Return the source that makes a module."""
        if path in self._constructors:
            return self._constructors[path]
        if path in self._program.layers.layers:
            return layer_source(self._program.layers.layers[path])
        if path in self._chains or self._tree.is_list(path):
            children = set(self._tree.children.get(path, []))
            count = self._tree.length(path) if children else 0
            made = [self._construct(f"{path}.{i}") if str(i) in children else "nn.Identity()" for i in range(count)]
            return _container("Sequential" if path in self._chains else "ModuleList", made)
        if self._tree.is_parameter_list(path):
            nodes = [self._program.graph.by_name[f"{path}.{i}"] for i in range(len(self._tree.fields[path]))]
            made = [declaration(n, self._program.graph.tensors[n.id], "_", True).partition(" = ")[2] for n in nodes]
            return _container("ParameterList", made)
        pairs = [f"{quoted(c)}: {self._construct(f'{path}.{c}')}" for c in self._tree.children[path]]
        return f"nn.ModuleDict({{{', '.join(pairs)}}})"

    def _chain_class(self) -> str:
        made = self._construct_chain()
        lines = [f"class {self._name}(nn.Sequential):", "    def __init__(self) -> None:"]
        lines += wrap(plain(f"super().__init__({', '.join(made)})"), 8)
        lines += [f"        {plain(line)}" for line in (*self._ties(""), *self._frozen(""))]
        return "\n".join(lines)

    def _construct_chain(self) -> list[str]:
        children = set(self._tree.children.get("", []))
        count = 1 + max(map(int, children), default=-1)
        return [self._construct(str(i)) if str(i) in children else "nn.Identity()" for i in range(count)]

    # one class for modules alike

    def _template(self, made: _Class) -> str:
        # What stands for weights until these are loaded tells no modules of a kind apart: the first one's is taken.
        init = (line.replace("torch.ones(", "torch.zeros(") for line in made.init)
        text = "\n".join([*init, "--", *made.forward, *(made.body.inputs if made.body else ())])
        return self._kind(made.path) + replace_sizes(text, lambda s: f"<{s.label}>")

    def _kind(self, path: str) -> str:
        kind = self._kinds.get(path, "")
        if kind:
            # A layer of torch.nn that became a module of its own had something spliced in after it.
            grown = kind.startswith("torch.nn.modules.") and path in self._grown
            return ("Grown" if grown else "") + class_identifier(kind.rpartition(".")[2])
        words = [w for w in path.split(".") if not is_number(w)] or ["module"]
        numbered = is_number(path.rpartition(".")[2])
        return class_identifier(identifier(singular(words[-1]) if numbered else words[-1]))

    def _merge(self, group: list[_Class]) -> None:
        """Write one class for modules that differ in sizes only."""
        name = self._kind(group[0].path)
        while name in self._taken:
            stem = name.rstrip("0123456789")
            name = f"{stem}{int(name[len(stem) :] or 1) + 1}"
        self._taken.add(name)
        texts = ["\n".join([*made.init, *made.forward]) for made in group]
        rows = [sizes_in(text) for text in texts]
        columns = [tuple(s.value for s in column) for column in zip(*rows, strict=True)]
        arguments: dict[tuple[int, ...], str] = {}
        varying = [(c, slot.label) for c, slot in zip(columns, rows[0], strict=True) if len(set(c)) > 1]
        for column, _ in varying:
            if column not in arguments:
                labels = [label for other, label in varying if other == column]
                hint = next((label for label in labels if label != "size"), "size")
                alone = len({c for c, _ in varying}) == 1
                hint = re.sub("^(in|out|num)_", "", hint) if alone else hint
                arguments[column] = unique(hint, set(arguments.values()))
        names = [arguments.get(column) for column in columns]
        for made, row in zip(group, rows, strict=True):
            values = {n: s.value for n, s in zip(names, row, strict=True) if n}
            given = [size(n, v) if len(values) < 3 else f"{n}={size(n, v)}" for n, v in values.items()]
            self._constructors[made.path] = f"{name}({', '.join(given)})"
        self.sources.append(_source(name, group[0], names))


def _source(name: str, made: _Class, names: list[str | None]) -> str:
    """Return the text of a class whose marked sizes are the arguments `names`, literals where those are None."""
    slots = iter(names)
    count = sum(len(sizes_in(line)) for line in made.init)
    used = {n for n in names[count:] if n}
    arguments = list(dict.fromkeys(n for n in names if n))
    attributes = {line.partition(" = ")[0].removeprefix("self.") for line in made.init}
    kept = {n: unique(n, attributes) for n in arguments if n in used}

    def literal(found: Size, inside: bool) -> str:
        argument = next(slots, None)
        if argument is None:
            return str(found.value)
        return f"self.{kept[argument]}" if inside else argument

    init = [replace_sizes(line, lambda s: literal(s, False)) for line in made.init]
    forward = [replace_sizes(line, lambda s: literal(s, True)) for line in made.forward]
    lines = [f"class {name}(nn.Module):"]
    if init or arguments:
        head = ", ".join(["self", *(f"{a}: int" for a in arguments)])
        lines += wrap(f"def __init__({head}) -> None:", 4)
        lines.append("        super().__init__()")
        lines += [f"        self.{kept[a]} = {a}" for a in arguments if a in kept]
        lines += [broken for line in init for broken in wrap(line, 8)]
    if made.body is not None:
        lines += [""] if len(lines) > 1 else []
        given = [i if ":" in i or "=" in i else f"{i}: Tensor" for i in made.body.inputs]
        given += [f"{size}: int" for size in made.body.sizes]
        lines += wrap(f"def forward({', '.join(['self', *given])}) -> {made.returns}:", 4)
        for line in forward:
            indent = len(line) - len(line.lstrip())
            lines += wrap(line.lstrip(), 8 + indent)
    if len(lines) == 1:
        lines.append("    pass")
    return "\n".join(lines)


def _container(kind: str, made: list[str]) -> str:
    if len(made) > 1 and len(set(made)) == 1:
        each = f"{made[0]} for _ in range({len(made)})"
        return f"nn.{kind}(*({each}))" if kind == "Sequential" else f"nn.{kind}({each})"
    return f"nn.Sequential({', '.join(made)})" if kind == "Sequential" else f"nn.{kind}([{', '.join(made)}])"


def _walk(plan: Plan) -> Iterator[Plan]:
    """Yield the runs inside a run, then the run itself."""
    for step in plan.steps:
        if isinstance(step, Plan):
            yield from _walk(step)
    yield plan


def _above(path: str) -> set[str]:
    """Return a path and those of all modules it stands in."""
    parts = path.split(".")
    return {".".join(parts[: at + 1]) for at in range(len(parts))}


def _natural(path: str) -> list[tuple[int, int, str]]:
    return [(0, int(p), "") if is_number(p) else (1, 0, p) for p in path.split(".")]


def _shared(one: str, other: str) -> str:
    """Return the path of the innermost module two tensors are both in."""
    first, second = parent(one).split("."), parent(other).split(".")
    count = 0
    while count < min(len(first), len(second)) and first[count] == second[count]:
        count += 1
    return ".".join(first[:count])
