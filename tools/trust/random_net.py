"""Random networks of many kinds of wiring, made from a plan of steps that is plain data."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE = (
    *("conv", "grouped", "depthwise", "strided", "batch_norm", "group_norm", "instance_norm", "relu", "gelu", "add"),
    *("gate", "cat", "cut", "shuffle", "attention", "layer_norm", "linear", "pool", "upsample", "squeeze", "shared"),
    *("scale", "pad", "branch", "index", "softmax", "many", "even"),
)
SEQUENCE = (
    *("linear", "fused", "separate", "lstm", "gru", "layer_norm", "rms_norm", "gelu", "add", "glu", "cat", "conv1d"),
    *("shared", "positions", "rotary", "causal", "index", "reshape", "unbind", "mlp", "branch", "scale", "cumulative"),
    *("einsum", "many", "even"),
)
RESULTS = ("tensor", "tuple", "dict", "nested", "list")


@dataclass(frozen=True)
class Plan:
    """What a network is made of.

    Attributes:
        kind: `image`, `[batch, 3, 8, 8]`, or `sequence`, tokens `[batch, 6]` beside features `[batch, 6, 8]`.
        steps: of each its kind, and two numbers that choose what it reads.
        result: what it returns.
        seed: of its weights.
    """

    kind: str
    steps: tuple[tuple[str, int, int], ...]
    result: str
    seed: int


def random_plan(dice: random.Random) -> Plan:
    """Return a plan."""
    kind = dice.choice(("image", "sequence"))
    kinds = IMAGE if kind == "image" else SEQUENCE
    steps = tuple((dice.choice(kinds), dice.randrange(10), dice.randrange(10)) for _ in range(dice.randint(2, 7)))
    return Plan(kind, steps, dice.choice(RESULTS), dice.randrange(1000))


def build(plan: Plan) -> tuple[RandomNet, tuple[tuple[Tensor, ...], ...]]:
    """Return a network in evaluation mode, everything in it random, and inputs of two, one and five examples."""
    torch.manual_seed(plan.seed)
    net = RandomNet(plan)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.is_floating_point():
                tensor.add_(0.2 * torch.randn_like(tensor))
    return net.eval(), tuple(_inputs(plan, batch) for batch in (2, 1, 5))


def _inputs(plan: Plan, batch: int) -> tuple[Tensor, ...]:
    if plan.kind == "image":
        return (torch.randn(batch, 3, 8, 8), torch.randn(batch, 4))
    return (torch.randint(0, 11, (batch, 6)), torch.randn(batch, 6, 8))


class RandomNet(nn.Module):
    """A network: each step reads values made before, and appends one. Some of its parts are never called."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        image = plan.kind == "image"
        self.stem = nn.Conv2d(3, 8, 3, padding=1) if image else nn.Linear(8, 8)
        self.table = nn.Embedding(11, 8) if not image else nn.Linear(4, 8)
        self.shared = nn.Conv2d(8, 8, 1) if image else nn.Linear(8, 8)
        self.idle = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.scales = nn.ParameterList([torch.randn(8) for _ in range(3)])
        self.parts = nn.ModuleList([_part(plan.kind, *step) for step in plan.steps])
        self.used = [step for step in plan.steps]
        self.head = nn.Linear(8, 3)
        self.register_buffer("offset", torch.randn(3))

    def forward(self, x: Tensor, y: Tensor) -> Any:
        values = (
            [self.stem(x) + self.table(y)[:, :, None, None]]
            if self.plan.kind == "image"
            else [self.table(x) + self.stem(y)]
        )
        batch = x.shape[0]
        step = _image if self.plan.kind == "image" else _sequence
        for (kind, a, b), part in zip(self.plan.steps, self.parts, strict=True):
            left, right = values[a % len(values)], values[b % len(values)]
            if kind == "many":  # the branch that is taken depends on the batch
                values.append(left * 2.0 if batch > 1 + b % 3 else torch.tanh(left))
            elif kind == "even":
                values.append(left + 1.0 if batch % 2 == 0 else right - 1.0)
            else:
                values.append(step(self, kind, left, right, part))
        last = values[-1]
        pooled = last.mean((2, 3)) if self.plan.kind == "image" else last.mean(1)
        logits = self.head(pooled) + self.offset
        return {
            "tensor": logits,
            "tuple": (logits, pooled),
            "dict": {"logits": logits, "features": last},
            "nested": {"out": (logits, [pooled, None]), "n": 3},
            "list": [logits, values[0].sum()],
        }[self.plan.result]


