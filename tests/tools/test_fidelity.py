"""The fidelity benchmark: its figures on records whose figures are known, and a small measurement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from archir.growing.examples import Examples
from passes.prune import Prune
from passes.residual_branch import ResidualBranch
from passes.split import Split
from tools.fidelity.figures import figures, regret
from tools.fidelity.measure import Plan, measure
from tools.fidelity.pages import write_pages
from tools.fidelity.records import Committed, Moment, Ruled, Single, Together, from_json, to_json
from tools.fidelity.subjects import STAGES, Subject

MARKS = ("bars", "singles", "morphisms", "sets", "random", "committed", "rules")


def moment(subject: str, sign: float = 1.0, realised: float = -0.09) -> Moment:
    """Return a moment in which everything true is twice what is predicted, times a sign."""
    changes = [-0.4, -0.3, -0.2, -0.1, 0.1]
    singles = [Single("split", f"s{c}", c, 0.01, 2 * sign * c, 2 * c) for c in changes]
    unclear = Single("prune", "p", -0.01, 1.0, 5.0, 5.0)
    sets = [Together("random", "alone", 2, -c, c, c, 2 * sign * c, 2 * c) for c in changes]
    sets += [Together("random", "together", 2, c, c, c, c, c) for c in changes]
    chosen = Together("joint", "alone", 3, -0.5, -0.3, -0.3, -0.6 * sign, -0.6)
    rules = (Ruled("joint", 3, -0.1, -0.2), Ruled("random", 3, 0.1, 0.2))
    committed = Committed(2, 4, -0.2, -0.18, -0.1, realised, 0.01)
    return Moment(subject, "made up", 0, "early", 1.0, 6, (*singles, unclear), (*sets, chosen), rules, committed)


def test_figures_of_what_is_known() -> None:
    found = figures([moment("images"), moment("text")])
    singles, sets = found["images"]["singles"], found["images"]["sets"]["alone"]
    assert singles["spearman_in_sample"] == pytest.approx({"mean": 1, "min": 1, "max": 1})
    assert singles["by_morphism"]["split"]["slope_in_sample"] == pytest.approx(2)
    assert singles["by_morphism"]["prune"]["spearman_in_sample"] is None
    assert singles["clear"] == 5
    assert singles["sign_errors_held_out"] == 0
    assert singles["top_1_regret_in_sample"]["mean"] == 0
    assert sets["joint"]["correlation_in_sample"]["mean"] == pytest.approx(1)
    assert sets["joint"]["pooled_correlation_in_sample"] == pytest.approx(1)
    assert sets["joint"]["rank_correlation_in_sample"]["mean"] == pytest.approx(1)
    assert sets["additive"]["correlation_in_sample"]["mean"] < 0
    assert sets["joint"]["mean_absolute_error"] == pytest.approx((0.4 + 0.3 + 0.2 + 0.1 + 0.1 + 0.3) / 6)
    assert sets["joint"]["chosen"] == {"size": 3, "predicted": -0.3, "in_sample": -0.6, "held_out": -0.6}
    assert sets["additive"]["chosen"] == {}
    together = found["images"]["sets"]["together"]
    assert together["number"] == 5
    assert together["additive"]["correlation_in_sample"]["mean"] == pytest.approx(1)
    assert together["random"]["in_sample"] == pytest.approx({"mean": -0.18, "min": -0.4, "max": 0.1})
    assert found["text"]["rules"]["random"]["held_out"]["mean"] == 0.2
    assert found["text"]["committed"]["realised_over_expected"] == pytest.approx(0.9)
    assert found["text"]["committed"]["in_sample_over_predicted"] == pytest.approx(0.9)
    assert found["text"]["committed"]["raised_the_loss_never_seen"] == 1


def test_bars_stand_beside_what_was_found_on_each_network() -> None:
    bars = figures([moment("images"), moment("text", sign=-1.0, realised=0.01)])["bars"]
    assert bars["spearman_in_sample"] == pytest.approx({"bar": 0.95, "images": 1, "text": -1})
    assert bars["correlation_of_sets_learned_alone"] == pytest.approx({"bar": 0.95, "images": 1, "text": -1})
    assert bars["correlation_of_sets_learned_together"] == pytest.approx({"bar": 0.95, "images": 1, "text": 1})
    assert bars["realised_over_expected"] == pytest.approx({"bar": 0.8, "images": 0.9, "text": -0.1})
    assert bars["committed_sets_that_raise_the_loss_checked_on"] == {"bar": 0, "images": 0, "text": 1}


def test_regret_is_against_the_best() -> None:
    assert regret(moment("images", sign=-1.0), "in_sample") == pytest.approx(0.8 + 0.2)


def test_tables_and_plots_are_put_in_the_page(tmp_path: Path) -> None:
    page = tmp_path / "scoring.md"
    page.write_text("".join(f"<!-- {m}-table -->\nold\n<!-- /{m}-table -->\n" for m in MARKS))
    write_pages([moment("images"), moment("text")], tmp_path)
    text = page.read_text()
    assert "old" not in text
    assert "| split | 5 | 1.00 | 1.00 | 2.00 | 5 | 1.00 | 1.00 | 2.00 |" in text
    assert "| random | 3.0 | +0.1000 | +0.2000 | +0.2000 | 3.0 | +0.1000 | +0.2000 | +0.2000 |" in text
    assert (tmp_path / "scoring.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_small_measurement() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(600, 6)
    targets = (inputs @ torch.randn(6, 3)).argmax(1)
    data = Examples(inputs, targets, "made up")
    held = [data.take(slice(i, i + 100)) for i in (300, 400, 500)]

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    subject = Subject("rows", "made up", build, data.take(slice(300)), (held[0], held[1], held[2]), 50, 60, 0.01)
    kinds = (Split(), Prune(), ResidualBranch())
    plan = Plan(kinds, composites=2, steps=5, singles=4, refine=8, sizes=(2, 3), draws=2, learned=1, together=3)
    moments = list(measure(subject, 0, plan))
    assert [m.stage for m in moments] == list(STAGES)
    assert from_json(json.loads(json.dumps(to_json(moments)))) == moments
    for m in moments:
        assert {s.morphism for s in m.singles} >= {"split", "prune", "residual-branch"}
        assert any(s.in_sample != s.held_out for s in m.singles)
        assert {(s.chosen, s.learned) for s in m.sets} >= {("random", "alone"), ("random", "together")}
        assert {r.rule for r in m.rules} >= {"linearised", "random", "magnitude"}
        assert m.committed.realised < 0 or not m.committed.size
    small = [s for m in moments for s in m.singles if s.morphism == "split"]
    assert all(abs(s.predicted - s.in_sample) < 0.2 * abs(s.in_sample) + 1e-4 for s in small)
    assert any(s.morphism == "compose" for m in moments for s in m.singles)
    assert set(figures(moments)) == {"bars", "moments", "rows"}
