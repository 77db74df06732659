# One virtual environment, made when needed. PYTHON=python3.12 make demo picks another interpreter.
PYTHON ?= python3
VENV ?= .venv
# Tested versions; `make demo CONSTRAINTS=` lets pip choose freely within pyproject.toml's bounds.
CONSTRAINTS ?= constraints.txt
# The files with tests of a mark: collecting all others takes longer than some of these run.
marked = -m $(1) $(shell grep -rl --include='test_*.py' 'mark\.$(1)' tests)
PIP = $(VENV)/bin/python -m pip install --disable-pip-version-check --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.PHONY: demo test test-all test-faults test-browser test-slurm test-ray lint format bench audit docs tables clean

demo: $(VENV)/.installed
	$(VENV)/bin/python run.py

# A process per core with one thread each: tiny networks gain nothing from more threads.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

test-all: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest -m "not gpu and not slurm and not ray and not browser"

# Every fault that is done to a run; what came of it is written into the page.
test-faults: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/fault_suite.py docs/reliability.md --numprocesses auto --maxprocesses 8 --dist worksteal

# The report, the app and the documentation in Chromium, which has to be there: on Debian `apt-get install chromium`.
test-browser: $(VENV)/.installed-browser
	$(VENV)/bin/python -m pytest $(call marked,browser)

# On a Slurm of one node that is started for them, as root: on Debian `apt-get install slurm-wlm munge`.
test-slurm: $(VENV)/.installed-clusters
	$(VENV)/bin/python tests/slurm_cluster.py $(VENV)/bin/python -m pytest $(call marked,slurm)

# On a Ray of this machine.
test-ray: $(VENV)/.installed-clusters
	$(VENV)/bin/python -m pytest $(call marked,ray)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# BENCH="--quick", BENCH="--device cuda"
bench: $(VENV)/.installed-dev
	-$(PIP) --editable ".[bench]"
	$(VENV)/bin/python -m benchmarks $(BENCH)

# Whether installed versions fit together and have known vulnerabilities; asks a service on the internet.
audit: $(VENV)/.installed
	$(VENV)/bin/python .ci/audit

# The documentation as a site, in site/; fails on a link that leads nowhere.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# The tables of choices in the documentation; a test fails when they are stale.
tables: $(VENV)/.installed-dev
	$(VENV)/bin/python -m twinsight.info docs/*.md
	$(VENV)/bin/python tests/explainers/architectures.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "twinsight needs Python 3.11 or newer: PYTHON=python3.11 make ...")'
	$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "installing twinsight and its dependencies (some minutes the first time)"
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable ".[dev]"
	@touch $@

$(VENV)/.installed-clusters: $(VENV)/.installed-dev
	$(PIP) --editable ".[dev,slurm,ray]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable ".[docs]"
	@touch $@

$(VENV)/.installed-browser: $(VENV)/.installed-dev
	$(PIP) --editable ".[dev,browser,docs]"
	@touch $@
