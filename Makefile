# Everything happens inside this folder: the virtual environment and the downloads stand in .venv, results in data.
# Choose a Python with `make run PYTHON=/path/to/python3.12` (before .venv exists), pass arguments on with `make test ARGS="-k late"`.

UV_VERSION := 0.13.9
SETUP := .venv/.headrace-setup

# Caches that tools would put into the home folder. A cache named in the environment is used instead.
export UV_CACHE_DIR ?= $(CURDIR)/.venv/.cache/uv
export PIP_CACHE_DIR ?= $(CURDIR)/.venv/.cache/pip
export MPLCONFIGDIR ?= $(CURDIR)/.venv/.cache/matplotlib
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help run test soak soak-kafka lint bench docs lock clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

run: $(SETUP) ## Run the demo: real readings, live and as batch, to features served by Feast
	@.venv/bin/headrace demo $(ARGS)

test: $(SETUP) ## Run all tests
	@.venv/bin/python -m pytest -n auto $(ARGS)

soak: $(SETUP) ## Run the tests that kill, stop and reshuffle the flow with many more seeds (minutes; SOAK=3 for more)
	@HEADRACE_SOAK=$(or $(SOAK),1) .venv/bin/python -m pytest -n auto tests/crash tests/test_bit_identity.py \
		tests/test_kafka_faults.py tests/test_kafka_topics.py $(ARGS)

soak-kafka: $(SETUP) ## Run the signal path over a Kafka of its own for MINUTES=30 and say whether anything grows
	@.venv/bin/python -m tests.soak --minutes $(or $(MINUTES),30) $(ARGS)

lint: $(SETUP) ## Check style (ruff) and types (mypy, strict)
	@.venv/bin/ruff check .
	@.venv/bin/mypy

bench: $(SETUP) ## Measure, print the table, write it to tests/benchmarks/RESULTS.md
	@.venv/bin/python -m tests.benchmarks $(ARGS)

docs: $(SETUP) ## Write the tables of README.md anew from the code
	@.venv/bin/python -m tests.readme_tables

lock: .venv/bin/uv ## Write requirements.lock anew from pyproject.toml (ARGS=--upgrade for newer releases)
	@.venv/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
		--extra demo --extra documents --extra lint --extra local --extra openai --extra pdfium --extra test \
		--custom-compile-command "make lock" --output-file requirements.lock $(ARGS) pyproject.toml

clean: ## Remove the virtual environment, results and caches
	@rm -rf .venv data build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Exactly the locked packages, each checked against its hash, then this checkout itself. pip does it where uv cannot: it
# knows of package indexes and certificates that uv was not told.
$(SETUP): .venv/bin/uv requirements.lock pyproject.toml
	@echo "Installing the locked packages into .venv (the first time this takes a minute or two)"
	@export VIRTUAL_ENV=.venv; \
	.venv/bin/uv pip sync --quiet --require-hashes requirements.lock && \
	.venv/bin/uv pip install --quiet --no-deps --editable . || { \
		echo "uv could not, so pip tries (slower)"; \
		.venv/bin/python -m pip install --quiet --require-hashes --requirement requirements.lock && \
		.venv/bin/python -m pip install --quiet --no-deps --editable .; }
	@touch $@

# A name on the PATH proves nothing (version switchers put one there for every Python they know), so each is run.
.venv/bin/uv:
	@fits() { "$$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' >/dev/null 2>&1; }; \
	bare=""; \
	for python in $(or $(PYTHON),.venv/bin/python python3.12 python3.11 python3 python); do \
		fits "$$python" || continue; \
		"$$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || { bare="$$python"; continue; }; \
		echo "Making .venv with $$("$$python" --version)"; \
		fits .venv/bin/python || rm -rf .venv; \
		"$$python" -m venv .venv && .venv/bin/python -m pip install --quiet "uv==$(UV_VERSION)" && exit 0; \
		echo "Could not make .venv, see above: is a package index within reach?" >&2; exit 1; \
	done; \
	if [ -n "$$bare" ]; then \
		echo "$$bare lacks the module venv or ensurepip:" \
			"install it (Debian, Ubuntu: apt install python3-venv) or name another Python with PYTHON=." >&2; \
	else \
		echo "Headrace needs Python 3.11 or 3.12 and found none$(if $(PYTHON), at $(PYTHON)):" \
			"install one or name it, as in make run PYTHON=/path/to/python3.12." >&2; \
	fi; \
	exit 1
