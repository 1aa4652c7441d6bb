"""Matrix products: layers where one factor is a weight, products of tensors elsewhere."""

from __future__ import annotations

from frontends.onnx.call import Call, Table
from frontends.onnx.operands import Known, Operand, Refusal


def _multiply(c: Call) -> Operand:
    weight = c[1]
    if not _is_weight(c, weight) or c.rank(weight) != 2 or c.rank(c[0]) == 0:
        return c.call("matmul", c[0], weight)
    added = _addition(c)
    name, bias_name = c.layer(1, None) if added is None else c.layer_of(c[1], added)
    turned = c.changed(1, "t")
    if isinstance(turned, Known) and not turned.trains:
        turned = c.graph.equal(turned.tensor) or turned
    bias = None if added is None else c.graph.parameter(added, bias_name)
    found = c.call("linear", c[0], c.graph.parameter(turned, name), *([] if bias is None else [bias]))
    if added is not None:
        c.graph.absorb(c.node.outputs[0].uses()[0].node, found)
    return found


def _is_weight(c: Call, operand: Operand) -> bool:
    return isinstance(operand, Known) and operand.tensor.is_floating_point()


def _addition(c: Call) -> Known | None:
    """Return the bias that is added to a product, and to nothing else of it."""
    output = c.node.outputs[0]
    uses = output.uses()
    if len(uses) != 1 or output.is_graph_output() or uses[0].node.op_type != "Add" or uses[0].node.domain:
        return None
    if uses[0].node.graph is not c.node.graph:
        return None
    other = uses[0].node.inputs[1 - uses[0].idx]
    found = c.graph.values.get(other) if other is not None else None
    columns = c.shape(c[1])[1]
    known = isinstance(found, Known) and found.tensor.is_floating_point() and tuple(found.tensor.shape) == (columns,)
    return found if known and isinstance(found, Known) and c.rank(c[0]) > 1 else None


def _general(c: Call) -> Operand:
    alpha, beta = c.float("alpha", 1.0), c.float("beta", 1.0)
    left, right, added = c[0], c[1], c.get(2)
    left = c.call("t", left) if c.int("transA", 0) else left
    turned = bool(c.int("transB", 0))
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
