"""Sizes of models that grew in place, as plain data, and fresh models brought to them; parts of what is trained."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

import archir
from archir.errors import GrowError
from archir.growing.in_place import check_widths_only, kinds_in_place
from archir.growing.stages import Stage, bring_to, from_data, next_stage, sizes_of, to_data
from archir.kinds import morphisms


class Fused(nn.Module):
    """A model that takes its hidden values apart at places written into its code, and has a width that is free."""

    def __init__(self) -> None:
        super().__init__()
        self.fused, self.inner, self.outer = nn.Linear(6, 8), nn.Linear(4, 5), nn.Linear(5, 3)
        self.sizes = (5, 7)
        self.head = nn.Linear(5, 3)
        self.head.weight = self.outer.weight

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.fused(x).split(4, 1)
        hidden = self.inner(one * other.sigmoid()).tanh()
        found: Tensor = self.outer(hidden) + self.head(hidden)
        return found


def test_only_widths_that_the_code_lets_change_are_tried() -> None:
    model = Fused()
    graph = archir.trace(model, (torch.randn(3, 6),))
    before, weights = sizes_of(model), {n: t.clone() for n, t in model.state_dict().items()}
    kinds = kinds_in_place(model, graph, check_widths_only(morphisms("split; prune")))
    every = {site.label for kind in morphisms("split; prune") for site in kind.sites(graph)}
    (name,) = {site.label for kind in kinds for site in kind.sites(graph)}
    assert len(every) > 1 and archir.widths(graph)[name].size == 5
    assert sizes_of(model) == before and all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())
    batches = [(torch.randn(40, 6), torch.randint(0, 3, (40,))) for _ in range(4)]
    options = archir.GrowOptions(learn_steps=2, score_examples=20, batch_size=20, refine=4, rule="net2net")
    plan = archir.propose(graph, batches, budget=120, morphisms=kinds, options=options)
    assert plan.specs and all(f"width={name}" in spec for spec in plan.specs)
    plan.put_into(model)
    assert model.head.weight is model.outer.weight and model.inner.out_features > 5


def test_a_model_is_brought_to_any_stage_and_back() -> None:
    model, made = Fused(), sizes_of(Fused())
    stages: tuple[Stage, ...] = ()
    for step, width in ((4, 7), (9, 6)):
        before = sizes_of(model)
        model.inner = nn.Linear(4, width)
        model.outer = nn.Linear(width, 3)
        model.head = nn.Linear(width, 3)
        model.head.weight = model.outer.weight
        model.sizes = (width, 7)
        reached = Stage(step=step, shapes={}, attributes={}, specs=("split{width=w1}",), expected=-0.1, realised=-0.2)
        stages = next_stage(stages, before, sizes_of(model), reached)
    assert [stage.step for stage in stages] == [0, 4, 9]
    assert stages[1].attributes == {
        "inner.out_features": 7,
        "outer.in_features": 7,
        "head.in_features": 7,
        "sizes": (7, 7),
    }
    assert stages[1].shapes.keys() == {"inner.weight", "inner.bias", "outer.weight", "head.weight"}
    again = from_data(json.loads(json.dumps(to_data(stages))))
    assert again == stages
    fresh = Fused()
    fresh.inner.weight.requires_grad_(False)
    bias = fresh.outer.bias
    for stage in (again[2], again[1], again[2]):
        bring_to(fresh, stage)
        assert fresh.inner.weight.shape == (stage.attributes["inner.out_features"], 4)
        assert not fresh.inner.weight.requires_grad and fresh.head.weight is fresh.outer.weight
        assert fresh.outer.bias is bias and fresh.outer.weight.requires_grad
        assert fresh(torch.randn(2, 6)).shape == (2, 3)
    fresh.load_state_dict(model.state_dict())
    assert sizes_of(fresh) == sizes_of(model)
    bring_to(fresh, again[0])
    assert sizes_of(fresh) == made


def test_a_stage_speaks_of_what_others_have_changed() -> None:
    before = sizes_of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5)))
    between = sizes_of(nn.Sequential(nn.Linear(2, 6), nn.Linear(6, 4), nn.Linear(4, 5)))
    after = sizes_of(nn.Sequential(nn.Linear(2, 6), nn.Linear(6, 7), nn.Linear(7, 5)))
    one = next_stage((), before, between, Stage(step=1, shapes={}, attributes={}))
    two = next_stage(one, between, after, Stage(step=2, shapes={}, attributes={}))
    assert {stage.attributes["1.out_features"] for stage in two[:2]} == {4} and two[2].attributes["1.out_features"] == 7
    assert len({frozenset(stage.shapes) for stage in two}) == 1
    assert one[1].over(two[0]).shapes == two[1].shapes


STAGE: dict[str, Any] = {"step": 3, "shapes": {"inner.weight": [7, 4]}, "attributes": {"inner.out_features": 7}}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"shapes": {"gone.weight": [7, 4]}}, "gone.weight is not in it"),
        ({"shapes": {"inner.weight": [7, 4, 1]}}, r"inner.weight is \[5, 4\], and was \[7, 4, 1\]"),
        ({"shapes": {"inner.weight": [2**40, 4]}}, "it would take"),
        ({"attributes": {"inner.forward": 7}}, "inner.forward is None, and was 7"),
        ({"attributes": {"training": 7}}, "training is True, and was 7"),
        ({"attributes": {"sizes": 7}}, r"sizes is \(5, 7\), and was 7"),
        ({"attributes": {"gone.sizes": 7}}, "gone.sizes is None, and was 7"),
    ],
)
def test_a_record_of_another_model_is_refused_and_nothing_has_changed(change: dict[str, Any], why: str) -> None:
    model = Fused()
    before, own = sizes_of(model), [*model.parameters()]
    with pytest.raises(GrowError, match=why):
        bring_to(model, from_data([STAGE | change])[0])
    assert sizes_of(model) == before and all(one is other for one, other in zip(own, model.parameters(), strict=True))


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        [3],
        [{"step": 3}],
        [STAGE | {"more": 1}],
        [STAGE | {"step": -1}],
        [STAGE | {"shapes": {"inner.weight": [-1, 4]}}],
        [STAGE | {"shapes": {"inner.weight": "7"}}],
        [STAGE | {"attributes": {"inner.out_features": "7"}}],
        [STAGE | {"attributes": {"inner.out_features": True}}],
    ],
)
def test_what_is_no_record_is_refused(data: object) -> None:
    with pytest.raises(GrowError, match="this is no record of"):
        from_data(data)


def test_several_optimisers_and_parameters_of_others_go_on() -> None:
    torch.manual_seed(0)
    inner, outer, beside = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(3, 3)
    part = nn.Sequential(inner, nn.Tanh(), outer)
    first = optim.Adam([*beside.parameters(), inner.weight], 0.01)
    second = optim.SGD([outer.weight, outer.bias, inner.bias], 0.01, momentum=0.9)
    x, y = torch.randn(80, 6), torch.randint(0, 3, (80,))

    def step() -> None:
        for one in (first, second):
            one.zero_grad()
        torch.autograd.backward(F.cross_entropy(beside(part(x)), y))
        for one in (first, second):
            one.step()

    step()
    options = archir.GrowOptions(learn_steps=2, score_examples=20, batch_size=20, refine=4, rule="net2net")
    plan = archir.propose(part, [(x, y)], budget=90, options=options)
    twin, _ = plan.apply(part)
    kept = {p: {k: v.clone() for k, v in first.state[p].items()} for p in beside.parameters()}
    plan.put_into(part, [first, second])
    assert plan.specs and len(inner.weight) > 5
    assert [*first.param_groups[0]["params"]] == [*beside.parameters(), inner.weight]
    assert [*second.param_groups[0]["params"]] == [outer.weight, outer.bias, inner.bias]
    assert all(torch.equal(first.state[p][k], v) for p, state in kept.items() for k, v in state.items())
    assert second.state[inner.bias]["momentum_buffer"].shape == inner.bias.shape
    torch.testing.assert_close(part(x), twin(x))
    step()
    assert {int(state["step"]) for state in first.state.values()} == {2}
