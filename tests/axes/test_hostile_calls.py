"""Widths of graphs that no network is: nothing is run but what moves data, and every call has axes or freezes."""

from __future__ import annotations

import pytest
import torch

from archir.axes.infer import analyse, infer_widths
from archir.axes.rules import movement
from archir.axes.rules.context import Room
from archir.ir.execute import Call, compile_call
from archir.ir.node import Node, Value
from archir.ir.parse import parse_graph
from archir.ir.types import TensorType

NOT_RUN = [
    "aten.native_dropout(@p[4, 6], 0.5, True)",
    "aten.feature_alpha_dropout(@p[4, 6], 0.5, True)",
    "aten.multinomial(@p[4, 6], 2)",
    "aten.uniform(@p[4, 6], 0.0, 1.0)",
    "aten.nonzero_static(@p[4, 6], size=100000000)",
    "aten.fft_fft(@p[4, 6], 100000000)",
    "aten.repeat_interleave.self_int(@p[4, 6], 100000000)",
    "aten.diag_embed(@p[30000])",
    "aten.as_strided_copy(@p[4, 6], [100000, 100000], [0, 0])",
    "aten.constant_pad_nd(@p[4, 6], [1000000000, 0])",
    "aten.unfold_copy(@p[30000], 0, 15000, 1)",
]


