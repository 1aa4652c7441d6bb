# make demo   install, then grow a small U-Net on scikit-learn's digits
# make quick  install, then check the style and the types, then run the tests nearest to what changed since the main
#             branch, the quick ones, for less than a minute
# make test   install, third-party models and trainers included, then check the style and the types, then run the
#             tests
# make lint   install likewise, then check the style and the types
# make bench  install likewise, then compare the analysis of widths with Torch-Pruning's, emit every model of the zoos as
#             source and as ONNX, and write docs/coverage.md
#
# PyPI's torch for Linux brings CUDA along; PIP_FLAGS passes pip an index that has the smaller CPU build.

PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --constraint constraints.txt $(PIP_FLAGS)
INSTALLED := .venv/installed
ZOO := .venv/zoo
STYLE = $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

.PHONY: demo quick test lint bench

demo: $(INSTALLED)
	$(BIN)/archir demo

quick: $(INSTALLED)
	$(STYLE)
	$(BIN)/python -m tools.changed_tests -n 2

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(ZOO)
	$(STYLE)

bench: $(ZOO)
	$(BIN)/python tools/bench.py widths --json -
	$(BIN)/python tools/bench.py emission --json -

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable ".[test]"
	touch $@

$(ZOO): $(INSTALLED)
	$(INSTALL) --editable ".[test,zoo,bench,lightning,trainer]"
	touch $@
