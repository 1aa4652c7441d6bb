"""Trains a module of whose weights, gradients and states of the optimiser each process holds a shard: FSDP2."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Set

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from archir.errors import GrowError
from archir.growing.options import GrowOptions
from archir.ir.graph import Graph
from archir.ir.lowering import self_contained
from archir.scoring.processes import Processes, exchanging


def shards(options: GrowOptions, processes: Processes) -> int:
    """Return in how many shards the weights of what is trained are held; 1 where every process has them whole."""
    return processes.size if options.sharded else 1


def is_sharded(module: nn.Module) -> bool:
    """Say whether each process holds shards of the weights of a module."""
    return isinstance(module, FSDPModule)


def check_sharding(graph: Graph, options: GrowOptions, processes: Processes, device: torch.device) -> None:
    """Check that the weights of a network can be held in shards, if they are to be.

    Raises:
        GrowError: they cannot: some are numbers by themselves, empty, complex, or of several element types; or the
            device is not the current one of its kind. All of it at once.
    """
    if shards(options, processes) == 1:
        return
    trained = [node for node in graph.parameters if node.is_trainable]
    types = {node.tensor_type().dtype: node for node in trained}
    wrong = [f"@{node.names[0]} is a number, which has no shards" for node in trained if not node.tensor_type().shape]
    wrong += [f"@{node.names[0]} is empty" for node in trained if 0 in node.tensor_type().shape]
    wrong += [f"@{node.names[0]} is {dtype}" for dtype, node in types.items() if len(types) > 1 or dtype.is_complex]
    if device.type != "cpu" and device.index != torch.accelerator.current_device_index():
        wrong.append(f"shards are on the current device, {device.type}:{torch.accelerator.current_device_index()}")
    if wrong:
        raise GrowError(
            "the weights cannot be shared out among the processes",
            where="; ".join(wrong[:10]),
            why="shards are rows of tensors that are not empty, real and of one element type, on the current device",
            hint="store a number as a tensor of shape [1], freeze what is empty, use one element type, "
            "or leave out sharded = true",
        )


def shared_out(module: nn.Module, graph: Graph, processes: Processes, device: torch.device) -> nn.Module:
    """Return a module of whose parameters this process holds shards, on a device; the same object.

    The parameters of each of its `parts` are gathered together, for as long as it runs, forwards or backwards. Buffers
    stay whole, and become those of the first process.

    Args:
        module: the module of the graph, as made, on the CPU: what is whole of it on the device is one part at a time.
        graph: the graph.
        processes: those that train it together.
        device: where the shards are to be: the CPU, or the current device.

    Raises:
        ProcessError: another process has ended.

    Source: Zhao et al., PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel (2023).
    """
    assert processes.group is not None
    if device.type != "cpu":
        # Such modules are in cycles: what earlier ones hold of a memory that is scarce is let go.
        gc.collect()
    buffers = list(module.buffers())
    for buffer, first in zip(buffers, processes.told([buffer.cpu() for buffer in buffers]), strict=True):
        buffer.copy_(first)
    # Those that are trained were checked.
    whole = {parameter for parameter in module.parameters() if not parameter.dim() or not parameter.numel()}
    for parameter in module.parameters():
        parameter.data = parameter.data.to(device) if parameter in whole else parameter.data.contiguous()
    mesh = DeviceMesh.from_group(processes.group, device.type)
    with exchanging():
        for part in parts(module, self_contained(graph), most=_size(module) // processes.size):
            # Of the outermost one, too: the optimiser and the average look for shards after an evaluation.
            fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    return module


def parts(module: nn.Module, closed: Set[str], *, most: int) -> list[nn.Module]:
    """Return the modules whose parameters are to be gathered together, each after those in it; the outermost one last.

    What is left for a part is what no part in it has. The outermost modules that are called are parts, those in
    sequences included. One that holds more than `most` numbers is divided, and the largest of the layers that it calls
    itself are parts until what is left for it is as little. With as many numbers as a process holds, what is whole
    beside the shards is about as much as they are, but for layers that are larger.

    Args:
        module: the outermost module.
        closed: paths of modules that are called, and whose parameters no other module needs.
        most: how many numbers are gathered at once, where they can be divided so.

    Source: ours.
    """
    return _parts(module, "", closed, most)


def _parts(module: nn.Module, path: str, closed: Set[str], most: int) -> list[nn.Module]:
    found: list[nn.Module] = []
    layers: list[tuple[int, nn.Module]] = []
    left = _size(module)
    for name, inner in _called(module, path, closed):
        size = _size(inner)
        if not any(True for _ in inner.children()):
            layers.append((size, inner))
        elif size:
            found += _parts(inner, name, closed, most) if size > most else [inner]
            left -= size
    for size, layer in sorted(layers, key=lambda each: -each[0]):
        if left <= most or not size:
            break
        found.append(layer)
        left -= size
    return [*found, module]


def _called(module: nn.Module, path: str, closed: Set[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost modules within one that may be parts, with their paths."""
    for name, inner in module.named_children():
        inside = f"{path}.{name}" if path else name
        if inside in closed and not isinstance(inner, nn.Sequential):
            yield inside, inner
        else:
            yield from _called(inner, inside, closed)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
