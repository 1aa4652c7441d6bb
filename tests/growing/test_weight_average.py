"""The moving average of the weights: what it is, and that it goes with them through every rewriting; in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from archir.axes.infer import infer_widths
from archir.errors import GrowError, PassError
from archir.growing.batches import Augmentation, Batches, stream
from archir.growing.examples import Examples
from archir.growing.optimisers import OptimiserOptions
from archir.growing.options import GrowOptions
from archir.growing.recalibration import recalibrate
from archir.growing.run import Event
from archir.growing.trainer import Trainer
from archir.growing.training import evaluate
from archir.growing.weight_average import carry_average, follow, weights_of
from archir.ir.graph import Graph
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.pipeline import Rewrites, rewrite_together
from archir.rewrite.theta import Theta
from archir.scoring.losses import LOSSES
from archir.testing import outputs, randomise, relative_difference
from frontends.pytorch import trace
from passes.merge import Merge
from passes.prune import Prune
from passes.split import Split
from passes.widen import Widen
from tests.growing.small_run import OPTIONS, data, grow
from tests.models.captured import graph_of, randomised
from tests.morphisms.every import PLACES, SPLICES

DECAY, STEPS = 0.7, 3


def _history(graph: Graph) -> list[Graph]:
    """Return what some steps of training might have made of a graph; the last is the graph itself."""
    made = []
    for step in range(STEPS - 1):
        generator = torch.Generator().manual_seed(step)
        made.append(
            graph.with_tensors(
                {
                    n.names[0]: t + 0.1 * torch.randn(t.shape, generator=generator, dtype=t.dtype)
                    for n in graph.parameters
                    if n.parameter is not None and n.parameter.trainable
                    for t in [graph.tensors[n.id]]
                }
            )
        )
    return [*made, graph]


def _average(history: Sequence[Graph]) -> dict[str, Tensor]:
    average = weights_of(history[0].module())
    for step, graph in enumerate(history[1:]):
        follow(average, graph.module(), step, DECAY)
    return average


def _check(graph: Graph, members: Rewrites, *, keeps_all: bool = False) -> int:
    """Compare the average that is carried over with that of a network that was rewritten from the first step.

    Args:
        graph: the graph.
        members: the rewrites.
        keeps_all: whether nothing is new.

    Returns:
        The number of weights that have new places, which begin as they are.
    """
    history = _history(graph)
    rewriting = rewrite_together(graph, members)
    carried = carry_average(_average(history), rewriting, weights_of(rewriting.after.module()))
    expected = _average([rewrite_together(g, members).after for g in history])
    new, partly = {n.id for n in rewriting.added}, 0
    assert carried.keys() == expected.keys()
    for name, tensor in carried.items():
        node = rewriting.after.by_name[name].id
        now, by = rewriting.after.tensors[node], rewriting.maps.get(node)
        if node in new:
            assert torch.equal(tensor, now), name
            continue
        if by is not None and bool((fresh := by.fresh(graph.tensors[node])).any()):
            assert torch.equal(tensor[fresh], now[fresh]), name
            tensor, expected[name], partly = tensor[~fresh], expected[name][~fresh], partly + 1
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-14, msg=name)
    assert not (keeps_all and (new or partly))
    return partly


MODELS = ["mlp", "resnet", "densenet", "gpt_tied", "grouped_query_attention", "lstm", "shufflenet"]


def _done(graph: Graph, members: Rewrites, **rest: Any) -> int:
    """Say whether a rewriting applies, and check it."""
    try:
        _check(graph, members, **rest)
    except PassError as error:
        assert error.why
        return 0
    return 1


@pytest.mark.parametrize("name", MODELS)
def test_the_average_of_copies_is_what_it_would_be_had_they_been_there(name: str) -> None:
    graph = randomise(graph_of(name).to(torch.float64))
    assert sum(
        _done(graph, [(morphism, None)], keeps_all=True)
        for width in infer_widths(graph)
        for morphism in (Split(width.name, (1,)), Split(width.name), Prune(width.name, (0,)))
    )


@pytest.mark.parametrize("name", ["mlp", "resnet", "lstm"])
def test_what_is_learned_of_the_weights_is_added_to_their_average(name: str) -> None:
    graph, done = randomise(graph_of(name).to(torch.float64)), 0
    for site in Split().sites(graph):
        perturbation = Split().perturbation(graph, site)
        if isinstance(perturbation, Miss):
            continue
        theta: Theta = {i: torch.randn_like(t) for i, t in perturbation.theta.items()}
        done += _done(graph, [(site.members[1], theta)], keeps_all=True)
    assert done


@pytest.mark.parametrize("name", ["mlp", "resnet", "lstm"])
def test_the_average_goes_through_merging_and_back(name: str) -> None:
    graph = randomise(graph_of(name).to(torch.float64))
    width = next(iter(infer_widths(graph)))
    split = Split(width.name, (1,)).apply(graph)
    _check(split, [(Merge(width.name, (1, width.size)), None)], keeps_all=True)
    average, members = _average(_history(graph)), (Split(width.name, (1,)), Merge(width.name, (1, width.size)))
    there = rewrite_together(graph, [(members[0], None)])
    back = rewrite_together(there.after, [(members[1], None)])
    grown = carry_average(average, there, weights_of(there.after.module()))
    torch.testing.assert_close(
        carry_average(grown, back, weights_of(back.after.module())), average, rtol=1e-12, atol=1e-14
    )


SAME = [m for m in SPLICES if m.preserves == "the function"]


@pytest.mark.parametrize("morphism", SAME, ids=lambda m: m.name)
def test_the_averaged_network_computes_the_same_after_splices(morphism: Morphism) -> None:
    """New layers begin as they are, which keeps the function of the averaged network as it keeps that of the other."""
    for name in PLACES[morphism.name][:2]:
        graph, inputs = randomised(name)
        average = _average(_history(graph))
        for site in list(morphism.sites(graph))[:2]:
            rewriting = rewrite_together(graph, [(site.members[0], None)])
            grown = carry_average(average, rewriting, weights_of(rewriting.after.module()))
            before, after = graph.with_tensors(average), rewriting.after.with_tensors(grown)
            assert relative_difference(outputs(after, inputs), outputs(before, inputs)) < 1e-9


@pytest.mark.parametrize("name", ["resnet", "gpt_tied", "mobilenet"])
def test_splices_fresh_units_and_copies_together(name: str) -> None:
    graph, inputs = randomised(name)
    average = _average(_history(graph))
    splices = [next(iter(m.sites(graph))).members[0] for m in SAME if name in PLACES[m.name]]
    widths = [next(iter(Split().sites(graph))).members[0], Widen(next(iter(Widen().sites(graph))).label, 2)]
    done = 0
    for splice in splices:
        try:
            rewriting = rewrite_together(graph, [(m, None) for m in (splice, *widths)])
        except PassError:
            continue
        grown = carry_average(average, rewriting, weights_of(rewriting.after.module()))
        before, after = graph.with_tensors(average), rewriting.after.with_tensors(grown)
        assert relative_difference(outputs(after, inputs), outputs(before, inputs)) < 1e-9
        done += 1
    assert done > 3


def test_fresh_units_begin_as_they_are() -> None:
    graph = randomise(graph_of("resnet").to(torch.float64))
    label = next(iter(Widen().sites(graph))).label
    rewriting = rewrite_together(graph, [(Widen(label, 2), None)])
    carried = carry_average(_average(_history(graph)), rewriting, weights_of(rewriting.after.module()))
    found = 0
    for node, by in rewriting.maps.items():
        name = rewriting.after.node(node).parameter.names[0]  # type: ignore[union-attr]
        if by is not None and name in carried:
            fresh = by.fresh(graph.tensors[node])
            assert torch.equal(carried[name][fresh], rewriting.after.tensors[node][fresh])
            found += int(fresh.sum())
    assert found


class Net(nn.Module):
    """A small network with a normalisation and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)).relu())  # type: ignore[no-any-return]