def _part(kind: str, name: str, a: int, b: int) -> nn.Module:
    """Return the layers of one step; all keep eight features."""
    hidden = (4, 6, 10)[b % 3]
    if kind == "image":
        made: dict[str, nn.Module] = {
            "conv": nn.Sequential(nn.Conv2d(8, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, 8, 1)),
            "grouped": nn.Conv2d(8, 8, 3, padding=1, groups=(2, 4)[b % 2]),
            "depthwise": nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.Conv2d(16, 8, 1)),
            "strided": nn.Sequential(
                nn.Conv2d(8, hidden, 3, 2, 1), nn.BatchNorm2d(hidden), nn.ConvTranspose2d(hidden, 8, 2, 2)
            ),
            "batch_norm": nn.BatchNorm2d(8, affine=bool(b % 2)),
            "group_norm": nn.GroupNorm(2, 8),
            "instance_norm": nn.InstanceNorm2d(8, affine=bool(b % 2)),
            "attention": nn.Linear(8, 24),
            "layer_norm": nn.LayerNorm(8),
            "linear": nn.Sequential(nn.Linear(8, hidden), nn.Dropout(0.1), nn.Linear(hidden, 8)),
            "squeeze": nn.Sequential(nn.Linear(8, hidden), nn.SiLU(), nn.Linear(hidden, 8), nn.Sigmoid()),
            "cat": nn.Conv2d(16, 8, 1),
            "branch": nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)]),
        }
        return made.get(name, nn.Identity())
    made = {
        "linear": nn.Linear(8, 8, bias=bool(b % 2)),
        "fused": nn.Linear(8, 24),
        "separate": nn.ModuleDict({n: nn.Linear(8, 8) for n in "qkvo"}),
        "lstm": nn.LSTM(8, hidden, batch_first=True, proj_size=0),
        "gru": nn.GRU(8, 4, batch_first=True, bidirectional=True),
        "layer_norm": nn.LayerNorm(8),
        "rms_norm": nn.RMSNorm(8),
        "glu": nn.Linear(8, 16),
        "cat": nn.Linear(16, 8),
        "conv1d": nn.Conv1d(8, 8, 3, padding=1, groups=(1, 2)[b % 2]),
        "positions": nn.Embedding(6, 8),
        "causal": nn.Linear(8, 24),
        "mlp": nn.Sequential(nn.Linear(8, hidden), nn.GELU(), nn.Linear(hidden, 8)),
        "branch": nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)]),
    }
    if name == "lstm":
        return nn.ModuleList([made["lstm"], nn.Linear(hidden, 8)])
    return made.get(name, nn.Identity())


