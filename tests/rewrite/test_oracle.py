"""Every free width of every model of the zoo is what it claims to be."""

from __future__ import annotations

import pytest
import torch

from archir.testing import check_widths
from frontends.pytorch import trace
from tests.models import ZOO


@pytest.mark.parametrize("name", ZOO)
def test_every_free_width_is_what_it_claims_to_be(name: str) -> None:
    torch.manual_seed(0)
    example = ZOO[name]
    args, kwargs = example.inputs(), example.kwargs()
    verdicts = check_widths(trace(example.build(), args, kwargs), args, kwargs)
    assert [problem for v in verdicts for problem in v.problems] == []
