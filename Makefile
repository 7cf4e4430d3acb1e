# SPARE's own commands. The first use of a target makes .venv (about two minutes, 2 GB).

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
OUT ?= out/demo
PROFILE ?= gpu

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo demo-services pipelines test lint format canvas clean distclean

help: ## what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## the whole pipeline on the built-in model: erase, measure, register, promote (results in OUT, out/demo)
	$(BIN)/spare demo --output "$(OUT)"

demo-services: $(STAMP) ## the same with a real MLflow server and a real S3 API, started and ended by it (out/demo-services)
	$(BIN)/python -m examples.demo_services --output "$(OUT)-services"

pipelines: $(STAMP) ## compile the pipelines, for your registry with IMAGE=registry/spare:tag, without GPUs with PROFILE=cpu
	SPARE_IMAGE="$(IMAGE)" $(BIN)/python -W ignore -m pipelines.spare --profile $(PROFILE)
	SPARE_IMAGE="$(IMAGE)" $(BIN)/python -W ignore -m pipelines.bundle --profile $(PROFILE)
	SPARE_IMAGE="$(IMAGE)" $(BIN)/python -W ignore -m pipelines.takedown --profile $(PROFILE)
	$(BIN)/python -W ignore -m components.readme

# Two processes of one thread each: torch's own threads in two processes would slow each other down.
test: $(STAMP) ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP) ## style, formatting and types: ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## put the code into the form that lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

canvas: $(STAMP) ## train the built-in model again from nothing (hours on two cores; resumes; needs npm)
	$(BIN)/python -m spare_core.canvas.training

clean: ## remove caches and builds; keeps .venv, out and .canvas
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find spare_core tests -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv too
	rm -rf $(VENV)

# Installed again whenever what is to be installed changes.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,pipelines,server]'
	touch $@
