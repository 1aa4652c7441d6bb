from __future__ import annotations

import pytest
import torch
from torch import nn

from archir.cost import cost
from archir.errors import GrowError
from archir.growing import feasibility
from archir.growing.feasibility import check_memory, check_reachable, least_cost, training_memory
from archir.growing.optimisers import OptimiserOptions
from archir.ir.graph import Graph
from archir.rewrite.pipeline import apply_passes, apply_together
from archir.scoring.budget import Budget
from frontends.pytorch import trace
from passes.merge import Merge
from passes.prune import Prune
from passes.remove_block import RemoveBlock
from passes.split import Split
from passes.squeeze_excite import SqueezeExcite
from tests.models.captured import graph_of


def smallest(graph: Graph) -> Graph:
    """Prune all units but the first of every width, in one set."""
    families = ((site.label, range(1, len(site.members))) for site in Prune().sites(graph))
    return apply_together(graph, [(Prune(label, tuple(units)), None) for label, units in families if units])


@pytest.mark.parametrize("name", ["resnet", "gpt", "shufflenet", "lstm", "encoder", "unet"])
def test_the_least_cost_is_that_of_single_units(name: str) -> None:
    graph = graph_of(name)
    assert least_cost(graph, [Prune()]) == cost(smallest(graph))
    assert least_cost(graph, [Merge(), Split()]).parameters <= cost(graph).parameters
    assert least_cost(graph, [Split(), SqueezeExcite()]) == cost(graph)


@pytest.mark.parametrize("name", ["resnet", "resnet20", "encoder"])
def test_blocks_that_can_go_do(name: str) -> None:
    graph = graph_of(name)
    bare = apply_passes(graph, [RemoveBlock(site.label) for site in RemoveBlock().sites(graph)])
    assert least_cost(graph, [RemoveBlock(), Prune()]) == cost(smallest(bare))
    assert least_cost(graph, [Prune(), RemoveBlock()]).parameters < least_cost(graph, [Prune()]).parameters


def test_a_budget_below_the_least_is_refused() -> None:
    graph = graph_of("gpt")
    least = least_cost(graph, [Prune()])
    check_reachable(Budget(parameters=least.parameters), graph, [Prune()])
    check_reachable(Budget(parameters=graph.parameter_count), graph, [])
    with pytest.raises(GrowError, match=rf"at least {least.parameters} parameters.*\n.*prune"):
        check_reachable(Budget(parameters=least.parameters - 1), graph, [Prune()])
    with pytest.raises(GrowError, match=f"at least {graph.parameter_count} parameters"):
        check_reachable(Budget(parameters=graph.parameter_count - 1), graph, [])


def test_memory_of_training_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = trace(nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5)), (torch.randn(3, 10),))
    weights, activations = 4 * graph.parameter_count, 4 * (20 + 20 + 5)
    for options, slots in (
        (OptimiserOptions("sgd"), 1),
        (OptimiserOptions("sgd", momentum=0, nesterov=False), 0),
        (OptimiserOptions("adamw"), 2),
    ):
        assert training_memory(graph, 7, options) == (3 + slots) * weights + 7 * activations
        assert training_memory(graph, 7, options, "bfloat16") == (3 + slots) * weights + 7 * activations // 2
    needed = training_memory(graph, 7, OptimiserOptions())
    monkeypatch.setattr(feasibility, "free_on", lambda device: needed - 1)
    check_memory(graph, 7, OptimiserOptions(), "float16")
    with pytest.raises(GrowError, match="too little memory to train"):
        check_memory(graph, 7, OptimiserOptions())
    monkeypatch.setattr(feasibility, "free_on", lambda device: 1000)
    with pytest.raises(GrowError, match=r"about 7.* KiB, there are 1000 bytes"):
        check_memory(graph, 7, OptimiserOptions())


@pytest.mark.parametrize("name", ["vgg", "resnet", "gpt"])
def test_the_backward_pass_keeps_no_more_than_is_estimated(name: str) -> None:
    graph = graph_of(name)
    module = graph.module().train()
    shape = [s if isinstance(s, int) else 4 for s in graph.inputs[0].tensor_type().shape]
    inputs = torch.randn(shape) if name != "gpt" else torch.randint(50, shape)
    kept: dict[int, int] = {}
    tensors: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        tensors.append(tensor)
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(inputs)
    for own in (*module.parameters(), *module.buffers(), inputs):
        kept.pop(own.untyped_storage().data_ptr(), None)
    assert 0.4 * cost(graph, 4).bytes < sum(kept.values()) <= cost(graph, 4).bytes
