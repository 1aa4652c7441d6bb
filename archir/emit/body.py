"""Writes the forward function of one module: statements, names of variables, what is nested into what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sympy

from archir.emit.arguments import cumulative, full_name
from archir.emit.code import Code, identifier, literal, plain
from archir.emit.expressions import expression
from archir.emit.loops import roll
from archir.emit.names import Tree, input_hint, is_fresh, result_hint, result_hints, unique
from archir.emit.scopes import Plan, Program, Step, below, parent
from archir.emit.signature import Frame
from archir.emit.sizes import arithmetic
from archir.emit.steps import is_layer_call, is_long_short_memory, is_sequence, layer_path, operands_of, results_of
from archir.errors import EmitError
from archir.ir.execute import mode_argument
from archir.ir.layer_forms import batch_counter
from archir.ir.node import PARAMETER, Argument, Node, Value
from archir.ir.operators.normalisation import BATCH_NORM
from archir.ir.types import ScalarType, TensorType

LONG, DEEP = 72, 3
"""An expression longer or deeper than this gets a line of its own."""


@dataclass(frozen=True)
class Body:
    """A forward function.

    Attributes:
        inputs: names of its arguments.
        symbols: the dynamic sizes that follow its arguments.
        sizes: the names these have.
        lines: its statements, indented by four spaces a level.
    """

    inputs: tuple[str, ...]
    symbols: tuple[str, ...]
    sizes: tuple[str, ...]
    lines: tuple[str, ...]


class _UnresolvedError(Exception):
    """A dynamic size no tensor at hand has."""

    def __init__(self, symbol: str) -> None:
        super().__init__(symbol)
        self.symbol = symbol


def write_body(
    program: Program, tree: Tree, plan: Plan, bodies: Mapping[str, Body], frame: Frame | None = None
) -> tuple[Body, list[Code]]:
    """Write the forward function of a module, without its `return`.

    Args:
        program: the program.
        tree: the modules.
        plan: what the module does.
        bodies: the forward functions of its submodules, by path.
        frame: for the outermost module, its arguments and outputs.

    Returns:
        The function, and the source of each output.

    Raises:
        EmitError: a dynamic size cannot be found from the arguments of the model.
    """
    symbols: list[str] = []
    while True:
        writer = _Writer(program, tree, plan, bodies, frame, symbols)
        try:
            return writer.write()
        except _UnresolvedError as error:
            if error.symbol in symbols:
                raise EmitError(
                    f"the size {error.symbol} cannot be computed from the arguments", where=plan.path or "forward"
                ) from error
            symbols.append(error.symbol)


@dataclass
class _Pending:
    """An expression that is not yet bound to a variable."""

    code: Code
    name: str | None
    step: Step
    depth: int
    names: frozenset[str]


class _Writer:
    """Writes the statements of one forward function."""

    def __init__(
        self,
        program: Program,
        tree: Tree,
        plan: Plan,
        bodies: Mapping[str, Body],
        frame: Frame | None,
        symbols: Sequence[str],
    ) -> None:
        self._program, self._tree, self._plan, self._bodies, self._frame = program, tree, plan, bodies, frame
        self._lines: list[str] = list(frame.prelude) if frame else []
        self._names: dict[Value, str] = {}
        self._bound: dict[str, Value] = {}
        self._pending: dict[Value, _Pending] = {}
        self._sizes: dict[str, str] = {}
        self._read: set[str] = set()
        self._outputs: tuple[Argument, ...] = frame.outputs if frame else plan.outputs
        self._uses: list[Counter[Value]] = [operands_of(self._program, step) for step in plan.steps]
        self._uses.append(Counter(v for v in self._outputs if isinstance(v, Value)))
        self._total = Counter(v for used in self._uses for v in used.elements())
        self._last = {value: at for at, used in enumerate(self._uses) for value in used}
        self._at = 0
        self._inputs, self._handed = self._enter(symbols)

    def _enter(self, symbols: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        names: list[str] = []
        if self._frame:
            for value, name in self._frame.names.items():
                self._bind(value, name)
            names = list(self._frame.arguments)
        else:
            streams = [v for v in self._plan.inputs if self._program.graph.node(v.node).op != PARAMETER]
            for value in self._plan.inputs:
                hint = input_hint(self._program, value, value == next(iter(streams), None))
                name = unique(hint, names)
                names.append(name)
                self._bind(value, name)
        inputs, handed = tuple(names), []
        for symbol in symbols:
            name = unique("batch" if symbol == "B" else identifier(symbol), [*names, *self._bound])
            found = next((s for v in self._names for s in [self._axis(v, sympy.Symbol(symbol))] if s), None)
            if found:
                self._lines.append(f"{name} = {found}")
            else:
                handed.append(symbol)
            names += [] if found else [name]
            self._sizes[symbol] = name
        return inputs, tuple(handed)

    def write(self) -> tuple[Body, list[Code]]:
        for step in self._plan.steps:
            self._write(step)
            self._at += 1
        results = [self.value(v, None) if isinstance(v, Value) else Code(literal(v)) for v in self._outputs]
        if len(results) > 1 and sum(len(plain(r.text)) for r in results) > LONG:
            self._flush(set(), frozenset())
            results = [self.value(v, None) if isinstance(v, Value) else Code(literal(v)) for v in self._outputs]
        sizes = tuple(self._sizes[symbol] for symbol in self._handed)
        return Body(self._inputs, self._handed, sizes, tuple(roll(self._lines, self._length))), results

    def _length(self, container: str) -> int:
        return self._tree.length(f"{self._plan.path}.{container}" if self._plan.path else container)

    def _write(self, step: Step) -> None:
        used = set(self._uses[self._at])
        if counter := self._counter(step):
            self._lines += ["if self.training:", f"    {counter}.add_(1)"]
        values = results_of(self._program, step)
        code, names = self._source(step)
        if len(plain(code.text)) > LONG + 24 and used & set(self._pending):
            self._flush(set(), frozenset())
            code, names = self._source(step)
        name = self._preferred(step)
        depth = 1 + max((self._pending[v].depth for v in used if v in self._pending), default=0)
        consumed = {v: self._pending[v] for v in used if v in self._pending}
        if self._is_nested(step, values, code, depth):
            for value in consumed:
                del self._pending[value]
            self._pending[values[0]] = _Pending(code, name, step, depth, names)
            return
        self._flush(set(consumed), names)
        for value in consumed:
            del self._pending[value]
        self._assign(step, values, code, name)

    def _assign(self, step: Step, values: Sequence[Value], code: Code, name: str | None) -> None:
        if len(values) == 1 and not is_sequence(self._program, step):
            target = name or self._fresh(self._hint(step))
            self._bind(values[0], target)
            self._lines.append(f"{target} = {code.text}")
            return
        targets: dict[Value, str] = {}
        hints = self._hints(step, len(values))
        for value, hint in zip(values, hints, strict=True):
            if value not in self._last:
                targets[value] = "_"
                continue
            reuse = (
                name
                if name and not targets and (isinstance(step, Plan) or is_layer_call(self._program, step))
                else None
            )
            targets[value] = reuse or self._fresh(hint, taken=targets.values())
        for value, target in targets.items():
            if target != "_":
                self._bind(value, target)
        shown = [targets[v] for v in values]
        if is_long_short_memory(self._program, step):
            state = "_" if set(shown[1:]) == {"_"} else f"({', '.join(shown[1:])})"
            shown = [shown[0], state]
        left = f"({shown[0]},)" if len(shown) == 1 else ", ".join(shown)
        self._lines.append(f"{left} = {code.text}")

    def _flush(self, kept: set[Value], read: frozenset[str]) -> None:
        """Bind every expression that is still waiting, except those in `kept`, to variables not in `read`."""
        for value in [v for v in self._pending if v not in kept]:
            waiting = self._pending.pop(value)
            taken = read.union(*(p.names for p in self._pending.values()))
            free = waiting.name is not None and waiting.name not in taken
            name = waiting.name if waiting.name and free else self._fresh(self._hint(waiting.step), taken, since=0)
            self._bind(value, name)
            self._lines.append(f"{name} = {waiting.code.text}")

    def _is_nested(self, step: Step, values: Sequence[Value], code: Code, depth: int) -> bool:
        """Whether a result is written inside the expression that uses it."""
        last = (
            self._outputs == (values[0],) and len(self._uses[-1]) == 1 and self._last[values[0]] == len(self._uses) - 1
        )
        deepest, longest = (DEEP + 2, LONG + 24 if depth > 1 else 10 * LONG) if last else (DEEP, LONG)
        if len(values) != 1 or is_sequence(self._program, step) or depth > deepest or len(plain(code.text)) > longest:
            return False
        path = step.path if isinstance(step, Plan) else layer_path(self._program, step)
        if path and self._tree.is_list(parent(path)):
            return False
        value, user = values[0], self._last.get(values[0], -1)
        if user < 0 or self._total[value] != 1:
            return False
        between = range(self._at + 1, min(user, len(self._plan.steps)))
        return len(between) <= 4 and all(self._joins(k, user) for k in between)

    def _joins(self, at: int, user: int) -> bool:
        """Whether what a step makes is used once, and not later than by `user`."""
        values = results_of(self._program, self._plan.steps[at])
        return len(values) == 1 and self._last.get(values[0], user + 1) <= user and self._total[values[0]] == 1

    def _source(self, step: Step) -> tuple[Code, frozenset[str]]:
        """Return the source of a step, and the variables it reads."""
        self._read = set()
        return self._step(step), frozenset(self._read)

    def _step(self, step: Step) -> Code:
        if isinstance(step, Plan):
            body = self._bodies.get(step.path)
            given = [self.value(v, None).text for v in step.inputs]
            given += [self._size(sympy.Symbol(s), ()).text for s in (body.symbols if body else ())]
            return Code(f"{self._access(step.path)}({', '.join(given)})")
        node = self._program.graph.node(step)
        call = self._program.layers.calls.get(step)
        if call is None:
            counter = self._counter(step)
            if counter and node.argument("momentum") == 0.0:  # stands for the average over all batches
                return cumulative(node, counter, self)
            return expression(node, self) if self._program.trial.holds(node) else full_name(node, self)
        return Code(f"{self._access(call.path)}({', '.join(self._operand(o, node) for o in call.operands)})")

    def _counter(self, step: Step) -> str:
        """Return the source of the number of batches that a call advances in training, '' if it does not."""
        node = None if isinstance(step, Plan) or is_layer_call(self._program, step) else self._program.graph.node(step)
        if node is None or node.op != BATCH_NORM or mode_argument(node) is None:
            return ""
        found = batch_counter(self._program.graph, node)
        inside = found is not None and any(below(n, self._plan.path) for n in self._program.names[found.id])
        return self.value(Value(found.id), None).text if found is not None and inside else ""

    def _operand(self, operand: Argument, node: Node) -> str:
        if isinstance(operand, tuple):
            return f"({', '.join(self._operand(o, node) for o in operand)})"
        return self.value(operand, node).text if isinstance(operand, Value) else literal(operand)

    # what the expressions ask for

    def value(self, value: Value, near: Node | None) -> Code:
        """Return the source of a value."""
        if value in self._pending:
            self._read |= self._pending[value].names
            return self._pending[value].code
        if value in self._names:
            self._read.add(self._names[value])
            return Code(self._names[value])
        source = self._program.graph.node(value.node)
        if source.op == PARAMETER and source.parameter:
            name = next(n for n in source.parameter.names if below(n, self._plan.path))
            path, _, field = name.rpartition(".")
            kind = source.parameter.kind
            return Code(self._tree.access(path, self._plan.path, field, buffer=kind != "parameter"))
        type_ = self._program.graph.type_of(value)
        if not isinstance(type_, ScalarType) or type_.value is None:
            raise EmitError(f"a value of {source.op} is used before it is computed", where=self._plan.path)
        operands = near.values if near else ()
        return self._size(sympy.sympify(type_.value), operands)

    def device(self, node: Node) -> str:
        """Return the source of the device of the tensors at hand."""
        for value, name in self._names.items():
            if self._bound.get(name) == value and isinstance(self._program.graph.type_of(value), TensorType):
                self._read.add(name)
                return f"{name}.device"
        for id_, names in self._program.names.items():
            if any(below(n, self._plan.path) for n in names):
                return f"{self.value(Value(id_), None).text}.device"
        return 'torch.device("cpu")'

    def training(self, node: Node) -> str:
        """Return the source of the mode of the module being written."""
        return "self.training"

    def _size(self, size: sympy.Expr, operands: Iterable[Value]) -> Code:
        """Return the source of a number that follows from shapes."""
        size = sympy.sympify(size)
        if size.is_Integer:
            return Code(str(int(size)))
        near = tuple(operands)
        read = [self._bound[n] for v in near if v in self._pending for n in sorted(self._pending[v].names)]
        near = (*near, *read)
        direct = next((found for v in near if (found := self._axis(v, size))), "")
        if not direct and not size.is_Symbol and all(any(self._axis(v, s) for v in near) for s in size.free_symbols):
            return arithmetic(size, lambda term: self._size(term, near))
        found = direct or next((found for v in self._names if (found := self._axis(v, size))), "")
        if found:
            return Code(found)
        if size.is_Symbol:
            if str(size) in self._sizes:
                return Code(self._sizes[str(size)])
            raise _UnresolvedError(str(size))
        return arithmetic(size, lambda term: self._size(term, near))

    def _axis(self, value: Value, size: sympy.Expr) -> str:
        """Return `x.size(i)` if a variable that is bound has an axis of a size."""
        name = self._names.get(value)
        type_ = self._program.graph.type_of(value)
        if name is None or self._bound.get(name) != value or not isinstance(type_, TensorType):
            return ""
        at = next((i for i, s in enumerate(type_.shape) if not isinstance(s, int) and str(s) == str(size)), None)
        if at is None:
            return ""
        self._read.add(name)
        return f"{name}.size({at})"

    # names

    def _bind(self, value: Value, name: str) -> None:
        self._names[value] = name
        self._bound[name] = value

    def _preferred(self, step: Step) -> str | None:
        """Return the variable that ends here and goes on as the result."""
        node = None if isinstance(step, Plan) else self._program.graph.node(step)
        if node is not None and not layer_path(self._program, node.id) and is_fresh(self._program, node):
            return None
        result = self._program.graph.type_of(results_of(self._program, step)[0])
        found: list[str] = []
        for value in step.inputs if isinstance(step, Plan) else self._program.operands(step):
            if value in self._pending:
                name = self._pending[value].name
            else:
                name = self._names.get(value) if self._last[value] == self._at else None
                name = name if name and self._bound.get(name) == value else None
            before = self._program.graph.type_of(value)
            alike = isinstance(before, TensorType) and isinstance(result, TensorType) and before.dtype == result.dtype
            if name and alike:
                found.append(name)
        busy = {n for v, p in self._pending.items() if v not in self._uses[self._at] for n in (*p.names, p.name)}
        found = [n for n in found if n not in busy]
        return "x" if "x" in found else next(iter(found), None)

    def _fresh(self, hint: str, taken: Iterable[str] = (), since: int = 1) -> str:
        """Return a variable that holds nothing that is used `since` steps from here or later."""
        ends = {n: self._last.get(v, len(self._uses)) for n, v in self._bound.items()}
        live = {n for n, end in ends.items() if end >= self._at + since}
        live |= {n for p in self._pending.values() for n in (*p.names, p.name) if n}
        live |= {*self._sizes.values(), *taken, *(self._inputs if self._at == 0 and self._frame else ())}
        general = hint in ("y", "joined", "stacked", "product")
        return "x" if general and "x" not in live else unique(hint, live)

    def _hint(self, step: Step) -> str:
        if isinstance(step, Plan):
            leaf = step.path.rpartition(".")[2]
            outputs = self._program.graph.node(step.outputs[0].node)
            return result_hint(self._program, outputs, step.path) if leaf else "y"
        return result_hint(self._program, self._program.graph.node(step), layer_path(self._program, step))

    def _hints(self, step: Step, count: int) -> list[str]:
        return result_hints("" if isinstance(step, Plan) else self._program.graph.node(step).op, count)

    def _access(self, path: str) -> str:
        return self._tree.access(path, self._plan.path)
