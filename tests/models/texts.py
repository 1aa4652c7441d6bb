"""Graphs built by hand, each with its text form."""

from __future__ import annotations

import torch

from archir.ir.builder import GraphBuilder as Builder
from archir.ir.graph import Graph
from archir.ir.node import Constant, Location, Signature, Tree, Value
from archir.ir.types import ScalarType, symbol


def conv_bn() -> Graph:
    b = Builder()
    x = b.input("x", "f32[B, 3, 8, 8]")
    weight = b.parameter("conv.weight", "f32[4, 3, 3, 3]")
    scale, shift = b.parameter("bn.weight", "f32[4]"), b.parameter("bn.bias", "f32[4]")
    mean = b.parameter("bn.running_mean", "f32[4]", "buffer")
    var = b.parameter("bn.running_var", "f32[4]", "buffer")
    b.parameter("bn.num_batches_tracked", "i64[]", "buffer")
    y = b.call("aten.conv2d.default", x, weight, padding=(1, 1))
    y = b.call("aten.batch_norm.default", y, scale, shift, mean, var, False, 0.1, 1e-5, True)
    return b.graph(b.call("aten.relu.default", y))


CONV_BN = """\
graph net(x: f32[B, 3, 8, 8]) {
  buffer @bn.num_batches_tracked : i64[]

  %0 = aten.conv2d(x, @conv.weight[4, 3, 3, 3], padding=[1, 1]) : f32[B, 4, 8, 8]
  %1 = aten.batch_norm(%0, @bn.weight[4], @bn.bias[4], buffer @bn.running_mean[4], buffer @bn.running_var[4], \
training=False, momentum=0.1, eps=1e-05, cudnn_enabled=True) : f32[B, 4, 8, 8]
  %2 = aten.relu(%1)                                            : f32[B, 4, 8, 8]
  return %2
}"""


def split() -> Graph:
    b = Builder("halves", step=3)
    x = b.input("x", "f32[B, 6]")
    parts = b.call("aten.split.Tensor", x, 2, 1)
    joined = b.call("aten.cat.default", (Value(parts.node, 2), Value(parts.node, 0)), 1)
    summed = b.call("aten.add.Tensor", Value(parts.node, 1), 1, alpha=2)
    return b.graph(joined, summed, Value(parts.node, 1), result=Tree("tuple", (0, 1, Tree("list", (2,)))))


SPLIT = """\
graph halves(x: f32[B, 6]) {
  %0 = aten.split.Tensor(x, split_size=2, dim=1) : f32[B, 2], f32[B, 2], f32[B, 2]
  %1 = aten.cat([%0.2, %0.0], dim=1)             : f32[B, 4]
  %2 = aten.add.Tensor(%0.1, 1, alpha=2)         : f32[B, 2]
  return (%1, %2, [%0.1])
}"""


def nested() -> Graph:
    b = Builder()
    x, mask = b.input("x", "f32[B, 4]"), b.input("mask", "bool[B, 4]")
    ids, length = b.input("batch_ids", "i64[B, 4]"), b.input("batch_len", ScalarType("int", symbol("n")))
    y = b.call("aten.masked_fill.Scalar", x, mask, float("-inf"))
    z = b.call("operator.add", length, 1)
    args = Tree("tuple", (0, Constant(None), Tree("tuple", (Constant(0.5),))))
    batch = Tree("dict", (2, 3), ("ids", "len"))
    kwargs = Tree("dict", (1, batch, Constant("mean")), ("mask", "batch", "mode"))
    result = Tree("dict", (0, Tree("tuple", (1, 2)), Tree("list", ()), Constant(True)), ("y", "aux", "rest", "ok"))
    return b.graph(y, z, ids, signature=Signature(args, kwargs, result))


NESTED = """\
graph net(x: f32[B, 4], mask: bool[B, 4], batch_ids: i64[B, 4], batch_len: int(n)) {
  call (x, None, (0.5,), mask=mask, batch={"ids": batch_ids, "len": batch_len}, mode="mean")
  %0 = aten.masked_fill.Scalar(x, mask, value=-inf) : f32[B, 4]
  %1 = operator.add(batch_len, 1)                   : int(n + 1)
  return {"y": %0, "aux": (%1, batch_ids), "rest": [], "ok": True}
}"""


