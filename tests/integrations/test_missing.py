"""Integrations are asked for: archir imports none of their packages, and says plainly which extra installs them."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from archir.errors import GrowError


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("lightning", "lightning.pytorch", "lightning"), ("transformers", "accelerate.optimizer", "trainer")],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str, extra: str
) -> None:
    name = f"archir.integrations.{module}"
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(
        GrowError, match=rf'{name} needs packages .*\n  why:   .*\n  hint:  pip install "archir\[{extra}\]"'
    ):
        importlib.import_module(name)


def test_archir_imports_none_of_them() -> None:
    code = "import archir, sys; archir.propose; print({'lightning', 'transformers', 'accelerate'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
