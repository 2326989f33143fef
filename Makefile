PYTHON ?= python3
BIN := .venv/bin
SMALL := .venv/.small
INSTALLED := .venv/.installed
SPACE := .venv/.space

.PHONY: help demo test test-slow space docs lint format clean
.DELETE_ON_ERROR:

# Once installed, these need no network.
demo test: export HF_HUB_OFFLINE = 1
demo test: export HF_DATASETS_OFFLINE = 1
demo test test-slow: export TOKENIZERS_PARALLELISM = false

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(SMALL) ## run examples/demo on the CPU (STEPS=1000: as many updates, LONG=1: 3,000)
	$(BIN)/python examples/demo/demo.py $(if $(LONG),--long) $(if $(STEPS),--steps $(STEPS))

test: export OMP_NUM_THREADS = 1
test: lint ## check style and types, then run the tests, a file at a time on each of two cores
	$(BIN)/pytest -n 2 --dist loadfile

test-slow: $(INSTALLED) ## run the tests that take minutes
	$(BIN)/pytest -m slow

space: $(SPACE) ## start the page of hub_cards/space on http://127.0.0.1:7860
	$(BIN)/python hub_cards/space/app.py

docs: $(INSTALLED) ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(INSTALLED) ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED) ## sort the imports and format the code
	$(BIN)/ruff check --select I --fix
	$(BIN)/ruff format

clean: ## remove .venv, caches and builds; runs/ and demo_output*/ stay
	rm -rf .venv build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find coordformer docs tests examples -name __pycache__ -prune -exec rm -rf {} +

# By a path, not by a finder: in the folder that holds this one Python would take this one for the package.
EDITABLE = --config-settings editable_mode=compat -e

# What a user needs; the demo is not to wait for the rest.
$(SMALL): setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " \
	    + sys.version.split()[0] + ": make PYTHON=python3.11 (or newer) ...")'
	@echo "Installing into .venv: a minute or two"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(EDITABLE) ".[figures]"
	@touch $@

$(INSTALLED): $(SMALL)
	@echo "Installing what tests need into .venv: some minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(EDITABLE) ".[test]"
	@touch $@

$(SPACE): $(INSTALLED)
	@echo "Installing the page into .venv"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(EDITABLE) ".[space]"
	@touch $@
