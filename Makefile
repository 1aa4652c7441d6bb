# make demo   install, then grow a small network on scikit-learn's digits
# make test   install, then check the style and the types, then run the tests
# make lint   install, then check the style and the types
#
# PyPI's torch for Linux brings CUDA along; for the smaller CPU build:
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test lint

demo: $(INSTALLED)
	$(BIN)/archir demo

test: lint
	$(BIN)/python -m pytest -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt $(PIP_FLAGS) --editable ".[test]"
	touch $@
