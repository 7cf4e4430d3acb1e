# SPARE's own commands. The first use of a target makes .venv (about two minutes, 2 GB).

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
OUT ?= out/demo
PROFILE ?= gpu
DEVICE ?= cuda

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS := .venv-tools/.installed
PINNED := image/requirements

.DEFAULT_GOAL := help
.PHONY: help demo demo-services pipelines test check docs docker-test k8s-test lint format image pins canvas canvas160 clean distclean

help: ## what each target does
	@awk -F ':.*## ' '/^[a-z0-9 -]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## the whole pipeline on the built-in model: erase, measure, register, promote (results in OUT, out/demo)
	$(BIN)/spare demo --output "$(OUT)"

demo-services: $(STAMP) ## the same with a real MLflow server and a real S3 API, started and ended by it (out/demo-services)
	$(BIN)/python -m serving.demo_services --output "$(OUT)-services"

pipelines: $(STAMP) ## compile the pipelines, for your registry with IMAGE=registry/spare:tag, without GPUs with PROFILE=cpu
	for name in spare bundle takedown; do SPARE_IMAGE="$(IMAGE)" $(BIN)/python -W ignore -m pipelines.$$name \
		--profile $(PROFILE) --resources k8s/components/pipelines/$$name.yaml || exit 1; done
	SPARE_IMAGE="$(IMAGE)" $(BIN)/python -W ignore -m k8s.argo --profile $(PROFILE)
	$(BIN)/python -W ignore -m components.readme
	$(BIN)/python -m k8s.control_plane

# Processes of one thread each: torch's own threads would slow each other down. One more than two cores: many wait.
test: $(STAMP) ## run all tests, eight minutes or so on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# What needs neither a server nor a pipeline: a contributor's answer in two minutes.
FAST := tests/test_layout.py tests/test_streams.py tests/test_docs.py tests/test_pins.py tests/concepts tests/files tests/method \
	tests/adapters tests/models tests/cli/test_main.py tests/evaluation tests/workflow/test_order.py tests/workflow/test_events.py

check: lint ## lint, types and the fast tests, in two minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(FAST)

docs: $(STAMP) .venv-docs/.installed ## the documentation as a site in out/site; a dead link fails
	$(BIN)/python -m docs.generate
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet

docker-test: $(STAMP) $(TOOLS) ## build the image and run the pipeline in it; without a Docker engine, root on Debian gets one
	$(BIN)/python -m pytest image

k8s-test: $(STAMP) $(TOOLS) ## render and check what k8s/ holds, and compare it with what the pipelines name; needs kubectl
	$(BIN)/python -m pytest k8s

lint: $(STAMP) ## style, formatting and types: ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## put the code into the form that lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

image: $(STAMP) $(TOOLS) ## build the image, with DEVICE=cpu without CUDA, under the name IMAGE, and list what is in it
	$(BIN)/python -m image.build --device $(DEVICE) $(if $(IMAGE),--tag $(IMAGE))

# The CPU's torch comes from PyTorch's own index, or from where pip is told to look for wheels.
COMPILE := .venv-tools/bin/uv pip compile --quiet --upgrade --no-annotate --custom-compile-command "make pins" \
	--python-version 3.11
IMAGE_OF := $(COMPILE) --generate-hashes --python-platform x86_64-manylinux_2_28 --constraint constraints.txt \
	--extra pipelines --extra server --extra tracking pyproject.toml
CPU_WHEELS := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),\
	--index https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match)

pins: $(TOOLS) ## the newest releases of everything, but for what image/requirements/held.txt holds; then: make test
	$(COMPILE) --universal --all-extras --constraint $(PINNED)/held.txt pyproject.toml --output-file constraints.txt
	$(IMAGE_OF) --output-file $(PINNED)/image-cuda.txt
	sed -n 's/^\(torch==[^ ;]*\).*/\1+cpu/p' constraints.txt > $(PINNED)/.torch-cpu.in
	$(IMAGE_OF) --override $(PINNED)/.torch-cpu.in $(CPU_WHEELS) --output-file $(PINNED)/image-cpu.txt
	rm $(PINNED)/.torch-cpu.in
	$(COMPILE) --generate-hashes $(PINNED)/build.in --output-file $(PINNED)/build.txt
	$(COMPILE) --generate-hashes --python-platform x86_64-manylinux_2_28 $(PINNED)/tools.in --output-file $(PINNED)/tools.txt
	$(COMPILE) --generate-hashes --python-platform x86_64-manylinux_2_28 docs/requirements.in --output-file docs/requirements.txt

canvas canvas160: $(STAMP) ## train a built-in model again from nothing (hours on two cores, minutes on a GPU; resumes; needs npm)
	$(BIN)/python -m spare_core.canvas.training $@

clean: ## remove caches and builds; keeps .venv, out and .canvas
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find spare_core tests -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv too
	rm -rf $(VENV) .venv-tools .venv-docs

# Installed again whenever what is to be installed changes.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,pipelines,server,tracking]'
	touch $@

$(TOOLS): $(PINNED)/tools.txt
	test -x .venv-tools/bin/python || $(PYTHON) -m venv .venv-tools
	.venv-tools/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(PINNED)/tools.txt
	touch $@

.venv-docs/.installed: docs/requirements.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r docs/requirements.txt
	touch $@
