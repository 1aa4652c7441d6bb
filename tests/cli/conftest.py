"""A folder with models and the configuration of a short run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.run import CONFIG, write_models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_models(tmp_path)
    (tmp_path / "run.toml").write_text(CONFIG)
    return tmp_path
