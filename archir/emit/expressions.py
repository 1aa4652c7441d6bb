"""How each operator is written in Python: an infix operator, a method, a function of `torch` or `F`.

Operators without an entry are written by their full name, `torch.ops.aten.hardshrink.default(x)`: always right.
"""

from __future__ import annotations

from collections.abc import Callable

from archir.emit.arguments import Speaker, argument, call, first, full_name, items
from archir.emit.code import ATOM, BITWISE, COMPARE, PLUS, POWER, TIMES, UNARY, Code, split_commas
from archir.ir import ops
from archir.ir.node import Node, Value


def expression(node: Node, say: Speaker) -> Code:
    """Return the source of a call."""
    name = node.op.rpartition(".")[0] if node.op.startswith("aten.") else node.op
    write = _FORMS.get(node.op) or _FORMS.get(name)
    found = write(node, say) if write else None
    return found or full_name(node, say)


_Form = Callable[[Node, Speaker], "Code | None"]
_FORMS: dict[str, _Form] = {}


def _form(*names: str) -> Callable[[_Form], _Form]:
    def register(form: _Form) -> _Form:
        _FORMS.update(dict.fromkeys(names, form))
        return form

    return register


# infix operators

INFIX = {
    "aten.add": ("+", PLUS),
    "aten.sub": ("-", PLUS),
    "aten.mul": ("*", TIMES),
    "aten.div": ("/", TIMES),
    "aten.true_divide": ("/", TIMES),
    "aten.floor_divide": ("//", TIMES),
    "aten.remainder": ("%", TIMES),
    "aten.pow": ("**", POWER),
    "aten.matmul": ("@", TIMES),
    "aten.mm": ("@", TIMES),
    "aten.bmm": ("@", TIMES),
    "aten.eq": ("==", COMPARE),
    "aten.ne": ("!=", COMPARE),
    "aten.lt": ("<", COMPARE),
    "aten.le": ("<=", COMPARE),
    "aten.gt": (">", COMPARE),
    "aten.ge": (">=", COMPARE),
    "aten.bitwise_and": ("&", BITWISE),
    "aten.bitwise_or": ("|", BITWISE),
    "aten.__and__": ("&", BITWISE),
    "aten.__or__": ("|", BITWISE),
    "operator.add": ("+", PLUS),
    "operator.sub": ("-", PLUS),
    "operator.mul": ("*", TIMES),
    "operator.truediv": ("/", TIMES),
    "operator.floordiv": ("//", TIMES),
    "operator.mod": ("%", TIMES),
    "operator.pow": ("**", POWER),
    "operator.eq": ("==", COMPARE),
    "operator.ne": ("!=", COMPARE),
    "operator.lt": ("<", COMPARE),
    "operator.le": ("<=", COMPARE),
    "operator.gt": (">", COMPARE),
    "operator.ge": (">=", COMPARE),
}


@_form(*INFIX)
def _infix(node: Node, say: Speaker) -> Code | None:
    name = node.op.rpartition(".")[0] if node.op.startswith("aten.") else node.op
    symbol, binds = INFIX[name]
    if len(node.arguments) != 2 or not any(isinstance(a, Value) for a in node.arguments.values()):
        return None
    left, right = node.arguments
    tight = binds >= POWER or binds <= BITWISE
    before = argument(node, left, say, binds + 1 if tight else binds)
    after = argument(node, right, say, binds + 1 if binds != POWER else UNARY)
    if binds == POWER and after.startswith("-"):
        after = f"({after})"
    gap = "" if binds == POWER and _simple(before) and _simple(after) else " "
    return Code(f"{before}{gap}{symbol}{gap}{after}", binds)


def _simple(text: str) -> bool:
    return (
        text.replace("_", "").replace(".", "").isalnum()
        and text.count(".") < 2
        and (text.isdigit() or text.isidentifier() or all(part.isidentifier() for part in text.split(".")))
    )


@_form("aten.rsub")
def _rsub(node: Node, say: Speaker) -> Code | None:
    if "alpha" in node.arguments:
        return None
    return Code(f"{argument(node, 'other', say, PLUS)} - {argument(node, 'self', say, PLUS + 1)}", PLUS)


@_form("aten.neg", "operator.neg")
def _neg(node: Node, say: Speaker) -> Code:
    return Code(f"-{argument(node, next(iter(node.arguments)), say, UNARY)}", UNARY)


@_form("aten.bitwise_not")
def _invert(node: Node, say: Speaker) -> Code:
    return Code(f"~{argument(node, 'self', say, UNARY)}", UNARY)