def sizes() -> Graph:
    b = Builder()
    x = b.input("x", "f32[B, 16, 4]")
    batch = b.call("aten.sym_size.int", x, 0)
    many = b.call("operator.mul", batch, 16)
    y = b.call("aten.view.default", x, (many, 4))
    noise = b.call("aten.zeros.default", (batch, 4), dtype=torch.float64, device=torch.device("cpu"))
    z = b.call("aten.cat.default", (y, noise))
    return b.graph(b.call("aten.clone.default", z, memory_format=torch.contiguous_format))


SIZES = """\
graph net(x: f32[B, 16, 4]) {
  %0 = aten.sym_size.int(x, dim=0)                     : int(B)
  %1 = operator.mul(%0, 16)                            : int(16*B)
  %2 = aten.view(x, size=[%1, 4])                      : f32[16*B, 4]
  %3 = aten.zeros(size=[%0, 4], dtype=f64, device=cpu) : f64[B, 4]
  %4 = aten.cat([%2, %3])                              : f64[17*B, 4]
  %5 = aten.clone(%4, memory_format=contiguous_format) : f64[17*B, 4]
  return %5
}"""


def tied() -> Graph:
    b = Builder()
    ids = b.input("ids", "i64[B, 7]")
    weight = b.parameter(("te.weight", "hd.weight"), "f32[50, 8]")
    frozen = b.parameter("proj.weight", "f32[8, 8]", trainable=False)
    mask = b.parameter("mask", "bool[7, 8]", "buffer", persistent=False)
    table = b.parameter("table", "f64[8]", "constant")
    b.parameter("old", "bf16[3]")
    y = b.call("aten.embedding.default", weight, ids)
    y = b.call("aten.linear.default", y, frozen)
    y = b.call("aten.where.ScalarOther", mask, y, 0.0)
    b.call("aten.mul.Tensor", y, table)
    return b.graph(b.call("aten.linear.default", y, weight))


TIED = """\
graph net(ids: i64[B, 7]) {
  param @te.weight = @hd.weight : f32[50, 8]
  param @old                    : bf16[3]

  %0 = aten.embedding(@te.weight, ids)                                           : f32[B, 7, 8]
  %1 = aten.linear(%0, frozen param @proj.weight[8, 8])                          : f32[B, 7, 8]
  %2 = aten.where.ScalarOther(transient buffer @mask: bool[7, 8], %1, other=0.0) : f32[B, 7, 8]
  %3 = aten.mul.Tensor(%2, constant @table: f64[8])                              : f64[B, 7, 8]
  %4 = aten.linear(%2, @te.weight)                                               : f32[B, 7, 50]
  return %4
}"""


def told() -> Graph:
    b = Builder("odd name", step=5)
    x, y = b.input("f32", "f32[B, 2]"), b.input("inf", "f32[B, 2]")
    weight = b.parameter("block (1).weight", "f32[2, 2]")
    b.location, b.born = Location("block.1", "models.Block", "models.py", 12), "split{width=w0, units=[1]}"
    h = b.call("aten.linear.default", x, weight)
    b.location, b.born = Location(), ""
    h = b.call("aten.add.Tensor", h, y)
    return b.graph(h, history=("split{width=w0, units=[1]}", "deepen"))


TOLD = """\
graph `odd name`(
  `f32`: f32[B, 2],  #: id=0
  `inf`: f32[B, 2],  #: id=5
) {
  #: history=["split{width=w0, units=[1]}", "deepen"]
  param @`block (1).weight` : f32[2, 2]  #: id=10

  %0 = aten.linear(`f32`, @`block (1).weight`) : f32[B, 2]  #: id=15 born="split{width=w0, units=[1]}" \
module="block.1" kind="models.Block" file="models.py" line=12
  %1 = aten.add.Tensor(%0, `inf`)              : f32[B, 2]  #: id=20 module=""
  return %1  #: id=25
}"""

GRAPHS = {"conv_bn": conv_bn, "split": split, "nested": nested, "sizes": sizes, "tied": tied, "told": told}
TEXTS = {"conv_bn": CONV_BN, "split": SPLIT, "nested": NESTED, "sizes": SIZES, "tied": TIED}
