"""What training begins with: the seed, or the seed expanded beyond the final budget if that can lead back into it."""

from __future__ import annotations

from collections.abc import Sequence

from archir.axes.infer import infer_widths
from archir.growing.batches import Batches
from archir.growing.birth import Birth
from archir.growing.checks import held_out
from archir.growing.examples import Split
from archir.growing.expansion import Expansion, uniform_sizes, widen_uniformly
from archir.growing.feasibility import check_memory, check_reachable
from archir.growing.learned import compare_with_fresh
from archir.growing.options import GrowOptions
from archir.growing.sharding import shards
from archir.ir.graph import Graph
from archir.rewrite.morphism import Morphism
from archir.rewrite.set_cost import cost_of
from archir.scoring.budget import Budget
from archir.scoring.families import find_families
from archir.scoring.losses import Loss
from archir.scoring.processes import ALONE, Processes


def expand(
    seed: Graph,
    *,
    validation: Split,
    examples: int | None,
    loss: Loss,
    budget: Budget,
    morphisms: Sequence[Morphism],
    options: GrowOptions,
    processes: Processes = ALONE,
) -> Expansion | None:
    """Return the seed widened beyond the final budget as the options say, None if it is to begin as it is.

    Widths that no kind of rewrite can make narrower again become as wide as they are in the network that is widened
    uniformly within the final budget.

    Args:
        seed: the seed.
        validation: examples its loss is compared on with that of fresh networks, if its birth is `auto`.
        examples: how many there are to train on, if that is known.
        loss: the loss.
        budget: the final budget.
        morphisms: the kinds of rewrite that have to lead to the budget.
        options: how it is grown.
        processes: those that will train it together, each of which has to hold its part of a batch.

    Raises:
        GrowError: there is too little memory to train what training begins with, or no set leads to the budget.
        ScoreError: outputs and targets do not fit the loss.
    """
    found = None
    if options.growth_steps and options.factor > 1 and (options.expansion is not None or _removes(seed, morphisms)):
        held, _ = held_out(validation, loss, options.score_examples, options.seed)
        few = Batches(held, options.batch_size, device=seed.device)
        birth: Birth = "split" if options.birth == "split" else "fresh"
        if options.birth == "auto":
            birth = compare_with_fresh(seed, few, loss, options.seed).birth
        stuck, uniform = _stuck(seed, morphisms), uniform_sizes(seed, budget, birth)
        fixed = {name: size for name, size in uniform.items() if name in stuck}
        more = budget.scaled(options.factor)
        found = widen_uniformly(seed, more, fixed=fixed, birth=birth, seed=options.seed)
        check_reachable(budget, found.graph, morphisms)
    largest = options.batch_size if examples is None else min(options.batch_size, examples)
    begun, part = seed if found is None else found.graph, -(-largest // processes.size)
    check_memory(begun, part, options.optimiser, options.precision, shards(options, processes))
    return found


def _stuck(seed: Graph, morphisms: Sequence[Morphism]) -> frozenset[str]:
    """Return the widths that no candidate which can be scored makes narrower, by name."""
    families, _ = find_families(seed, morphisms)
    shrunk = {f.site.label for f in families if cost_of(seed, f.site).frees}
    return frozenset(width.name for width in infer_widths(seed)) - shrunk


def _removes(seed: Graph, morphisms: Sequence[Morphism]) -> bool:
    """Say whether some kind of rewrite removes units or blocks of a network."""
    return any(cost_of(seed, site).frees for morphism in morphisms for site in morphism.sites(seed))
