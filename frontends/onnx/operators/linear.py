"""Matrix products: layers where one factor is a weight, products of tensors elsewhere."""

from __future__ import annotations

import onnx_ir as ir

from frontends.onnx.call import Call, Table, only_use
from frontends.onnx.operands import Known, Operand, Refusal


def _multiply(c: Call) -> Operand:
    weight = _transposed(c)
    stored = weight if weight is not None else c[1]
    if not _is_weight(c, stored) or c.rank(stored) != 2 or c.rank(c[0]) == 0:
        return c.call("matmul", c[0], c[1])
    addition = _addition(c)
    name, bias_name = c.layer_of(stored, addition[1] if addition else None)
    matrix = c.changed(1, "t") if weight is None else weight
    if isinstance(matrix, Known) and not matrix.trains:
        matrix = c.graph.equal(matrix.tensor) or matrix
    matrix = c.graph.parameter(matrix, name)
    if addition is None:
        return c.call("linear", c[0], matrix)
    found = c.call("linear", c[0], matrix, c.graph.parameter(addition[1], bias_name))
    c.graph.absorb(addition[0], found)
    return found


def _transposed(c: Call) -> Known | None:
    """Return the weight that is transposed to be the second factor, as exporters write layers."""
    value = c.node.inputs[1]
    made = None if value is None else value.producer()
    if made is None or made.op_type != "Transpose" or made.domain or made.inputs[0] is None:
        return None
    found = c.graph.values.get(made.inputs[0])
    is_matrix = isinstance(found, Known) and found.trains and found.tensor.dim() == 2
    turns = "perm" not in made.attributes or list(made.attributes["perm"].as_ints()) == [1, 0]
    return found if isinstance(found, Known) and is_matrix and turns else None


def _is_weight(c: Call, operand: Operand) -> bool:
    return isinstance(operand, Known) and operand.tensor.is_floating_point()


def _addition(c: Call) -> tuple[ir.Node, Known] | None:
    """Return the node that adds a bias to a product which nothing else uses, and the bias."""
    use = only_use(c.node.outputs[0])
    if use is None or use[0].op_type != "Add" or use[0].domain or use[0].graph is not c.node.graph or c.rank(c[0]) < 2:
        return None
    other = use[0].inputs[1 - use[1]]
    found = c.graph.values.get(other) if other is not None else None
    is_bias = isinstance(found, Known) and tuple(found.tensor.shape) == (c.shape(c[1])[1],)
    return (use[0], found) if isinstance(found, Known) and is_bias and found.tensor.is_floating_point() else None


def _general(c: Call) -> Operand:
    alpha, beta = c.real("alpha", 1.0), c.real("beta", 1.0)
    left, right, added = c[0], c[1], c.get(2)
    left = c.call("t", left) if c.integer("transA", 0) else left
    turned = bool(c.integer("transB", 0))
    if alpha == 1.0 and _is_weight(c, right):
        name, bias_name = c.layer(1, 2 if added is not None else None)
        weight = right if turned else c.changed(1, "t")
        if isinstance(weight, Known) and not weight.trains:
            weight = c.graph.equal(weight.tensor) or weight
        weight = c.graph.parameter(weight, name)
        if added is None or beta == 0.0:
            return c.call("linear", left, weight)
        columns = c.shape(weight)[0]
        if beta == 1.0 and isinstance(added, Known) and tuple(added.tensor.shape) in ((columns,), (1, columns)):
            bias = added if added.tensor.dim() == 1 else c.changed(2, "reshape", [-1])
            return c.call("linear", left, weight, c.graph.parameter(bias, bias_name))
        product = c.call("linear", left, weight)
    else:
        product = c.call("matmul", left, c.call("t", right) if turned else right)
    whole = c.type(product).dtype.is_floating_point
    if not whole and (alpha != int(alpha) or beta != int(beta)):
        raise Refusal("it scales whole numbers by fractions")
    product = product if alpha == 1.0 else c.call("mul.Tensor", product, alpha if whole else int(alpha))
    if added is None or beta == 0.0:
        return product
    added = added if beta == 1.0 else c.call("mul.Tensor", added, beta if whole else int(beta))
    return c.call("add.Tensor", product, added)


def _einsum(c: Call) -> Operand:
    return c.call("einsum", c.text("equation").replace(" ", ""), c.given)


def _determinant(c: Call) -> Operand:
    return c.call("linalg_det", c[0])


OPERATORS: Table = {"MatMul": _multiply, "Gemm": _general, "Einsum": _einsum, "Det": _determinant}
"""Matrix products."""
