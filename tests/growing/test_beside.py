"""What a run goes on from where a network that is trained beside it fails."""

from __future__ import annotations

from typing import Any, cast

import pytest

from archir.errors import AlikeError, ArchirError, DivergenceError, GrowError, NotFiniteError, ScoreError
from archir.growing.beside import train_beside
from archir.growing.engine import Engine
from archir.growing.log import Log
from archir.ir.graph import Graph
from archir.scoring.budget import Budget
from archir.scoring.losses import LOSSES
from archir.scoring.processes import ALONE, Processes
from tests.growing.process_groups import Pretended
from tests.growing.small_run import OPTIONS, data

ONE_OF_TWO = Pretended(cast(Any, object()), number=1, count=2)
ALIKE = (AlikeError("lost"), NotFiniteError("the loss is nan"), DivergenceError("it diverged", step=1, loss=9.0))
OWN = (GrowError("there is too little memory to run the model"), ScoreError("the loss fails on a batch"))


@pytest.mark.parametrize("error", [*ALIKE, *OWN], ids=lambda e: f"{type(e).__name__}: {e}")
@pytest.mark.parametrize("processes", [ALONE, ONE_OF_TWO], ids=["alone", "one of two"])
def test_processes_go_on_from_what_all_of_them_find(
    seed_graph: Graph, processes: Processes, error: ArchirError
) -> None:
    parts = data(8, 1), data(8, 2)
    engine = Engine(
        seed_graph, None, *parts, Budget(), (), LOSSES["cross_entropy"], OPTIONS, None, Log(None, None), processes
    )

    def begin(engine: Engine) -> Any:
        raise error

    if processes.group is not None and error in OWN:
        with pytest.raises(type(error)) as caught:
            train_beside(engine, begin, seed_graph)
        assert caught.value is error
        return
    ended = train_beside(engine, begin, seed_graph)
    assert ended.failure == f"it failed: {error.what}" and ended.metrics is None
