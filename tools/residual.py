"""Generated residual networks, as graphs that were never traced, to see how the cost of analysis grows."""

from __future__ import annotations

from archir.ir.builder import GraphBuilder as Builder
from archir.ir.graph import Graph
from archir.ir.node import Value

WIDTH, HIDDEN = 16, 24


def residual_network(layers: int, width: int = WIDTH, hidden: int = HIDDEN) -> Graph:
    """Return a residual network of linear layers: for each two of them four calls and four parameters.

    Args:
        layers: number of linear layers, even.
        width: number of features between blocks.
        hidden: number of features within them.
    """
    builder = Builder("residual")

    def linear(x: Value, name: str, inputs: int, outputs: int) -> Value:
        weight = builder.parameter(f"{name}.weight", f"f32[{outputs}, {inputs}]")
        return builder.call("aten.linear.default", x, weight, builder.parameter(f"{name}.bias", f"f32[{outputs}]"))

    x = linear(builder.input("x", "f32[B, 8]"), "first", 8, width)
    for number in range(layers // 2 - 1):
        inner = builder.call("aten.relu.default", linear(x, f"blocks.{number}.up", width, hidden))
        x = builder.call("aten.add.Tensor", x, linear(inner, f"blocks.{number}.down", hidden, width))
    return builder.graph(linear(x, "last", width, 4))
