from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from archir.errors import FileError, GrowError
from archir.growing.model import load_model

MODELS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(width, 2)

net = nn.Linear(4, 2)

def number():
    return 3

def broken():
    raise RuntimeError("no luck")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "made.py").write_text(MODELS)
    return tmp_path


def test_functions_and_classes_are_called_with_arguments(folder: Path) -> None:
    model = load_model("made.py:Net", {"width": 7}, base=folder)
    layer = model.layer
    assert isinstance(layer, nn.Linear) and layer.in_features == 7


def test_models_are_taken_as_they_are(folder: Path) -> None:
    assert isinstance(load_model("made.py:net", base=folder), nn.Linear)
    with pytest.raises(GrowError, match="takes no arguments"):
        load_model("made.py:net", {"width": 7}, base=folder)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("made.py:number", "makes a int, not an nn.Module"),
        ("made.py:broken", "RuntimeError: no luck"),
        ("made.py:nett", "did you mean"),
    ],
)
def test_others_are_refused(folder: Path, spec: str, expected: str) -> None:
    with pytest.raises(GrowError, match=expected):
        load_model(spec, base=folder)


def test_wrong_arguments_and_missing_files_are_told(folder: Path) -> None:
    with pytest.raises(GrowError, match="unexpected keyword argument"):
        load_model("made.py:Net", {"depth": 7}, base=folder)
    with pytest.raises(FileError, match="there is no file"):
        load_model("absent.py:Net", base=folder)