# functions of torch.nn.functional

_FUNCTIONS = {
    "relu": 1, "gelu": 1, "silu": 1, "mish": 1, "elu": 2, "celu": 2, "selu": 1, "relu6": 1, "leaky_relu": 2,
    "hardtanh": 1, "hardswish": 1, "hardsigmoid": 1, "softplus": 1, "glu": 1, "prelu": 2,
    "linear": 3, "bilinear": 4, "conv1d": 3, "conv2d": 3, "conv3d": 3,
    "conv_transpose1d": 3, "conv_transpose2d": 3, "conv_transpose3d": 3,
    "max_pool1d": 2, "max_pool2d": 2, "max_pool3d": 2, "avg_pool1d": 2, "avg_pool2d": 2, "avg_pool3d": 2,
    "adaptive_avg_pool1d": 2, "adaptive_avg_pool2d": 2, "adaptive_avg_pool3d": 2,
    "pixel_shuffle": 2, "pixel_unshuffle": 2, "pad": 2, "scaled_dot_product_attention": 3, "one_hot": 2,
    "softshrink": 2, "hardshrink": 2, "tanhshrink": 1, "softsign": 1,
}  # fmt: skip
"""Functions of `torch.nn.functional` under the operator's name, and how many arguments go without names."""

FUNCTIONAL = frozenset(_FUNCTIONS) | {
    *("logsigmoid", "softmax", "log_softmax", "dropout", "batch_norm", "layer_norm", "group_norm", "rms_norm"),
    *("embedding", "interpolate"),
}
"""The functions of `torch.nn.functional` that are written."""

for _name, _bare in _FUNCTIONS.items():

    def _functional(node: Node, say: Speaker, name: str = _name, bare: int = _bare) -> Code:
        return call(node, f"F.{name}", say, bare=bare)

    _FORMS[f"aten.{_name}"] = _functional


_UPSAMPLED = {
    **{"nearest1d": "nearest", "nearest2d": "nearest", "nearest3d": "nearest", "linear1d": "linear"},
    **{"bilinear2d": "bilinear", "bicubic2d": "bicubic", "trilinear3d": "trilinear"},
}
MODES = frozenset(_UPSAMPLED.values()) | {"nearest-exact"}
"""How `F.interpolate` is told to interpolate."""


@_form(*(f"aten.upsample_{kind}.vec" for kind in _UPSAMPLED))
@_form(*(f"aten._upsample_nearest_exact{n}d.vec" for n in (1, 2, 3)))
def _interpolate(node: Node, say: Speaker) -> Code | None:
    size, scale = node.argument("output_size"), node.argument("scale_factors")
    if (size is None) == (scale is None):
        return None
    wanted = "output_size" if scale is None else "scale_factors"
    name = "size" if scale is None else "scale_factor"
    given = [argument(node, "input", say), f"{name}={argument(node, wanted, say, whole=True)}"]
    mode = _UPSAMPLED.get(node.op.split(".")[1].removeprefix("upsample_"), "nearest-exact")
    given += [] if mode == "nearest" else [f'mode="{mode}"']
    given += ["align_corners=True"] if node.arguments.get("align_corners") else []
    return Code(f"F.interpolate({', '.join(given)})")


@_form("aten.elu")
def _elu(node: Node, say: Speaker) -> Code | None:
    return None if {"scale", "input_scale"} & set(node.arguments) else call(node, "F.elu", say)


@_form("aten.log_sigmoid")
def _log_sigmoid(node: Node, say: Speaker) -> Code:
    return call(node, "F.logsigmoid", say)


@_form("aten.softmax.int", "aten._softmax")
def _softmax(node: Node, say: Speaker) -> Code:
    return call(node, "F.softmax", say, names=("self", "dim", "dtype"), bare=1)


@_form("aten.log_softmax.int", "aten._log_softmax")
def _log_softmax(node: Node, say: Speaker) -> Code:
    return call(node, "F.log_softmax", say, names=("self", "dim", "dtype"), bare=1)


@_form("aten.dropout")
def _dropout(node: Node, say: Speaker) -> Code:
    return Code(
        f"F.dropout({argument(node, 'input', say)}, {argument(node, 'p', say)}, {argument(node, 'train', say)})"
    )


@_form("aten.batch_norm")
def _batch_norm(node: Node, say: Speaker) -> Code:
    names = ("input", "running_mean", "running_var", "weight", "bias")
    given = [argument(node, n, say) for n in names]
    rest = [f"{n}={argument(node, n, say)}" for n in ("momentum", "eps")]
    mode = f"training={argument(node, 'training', say)}"
    return Code(f"F.batch_norm({', '.join([*given, mode, *rest])})")


