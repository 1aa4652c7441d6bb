"""Matrix products: layers where one factor is a weight, products of tensors elsewhere."""

from __future__ import annotations

import onnx_ir as ir

from frontends.onnx.call import Call, Table, only_use
from frontends.onnx.operands import Known, Operand, Refusal


def _multiply(c: Call) -> Operand:
    weight = c[1]
    if not _is_weight(c, weight) or c.rank(weight) != 2 or c.rank(c[0]) == 0:
        return c.call("matmul", c[0], weight)
    addition = _addition(c)
    name, bias_name = c.layer(1, None) if addition is None else c.layer_of(weight, addition[1])
    turned = c.changed(1, "t")
    if isinstance(turned, Known) and not turned.trains:
        turned = c.graph.equal(turned.tensor) or turned
    matrix = c.graph.parameter(turned, name)
    if addition is None:
        return c.call("linear", c[0], matrix)
    found = c.call("linear", c[0], matrix, c.graph.parameter(addition[1], bias_name))
    c.graph.absorb(addition[0], found)
    return found


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
