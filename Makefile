# Two commands on a bare machine: `make train` and `make test`. Needs Python >= 3.11 and a package registry.
PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install train lm sweep test test-all torture soak lint format tensorboard results bench guides gpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(READY) ## create .venv and install the package, every version pinned

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "recur needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1): set PYTHON=/path/to/python3.11"; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip==26.3
	$(BIN)/python -m pip install --quiet -c constraints.txt --build-constraint constraints.txt -e '.[dev]'
	@touch $(READY)

train: $(READY) ## train the embedded sentiment example (ARGS="..." adds overrides)
	$(BIN)/python -m recur.train $(ARGS)

sweep: $(READY) ## 8 embedded runs over all cores, a leaderboard and a page (ARGS="..." adds overrides)
	$(BIN)/python -m recur.train -m sweep=example $(ARGS)

lm: $(READY) ## train the embedded language model and let it write (ARGS="..." adds overrides, and leaves the text out)
	$(BIN)/python -m recur.train experiment=lm $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m recur.generate "$$(ls -td outputs/lm/*/ | head -1)" --prompt the --tokens 60 --seed 1)

test: $(READY) ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(ARGS)

test-all: $(READY) ## every test, the slow ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m 'slow or not slow' --hypothesis-profile=default $(ARGS)

torture: $(READY) ## kill runs forty times at random moments, resume them, compare with runs never killed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m 'slow or not slow' tests/test_torture.py $(ARGS)

soak: $(READY) ## two thousand steps of each family, warmed up: memory and open files must not grow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m 'slow or not slow' tests/test_soak.py $(ARGS)

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy

format: $(READY) ## let ruff put the code in order
	$(BIN)/ruff check --fix src tests
	$(BIN)/ruff format src tests

tensorboard: $(READY) ## look at every run in outputs
	$(BIN)/tensorboard --logdir outputs

gpu: $(READY) ## test and measure on a GPU, one JSON in outputs (without one: a dry run)
	$(BIN)/python -m recur.benchmarks.gpu $(ARGS)

results: $(READY) ## write the README's figures (ARGS="RUN ..." publishes runs)
	$(BIN)/python -m recur.benchmarks.publish $(ARGS)

bench: $(READY) ## measure speed; tables, JSON and a plot in outputs/bench
	$(BIN)/python -m recur.bench $(ARGS)

guides: $(READY) ## measure the course's claims, 75 minutes on two idle cores, resumable (ARGS="NAME ...", "--quick")
	$(BIN)/python -m recur.claims $(ARGS)

clean: ## remove the environment and caches; runs in outputs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -exec rm -rf {} +