@_form("aten.layer_norm", "aten.group_norm")
def _layer_norm(node: Node, say: Speaker) -> Code:
    names = [n for n in ops.schema(node.op).names if not n.startswith("cudnn")]
    return call(node, f"F.{node.op.split('.')[1]}", say, names=names, bare=4)


@_form("aten.rms_norm")
def _rms_norm(node: Node, say: Speaker) -> Code:
    return call(node, "F.rms_norm", say, bare=3)


@_form("aten.embedding")
def _embedding(node: Node, say: Speaker) -> Code | None:
    if set(node.arguments) - {"weight", "indices", "padding_idx"}:
        return None
    return call(node, "F.embedding", say, names=("indices", "weight", "padding_idx"), bare=2)


# functions of torch

_TENSORS = {
    "cat": 1, "stack": 1, "where": 3, "maximum": 2, "minimum": 2, "addmm": 3, "baddbmm": 3,
    "einsum": 2, "outer": 2, "logical_and": 2, "logical_or": 2, "logical_not": 1, "logical_xor": 2,
    "arange": 2, "zeros": 1, "ones": 1, "full": 2, "zeros_like": 1, "ones_like": 1, "full_like": 2, "scalar_tensor": 1,
    "linspace": 3, "eye": 2, "logsumexp": 2, "var_mean": 2, "atan2": 2, "complex": 2, "view_as_real": 1,
    "view_as_complex": 1, "meshgrid": 1, "rand_like": 1, "randn_like": 1, "lerp": 3, "_weight_norm": 3,
}  # fmt: skip
"""Functions of `torch`, and how many arguments go without names."""

TORCH = frozenset(_TENSORS) | {"device", "randn", "tensor"}
"""The functions of `torch` that are written."""

for _name, _bare in _TENSORS.items():

    def _torch(node: Node, say: Speaker, name: str = _name, bare: int = _bare) -> Code:
        return call(node, f"torch.{name}", say, rename={"self": "input"}, bare=bare)

    _FORMS[f"aten.{_name}"] = _torch

for _name in ("where.ScalarSelf", "where.ScalarOther", "where.Scalar", "meshgrid.default", "arange.start_step"):
    _FORMS[f"aten.{_name}"] = full_name


@_form("aten.einsum")
def _einsum(node: Node, say: Speaker) -> Code | None:
    if "path" in node.arguments:
        return None
    return Code(f"torch.einsum({argument(node, 'equation', say)}, {items(node, 'tensors', say)})")


@_form("aten.lift_fresh_copy", "aten.lift_fresh", "aten.alias")
def _clone(node: Node, say: Speaker) -> Code:
    return Code(f"{argument(node, 'self', say, ATOM)}.clone()")


# methods

_CALLS = (
    "abs", "exp", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "sin", "cos", "tan", "sigmoid", "tanh", "erf",
    "sign", "square", "reciprocal", "floor", "ceil", "round", "contiguous", "clone", "detach", "isnan", "isinf",
    "unsqueeze", "squeeze", "transpose", "t", "flatten", "chunk", "split", "split_with_sizes", "unbind", "select",
    "mean", "sum", "amax", "amin", "prod", "var", "std", "any", "all", "argmax", "argmin", "max", "min",
    "topk", "cumprod", "nan_to_num",
    "masked_fill", "clamp", "clamp_min", "clamp_max", "cumsum", "tril", "triu", "gather", "index_select",
    "index_add", "scatter", "scatter_add", "roll", "flip", "repeat_interleave", "narrow", "unfold", "type_as",
    "expand_as", "view_as", "movedim", "diagonal", "sort", "swapaxes", "conj", "unflatten", "softmax",
)  # fmt: skip
"""Methods under the operator's name."""

METHODS = frozenset(_CALLS) | {
    *("reshape", "view", "expand", "permute", "repeat", "size", "item", "to", "real", "imag", "device", "dtype"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "requires_grad_", "add_"),
}
"""The methods and attributes of tensors that are written."""

for _name in _CALLS:

    def _method(node: Node, say: Speaker, name: str = _name) -> Code:
        source = first(node)
        names = [n for n in ops.schema(node.op).names if n != source]
        positions = {
            "transpose": 2,
            "swapaxes": 2,
            "flatten": 1,
            "masked_fill": 2,
            "unflatten": 2,
            "gather": 2,
            "clamp": 2,
        }
        bare = positions.get(name, 2 if name in ("narrow", "movedim", "roll", "scatter") else 1)
        return call(node, f"{argument(node, source, say, ATOM)}.{name}", say, names=names, bare=bare)

    _FORMS.setdefault(f"aten.{_name}", _method)


