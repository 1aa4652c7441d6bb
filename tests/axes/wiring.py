"""Random small nets through the operators that move, pick and mix units, in plain torch.

    net = random_net(seed)            # tokens `EXAMPLE`, `[batch, 4, 5]`, to `[batch, 4, 3]`
    net.chosen                        # the names of its steps, for a message
    wired(["roll", "attention"])      # a net of given steps

Nothing here knows how archir works, so that another test, or a fuzzer, can hold what archir says against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LENGTH, FEATURES, CLASSES = 4, 5, 3
"""Number of tokens, of what goes in for each, and of what comes out."""

SIZES = (6, 8, 12)
"""Sizes of the layers."""

Run = Callable[[Tensor, "Step"], Tensor]
"""What a step does to `[batch, LENGTH, units]`, with the tensors it stores."""

Make = Callable[[int, Random], "Step"]
"""Makes a step for a number of units."""


class Step(nn.Module):
    """One step: a function, and the tensors it stores.

    Args:
        run: the function.
        stored: parameters (floats), buffers (`nn.Buffer`, and whole numbers) and layers, by name.
    """

    layer: nn.Module
    index: Tensor
    mask: Tensor
    table: Tensor
    v: Tensor
    w: Tensor
    b: Tensor

    def __init__(self, run: Run, **stored: Tensor | nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, found in stored.items():
            if isinstance(found, nn.Module):
                self.add_module(name, found)
            elif isinstance(found, nn.Buffer) or not found.is_floating_point():
                self.register_buffer(name, found)
            else:
                self.register_parameter(name, nn.Parameter(found))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, self)


class Wired(nn.Module):
    """A layer, the steps, and a layer for each token.

    Args:
        names: the steps, keys of `STEPS`.
        dice: chooses what the steps leave open.
        width: number of units the first layer makes.
    """

    def __init__(self, names: Sequence[str], dice: Random, width: int = 8) -> None:
        super().__init__()
        self.chosen = tuple(names)
        self.stem = nn.Linear(FEATURES, width)
        self.steps = nn.ModuleList()
        x = self.stem(torch.randn(2, LENGTH, FEATURES))
        for name in names:
            step = STEPS[name](x.shape[-1], dice)
            found = step(x)
            assert found.shape[:2] == x.shape[:2], name
            if found.shape[-1] <= 64:
                self.steps.append(step)
                x = found
        self.head = nn.Linear(x.shape[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for step in self.steps:
            x = step(x)
        logits: Tensor = self.head(x)
        return logits


def example(seed: int = 0, batch: int = 2) -> Tensor:
    """Return tokens for a net; `[batch, LENGTH, FEATURES]`."""
    return torch.randn(batch, LENGTH, FEATURES, generator=torch.Generator().manual_seed(seed))


def wired(names: Sequence[str], seed: int = 0) -> Wired:
    """Return a net of given steps, the same every time."""
    dice = Random(seed)
    torch.manual_seed(seed)
    return Wired(names, dice, dice.choice(SIZES)).eval()


def random_net(seed: int, steps: int = 4) -> Wired:
    """Return a net of one to `steps` random steps, the same every time."""
    dice = Random(seed)
    names = [dice.choice(sorted(STEPS)) for _ in range(dice.randint(1, steps))]
    return wired(names, seed)


def _plain(run: Callable[[Tensor], Tensor]) -> Make:
    return lambda units, dice: Step(lambda x, s: run(x))


def _numbered(run: Callable[[Tensor, int], Tensor]) -> Make:
    """Make a step with a random position."""

    def make(units: int, dice: Random) -> Step:
        number = dice.randrange(units)
        return Step(lambda x, s: run(x, number))

    return make


def _vector(run: Callable[[Tensor, Tensor], Tensor]) -> Make:
    """Make a step with one stored number for each unit."""
    return lambda units, dice: Step(lambda x, s: run(x, s.v), v=torch.randn(units))


def _halves(run: Callable[[Tensor, int], Tensor]) -> Make:
    """Make a step that needs an even number of units; others it leaves alone."""
    return lambda units, dice: Step(lambda x, s: run(x, units // 2) if units % 2 == 0 else x)


def _layer(run: Callable[[Tensor, nn.Module], Tensor], build: Callable[[int, Random], nn.Module]) -> Make:
    return lambda units, dice: Step(lambda x, s: run(x, s.layer), layer=build(units, dice))


def _channels(x: Tensor, layer: nn.Module) -> Tensor:
    found: Tensor = layer(x.transpose(1, 2)).transpose(1, 2)
    return found


def _cut(x: Tensor, *sizes: int) -> Tensor:
    """Return a tensor whose last axis is cut into axes of the given sizes."""
    return x.reshape(*x.shape[:-1], *sizes)


def _groups(units: int) -> int:
    return 2 if units % 2 == 0 else 1


def _indices(units: int, dice: Random) -> list[int]:
    """Return a permutation, a part, repeats, or negative positions of units."""
    kind = dice.choice(("permutation", "heads", "part", "repeats", "negative", "same"))
    order = list(range(units))
    if kind == "heads":
        return [u ^ 1 for u in order] if units % 2 == 0 else order
    if kind == "part":
        return sorted(dice.sample(order, units // 2 * 2 - 2)) or order
    if kind == "repeats":
        return [dice.randrange(units) for _ in order]
    if kind == "same":
        return order
    dice.shuffle(order)
    return [u - units for u in order] if kind == "negative" else order


def _picked(run: Callable[[Tensor, Tensor], Tensor], *, literal: bool = False) -> Make:
    """Make a step with an index of units: a buffer, or a constant in the program."""

    def make(units: int, dice: Random) -> Step:
        chosen = _indices(units, dice)
        if literal:
            return Step(lambda x, s: run(x, torch.tensor(chosen)))
        return Step(lambda x, s: run(x, s.index), index=torch.tensor(chosen))

    return make


def _positive(chosen: Tensor, units: int) -> Tensor:
    return chosen % units


def _masked(run: Callable[[Tensor, Tensor], Tensor]) -> Make:
    """Make a step with a stored mask of units, of which at least one is chosen."""

    def make(units: int, dice: Random) -> Step:
        chosen = [dice.random() < 0.6 for _ in range(units)]
        chosen[dice.randrange(units)] = True
        return Step(lambda x, s: run(x, s.mask), mask=torch.tensor(chosen))

    return make


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Return attention with heads; `[batch, length, units]` each."""
    q, k, v = (_cut(t, heads, -1).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _attention(prepare: Run | None, *, values: bool = True) -> Make:
    """Make attention with two heads whose queries and keys, and values, are prepared."""

    def make(units: int, dice: Random) -> Step:
        def run(x: Tensor, s: Step) -> Tensor:
            q, k, v = s.layer(x).chunk(3, -1)
            if prepare is not None:
                q, k, v = prepare(q, s), prepare(k, s), prepare(v, s) if values else v
            return _attend(q, k, v, _groups(units))

        order = list(range(units))
        dice.shuffle(order)
        swapped = [u ^ 1 for u in order] if units % 2 == 0 else order
        chosen = dice.choice((order, swapped, [u ^ 1 for u in range(units)] if units % 2 == 0 else order))
        return Step(run, layer=nn.Linear(units, 3 * units), index=torch.tensor(chosen), v=torch.randn(units))

    return make


def _rotate_interleaved(x: Tensor) -> Tensor:
    """Rotary embedding of neighbouring units."""
    pairs = _cut(x, -1, 2)
    angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] / torch.arange(1, pairs.shape[-2] + 1, dtype=x.dtype)
    even, odd = pairs.unbind(-1)
    turned = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
    return torch.stack(turned, -1).flatten(-2)


