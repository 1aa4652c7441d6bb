"""Every model of the wide zoo has the recorded free widths, and each of them is what it claims to be.

Where an axis rule changes what is free, `python -m tools.record_widths` writes the record anew; its difference tells
what has become free, and what has frozen.
"""

from __future__ import annotations

import pytest

from archir.axes.infer import infer_widths
from archir.errors import CaptureError
from archir.testing import check_widths
from frontends.pytorch import trace
from tests.models.wide.catalog import UNCAPTURABLE, WIDE_ZOO
from tests.models.wide.recorded import EXPECTED, capture, listing, path_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", WIDE_ZOO)
def test_widths_are_the_recorded_ones_and_hold(name: str) -> None:
    graph, example = capture(name), WIDE_ZOO[name]
    assert listing(infer_widths(graph)) == path_of(name).read_text()
    verdicts = check_widths(graph, example.inputs(), example.kwargs(), units=1)
    assert [problem for verdict in verdicts for problem in verdict.problems] == []


@pytest.mark.parametrize("name", UNCAPTURABLE)
def test_models_that_cannot_be_captured_say_why(name: str) -> None:
    example = UNCAPTURABLE[name]
    with pytest.raises(CaptureError, match="its control flow depends on data") as caught:
        trace(example.build(), example.inputs(), example.kwargs())
    assert "if length <= max_pad" in caught.value.where


def test_nothing_else_is_recorded() -> None:
    assert sorted(EXPECTED.glob("*")) == sorted(map(path_of, WIDE_ZOO))