@_form("aten.real", "aten.imag")
def _attribute(node: Node, say: Speaker) -> Code:
    return Code(f"{argument(node, 'self', say, ATOM)}.{node.op.split('.')[1]}")


@_form("aten.view", "aten.reshape", "aten._unsafe_view", "aten.expand", "aten.permute", "aten.repeat")
def _reshape(node: Node, say: Speaker) -> Code | None:
    name = node.op.split(".")[1]
    sizes = next(n for n in ops.schema(node.op).names if n != "self")
    if node.op == "aten.view.dtype" or not node.argument(sizes) or len(node.arguments) > 2:
        return None
    method = "reshape" if name == "_unsafe_view" else name
    before, given = argument(node, "self", say, ATOM), node.argument(sizes)
    parts = split_commas(items(node, sizes, say))
    dynamic = [i for i, s in enumerate(given) if isinstance(s, Value)] if isinstance(given, tuple) else []
    if method in ("view", "reshape") and len(dynamic) == 1 and -1 not in (given if isinstance(given, tuple) else ()):
        own = parts[dynamic[0]].startswith(f"{before}.size(")
        parts[dynamic[0]] = parts[dynamic[0]] if own else "-1"
    return Code(f"{before}.{method}({', '.join(parts)})")


@_form("aten.sym_size")
def _sym_size(node: Node, say: Speaker) -> Code:
    return Code(f"{argument(node, 'self', say, ATOM)}.size({argument(node, 'dim', say)})")


@_form("aten.item", "aten._local_scalar_dense")
def _item(node: Node, say: Speaker) -> Code:
    return Code(f"{argument(node, 'self', say, ATOM)}.item()")


@_form("aten.to", "aten._to_copy")
def _to(node: Node, say: Speaker) -> Code | None:
    source = argument(node, "self", say, ATOM)
    if set(node.arguments) - {"self", "dtype", "device", "layout"} or "dtype" not in node.arguments:
        return None
    place = [f"device={argument(node, 'device', say)}"] if node.arguments.get("device") is not None else []
    kind = argument(node, "dtype", say)
    return Code(f"{source}.to({', '.join([*place, f'dtype={kind}' if place else kind])})")


@_form("aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.new_empty")
def _new(node: Node, say: Speaker) -> Code:
    names = [n for n in ops.schema(node.op).names if n not in ("self", "device")]
    name = node.op.split(".")[1]
    return call(node, f"{argument(node, 'self', say, ATOM)}.{name}", say, names=names, bare=2)


@_form("aten.select.int", "aten.slice.Tensor")
def _subscript(node: Node, say: Speaker) -> Code | None:
    source, axis = node.argument("self"), node.argument("dim")
    if not isinstance(source, Value) or not isinstance(axis, int) or not 0 <= axis < 4:
        return _FORMS["aten.select"](node, say) if node.op == "aten.select.int" else None
    if node.op == "aten.select.int":
        part = argument(node, "index", say)
    else:
        start, end = node.argument("start"), node.argument("end")
        begin = "" if start in (None, 0) else argument(node, "start", say)
        last = "" if end is None or (isinstance(end, int) and end >= 2**31) else argument(node, "end", say)
        step = "" if node.argument("step") == 1 else f":{argument(node, 'step', say)}"
        spaced = any(c in begin + last for c in " (.")
        part = f"{begin} : {last}".strip() + step if spaced else f"{begin}:{last}{step}"
    before = say.value(source, node)
    places = [i for i, p in enumerate(before.parts) if ":" in p]
    at = places[axis] if axis < len(places) else axis - len(places) + len(before.parts)
    if before.parts and (at >= len(before.parts) or before.parts[at] == ":"):
        base, parts = before.base, [*before.parts, *[":"] * (at + 1 - len(before.parts))]
        parts[at] = part
    else:
        base, parts = before.within(ATOM), [*[":"] * axis, part]
    return Code(f"{base}[{', '.join(parts)}]", base=base, parts=tuple(parts))


@_form("aten.index.Tensor")
def _index(node: Node, say: Speaker) -> Code | None:
    indices = node.argument("indices")
    if not isinstance(indices, tuple):
        return None
    parts = [":" if i is None else say.value(i, node).text for i in indices if i is None or isinstance(i, Value)]
    return Code(f"{argument(node, 'self', say, ATOM)}[{', '.join(parts)}]")
