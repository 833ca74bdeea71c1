# Everything runs in .venv, which `make setup` makes. PYTHON is the interpreter to make it with (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
PYTEST = $(BIN)/python -m pytest

.PHONY: setup demo test lowest coverage nightly docs check audit clean
.DEFAULT_GOAL := help

help:
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*## /\t/'

setup: .venv/done ## make .venv with what demo, tests and benchmarks need

.venv/done: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup ## quantize EfficientNet-Lite0 (ImageNet) without data
	$(BIN)/dffg quantize demo:efficientnet_lite0 --out demo-output --force

# Two halves that take as long, side by side: most tests are too small to keep two cores busy.
FIRST := tests/quant tests/synthesis/baselines tests/benchmarks tests/evaluation tests/export tests/onnx_import tests/report tests/test_degenerate.py tests/test_families.py tests/test_random_networks.py tests/test_kills.py

test: setup ## run the tests, the arena's smoke suite among them; pictures of the report's page go to build/screenshots
	OMP_NUM_THREADS=1 DFFG_SCREENSHOTS=build/screenshots $(MAKE) --jobs=2 --output-sync=target test-first test-second

test-first:
	$(PYTEST) -q --durations=10 $(FIRST)

test-second:
	$(PYTEST) -q --durations=10 tests src $(FIRST:%=--ignore=%)

lowest: setup ## test with the oldest versions of everything that pyproject.toml allows
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.lowest

coverage: setup ## lines and branches of the library that the tests run; half an hour
	rm -f .coverage .coverage.*
	$(MAKE) test PYTEST="$(BIN)/coverage run -m pytest"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

nightly: setup ## adversity in full: 500 random networks, 100,000 inputs a parser, 50 kills, a large network; many hours
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.kill_suite --kills 50
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.interrupt_suite
	OMP_NUM_THREADS=1 DFFG_LARGE_NETWORK=1 $(BIN)/python -m pytest -q tests/test_degenerate.py
	OMP_NUM_THREADS=1 DFFG_HYPOTHESIS=drawn DFFG_RANDOM_NETWORKS=500 $(BIN)/python -m pytest -q tests/test_random_networks.py
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --inputs 100000

docs: setup ## build the site in site/
	$(BIN)/zensical build --strict

check: setup ## lint, types, import directions, tables rendered from stored results, the site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m benchmarks render --check
	$(BIN)/zensical build --strict

audit: setup ## weaknesses known of what is installed, where the package index tells
	$(BIN)/python -m tests.audit

clean: ## remove what setup, demo, tests and docs made
	rm -rf .venv build demo-output site
