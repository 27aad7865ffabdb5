# One command for each thing that is done here; the first of them also sets up .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILT_FROM := pyproject.toml constraints.txt CMakeLists.txt $(shell find csrc -type f)

# Options for the program behind a target: make demo ARGS="--loss supcon", make test ARGS="-k ms".
ARGS ?=

# Also what pip builds with, in its environment apart; the second name is that of newer versions.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt

.PHONY: help demo test bench lint format clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo | test | bench | lint | format | clean, with options in ARGS="..."'

demo: $(VENV)/.demo
	$(BIN)/python examples/train_digits.py --output build/digits.png $(ARGS)

# The tests run the example and the benchmark too.
test: $(VENV)/.test $(VENV)/.demo $(VENV)/.bench
	$(BIN)/python -m pytest $(ARGS)

bench: $(VENV)/.bench
	$(BIN)/python -m bench $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/stubtest pairops._native
	find csrc -name '*.h' -o -name '*.c*' | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.lint
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	find csrc -name '*.h' -o -name '*.c*' | xargs $(BIN)/clang-format -i

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -r {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 10) and sys.exit("pairops needs Python 3.10 or \
	newer, and $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# Editable: the compiled part is installed, the Python part is read from the working tree. Its import
# hook stands before sys.path, so that both are found from whatever folder Python starts in.
$(VENV)/.installed: $(BUILT_FROM) | $(BIN)/python
	$(BIN)/pip install -e .
	@touch $@

# What one extra of pyproject.toml names; pairops itself is there already and is left as it is.
$(VENV)/.demo $(VENV)/.test $(VENV)/.bench $(VENV)/.lint: $(VENV)/.%: $(VENV)/.installed
	$(BIN)/pip install "pairops[$*]"
	@touch $@
