# On a fresh machine: `make quickstart` and `make test`. Requires Python 3.11+ (select one with PYTHON=...).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/quickstart

.PHONY: quickstart test test-slow check format docs clean

$(BIN)/embedmask: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# Create a data set, train and evaluate a small model, predict images: 5 to 22 minutes on 2 cores.
quickstart: $(BIN)/embedmask
	rm -rf $(RUN)
	$(BIN)/embedmask data shapes $(RUN)/shapes --train 2000 --val 150 --size 128
	$(BIN)/embedmask train --config shapes --data $(RUN)/shapes --out $(RUN)/train
	$(BIN)/embedmask eval --weights $(RUN)/train/model.safetensors --data $(RUN)/shapes --json $(RUN)/metrics.json
	$(BIN)/embedmask predict $(RUN)/shapes/images/val_00000* --weights $(RUN)/train/model.safetensors --out $(RUN)/images
	@$(BIN)/python -c 'import json; print("mask AP on val: %.3f" % json.load(open("$(RUN)/metrics.json"))["segm/AP"])'
	@echo "images: $(RUN)/images and $(RUN)/train/samples"

test: $(BIN)/embedmask
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

# Exports of all presets, a clean environment, pages in a browser, compiled networks.
test-slow: $(BIN)/embedmask
	$(BIN)/python -m pytest -q -m slow

check: test test-slow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(BIN)/embedmask
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Write the documentation site to site/; open site/index.html.
docs: $(BIN)/embedmask
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) runs site build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
