"""Which candidates of one graph go together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from archir.errors import PassError
from archir.rewrite.pipeline import rewrite_together
from archir.score.families import compatible, find_families
from frontends.pytorch import trace
from passes.deepen import Deepen
from passes.enlarge_kernel import EnlargeKernel


def test_a_layer_does_not_go_with_a_change_of_the_kernel_it_is_modelled_on() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    graph = trace(net, (torch.randn(2, 1, 8, 8),))
    families, _ = find_families(graph, (EnlargeKernel(), Deepen()))
    enlarge = [f for f in families if isinstance(f.morphism, EnlargeKernel)]
    deepen = [f for f in families if isinstance(f.morphism, Deepen)]
    modelled = [(e, d) for e in enlarge for d in deepen if not e.claims & d.claims]
    assert modelled
    refused = 0
    for pair in modelled:
        members = [f.site.members[0] for f in pair]
        rewrites = [(m, f.perturbation.theta) for f, m in zip(pair, members, strict=True)]
        if compatible(graph, pair, members):
            rewrite_together(graph, rewrites)
            continue
        refused += 1
        with pytest.raises(PassError, match=r"does not fit(.|\n)*\[4, 4, 3, 3\] was learned, \[4, 4, 5, 5\] is there"):
            rewrite_together(graph, rewrites)
    assert refused