EXAMPLES = Examples(
    torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(40) % 4
)
LOSS = LOSSES["cross_entropy"]


def _options(**changes: Any) -> GrowOptions:
    return GrowOptions(
        **{"steps": 20, "ema": 0.25, "batch_size": 10, "optimiser": OptimiserOptions("sgd", 0.1), **changes}
    )


def _net() -> Graph:
    torch.manual_seed(0)
    return trace(Net().double(), torch.ones(3, 4, dtype=torch.float64))


def _trained(options: GrowOptions) -> Trainer:
    trainer = Trainer(_net(), options)
    trainer.train(islice(stream(Batches(EXAMPLES, options.batch_size, options.seed)), 20), LOSS)
    return trainer


def test_the_average_is_that_of_the_weights_after_each_step() -> None:
    """It reaches back over a quarter of 20 steps, and less at the beginning."""
    options = _options()
    assert options.average_decay == 1 - 1 / 5
    trainer = _trained(options)
    twin = Trainer(_net(), options)
    expected = weights_of(twin.module)
    batches = stream(Batches(EXAMPLES, options.batch_size, options.seed))
    for step in range(20):
        twin.train([next(batches)], LOSS, first_step=step)
        kept = min(0.8, (1 + step) / (10 + step))
        expected = {n: kept * t + (1 - kept) * twin.module.get_parameter(n).detach() for n, t in expected.items()}
    averaged = trainer.averaged(EXAMPLES).module
    for name, tensor in expected.items():
        torch.testing.assert_close(averaged.get_parameter(name).detach(), tensor, rtol=1e-12, atol=1e-14)
    assert not torch.equal(trainer.module.get_parameter("first.weight"), expected["first.weight"])


