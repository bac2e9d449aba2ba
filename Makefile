# make demo    set up, then the whole job on real texts: ends with the table and a report
# make test    set up, then the tests
# make check   the tests, the lint, the types and the floors of the house
# make rag     another environment with the extra [rag] (RAGAS), and the tests that need it
#
# Set-up is a virtual environment in .venv with the exact versions of constraints.txt. PYTHON=python3.12 picks another.

PYTHON ?= python3
VENV ?= .venv
RAG ?= .venv-rag
BIN = $(VENV)/bin

.PHONY: setup demo test lint types layers check rag clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "rankwright needs Python 3.10 or newer; say make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,fast,onnx]'
	@touch $@

$(RAG)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(RAG)
	$(RAG)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(RAG)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,rag]'
	@touch $@

rag: $(RAG)/.ready
	$(RAG)/bin/python -W ignore -c 'import ragas.metrics.collections'
	$(RAG)/bin/python -m pytest tests/test_ragmetrics.py tests/test_judge.py tests/test_answering.py

demo: setup
	$(BIN)/rankwright demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

check: lint types layers test

clean:
	rm -rf $(VENV) $(RAG) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
