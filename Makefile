# train, test: what the README begins with. Both make .venv on first use, with the versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test test-slow lint format mutants configs clean
.DELETE_ON_ERROR:

train: .venv/.installed
	$(BIN)/ppo-kl train $(ARGS)

test: .venv/.dev
	$(BIN)/pytest -n auto $(ARGS)

test-slow: .venv/.dev
	$(BIN)/pytest -m slow -n 2 $(ARGS)

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Breaks one key line after the other in a copy of the tree; a test must fail each time.
mutants: .venv/.dev
	$(BIN)/python scripts/mutants.py

# configs/objective/*.yaml from the presets, the README's tables from their sources.
configs: .venv/.dev
	$(BIN)/python scripts/generate.py

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ppo_kl needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch .venv/.installed $@
