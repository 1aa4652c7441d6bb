"""Every free width of every model of the zoo is what it claims to be."""

from __future__ import annotations

import pytest

from archir.testing import check_widths
from tests.captured import graph_of
from tests.models import ZOO


@pytest.mark.parametrize("name", ZOO)
def test_every_free_width_is_what_it_claims_to_be(name: str) -> None:
    example = ZOO[name]
    verdicts = check_widths(graph_of(name), example.inputs(), example.kwargs())
    assert [problem for v in verdicts for problem in v.problems] == []