@pytest.mark.parametrize("call", NOT_RUN)
def test_what_does_more_than_move_data_or_makes_too_much_is_not_run(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = parse_graph(f"graph net(x: f32[B]) {{\n  %0 = {call}\n  return x\n}}")
    run: list[str] = []
    monkeypatch.setattr(movement, "compile_call", lambda node: run.append(node.op))
    before = torch.get_rng_state()
    widths = infer_widths(graph)
    assert run == [] and torch.equal(before, torch.get_rng_state())
    assert len(widths.free) + len(widths.frozen) > 0


def test_what_moves_data_is_run_and_leaves_random_numbers_as_they_were() -> None:
    graph = parse_graph("graph net(x: f32[B]) {\n  %0 = aten.fliplr(@p[4, 6])\n  return x\n}")
    before = torch.get_rng_state()
    assert [w.size for w in infer_widths(graph).free] == [4]
    assert torch.equal(before, torch.get_rng_state())


def test_the_calls_of_a_graph_move_so_much_together(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = "".join(f"  %{i} = aten.diag(@p{i}[30, 40])\n" for i in range(4))
    graph = parse_graph(f"graph net(x: f32[B]) {{\n{calls}  return x\n}}")
    run: list[int] = []

    def compiled(node: Node) -> Call:
        run.append(node.id)
        return compile_call(node)

    monkeypatch.setattr(movement, "compile_call", compiled)
    monkeypatch.setattr("archir.axes.infer.Room", lambda: Room(left=12_000))
    analyse(graph)
    assert 0 < len(set(run)) < 4


CALLS = [
    "aten.repeat(@p[0, 6], [2, 2])",
    "aten.permute(@p[4, 6], [-1, -2])",
    "aten.movedim.intlist(@p[4, 6], [0, 1], [1, 0])",
    "aten.movedim.intlist(@p[4, 6], [], [])",
    "aten.transpose.int(@p[], 0, 0)",
    "aten.transpose.int(@p[], -1, 0)",
    "aten.flatten.using_ints(@p[], 0, -1)",
    "aten.unflatten.int(@p[0, 6], 1, [2, 3])",
    "aten.unflatten.int(@p[4, 6], -1, [-1, 3])",
    "aten.reshape(@p[0, 6], [3, 0])",
    "aten.reshape(@p[], [1, 1])",
    "aten.expand(@p[1, 6], [0, 6])",
    "aten.sum.dim_IntList(@p[4, 6], [])",
    "aten.sum.dim_IntList(@p[], [0])",
    "aten.sum.dim_IntList(@p[4, 6], [-1, 0])",
    "aten.softmax.int(@p[], 0)",
    "aten.cumsum(@p[], 0)",
    "aten.index_select(@p[4, 6], -1, @i: i64[3])",
    "aten.index_select(@p[], 0, @i: i64[1])",
    "aten.index.Tensor(@p[4, 6], [None, @i: i64[3]])",
    "aten.gather(@p[], 0, @i: i64[])",
    "aten.embedding(@p[0, 6], @i: i64[3])",
    "aten.embedding(@p[4, 6], @i: i64[])",
    "aten.select.int(@p[4, 6], -2, -1)",
    "aten.slice.Tensor(@p[4, 6], -1, None, None, 2)",
    "aten.slice.Tensor(@p[4, 6], 0, 3, 1)",
    "aten.cat([@p[0], @q[4, 6]])",
    "aten.cat([@p[4, 6], @q[4, 0]], -1)",
    "aten.stack([@p[]], -1)",
    "aten.split.Tensor(@p[0, 6], 3)",
    "aten.split_with_sizes(@p[4, 6], [0, 4])",
    "aten.split_with_sizes(@p[4, 6], [4], -2)",
    "aten.chunk(@p[4, 6], 3, -1)",
    "aten.unbind.int(@p[1, 6], -2)",
    "aten.linear(@p[6], @q[4, 6])",
    "aten.linear(@p[6], @q[6])",
    "aten.linear(@p[0, 6], @q[0, 6], @b[0])",
    "aten.matmul(@p[6], @q[6])",
    "aten.matmul(@p[0, 6], @q[6, 0])",
    "aten.matmul(@p[2, 1, 4, 6], @q[3, 6, 5])",
    "aten.addmm(@p[], @q[4, 6], @r[6, 3])",
    "aten.addmm(@p[3], @q[4, 6], @r[6, 3], beta=0, alpha=0)",
    "aten.bmm(@p[0, 4, 6], @q[0, 6, 3])",
    'aten.einsum("ii->i", [@p[4, 4]])',
    'aten.einsum("->", [@p[]])',
    'aten.einsum("...,...", [@p[4], @q[]])',
    'aten.einsum("ij,", [@p[4, 6], @q[]])',
    "aten.tensordot(@p[4, 6], @q[6, 3], [-1], [0])",
    "aten.tensordot(@p[4], @q[6], [], [])",
    "aten.conv1d(@p[4, 9], @q[6, 4, 3])",
    "aten.conv2d(@p[4, 9, 9], @q[6, 4, 3, 3])",
    "aten.conv2d(@p[0, 4, 9, 9], @q[6, 2, 3, 3], None, [1], [0], [1], 2)",
    'aten.conv2d.padding(@p[1, 4, 9, 9], @q[6, 4, 3, 3], None, [1], "same")',
    "aten.convolution(@p[1, 4, 9], @q[4, 6, 3], None, [2], [0], [1], True, [1], 1)",
    "aten.conv_transpose2d.input(@p[4, 9, 9], @q[4, 6, 3, 3])",
    "aten.layer_norm(@p[4, 6], [4, 6])",
    "aten.layer_norm(@p[0], [0])",
    "aten.group_norm(@p[0, 6], 3)",
    "aten.group_norm(@p[2, 6, 5], 1, @w[6])",
    "aten.batch_norm(@p[2, 6], None, None, None, None, True, 0.1, 1e-5, False)",
    "aten.instance_norm(@p[2, 6, 5], None, None, None, None, True, 0.1, 1e-5, False)",
    "aten.rms_norm(@p[4, 6], [6])",
    "aten.avg_pool2d(@p[4, 9, 9], [2])",
    "aten.max_pool2d(@p[4, 9, 9], [2], [])",
    "aten.adaptive_avg_pool2d(@p[4, 9, 9], [1, 0])",
    "aten.pad(@p[4, 6], [-1, -1])",
    "aten.pad(@p[4, 6], [])",
    "aten.constant_pad_nd(@p[4, 6], [0, -6])",
    "aten.roll(@p[4, 6], [1])",
    "aten.flip(@p[4, 6], [])",
    "aten.flip(@p[4, 6], [-1])",
    "aten.squeeze.dims(@p[1, 6], [])",
    "aten.squeeze.dim(@p[], -1)",
    "aten.unsqueeze(@p[], -1)",
    "aten.unfold(@p[], 0, 1, 1)",
    "aten.pixel_shuffle(@p[0, 4, 3, 3], 2)",
    "aten.pixel_shuffle(@p[4, 3, 3], 2)",
    "aten.channel_shuffle(@p[1, 4, 3], 2)",
    "aten.diagonal(@p[4, 6], 100)",
    "aten.tril(@p[0, 4])",
    "aten.where.ScalarOther(@m: bool[], @p[4], 0)",
    "aten.masked_fill.Scalar(@p[4], @m: bool[2, 4], 0)",
    "aten.prelu(@p[4], @w[1])",
    "aten.prelu(@p[], @w[1])",
    "aten.glu(@p[4, 6], -2)",
    "aten.scaled_dot_product_attention(@p[4, 6], @q[5, 6], @v[5, 3])",
    "aten.scaled_dot_product_attention(@p[2, 4, 6], @q[1, 5, 6], @v[2, 5, 0])",
    "aten.upsample_nearest2d.vec(@p[1, 4, 3, 3], None, [2.0, 2.0])",
    "aten.scatter.value(@p[], 0, @i: i64[], 1)",
    "aten.index_add(@p[4, 6], -1, @i: i64[2], @s[4, 2])",
    "aten.one_hot(@i: i64[], 3)",
    "aten.topk(@p[], 1)",
    "aten.sort(@p[], 0)",
    "aten.meshgrid([@p[], @q[3]])",
    "aten.outer(@p[0], @q[3])",
    "aten.bilinear(@p[4], @q[6], @w[2, 4, 6])",
    "aten.zeros([0, 3])",
    "aten.full([], 1.0)",
]


@pytest.mark.parametrize("call", CALLS)
def test_every_call_has_axes_or_freezes(call: str) -> None:
    graph = parse_graph(f"graph net(x: f32[B]) {{\n  %0 = {call}\n  return x\n}}")
    (node,) = graph.calls
    axes = infer_widths(graph).axes
    for index, type_ in enumerate(node.results):
        assert isinstance(type_, TensorType)
        assert tuple(axis.size for axis in axes[Value(node.id, index)]) == type_.shape


DECLARED = [
    "aten.permute(@p[4, 6], [n, 0]) : f32[6, 4]",
    "aten.permute(@p[4, 6], [n]) : f32[6, 4, 1]",
    "aten.transpose.int(@p[4, 6], n, 7) : f32[6, 4]",
    "aten.reshape(@p[4, 6], [n, 5]) : f32[7, 5]",
    "aten.expand(@p[4, 6], [n]) : f32[9]",
    "aten.repeat(@p[4, 6], [n]) : f32[9]",
    "aten.cat([@p[4], @q[5, 2]], n) : f32[9]",
    "aten.split.Tensor(@p[4, 6], n, 9) : f32[2, 6], f32[1]",
    "aten.select.int(@p[4, 6], 9, n) : f32[6]",
    "aten.slice.Tensor(@p[4, 6], 5, n) : f32[4]",
    "aten.sum.dim_IntList(@p[4, 6], [n, 9]) : f32[6]",
    "aten.squeeze.dim(@p[4, 6], n) : f32[]",
    "aten.unsqueeze(@p[4, 6], n) : f32[4]",
    "aten.layer_norm(@p[4, 6], [n], @w[3]) : f32[4, 6]",
    "aten.group_norm(@p[4, 6], n, @w[3]) : f32[4, 6]",
    "aten.conv2d(@p[4], @w[3], None, [n]) : f32[2]",
    "aten.embedding(@p[4], @i: i64[3], n) : f32[9]",
    "aten.index_select(@p[4, 6], n, @i: i64[3, 3]) : f32[9]",
    "aten.unflatten.int(@p[4, 6], 1, [n, 3]) : f32[4]",
    "aten.roll(@p[4, 6], [n], [7]) : f32[4, 6]",
    "aten.flip(@p[4, 6], [n]) : f32[4]",
    "aten.pad(@p[4, 6], [n, 1]) : f32[4, 6]",
    "aten.unfold(@p[4, 6], 1, n, 1) : f32[4, 6]",
    "aten.softmax.int(@p[4, 6], n) : f32[4]",
    "aten.diagonal(@p[4, 6], n) : f32[2, 2]",
    "aten.pixel_shuffle(@p[4, 6], n) : f32[2, 2]",
    "aten.avg_pool2d(@p[4, 6, 6], [n]) : f32[2]",
    "aten.scaled_dot_product_attention(@p[4], @q[5], @v[6], scale=n) : f32[2]",
    "aten.tensordot(@p[4], @q[6], [n], [5]) : f32[2]",
]
"""Calls on a number that is known at run time only, whose types are what the file declares."""


@pytest.mark.parametrize("call", DECLARED)
def test_types_that_are_declared_may_be_wrong(call: str) -> None:
    graph = parse_graph(f"graph net(x: f32[B], n: int) {{\n  %0 = {call}\n  return x\n}}")
    (node,) = graph.calls
    axes = infer_widths(graph).axes
    for index in range(len(node.results)):
        assert tuple(axis.size for axis in axes[Value(node.id, index)]) == node.tensor_type(index).shape