def test_the_averaged_network_has_batch_statistics_of_its_own() -> None:
    trainer = _trained(options := _options())
    averaged = trainer.averaged(EXAMPLES)
    twin = averaged.graph().module()
    recalibrate(twin, islice(stream(Batches(EXAMPLES, 10, options.seed)), options.recalibrate_batches))
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(averaged.module.get_buffer(name), buffer, rtol=1e-12, atol=1e-14)
    again = averaged.averaged(EXAMPLES)
    assert all(torch.equal(t, again.module.state_dict()[n]) for n, t in averaged.module.state_dict().items())


def test_nothing_is_averaged_unless_asked_for() -> None:
    trainer = _trained(_options(ema=0.0))
    assert trainer.averaged(EXAMPLES) is trainer
    assert not any(key.startswith("ema/") for key in trainer.state())


def test_an_average_over_less_than_a_step_is_the_weights() -> None:
    trainer = _trained(_options(ema=0.01))
    averaged = trainer.averaged(EXAMPLES).module
    assert all(torch.equal(p, averaged.get_parameter(n)) for n, p in trainer.module.named_parameters())


def test_averages_that_do_not_fit_are_refused() -> None:
    trainer = _trained(_options())
    graph, state = trainer.graph(), trainer.state()
    key = "ema/first.weight"
    assert torch.equal(Trainer(graph, _options(), state).state()[key], state[key])
    for change, message in (
        ({"ema/first.weigth": state[key]}, r"'ema/first\.weigth' belongs to no parameter\n  hint:  did you mean"),
        ({key: torch.zeros(4, 3, dtype=torch.float64)}, r"is \[4, 3\], not \[4, 4\]"),
        ({key: state[key].float()}, "not of finite numbers of type torch.float64"),
        ({key: state[key] * math.nan}, "not of finite numbers"),
    ):
        with pytest.raises(GrowError, match=message):
            Trainer(graph, _options(), {**state, **change})
    with pytest.raises(GrowError, match=r"the averages of first\.bias are missing"):
        Trainer(graph, _options(), {k: t for k, t in state.items() if k != "ema/first.bias"})
    with pytest.raises(GrowError, match=r"optimiser state of 'first\.weight' lacks"):
        Trainer(graph, _options(ema=0.0), {key: state[key]})


RECIPE = replace(
    OPTIONS,
    ema=0.1,
    schedule="held",
    warmup=3,
    label_smoothing=0.1,
    augmentation=Augmentation(flip=True, crop=1, cutout=2, mixup=0.3),
    evaluate_every=10,
)


def test_a_run_with_every_part_of_the_recipe_goes_on_as_it_would_have(seed_graph: Graph, tmp_path: Path) -> None:
    whole = grow(seed_graph, directory=tmp_path / "whole", options=RECIPE)
    assert any(e["event"] == "grown" for e in whole.history)
    assert evaluate(whole.model, data(200, 2), LOSS).loss == pytest.approx(whole.history[-1]["loss"], rel=1e-5)

    class PowerCut(Exception):
        pass

    def cut(event: Event) -> None:
        if event["event"] == "train" and event["step"] > 40:
            raise PowerCut

    with pytest.raises(PowerCut):
        grow(seed_graph, directory=tmp_path / "cut", on_event=cut, options=RECIPE)
    for _ in range(2):
        resumed = grow(seed_graph, directory=tmp_path / "cut", resume=True, options=RECIPE)
        assert str(resumed.graph) == str(whole.graph)
        for name, node in whole.graph.by_name.items():
            assert torch.equal(whole.graph.tensors[node.id], resumed.graph.tensor(name)), name
        assert resumed.history[-1]["loss"] == whole.history[-1]["loss"]