def _image(net: RandomNet, kind: str, x: Tensor, y: Tensor, part: Any) -> Tensor:
    match kind:
        case "relu" | "gelu":
            return torch.relu(x) if kind == "relu" else F.gelu(x)
        case "add":
            return x + y
        case "gate":
            return x * torch.sigmoid(y.mean((2, 3), keepdim=True))
        case "cat":
            return _tensor(part(torch.cat([x, y], 1)))
        case "cut":
            a, b = x.chunk(2, 1)
            return torch.cat([b, torch.tanh(a)], 1)
        case "shuffle":
            return x.reshape(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8)
        case "attention":
            tokens = x.flatten(2).transpose(1, 2)
            return _attention(part(tokens), 2).transpose(1, 2).reshape(-1, 8, 8, 8)
        case "layer_norm" | "linear":
            return _tensor(part(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        case "pool":
            return F.avg_pool2d(x, 3, 1, 1) + F.max_pool2d(y, 3, 1, 1)
        case "upsample":
            small = F.interpolate(x, size=(4, 4), mode="bilinear", align_corners=False)
            return F.interpolate(small, size=y.shape[-2:], mode="nearest")
        case "squeeze":
            return x * _tensor(part(x.mean((2, 3))))[:, :, None, None]
        case "shared":
            return _tensor(net.shared(torch.relu(net.shared(x))))
        case "scale":
            return x * _tensor(net.scales[1])[None, :, None, None]
        case "pad":
            return F.pad(x, (1, 0, 0, 1))[:, :, 1:, :-1]
        case "branch":
            return _tensor(part[1](x))
        case "index":
            return x[:, [1, 0, 3, 2, 5, 4, 7, 6]]
        case "softmax":
            return x.flatten(2).softmax(-1).reshape(x.shape)
        case _:
            return _tensor(part(x))


def _sequence(net: RandomNet, kind: str, x: Tensor, y: Tensor, part: Any) -> Tensor:
    match kind:
        case "fused" | "causal":
            return x + _attention(part(x), 2, causal=kind == "causal")
        case "separate":
            q, k, v = (_tensor(part[n](x)).reshape(-1, 6, 2, 4).transpose(1, 2) for n in "qkv")
            weights = (q @ k.transpose(-1, -2) / 2.0).softmax(-1)
            return _tensor(part["o"]((weights @ v).transpose(1, 2).flatten(2)))
        case "lstm":
            return _tensor(part[1](part[0](x)[0]))
        case "gru":
            return _tensor(part(x)[0])
        case "gelu":
            return F.gelu(x)
        case "add":
            return x + y
        case "glu":
            return F.glu(_tensor(part(x)), -1)
        case "cat":
            return _tensor(part(torch.cat([x, y], -1)))
        case "conv1d":
            return _tensor(part(x.transpose(1, 2)).transpose(1, 2))
        case "shared":
            return _tensor(net.shared(torch.relu(net.shared(x))))
        case "positions":
            return x + _tensor(part(torch.arange(x.shape[1], device=x.device)))
        case "rotary":
            return _rotated(x)
        case "index":
            return x[..., [1, 0, 3, 2, 5, 4, 7, 6]]
        case "reshape":
            return x.reshape(-1, 3, 2, 8).transpose(1, 2).reshape(-1, 6, 8)
        case "unbind":
            a, b = x.reshape(-1, 6, 2, 4).unbind(-2)
            return torch.stack([b, a], -2).flatten(-2)
        case "branch":
            return _tensor(part[2](part[0](x)))
        case "scale":
            return x * _tensor(net.scales[0]) + _tensor(net.scales[2])
        case "cumulative":
            return x.cumsum(1) / 6
        case "einsum":
            return torch.einsum("bsc,btc->bst", x, y).softmax(-1) @ x
        case _:
            return _tensor(part(x))


def _tensor(value: Any) -> Tensor:
    """Say that what a module returns is a tensor."""
    assert isinstance(value, Tensor)
    return value


def _attention(fused: Tensor, heads: int, *, causal: bool = False) -> Tensor:
    q, k, v = (t.reshape(*t.shape[:2], heads, t.shape[2] // heads).transpose(1, 2) for t in fused.chunk(3, -1))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


def _rotated(x: Tensor) -> Tensor:
    turns = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)[:, None] / torch.tensor(
        [1.0, 2.0, 4.0, 8.0], dtype=x.dtype
    )
    a, b = x.chunk(2, -1)
    return torch.cat([a * turns.cos() - b * turns.sin(), a * turns.sin() + b * turns.cos()], -1)