def _rotate_halves(x: Tensor) -> Tensor:
    """Rotary embedding of units half the width apart."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] / torch.arange(1, half + 1, dtype=x.dtype)
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def _turn_complex(x: Tensor) -> Tensor:
    """Turn neighbouring units as complex numbers."""
    numbers = torch.view_as_complex(_cut(x, -1, 2).contiguous())
    turn = torch.polar(torch.ones(numbers.shape[-1], dtype=x.dtype), torch.arange(numbers.shape[-1]).to(x.dtype))
    return torch.view_as_real(numbers * turn).flatten(-2)


def _squares(x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function to the products of all pairs of units, and sum them up for each unit."""
    return run(x[..., None] * torch.tanh(x)[..., None, :]).sum(-1)


def _scattered(x: Tensor, chosen: Tensor) -> Tensor:
    place = _positive(chosen, x.shape[-1]).expand(*x.shape[:2], -1)
    return torch.zeros_like(x).scatter(-1, place, x[..., : chosen.shape[0]])


def _scatter_added(x: Tensor, chosen: Tensor) -> Tensor:
    place = _positive(chosen, x.shape[-1]).expand(*x.shape[:2], -1)
    return x.scatter_add(-1, place, x[..., : chosen.shape[0]])


def _put(x: Tensor, chosen: Tensor) -> Tensor:
    y = x.clone()
    y[..., chosen] = x[..., : chosen.shape[0]].tanh()
    return y


