# `make` alone lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt

.PHONY: help install quickstart test test-kills test-processes test-slurm test-torchrun docs lint types format clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(VENV)/installed ## a virtual environment in .venv with the tested versions

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$$(grep '^torch==' $(CONSTRAINTS))"
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable ".[dev]"
	touch $@

quickstart: install ## train SRDiff + YODA on bundled photographs and enlarge two it never saw (under 10 minutes on two cores)
	$(BIN)/python -m benchmarks.quickstart

test: install ## every test, offline
	$(BIN)/python -m pytest -n 2

test-kills: install ## 40 kills of one run, compared with the run that was left alone (about ten minutes)
	$(BIN)/python -m tests.cluster.kills

test-processes: install ## every method on one process against two and three, and with weights spread over two (about half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.cluster.processes
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.cluster.sharded

test-slurm: install ## a Slurm of two nodes on this machine: requeues, a dead node, the time limit (as root; slurm-wlm, munge)
	$(BIN)/python -m tests.cluster.slurm

test-torchrun: install ## a worker under torchrun that is killed, and one that hangs
	$(BIN)/python -m tests.cluster.torchrun

docs: install ## the documentation, in build/docs
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable ".[docs]"
	$(BIN)/mkdocs build --strict

lint: install ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## mypy --strict
	$(BIN)/mypy

format: install ## let ruff rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and caches; runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
