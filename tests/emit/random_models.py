"""Random networks: containers used in part, modules shared and called again, tied and frozen tensors, odd keys."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 4
KEYS = ("stem", "0", "a b", "a#b", "{0}", "(a", "class", "²", "é", "a;b", "x=1", "__x", "items_")
Step = Callable[[list[Tensor]], None]


class Block(nn.Module):
    """Makes random steps over a list of tensors `[batch, 3, 4]`, and returns one or two of them."""

    def __init__(self, rng: random.Random, depth: int, inputs: int = 1) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.called: list[nn.Module] = []
        self.inputs = inputs
        self.outputs = rng.choice([1, 1, 1, 2])
        makers = [self._layer, self._layer, self._list, self._parameter_list, self._dict, self._chain, self._again]
        makers += [self._operator, self._operator, self._buffer, self._unused, self._tied]
        if depth:
            makers += [self._block, self._block, self._blocks]
        for at in range(rng.randint(1, 5)):
            rng.choice(makers)(rng, f"part{at}" if rng.random() < 0.8 else f"layers{at}", depth)

    def forward(self, *given: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = list(given)
        for step in self.steps:
            step(values)
        return values[-1] if self.outputs == 1 else (values[-1], values[len(values) // 2])

    def _call(self, rng: random.Random, module: nn.Module) -> None:
        """Call a module on values chosen now."""
        inputs = module.inputs if isinstance(module, Block) else 1
        self.called += [module, *(module.called if isinstance(module, Block) else [])]
        places = [rng.random() ** 2 for _ in range(inputs)]

        def step(values: list[Tensor]) -> None:
            found = module(*(values[-1 - int(p * len(values))] for p in places))
            values.extend(found if isinstance(found, tuple) else [found])

        self.steps.append(step)

    def _module(self, rng: random.Random) -> nn.Module:
        makers: list[Callable[[], nn.Module]] = [
            lambda: nn.Linear(WIDTH, WIDTH, bias=rng.random() < 0.7),
            lambda: nn.LayerNorm(WIDTH),
            lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()),
            lambda: nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, WIDTH)),
            lambda: nn.BatchNorm1d(3),
            lambda: nn.Tanh(),
            lambda: nn.Dropout(0.3),
        ]
        made = rng.choice(makers)()
        for parameter in made.parameters():
            parameter.requires_grad_(rng.random() < 0.8)
        return made

    def _layer(self, rng: random.Random, name: str, depth: int) -> None:
        self.add_module(name, self._module(rng))
        self._call(rng, self.get_submodule(name))

    def _part(self, rng: random.Random, modules: Sequence[nn.Module]) -> None:
        for _ in range(rng.randint(0, len(modules) + 1)):
            self._call(rng, rng.choice(modules))

    def _list(self, rng: random.Random, name: str, depth: int) -> None:
        modules = [self._module(rng) for _ in range(rng.randint(1, 4))]
        self.add_module(name, nn.ModuleList(modules))
        if rng.random() < 0.5:
            for module in modules[: rng.randint(1, 4)]:
                self._call(rng, module)
        else:
            self._part(rng, modules)

    def _dict(self, rng: random.Random, name: str, depth: int) -> None:
        modules = {key: self._module(rng) for key in rng.sample(KEYS, rng.randint(1, 4))}
        self.add_module(name, nn.ModuleDict(modules))
        self._part(rng, list(modules.values()))

    def _chain(self, rng: random.Random, name: str, depth: int) -> None:
        chain = nn.Sequential(*(self._module(rng) for _ in range(rng.randint(1, 4))))
        self.add_module(name, chain)
        self._call(rng, chain)
        if rng.random() < 0.2:
            self.called += [m for m in chain if not isinstance(m, nn.Sequential)]

    def _block(self, rng: random.Random, name: str, depth: int) -> None:
        self.add_module(name, Block(rng, depth - 1, rng.choice([1, 1, 2])))
        self._call(rng, self.get_submodule(name))

    def _blocks(self, rng: random.Random, name: str, depth: int) -> None:
        blocks = [Block(random.Random(rng.randrange(3)), depth - 1) for _ in range(rng.randint(1, 3))]
        self.add_module(name, nn.ModuleList(blocks))
        for block in blocks:
            self._call(rng, block)

    def _again(self, rng: random.Random, name: str, depth: int) -> None:
        """Call a submodule another time, under another name."""
        if self.called:
            module = rng.choice(self.called)
            if rng.random() < 0.5:
                self.add_module(name, module)
            self._call(rng, module)

    def _parameter_list(self, rng: random.Random, name: str, depth: int) -> None:
        stored = nn.ParameterList(
            nn.Parameter(torch.randn(WIDTH), requires_grad=rng.random() < 0.8) for _ in range(rng.randint(1, 4))
        )
        self.add_module(name, stored)
        used = rng.sample(range(len(stored)), rng.randint(0, len(stored)))
        self.steps.extend(lambda v, i=i: v.append(v[-1] * stored[i]) for i in used)  # type: ignore[misc]

    def _operator(self, rng: random.Random, name: str, depth: int) -> None:
        place = rng.random()
        operators: list[Callable[[Tensor, Tensor], Tensor]] = [
            lambda x, y: x + y,
            lambda x, y: x * y.sigmoid(),
            lambda x, y: F.softmax(x, -1) - y,
            lambda x, y: torch.cat([x, y], -1).reshape(x.shape[0], 3, 2, WIDTH).amax(2),
            lambda x, y: (x @ y.transpose(1, 2)).softmax(-1) @ y,
            lambda x, y: x.clamp(-1.0, 1.0),
            lambda x, y: x + torch.arange(WIDTH, dtype=x.dtype),
            lambda x, y: torch.stack([x, y], 1).unbind(1)[1],
        ]
        chosen = rng.choice(operators)
        self.steps.append(lambda v: v.append(chosen(v[-1], v[int(place * len(v))])))

    def _buffer(self, rng: random.Random, name: str, depth: int) -> None:
        self.register_buffer(name, torch.randn(WIDTH), persistent=rng.random() < 0.5)
        if rng.random() < 0.7:
            self.steps.append(lambda v: v.append(v[-1] + self.get_buffer(name)))

    def _unused(self, rng: random.Random, name: str, depth: int) -> None:
        self.add_module(name, rng.choice([nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)]), nn.Conv1d(2, 2, 1)]))

    def _tied(self, rng: random.Random, name: str, depth: int) -> None:
        found = [p for p in self.parameters() if p.shape == (WIDTH, WIDTH)]
        layer = nn.Linear(WIDTH, WIDTH)
        if found:
            layer.weight = rng.choice(found)
        self.add_module(name, layer)
        self._call(rng, layer)


class Net(nn.Module):
    """A random block, its results nested at random."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = random.Random(seed)
        torch.manual_seed(seed)
        self.body = Block(rng, depth=2)
        self.head = nn.Linear(WIDTH, 2)
        self.nesting = rng.randrange(4)

    def forward(self, x: Tensor) -> object:
        found = self.body(x)
        parts = found if isinstance(found, tuple) else (found,)
        y = self.head(parts[0])
        return [y, (y, *parts), {"a{b}": y, 'quo"te': [*parts, 1.5, None]}, [parts, {"n": (y,)}]][self.nesting]
