"""Which candidates of one graph go together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from archir.axes.infer import infer_widths
from archir.cost import Cost
from archir.errors import PassError
from archir.ir.graph import Graph, Patch
from archir.ir.patch import no_patch
from archir.rewrite.derived import with_theta
from archir.rewrite.morphism import WidthMorphism
from archir.rewrite.pipeline import check_whole, merged_changes
from archir.rewrite.reference import Later
from archir.rewrite.reindex import plan_reindexing
from archir.rewrite.set_cost import cost_after
from archir.scoring.families import Candidate


@dataclass(frozen=True)
class Combination:
    """Candidates of one graph that can be applied together, and what tells quickly whether one more can be.

    No unit may be both removed and copied, of every width some unit has to stay, no two rewrites that are no changes of
    widths may claim the same call, and none may bring tensors of other shapes because of those before it.

    Attributes:
        graph: the graph.
        members: the candidates, in the order they were added.
        spliced: what all that are no changes of widths change, as `rewrite_together` does it, but that θ is what θ is
            measured by.
        claimed: the calls these claim.
        on_widths: the others, by their width.
    """

    graph: Graph = field(repr=False)
    members: tuple[Candidate, ...] = ()
    spliced: Patch | None = field(default=None, repr=False)
    claimed: frozenset[int] = field(default=frozenset(), repr=False)
    on_widths: Mapping[str, tuple[WidthMorphism, ...]] = field(default_factory=dict, repr=False)

    def cost(self) -> Cost:
        """Return the exact cost of the graph with the candidates applied, for one example."""
        on_widths = [m.morphism for m in self.members if isinstance(m.morphism, WidthMorphism)]
        return cost_after(no_patch(self.graph) if self.spliced is None else self.spliced, on_widths)

    def plus(self, *candidates: Candidate) -> Combination | None:
        """Return the combination with more candidates, None if they do not go with each other and those before.

        Where several do not, it is not said which; it takes hardly longer for many than for one.
        """
        more, names, spliced = self, dict[str, None](), False
        try:
            for candidate in candidates:
                morphism = candidate.morphism
                if isinstance(morphism, WidthMorphism):
                    touched = tuple(morphism.changes(infer_widths(self.graph)))
                    with_it = {name: (*more.on_widths.get(name, ()), morphism) for name in touched}
                    more = replace(more, on_widths={**more.on_widths, **with_it})
                    names |= dict.fromkeys(touched)
                else:
                    claims = candidate.family.claims
                    if claims & more.claimed:
                        return None
                    more = replace(more, spliced=more._spliced_with(candidate), claimed=more.claimed | claims)
                    spliced = True
            more = replace(more, members=(*self.members, *candidates))
            if len({m.morphism for m in more.members}) < len(more.members):
                return None
            more._check(more.on_widths if spliced else names)
        except PassError:
            return None
        return more

    def _spliced_with(self, candidate: Candidate) -> Patch:
        """Return what changes with one more rewrite that is no change of a width.

        Raises:
            PassError: it cannot be done, or brings other tensors after the others than alone.
        """
        morphism, theta = candidate.morphism, candidate.family.perturbation.theta
        if self.spliced is None:
            return with_theta(morphism.patch(self.graph), theta)
        before = self.spliced.after
        patch = morphism.followed(Later(self.graph, before)).patch(before)
        return self.spliced.then(with_theta(patch, theta))

    def _check(self, names: Iterable[str]) -> None:
        """Check that the changes of some widths can be carried out.

        Raises:
            PassError: they cannot.
        """
        if self.spliced is None:
            widths = infer_widths(self.graph)
            for name in names:
                if not merged_changes(widths, [(m, None) for m in self.on_widths[name]])[name].source:
                    raise PassError(f"no unit of width {name} would be left")
            return
        later = Later(self.graph, self.spliced.after)
        now = {name: later.width(name) for name in self.on_widths}
        if len(set(now.values())) < len(now):
            raise PassError("two widths have become one by another rewrite of the set")
        widths, before = infer_widths(self.spliced.after), infer_widths(self.graph)
        followed: list[tuple[WidthMorphism, None]] = []
        for morphism in (m for name in names for m in self.on_widths[name]):
            moved = morphism.followed(later)
            check_whole(before, morphism, widths, moved)
            followed.append((moved, None))
        plan_reindexing(widths, merged_changes(widths, followed))
