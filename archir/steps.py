"""Growth steps in a loop of the user's own, and what they make put into the user's own module."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import nn

from archir.captured import Model, graph_on
from archir.errors import CaptureWarning, GrowError
from archir.growing.device import device_of
from archir.growing.grow import checked_options
from archir.growing.options import GrowOptions
from archir.growing.plan import Plan, in_the_manner_of, make_plan
from archir.growing.unwrapped import check_unwrapped
from archir.growing.write_back import write_into
from archir.ir.graph import Graph
from archir.ir.inputs import random_inputs
from archir.kinds import Kinds
from archir.kinds import morphisms as find_morphisms
from archir.scoring.batches import AnyBatch
from archir.scoring.budget import Budget
from archir.scoring.losses import Loss, LossFunction
from archir.scoring.surroundings import as_if_alone
from archir.scoring.targets import map_tensors
from frontends.pytorch import trace


@as_if_alone()
def propose(
    model: Model,
    batches: Iterable[AnyBatch],
    *,
    budget: Budget | int,
    loss: str | LossFunction | Loss = "cross_entropy",
    morphisms: Kinds | None = None,
    options: GrowOptions | None = None,
    learn: Iterable[AnyBatch] | None = None,
    check: Iterable[AnyBatch] | None = None,
) -> Plan:
    """Decide on a growth step for a model that is trained in any loop: the one that `archir.grow` takes.

    The best set of rewrites within the budget is chosen; above it, growing, or below it, coming down to it. It is
    checked on batches of its own, and holds nothing where no set keeps what it promises.

    `batches` are gone through once, as far as is needed, and dealt out: of four pieces of `options.batch_size` examples
    at most one is checked on, one is scored on, and two are learned on, until there are `options.score_examples` to
    check and to score on, and `options.learn_steps` pieces to learn on. So no example is in two of these, if none comes
    twice. Batch statistics are taken as they are; `torch.optim.swa_utils.update_bn` averages them anew. Within
    `torch.no_grad` or `torch.autocast` the same is decided on as outside.

    Args:
        model: the model, or its graph; a module is captured on the first batch.
        batches: held-out batches as `archir.score` takes them, pairs (inputs, targets) or mappings.
        budget: hard limits on the cost of the model after the step, parts of what it costs now (`Budget(flops=0.8)`),
            or the largest number of trainable parameters.
        loss: name of a loss, or a callable of outputs and targets.
        morphisms: the kinds of rewrite; split and prune if not given.
        options: how the step is taken. Those that tell how `archir.grow` trains, and when it grows, are not looked at;
            prunes of a step that comes down to its budget are compensated for unless `compensate` is false.
        learn: batches to learn θ on, such as those of training, in place of some of `batches`.
        check: batches to check on, in place of some of `batches`.

    Raises:
        CaptureError: the module cannot be captured.
        GrowError: the module is wrapped, in `DistributedDataParallel` for one; there is no budget; there are too few
            batches; code of the user's that makes them fails; or these are no options.
        ParseError: a text is no specification, or names no known pass.
        PassError: one is no morphism, or there is none.
        ScoreError: the loss is unknown, not finite, or does not fit a batch; there are no batches, or what
            is given cannot be iterated; the model is
            noisy in evaluation mode; or it is called within `torch.inference_mode`.
    """
    chosen = checked_options(options)
    limits = budget if isinstance(budget, Budget) else Budget(parameters=budget)
    kinds = find_morphisms(morphisms)
    graph, given = graph_on(model, batches)
    return make_plan(graph, given, loss=loss, budget=limits, morphisms=kinds, options=chosen, learn=learn, check=check)


@as_if_alone()
def write_back(graph: Graph, model: nn.Module) -> nn.Module:
    """Put the widths and weights of a graph into the module it was captured from, in place.

    The parameters are replaced, the attributes of layers that tell of sizes are set (`out_channels`, `num_features`,
    `groups`, `normalized_shape`, numbers of heads, hidden sizes), and so are whole numbers among the attributes of the
    module's own classes that are sizes which have changed, if its forward reads them. Then it is run and compared with
    the graph, and run in training mode as well. An optimiser that was made before holds parameters that are gone:
    `Plan.apply(..., in_place=True)` takes it along.

    Args:
        graph: what a rewriting of widths made of the graph of the module.
        model: the module; it stays an object of its class.

    Returns:
        The module.

    Raises:
        CaptureError: the module cannot be captured.
        GrowError: they are no graph and no module; the module is wrapped; more than widths differs; the graph is that
            of another module; or it does not run with the new widths, in training for one, or computes something else,
            since a size is written into its code, and that line is named. It is as it was then.
        ScoreError: it is called within `torch.inference_mode`.
    """
    if not isinstance(graph, Graph):
        raise GrowError(f"what is written back is a graph, not a {type(graph).__name__}")
    if not isinstance(model, nn.Module):
        raise GrowError(f"a model is an nn.Module, not a {type(model).__name__}")
    check_unwrapped(model)
    args, kwargs = map_tensors(lambda t: t.to(device_of(model)), random_inputs(graph))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CaptureWarning)  # told when the graph was captured
        before = trace(model, args, kwargs)
    write_into(model, before, in_the_manner_of(model, graph), graph)
    return model