STEPS: Mapping[str, Make] = {
    # layers
    "linear": _layer(lambda x, f: f(x), lambda n, d: nn.Linear(n, d.choice(SIZES))),
    "bias_free": _layer(lambda x, f: f(x), lambda n, d: nn.Linear(n, d.choice(SIZES), bias=False)),
    "residual": _layer(lambda x, f: x + f(x).tanh(), lambda n, d: nn.Linear(n, n)),
    "bottleneck": _layer(
        lambda x, f: x + f(x), lambda n, d: nn.Sequential(nn.Linear(n, 6), nn.GELU(), nn.Linear(6, n))
    ),
    "conv": _layer(_channels, lambda n, d: nn.Conv1d(n, d.choice(SIZES), 3, padding=1)),
    "grouped": _layer(_channels, lambda n, d: nn.Conv1d(n, n, 1, groups=_groups(n))),
    "depthwise": _layer(_channels, lambda n, d: nn.Conv1d(n, n, 3, padding=1, groups=n)),
    "transposed": _layer(_channels, lambda n, d: nn.ConvTranspose1d(n, n, 1, groups=_groups(n))),
    "bilinear": _layer(lambda x, f: f(x, x), lambda n, d: nn.Bilinear(n, n, 6)),
    "lstm": _layer(lambda x, f: f(x)[0], lambda n, d: nn.LSTM(n, 6, batch_first=True)),
    "gru_both_ways": _layer(lambda x, f: f(x)[0], lambda n, d: nn.GRU(n, 4, batch_first=True, bidirectional=True)),
    "batch_norm": _layer(_channels, lambda n, d: nn.BatchNorm1d(n)),
    "layer_norm": _layer(lambda x, f: f(x), lambda n, d: nn.LayerNorm(n)),
    "group_norm": _layer(_channels, lambda n, d: nn.GroupNorm(_groups(n), n)),
    "instance_norm": _layer(_channels, lambda n, d: nn.InstanceNorm1d(n, affine=True)),
    "prelu": _layer(_channels, lambda n, d: nn.PReLU(n)),
    # pointwise
    "tanh": _plain(torch.tanh),
    "sigmoid": _plain(torch.sigmoid),
    "gelu": _plain(F.gelu),
    "shifted": _plain(lambda x: F.elu(x) + 1),
    "scale": _vector(lambda x, v: x * v),
    "shift": _vector(lambda x, v: x + v),
    "divided": _vector(lambda x, v: x / (1 + v * v)),
    "polynomial": _vector(lambda x, v: torch.addcmul(x, x, v)),
    "gate": _halves(lambda x, h: F.glu(x)),
    "fixed_table": _vector(lambda x, v: x + v.sin() * torch.arange(x.shape[1])[:, None]),
    "positions": lambda n, d: Step(lambda x, s: x + s.table, table=torch.randn(LENGTH, n)),
    "buffer_table": lambda n, d: Step(lambda x, s: x * s.table, table=nn.Buffer(torch.rand(LENGTH, n))),
    # moved by position
    "roll": _numbered(lambda x, i: x.roll(i, -1)),
    "roll_tokens": _numbered(lambda x, i: x.roll(i, 1)),
    "flip": _plain(lambda x: x.flip(-1)),
    "cumsum": _plain(lambda x: x.cumsum(-1)),
    "sort": _plain(lambda x: x.sort(-1).values),
    "topk": _halves(lambda x, h: x.topk(h, -1).values),
    "argmax": _plain(lambda x: x * F.one_hot(x.argmax(-1), x.shape[-1])),
    "slice": _numbered(lambda x, i: torch.cat([x[..., i:], x[..., :i]], -1)),
    "strided": _plain(lambda x: torch.cat([x[..., ::2], x[..., 1::2]], -1)),
    "halves": _halves(lambda x, h: torch.cat([x[..., h:], x[..., :h].tanh()], -1)),
    "select": _numbered(lambda x, i: x * x[..., i : i + 1]),
    "unbind_heads": _halves(lambda x, h: torch.cat(_cut(x, 2, h).unbind(-2)[::-1], -1)),
    "stack_heads": _halves(lambda x, h: torch.stack(x.chunk(2, -1)[::-1], -1).flatten(-2)),
    "diff": _plain(lambda x: x - F.pad(x.diff(dim=-1), (1, 0))),
    "pad": _plain(lambda x: F.pad(x, (1, 2))),
    "pad_round": _plain(lambda x: F.pad(x, (1, 2), mode="circular")),
    "repeat": _plain(lambda x: x.repeat(1, 1, 2)),
    "repeat_interleave": _plain(lambda x: x.repeat_interleave(2, -1)),
    "tile": _plain(lambda x: x.tile(2)),
    "expand": _plain(lambda x: x[..., None].expand(*x.shape, 2).flatten(2)),
    "unfold": _plain(lambda x: x.unfold(-1, 2, 1).sum(-1)),
    "tril": _plain(lambda x: _squares(x, torch.tril)),
    "diagonal": _plain(lambda x: x + (x[..., None] * x[..., None, :].tanh()).diagonal(0, -2, -1)),
    "diag_embed": _plain(lambda x: torch.diag_embed(x).sum(-1)),
    "kron": _vector(lambda x, v: torch.kron(x.contiguous(), v[:2])),
    "outer": _vector(lambda x, v: (x[..., None] * v[:3]).flatten(2)),
    "swap_axes": _halves(lambda x, h: _cut(x, 2, h).mT.flatten(2)),
    "channel_shuffle": _layer(_channels, lambda n, d: nn.ChannelShuffle(_groups(n))),
    "pixel_shuffle": lambda n, d: Step(
        lambda x, s: (
            F.pixel_unshuffle(F.pixel_shuffle(x.reshape(-1, n, 2, 2), 2).tanh(), 2).reshape(x.shape)
            if n % 4 == 0
            else x
        )
    ),
    "shuffle_within": lambda n, d: Step(
        lambda x, s: F.pixel_shuffle(x.mT.reshape(-1, n, 2, 2), 2).reshape(x.shape[0], -1, 4).mT if n % 4 == 0 else x
    ),
    "fold": _plain(lambda x: F.fold(F.unfold(_cut(x.mT, 2, 2), 2, padding=1), (2, 2), 2, padding=1).flatten(2).mT),
    "rotary": _halves(lambda x, h: _rotate_interleaved(x)),
    "rotary_halves": _halves(lambda x, h: _rotate_halves(x)),
    "complex": _halves(lambda x, h: _turn_complex(x)),
    "real_part": _halves(lambda x, h: torch.complex(x[..., :h], x[..., h:]).exp().real),
    "fourier": _plain(lambda x: torch.fft.rfft(x, dim=-1).abs()),
    # picked by an index
    "index": _picked(lambda x, i: x[..., i]),
    "index_literal": _picked(lambda x, i: x[..., i], literal=True),
    "index_twice": _picked(lambda x, i: x[..., i].tanh()[..., i] if len(i) == x.shape[-1] else x),
    "index_square": _picked(lambda x, i: (x[..., None] * x[..., None, :].tanh())[..., i, :][..., i].sum(-1)),
    "index_both": _picked(lambda x, i: (x[..., None] * x[..., None, :].tanh())[..., i, i]),
    "index_select": _picked(lambda x, i: x.index_select(-1, _positive(i, x.shape[-1]))),
    "gather": _picked(lambda x, i: x.gather(-1, _positive(i, x.shape[-1]).expand(*x.shape[:2], -1))),
    "take_along": _picked(lambda x, i: x.take_along_dim(_positive(i, x.shape[-1])[None, None], -1)),
    "embed_index": _picked(lambda x, i: x[..., : len(i)] + F.embedding(_positive(i, 4), torch.eye(4)).sum(-1)),
    "index_of_table": lambda n, d: Step(
        lambda x, s: x + s.table[s.index], table=torch.randn(5, n), index=torch.randint(5, (LENGTH,))
    ),
    "index_of_weight": lambda n, d: Step(
        lambda x, s: F.linear(x, s.w[s.index], s.b), w=torch.randn(6, n), b=torch.randn(6), index=torch.randperm(6)
    ),
    "index_of_input": lambda n, d: Step(
        lambda x, s: F.linear(x, s.w[:, s.index]), w=torch.randn(6, n), index=torch.randperm(n)
    ),
    "scatter": _picked(_scattered),
    "scatter_add": _picked(_scatter_added),
    "index_put": _picked(_put),
    "index_add": _picked(lambda x, i: x.index_add(-1, _positive(i, x.shape[-1]), x[..., : len(i)])),
    "index_fill": _picked(lambda x, i: x.index_fill(-1, _positive(i[:2], x.shape[-1]), 0.5)),
    "mask": _masked(lambda x, m: x * m),
    "mask_fill": _masked(lambda x, m: x.masked_fill(m, 0.5)),
    "mask_index": _masked(lambda x, m: x[..., m]),
    "mask_where": _masked(lambda x, m: torch.where(m, x, x.tanh())),
    "bucketize": _vector(lambda x, v: x * torch.bucketize(x.contiguous(), v.sort().values)),
    "searchsorted": _vector(lambda x, v: x + torch.searchsorted(v.sort().values, x.contiguous())),
    # mixed
    "softmax": _plain(lambda x: x.softmax(-1)),
    "mean_of_units": _plain(lambda x: x - x.mean(-1, keepdim=True)),
    "norm_of_units": _plain(lambda x: x / (1 + x.norm(dim=-1, keepdim=True))),
    "norm_one": _plain(lambda x: x / (1 + torch.linalg.vector_norm(x, 1, -1, keepdim=True))),
    "norm_most": _plain(lambda x: x / (1 + torch.linalg.vector_norm(x, float("inf"), -1, keepdim=True))),
    "most": _plain(lambda x: x - x.amax(-1, keepdim=True)),
    "cdist": _plain(lambda x: torch.cdist(x, x)),
    "cosine": _plain(lambda x: x * F.cosine_similarity(x, x.tanh(), -1)[..., None]),
    "normalize": _plain(lambda x: F.normalize(x, dim=-1)),
    "einsum_trace": _plain(lambda x: x * torch.einsum("bti,bsi->bts", x, x.tanh()).tanh().sum(-1, keepdim=True)),
    "einsum_diagonal": _plain(lambda x: torch.einsum("btii->bti", x[..., None] * x[..., None, :].tanh())),
    "einsum_weight": lambda n, d: Step(
        lambda x, s: torch.einsum("bthd,hde->bthe", _cut(x, _groups(n), -1), s.w).flatten(2),
        w=torch.randn(_groups(n), n // _groups(n), 3),
    ),
    "square_weight": lambda n, d: Step(lambda x, s: x @ s.w @ s.w.T, w=torch.randn(n, n)),
    "tied": lambda n, d: Step(lambda x, s: F.linear(F.linear(x, s.w).tanh(), s.w.T), w=torch.randn(6, n)),
    "mix_tokens": lambda n, d: Step(lambda x, s: s.w @ x, w=torch.randn(LENGTH, LENGTH)),
    "attention": _attention(None),
    "attention_picked": _attention(lambda x, s: x[..., s.index]),
    "attention_picked_keys": _attention(lambda x, s: x[..., s.index], values=False),
    "attention_shifted": _attention(lambda x, s: x[..., s.index] + s.v),
    "attention_rolled": _attention(lambda x, s: x.roll(1, -1)),
    "attention_rotary": _attention(lambda x, s: _rotate_halves(x) if x.shape[-1] % 2 == 0 else x, values=False),
    "attention_swapped": _attention(lambda x, s: _cut(x, _groups(x.shape[-1]), -1).mT.flatten(2), values=False),
    "linear_attention": _attention(lambda x, s: F.elu(x) + 1, values=False),
    "attention_sigmoid": _attention(lambda x, s: x.sigmoid()),
}
"""The steps by name; each keeps the batch and the tokens and may change the number of units."""

OFFSET = frozenset(
    {"attention_picked", "attention_picked_keys", "attention_shifted", "attention_sigmoid", "linear_attention"}
)
"""Steps that multiply units which are not zero where their parameters are."""
