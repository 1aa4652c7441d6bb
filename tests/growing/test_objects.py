"""Objects a configuration names, and what is said of those that cannot be had."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from archir.errors import FileError, GrowError
from archir.growing.importing import call_object, load_object


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "wheels.py").write_text("COUNT = 4\n")
    (tmp_path / "cars.py").write_text("from wheels import COUNT\n\nclass Car:\n    wheels = COUNT\n")
    (tmp_path / "broken.py").write_text("x = 1\ny = x.nothing\n")
    (tmp_path / "syntax.py").write_text("def\n")
    return tmp_path


def test_objects_of_files_and_modules(folder: Path) -> None:
    path = list(sys.path)
    assert load_object("cars.py:Car.wheels", base=folder) == 4
    assert load_object(f"{folder}/cars.py:Car")().wheels == 4
    assert load_object("cars:Car", base=folder).__module__ == "cars"
    assert load_object("collections:OrderedDict.fromkeys")("a") == {"a": None}
    assert sys.path == path


def test_functions_are_called(folder: Path) -> None:
    assert call_object("cars.py:Car", base=folder).wheels == 4
    with pytest.raises(GrowError, match=r"cars.py:Car.wheels is a int, not a function"):
        call_object("cars.py:Car.wheels", base=folder)


@pytest.mark.parametrize("spec", ["cars.py", "cars.py:", ":Car", ""])
def test_specs_without_an_object(spec: str) -> None:
    with pytest.raises(GrowError, match="names no object"):
        load_object(spec)


def test_what_cannot_be_had_is_said_plainly(folder: Path) -> None:
    with pytest.raises(FileError, match=r"there is no file .*bikes.py"):
        load_object("bikes.py:Bike", base=folder)
    with pytest.raises(GrowError, match="there is no module 'no_such_module_here'"):
        load_object("no_such_module_here:Bike", base=folder)
    with pytest.raises(GrowError, match=r"there is no module 'no_such_module_here\.bikes'"):
        load_object("no_such_module_here.bikes:Bike", base=folder)
    with pytest.raises(GrowError, match=r"cars.py has no 'Cart'(.|\n)*did you mean Car\?"):
        load_object("cars.py:Cart", base=folder)


@pytest.mark.parametrize("spec", ["broken.py:x", "broken:x"])
def test_modules_that_fail_name_their_line(folder: Path, spec: str) -> None:
    with pytest.raises(GrowError, match=r"cannot be loaded\n  where: .*broken.py:2\n  why:   AttributeError"):
        load_object(spec, base=folder)
    assert not {"broken", "archir_user_broken"} & set(sys.modules)


def test_modules_that_are_no_python(folder: Path) -> None:
    with pytest.raises(GrowError, match=r"cannot be loaded(.|\n)*SyntaxError"):
        load_object("syntax.py:x", base=folder)
