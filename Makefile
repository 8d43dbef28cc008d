# `make demo` and `make test` need only Python 3.11 or later and make: each sets
# up its own virtual environment first, from hashed requirements.
#
# Another Python, beside the first: make test PYTHON=python3.13 VENV=.venv-3.13

PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
STATE := $(CURDIR)/$(VENV)
LOCKED := $(VENV)/.locked
PAGES := $(VENV)-docs
READY := $(VENV)/.ready
COMPILE := $(BIN)/uv pip compile --quiet --upgrade --python $(BIN)/python \
	--python-version 3.11 --generate-hashes --no-header --no-annotate

export UV_HTTP_TIMEOUT ?= 180
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export JAX_COMPILATION_CACHE_DIR := $(STATE)/jax-cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0.1
export MPLBACKEND := agg
export MPLCONFIGDIR := $(STATE)/matplotlib
export IPYTHONDIR := $(STATE)/ipython
export JUPYTER_CONFIG_DIR := $(STATE)/jupyter/config
export JUPYTER_DATA_DIR := $(STATE)/jupyter/data
export JUPYTER_RUNTIME_DIR := $(STATE)/jupyter/runtime

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint style slow docs tutorials benchmarks accelerator lock \
	release clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 13

demo: $(READY) ## Train one model of each kind and show what comes out
	$(BIN)/python -m demo

# Types take a minute of one core: they are checked beside the tests, and told at the end.
test: style ## Check the style and the types, and run the tests
	@echo "pyright beside pytest"; \
	$(BIN)/pyright --pythonpath $(BIN)/python > $(VENV)/types.log 2>&1 & types=$$!; \
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"; tests=$$?; \
	wait $$types; typed=$$?; cat $(VENV)/types.log; exit $$((tests + typed))

lint: style ## Check format, style, types, and spelling
	$(BIN)/pyright --pythonpath $(BIN)/python

style: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/codespell

slow: $(READY) ## Run what takes long: campaigns, notebooks, more cases of a guard
	$(BIN)/python -m pytest -n 2 -m slow --timeout 0

docs: $(PAGES)/.ready ## Build the site in build/site; broken links and names fail
	NO_MKDOCS_2_WARNING=1 $(PAGES)/bin/mkdocs build --quiet

tutorials: $(READY) ## Run the notebooks, and write their pages and pictures (NAMES=, some)
	$(BIN)/python docs/tutorials.py $(NAMES)

benchmarks: $(READY) ## Run the benchmarks and rebuild their table
	$(BIN)/python -m benchmarks

# By the Python that PYTHON names, if its JAX sees an accelerator: such machines have
# their own. Else by ours, with small sizes on the CPU.
ifneq ($(filter accelerator,$(MAKECMDGOALS)),)
MEASURING := $(shell $(PYTHON) -c \
	"import jax; exit(jax.default_backend() == 'cpu')" 2>/dev/null \
	&& echo $(PYTHON) || echo $(BIN)/python)
endif

accelerator: $(if $(filter $(BIN)/python,$(MEASURING)),$(READY)) ## Measure a headline of each trainer on an accelerator
	$(MEASURING) -m benchmarks.accelerator $(ARGUMENTS)

lock: $(READY) ## Resolve the requirements anew
	$(COMPILE) --universal requirements/uv.in -o requirements/uv.txt
	$(COMPILE) --universal --extra data --extra datasets --extra plots \
		--extra tensorboard --group dev pyproject.toml requirements/ci.in \
		-o requirements/ci.txt
	$(COMPILE) --universal requirements/docs.in -o requirements/docs.txt
	$(COMPILE) --universal --no-deps requirements/texts.in -o requirements/texts.txt
	echo "torch ; python_version < '3'" | $(COMPILE) --override - \
		requirements/peers.in -o requirements/peers.txt

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

release: test docs ## Test, build and tag the version that pyproject.toml names
	git diff --quiet HEAD || (echo "commit first: the tag is of a commit" && exit 1)
	grep -q "^## \[$(VERSION)\] - 20" CHANGELOG.md \
		|| (echo "date [$(VERSION)] in CHANGELOG.md first" && exit 1)
	$(BIN)/uv build --quiet --no-build-isolation --python $(BIN)/python
	git tag --annotate v$(VERSION) --message "effgen-jax $(VERSION)"

clean: ## Remove the virtual environment, the caches, and the runs
	rm -rf $(VENV) $(PAGES) .hypothesis .pytest_cache .ruff_cache build dist runs
	find . -path './.*' -prune -o -name __pycache__ -prune -exec rm -rf {} +

# The stamps are written last, so that a set-up cut short starts again.
$(LOCKED): requirements/uv.txt requirements/ci.txt requirements/texts.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip --disable-pip-version-check install \
		--quiet --require-hashes -r requirements/uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode \
		--require-hashes -r requirements/ci.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode \
		--no-deps --require-hashes -r requirements/texts.txt
	@touch $@

$(PAGES)/.ready: requirements/docs.txt requirements/uv.txt
	$(PYTHON) -m venv --clear $(PAGES)
	$(PAGES)/bin/python -m pip --disable-pip-version-check install \
		--quiet --require-hashes -r requirements/docs.txt
	@touch $@

$(READY): $(LOCKED) pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps \
		--no-build-isolation --editable .
	@touch $@
