"""Scores: what every candidate rewrite of a graph, and any set of them, is predicted to do to the loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch.distributed import ProcessGroup

from archir.cost import Cost
from archir.errors import ScoreError, suggest
from archir.ir.graph import Graph
from archir.rewrite.candidate import Candidate
from archir.rewrite.equations import Miss
from archir.rewrite.morphism import Morphism, Theta
from archir.score.families import Family, find_families
from archir.score.learn import Recipe
from archir.score.learn import learn as learn_theta
from archir.score.losses import Loss, LossFunction, find_loss
from archir.score.objective import Curvature, Objective
from archir.score.processes import Ranks
from archir.score.program import Program
from archir.score.refine import Refinement
from archir.score.refine import refine as refine_best
from archir.score.screen import Batch, Estimate, moved, no_batches, screen
from archir.score.sets import CandidateSet, Limit, Member, Price, choose
from archir.score.stream import streamed


@dataclass(frozen=True)
class Score:
    """What one candidate, alone, is predicted to do to the loss.

    Attributes:
        candidate: the candidate.
        predicted: change of the mean loss, `first_order + curvature / 2`; in nats for likelihoods.
        stderr: its standard error over the examples, over batches where they are coupled; not a number for one alone.
        first_order: `a`, the mean of r·u.
        curvature: `G`, the mean of uᵀHu; a sampled estimate unless the candidate was refined.
        refined: whether it may be part of joint predictions.
    """

    candidate: Candidate
    predicted: float
    stderr: float
    first_order: float
    curvature: float
    refined: bool

    @property
    def spec(self) -> str:
        """Text of the candidate."""
        return self.candidate.spec


Subset = Sequence[Score | Candidate]
"""A set of candidates of one graph."""


@dataclass(frozen=True)
class Scores:
    """The scores of all candidates of a graph, best first; made by `score`.

    Attributes:
        graph: the graph.
        objective: the loss on top of it.
        table: every candidate's score, best first.
        families: the families of candidates.
        learned: θ of every family; empty where there is nothing to learn.
        places: the number of the family and of the member in it of every candidate, by its spec.
        refinement: the joint model of the refined candidates; None if there are none.
        numbers: the number of every refined candidate in it, by spec.
        misses: the sites that cannot be scored, with the reasons.
        learning: predicted change of the loss, summed over all members, at each step of learning θ; in sample.
    """

    graph: Graph = field(repr=False)
    objective: Objective = field(repr=False)
    table: tuple[Score, ...]
    families: tuple[Family, ...] = field(repr=False)
    learned: tuple[Theta, ...] = field(repr=False)
    places: Mapping[str, tuple[int, int]] = field(repr=False)
    refinement: Refinement | None = field(repr=False)
    numbers: Mapping[str, int] = field(repr=False)
    misses: tuple[tuple[str, Miss], ...] = field(repr=False)
    learning: torch.Tensor = field(repr=False)

    def __iter__(self) -> Iterator[Score]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, spec: str) -> Score:
        """Return the score of the candidate of a specification.

        Raises:
            ScoreError: there is none.
        """
        if spec not in self._by_spec:
            raise ScoreError(f"there is no candidate {spec!r}", mend=suggest(spec, self._by_spec))
        return self._by_spec[spec]

    def family(self, spec: str) -> Family:
        """Return the family of a candidate."""
        return self.families[self.places[spec][0]]

    def theta(self, spec: str) -> Theta | None:
        """Return θ of the family of a candidate, None where there is nothing to learn."""
        return self.learned[self.places[spec][0]] or None

    @property
    def refined(self) -> int:
        """Number of candidates that may be part of joint predictions."""
        return len(self.numbers)

    def additive(self, subset: Subset) -> float:
        """Return the sum of what each candidate is predicted to do alone: a baseline, seldom right for a set."""
        return sum(self[c.spec].predicted for c in subset)

    def joint(self, subset: Subset) -> float:
        """Return `Σ a + ½ Σ G` over a set of refined candidates, in nats.

        Raises:
            ScoreError: a candidate was not refined.
        """
        numbers = self._numbers(subset)
        return self.refinement.joint(numbers) if self.refinement and numbers else 0.0

    def linearised(self, subset: Subset) -> float:
        """Return the change of the linearised network's exact loss for a set of refined candidates, in nats.

        Where the outputs were too large to be kept (see `refine.LARGEST_STORED`) it is the joint model's.

        Raises:
            ScoreError: a candidate was not refined.
        """
        numbers = self._numbers(subset)
        return self.refinement.linearised(numbers) if self.refinement and numbers else 0.0

    def predict(self, subset: Subset, batches: Iterable[Batch]) -> float:
        """Return the change of the linearised network's exact loss for any set of candidates on other batches, in nats.

        A set looks better on the batches it was chosen on than on others.

        Raises:
            ScoreError: there are no batches, or the loss does not fit one.
        """
        return self.together(subset).linearised(batches)

    def choose(
        self,
        k: int | None = None,
        *,
        budget: Limit | None = None,
        price: Price | None = None,
        model: str = "linearised",
    ) -> list[Score]:
        """Choose a set of refined candidates greedily, each one given those before it.

        Candidates are added while they lower the predicted change of the loss plus the price.

        Args:
            k: most candidates.
            budget: says whether a graph of some cost may be made; asked about the exact cost of every set on the way.
            price: what a difference of cost is worth, in nats.
            model: `linearised`, `joint`, or the baseline `additive`.

        Returns:
            The path of the selection: every prefix of it is a smaller set to fall back on.

        Raises:
            ScoreError: there is no such model.
        """
        refinement, names = self.refinement, ("linearised", "joint", "additive")
        if model not in names:
            raise ScoreError(f"there is no model {model!r}", mend=suggest(model, names))
        if refinement is None:
            return []
        scores = [self[spec] for spec in self.numbers]
        alone = torch.tensor([s.predicted for s in scores], dtype=torch.float64)
        after: dict[str, Callable[[Sequence[int]], torch.Tensor]] = {
            "linearised": refinement.after_linearised,
            "joint": refinement.after_joint,
            "additive": lambda chosen: alone + alone[list(chosen)].sum(),
        }
        path = choose(self.together(scores), after[model], k=k, budget=budget, price=price)
        return [scores[c] for c in path]

    def together(self, subset: Subset) -> CandidateSet:
        """Return candidates as a set, each with θ as it was learned alone; `learned` learns it for them together.

        Raises:
            ScoreError: a candidate is not one of these.
        """
        members = [Member(self[c.spec].candidate, self.family(c.spec), self.theta(c.spec)) for c in subset]
        return CandidateSet(self.graph, self.objective, tuple(members))

    def apply(self, subset: Subset) -> Graph:
        """Return the graph with a set of candidates applied together, θ included.

        Raises:
            PassError: they cannot be applied together.
            ScoreError: a candidate is not one of these.
        """
        return self.together(subset).apply()

    def cost_of(self, subset: Subset) -> Cost:
        """Return the exact cost of the graph with a set of candidates applied.

        Raises:
            PassError: they cannot be applied together.
        """
        return self.together(subset).cost()

    @cached_property
    def _by_spec(self) -> Mapping[str, Score]:
        return {s.spec: s for s in self.table}

    def _numbers(self, subset: Subset) -> list[int]:
        for c in subset:
            if c.spec not in self.numbers:
                raise ScoreError(
                    f"{self[c.spec].spec} was not refined, so nothing is known of it together with others",
                    why=f"the best {self.refined} of {len(self)} candidates were",
                    mend="score with a larger refine=",
                )
        return [self.numbers[c.spec] for c in subset]


def score(
    graph: Graph,
    batches: Iterable[Batch],
    *,
    morphisms: Sequence[Morphism],
    loss: str | LossFunction | Loss = "cross_entropy",
    learn: Iterable[Batch] | None = None,
    steps: int = 100,
    rate: float = 0.05,
    radius: float = 0.5,
    refine: int = 64,
    chunk: int | None = None,
    price: Price | None = None,
    curvature: Curvature = Curvature.SAMPLED,
    batch_statistics: bool = False,
    seed: int = 0,
    group: ProcessGroup | None = None,
) -> Scores:
    """Predict what every candidate rewrite of a graph would do to the loss.

    θ of all candidates is learned at once on some batches, weights frozen. All candidates are then screened on others
    in reverse mode; the best are refined in forward mode, and only these may be part of joint predictions.

    Args:
        graph: the graph, batch statistics recalibrated.
        batches: pairs (inputs, targets) to score on, inputs a tensor, a tuple of arguments, or a mapping by name,
            targets a tensor, or several nested in tuples, lists and mappings if the loss is a callable, which gets
            them as they are.
        morphisms: the kinds of rewrite.
        loss: name of a loss, or a callable of outputs and targets.
        learn: batches to learn θ on; those scored on if not given, and the predictions are then optimistic.
        steps: steps of learning, one batch each; batches are used again when they run out.
        rate: step size of Adam, relative to the root mean square of the weight θ is added to.
        radius: trust region, bound of ‖θ‖ relative to ‖w‖.
        refine: number of candidates to refine, best first.
        chunk: most of them that are refined at once; as many as fit into memory if None (see `chunks.chunk_size`).
        price: what cost is worth, in nats; part of what decides which candidates are the best.
        curvature: how the second order is estimated in learning and screening.
        batch_statistics: normalise by the mean and the variance of the batch, as in training, instead of running ones;
            the examples of a batch are then coupled (see `Objective.united`). Layers a rewrite brings use what they
            come with.
        seed: seed of everything random.
        group: processes of `torch.distributed` that share the batches out among them. Each calls this with its own, as
            many to learn on as the others, and makes the same calls on the scores; all get the same results.

    Raises:
        ScoreError: the loss is unknown, not finite, or does not fit a batch; there are no batches; or the graph is
            noisy in evaluation mode.
    """
    program = Program(graph, batch_statistics=batch_statistics)
    scored = [moved(b, program.device) for b in batches]
    some = itertools.islice(learn, max(steps, 1)) if learn is not None else ()
    learned_on = scored if learn is None else [moved(b, program.device) for b in some]
    if not scored or not learned_on:
        raise no_batches()
    found_in, misses = find_families(program.graph, morphisms)
    families = [replace(f, graph=graph) for f in found_in]
    perturbations = [f.perturbation for f in families]
    objective = Objective(program, find_loss(loss), Ranks(group))
    chunked = streamed(objective, perturbations, [*learned_on, *scored])
    learned = learn_theta(chunked, perturbations, learned_on, Recipe(steps, rate, radius, curvature, seed))
    estimates = screen(chunked, perturbations, learned.thetas, scored, curvature=curvature, seed=seed + 1)
    order = _ranked(families, estimates, price)
    best = order[:refine]
    found = refine_best(chunked, perturbations, learned.thetas, best, scored, chunk=chunk) if best else None
    table: list[Score] = []
    places: dict[str, tuple[int, int]] = {}
    numbers: dict[str, int] = {}
    for number, (f, m) in enumerate(order):
        candidate = Candidate(families[f].site.members[m], families[f].cost)
        spec = candidate.spec
        places[spec] = f, m
        if found is not None and number < len(best):
            numbers[spec] = number
            a, g, e = found.first_order[number], found.gram[number, number], found.stderr[number]
        else:
            a, g, e = (t[m] for t in (estimates[f].first_order, estimates[f].curvature, estimates[f].stderr))
        table.append(Score(candidate, float(a + g / 2), float(e), float(a), float(g), spec in numbers))
    table.sort(key=lambda s: s.predicted)
    return Scores(
        graph,
        objective,
        tuple(table),
        tuple(families),
        learned.thetas,
        places,
        found,
        numbers,
        tuple(misses),
        learned.estimates,
    )


def _ranked(families: Sequence[Family], estimates: Sequence[Estimate], price: Price | None) -> list[tuple[int, int]]:
    """Return all candidates, as numbers of family and member, by predicted change of the loss plus price."""
    keyed: list[tuple[float, int, int]] = []
    for f, (family, estimate) in enumerate(zip(families, estimates, strict=True)):
        extra = 0.0 if price is None else price(family.cost)
        keyed += [(value + extra, f, m) for m, value in enumerate(estimate.predicted.tolist())]
    return [(f, m) for _, f, m in sorted(keyed)]
