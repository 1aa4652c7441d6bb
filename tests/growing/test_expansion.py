from __future__ import annotations

import pytest
import torch

from archir.cost import cost
from archir.errors import GrowError
from archir.growing.birth import Birth
from archir.growing.examples import Examples
from archir.growing.expansion import widen_uniformly
from archir.growing.options import GrowOptions
from archir.growing.start import expand
from archir.ir.graph import Graph
from archir.rewrite.set_cost import cost_of_sizes
from archir.scoring.budget import Budget
from archir.scoring.losses import find_loss
from archir.testing import outputs
from frontends.pytorch import trace
from passes.prune import Prune
from tests.growing.small_run import Seed
from tests.models.captured import graph_of, randomised
from tests.models.zoo import ZOO


def test_a_network_gets_as_large_as_it_may_be(seed_graph: Graph) -> None:
    for limit in (seed_graph.parameter_count, 1000, 4000):
        wide = widen_uniformly(seed_graph, Budget(parameters=limit))
        assert 0.95 * limit < wide.graph.parameter_count <= limit or wide.graph is seed_graph
        assert wide.reach == wide.graph.parameter_count / limit


@pytest.mark.parametrize("birth", ["fresh", "split"])
@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_limit_is_kept_and_cost_is_read_off_sizes(name: str, birth: Birth) -> None:
    graph, inputs = randomised(name)
    old = cost(graph)
    for budget in (
        Budget(parameters=2 * old.parameters),
        Budget(flops=2 * old.flops, peak_bytes=3 * old.peak_bytes),
        Budget(parameters=3 * old.parameters, peak_bytes=2 * old.peak_bytes),
    ):
        wide = widen_uniformly(graph, budget, birth=birth)
        assert budget.allows(wide.cost) and wide.cost == cost(wide.graph) == cost_of_sizes(graph, wide.sizes)
        then = outputs(wide.graph, inputs)
    if birth == "split":
        for a, b in zip(outputs(graph, inputs), then, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * float(a.abs().max()))


def test_heads_get_more_and_not_larger() -> None:
    graph = graph_of("gpt")
    wide = widen_uniformly(graph, Budget(parameters=4 * graph.parameter_count))
    assert set(wide.sizes) == {"w0", "w1", "w4"} and set(wide.held) == {"w2", "w3"}
    qkv = wide.graph.tensor("qkv.weight")
    assert qkv.shape == (3 * 8 * wide.sizes["w1"], wide.sizes["w0"])
    assert 0.8 < wide.sizes["w1"] * 8 / wide.sizes["w0"] <= 1.01


def test_widths_that_no_candidate_makes_narrower_are_not_expanded_beyond_the_budget() -> None:
    """No prune of a width under a layer norm is scored: such a width would stay as wide as it was made."""
    graph = graph_of("gpt")
    most = 4 * graph.parameter_count
    limits, codes = Budget(parameters=most), torch.arange(8 * 17).reshape(8, 17) % 50
    uniform = widen_uniformly(graph, limits)
    wide = expand(
        graph,
        validation=Examples(codes[:, :-1], codes[:, 1:]),
        examples=400,
        loss=find_loss("cross_entropy"),
        budget=limits,
        morphisms=(Prune(),),
        options=GrowOptions(expansion=3.0, birth="fresh"),
    )
    assert wide is not None
    assert wide.sizes["w0"] == uniform.sizes["w0"] and 0.95 < wide.cost.parameters / (3 * most) <= 1
    assert all(wide.sizes[name] > 1.5 * uniform.sizes[name] for name in ("w1", "w4"))


def test_copies_of_a_width_under_layer_norm_come_in_whole_multiples() -> None:
    graph = graph_of("gpt")
    wide = widen_uniformly(graph, Budget(parameters=2 * graph.parameter_count), birth="split")
    assert "w0" not in wide.sizes and "w0" in wide.held
    assert "w0: one more unit is too many" in str(wide) and "2-fold" in str(wide)
    wide = widen_uniformly(graph, Budget(parameters=4 * graph.parameter_count), birth="split")
    assert wide.sizes["w0"] == 64


def test_what_a_network_cannot_use_is_said() -> None:
    wide = widen_uniformly(graph_of("nested"), Budget(parameters=10_000))
    assert wide.factor == 1 and not wide.sizes and wide.reach < 0.01
    assert wide.graph is graph_of("nested")


def test_impossible_budgets_are_refused(seed_graph: Graph) -> None:
    with pytest.raises(GrowError, match=r"more than 10; .* flops, more than 11"):
        widen_uniformly(seed_graph, Budget(parameters=10, flops=11))
    with pytest.raises(GrowError, match="without a limit"):
        widen_uniformly(seed_graph, Budget(latency=1.0))


def test_all_widths_grow_alike() -> None:
    graph = trace(Seed(4), (torch.randn(4, 1, 6, 6),))
    wide = widen_uniformly(graph, Budget(parameters=4 * graph.parameter_count))
    stem, inner = (wide.graph.tensor(f"{name}.0.weight").shape[0] for name in ("stem", "inner"))
    assert stem - 1 <= 4 * wide.factor <= stem + 1 and inner - 1 <= 8 * wide.factor <= inner + 1
    assert wide.graph.history == (f"widen-uniformly{{factor={wide.factor:.4g}, birth=fresh}}",)
