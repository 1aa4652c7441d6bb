"""Every free width of every model of the zoo is what it claims to be."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from archir.axes.infer import infer_widths
from archir.testing import check_widths
from tests.models.captured import graph_of
from tests.models.zoo import FROZEN, ZOO

UNEQUAL = ["split", "tripled"]
"""What statistics over a width do not allow: units that are repeated more often than others."""

REPEATED = ["split", "tripled", "doubled"]
WIDENED = ["widened"]
"""Where fresh units cannot keep statistics either."""

REFUSED: Mapping[str, Mapping[str, list[str]]] = {
    "vit": {"w0": UNEQUAL, "w2": REPEATED},
    "swin": {"w0": UNEQUAL + WIDENED},
    "weight_standardisation": {"w1": UNEQUAL + WIDENED, "w2": UNEQUAL + WIDENED},
    "gpt": {"w0": UNEQUAL},
    "gpt_tied": {"w0": REPEATED + WIDENED},
    "grouped_query_attention": {"w0": UNEQUAL},
    "encoder": {"w1": REPEATED, "w4": REPEATED},
}
"""For each model, the widths that do not take every change, and what they refuse; a reason is given for each."""


@pytest.mark.parametrize("name", sorted(ZOO.keys() - FROZEN))
def test_every_free_width_is_what_it_claims_to_be(name: str) -> None:
    example = ZOO[name]
    verdicts = check_widths(graph_of(name), example.inputs(), example.kwargs())
    assert len(verdicts) == len(infer_widths(graph_of(name))) > 0
    assert [problem for v in verdicts for problem in v.problems] == []
    refused = {v.width.name: [change for change, outcome in v.outcomes.items() if outcome.reason] for v in verdicts}
    assert {width: changes for width, changes in refused.items() if changes} == REFUSED.get(name, {})
