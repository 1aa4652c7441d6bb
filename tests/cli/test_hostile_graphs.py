"""A file of a stranger gets one clear error of the command line; it writes nothing, and moves no random numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from archir.ir.store import checksum
from tests.cli.run import refused

CALLS = [
    ('torch.save("pwned", "{victim}") : int', "there is no operator 'torch.save'"),
    ('aten.from_file("{victim}", True, 8)', "the operator 'aten.from_file' is not admitted"),
    ("aten.relu_(x)", "no function of tensors"),
    ("aten.layer_norm(x, [n], eps=\"__import__('os').abort()\") : f32[B, 3]", "was given"),
    ("aten.einsum(\"__import__('os').abort()\", [x])", "was given"),
    ("aten.zeros([2], dtype=99)", "was given 99 for 'dtype'"),
    ("aten.zeros([2], layout=1)", "was given 1 for 'layout'"),
    ("aten.clone(x, memory_format=77)", "was given 77 for 'memory_format'"),
    ('aten.rand([2], device="meta")', "for 'device'"),
    ("aten.zeros([2], dtype=quint8)", "neither an input nor a constant"),
    ("operator.mul([1, 2], 9000000000000) : int", "was given [1, 2] for 'a'"),
    ('operator.mul("a", 9000000000000) : int', "for 'a'"),
    ("operator.pow(10, 100000000)", "more than 64 bits"),
    ("aten.tensor_split.sections(x, 60000)", "takes too long on meta tensors"),
    ("aten.chunk(x, 100000000)", "more than 65,536 tensors"),
    ("aten.add.Tensor(2, 3)", "computes on more than meta tensors"),
]


def write(path: Path, text: str) -> Path:
    """Write an archive that holds a text and no tensors, its checksum right."""
    save_file({}, path, {"format": "archir", "version": "1", "graph": text, "checksum": checksum(text, {})})
    return path


@pytest.mark.parametrize("command", ["show", "widths", "verify"])
@pytest.mark.parametrize(("call", "why"), CALLS)
def test_a_hostile_call_is_refused_by_every_command(command: str, call: str, why: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    body = f"graph net(x: f32[B, 3], n: int) {{\n  %0 = {call.replace('{victim}', str(victim))}\n  return x\n}}"
    net = write(tmp_path / "net.archir", body)
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    assert why in refused(command, net)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (torch.get_default_dtype(), torch.is_grad_enabled())
    assert sorted(tmp_path.iterdir()) == [net]
