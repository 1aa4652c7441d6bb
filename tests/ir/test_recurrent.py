from __future__ import annotations

import pytest
import torch
from torch import nn

from archir.errors import GraphError
from archir.ir import ops
from archir.ir.limits import Room
from archir.ir.types import Size, TensorType, symbol

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}
B, T = symbol("B"), symbol("T")


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("cell", "projected"), [*((cell, 0) for cell in sorted(CELLS)), ("lstm", 2)])
def test_results_are_as_long_as_what_they_are_made_of(cell: str, projected: int, batch_first: bool) -> None:
    kinds = {"proj_size": projected} if projected else {}
    layer = CELLS[cell](3, 5, num_layers=2, bidirectional=True, batch_first=batch_first, **kinds)
    out = projected or 5

    def arguments(sizes: tuple[Size, Size]) -> dict[str, object]:
        shape = sizes if batch_first else sizes[::-1]
        hidden = TensorType(torch.float32, (4, sizes[0], out))
        state = TensorType(torch.float32, (4, sizes[0], 5))
        weights = tuple(TensorType(w.dtype, tuple(w.shape)) for w in layer.parameters())
        return {
            "input": TensorType(torch.float32, (*shape, 3)),
            "hx": (hidden, state) if cell == "lstm" else hidden,
            "params": weights,
            "has_biases": True,
            "num_layers": 2,
            "dropout": 0.0,
            "train": False,
            "bidirectional": True,
            "batch_first": batch_first,
        }

    room = Room(left=5_000)  # one call on 40,000 steps would take far more
    for sizes in ((4, 1), (4, 7), (B, 7), (B, 40_000), (B, T)):
        found, *_ = ops.infer_types(f"aten.{cell}.input", arguments(sizes), room=room)
        assert isinstance(found, TensorType)
        assert found.shape == (*(sizes if batch_first else sizes[::-1]), 2 * out)
    x = torch.zeros(4, 7, 3) if batch_first else torch.zeros(7, 4, 3)
    result, states = layer(x)
    found, *others = ops.infer_types(f"aten.{cell}.input", arguments((4, 7)))
    assert found == TensorType(result.dtype, tuple(result.shape))
    ran = states if cell == "lstm" else [states]
    assert others == [TensorType(s.dtype, tuple(s.shape)) for s in ran]
    with pytest.raises(GraphError, match="rejects its operands"):
        ops.infer_types(f"aten.{cell}.input", arguments((4, 7)) | {"input": TensorType(torch.float32, (4, 7, 9))})
