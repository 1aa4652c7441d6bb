from __future__ import annotations

import subprocess
import sys

import pytest

import archir


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_does_not_load_torch() -> None:
    assert (
        _python("import sys, archir; print(sorted({'torch', 'networkx', 'numpy', 'sympy'} & set(sys.modules)))") == "[]"
    )


def test_command_line_does_not_load_torch() -> None:
    assert _python("import sys, archir.cli.main; print('torch' in sys.modules)") == "False"


def test_every_public_name_is_found() -> None:
    assert sorted(archir.__all__) == dir(archir)
    for name in archir.__all__:
        assert getattr(archir, name) is not None


def test_functions_are_not_hidden_by_packages_of_their_name() -> None:
    code = (
        "import archir.scoring.losses, archir.growing.data, archir; from archir.growing import batches;"
        "print(callable(archir.score), callable(archir.grow), batches.__name__)"
    )
    assert _python(code) == "True True archir.growing.batches"


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = archir.absent
