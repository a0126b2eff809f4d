# One command each; the first one that needs it makes the environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
LABEL_STUDIO_VERSION := 1.23.2
EXTRAS := train,construct,controller,dev
DEMO_ARGS ?=
PYTEST_ARGS ?=
# Processes that share the tests, a file to each: 0 is none but pytest's own. One more than two cores, since many
# tests wait; the slow ones take two cores each.
WORKERS ?= 3
SLOW_WORKERS ?= 2
SEED ?= 0
KILLS ?= 20
# The image that trains; the controller's has the same name and "-controller" after it.
IMAGE ?= zhongjing:$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
BASE_IMAGE ?= debian:bookworm-slim
# More for the builder, for instance BUILD_ARGS="--build-arg UV_DEFAULT_INDEX=URL --build-arg PIP_INDEX_URL=URL".
BUILD_ARGS ?=
# Folders of the tests that need neither a cluster nor a GPU.
TESTS ?= tests/chart tests/integration tests/unit
SHARED := $(BIN)/python -m pytest $(TESTS) --dist loadfile --no-loadscope-reorder --durations 15
CLUSTER := $(BIN)/python -m pytest tests/cluster --durations 15
export HF_HUB_OFFLINE ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: help setup demo docs test test-slow test-deaths test-all test-gpu test-faults test-cluster test-cluster-full test-cluster-prepare \
	label-studio image push lint types layers check format generated constraints clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 22

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "Setting up $(VENV): the index serves torch as its CUDA build, so this takes about 6 GB of disk."
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

setup: $(VENV)/.ready  ## make the environment in .venv (about 6 GB)

demo: setup  ## the whole pipeline on this machine: pretrain, sft, rm, ppo on generated example data
	$(BIN)/python -m zhongjing.submit --stage all --local $(DEMO_ARGS)

docs: setup  ## the documentation as pages, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

test: setup  ## the default tests: unit, integration and what the chart renders (needs Helm, or Go to build it)
	$(SHARED) -n $(WORKERS) -m "not slow and not deaths and not gpu and not cluster" $(PYTEST_ARGS)

test-slow: setup label-studio  ## what takes long and rarely breaks: sudden deaths, full disks, new keys, published bases, the tutorial
	$(SHARED) -n $(SLOW_WORKERS) -m "(slow or deaths) and not gpu and not cluster" $(PYTEST_ARGS)

test-deaths: setup  ## of these, the sudden deaths of every part, compared with a run of the real stages that had none
	$(SHARED) -n $(SLOW_WORKERS) -m deaths $(PYTEST_ARGS)

test-all: test test-slow  ## all that needs neither a cluster nor a GPU

test-gpu: setup  ## what needs a GPU
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

test-faults: setup  ## kill a pipeline 20 times at moments drawn from SEED, and compare (25 minutes)
	$(BIN)/python -m tests.faults.run --seed $(SEED) --kills $(KILLS)

test-cluster-prepare: setup  ## build what the test cluster is made of; the first time 15 to 20 minutes and 30 GB of caches
	$(BIN)/python -m tests.cluster.node prepare

test-cluster: setup  ## the chart, the controller and the commands on a real Kubernetes that this machine runs; needs root and Go
	$(CLUSTER) -m "cluster and not full and not kuberay and not gpu" $(PYTEST_ARGS)

test-cluster-full: setup  ## all of it; KubeRay's tests with ZHONGJING_KUBERAY_CRD and ZHONGJING_KUBERAY_OPERATOR
	$(CLUSTER) -m "cluster and not gpu$(if $(ZHONGJING_KUBERAY_OPERATOR),, and not kuberay)" $(PYTEST_ARGS)

image:  ## build both images, with docker or buildah: make image IMAGE=registry.example/zhongjing:0.1
	@case "$(notdir $(IMAGE))" in *:*) ;; *) echo "IMAGE=$(IMAGE) has no tag: write $(IMAGE):TAG"; exit 1;; esac; \
	build="docker build"; docker info > /dev/null 2>&1 || build="buildah build --layers"; \
	common="--build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg ZHONGJING_COMMIT=$$(git rev-parse HEAD) $(BUILD_ARGS)"; \
	set -ex; \
	$$build $$common --target train --tag $(IMAGE) .; \
	$$build $$common --target controller --tag $(IMAGE)-controller .

push:  ## push both images: make push IMAGE=registry.example/zhongjing:0.1
	@push="docker push"; docker info > /dev/null 2>&1 || push="buildah push"; \
	set -ex; $$push $(IMAGE); $$push $(IMAGE)-controller

lint: setup  ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## mypy, strict
	$(BIN)/mypy

layers: setup  ## import-linter: which layer may import which
	$(BIN)/lint-imports

check: lint types layers  ## lint, types and layers

format: setup  ## let ruff format and fix what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generated: setup  ## write what is generated: pages and schema in docs/, the CRD and the pipeline schema of the chart
	$(BIN)/python -m tools.generate

label-studio: setup  ## Label Studio, where people rank answers, in an environment of its own (.label-studio)
	test -x .label-studio/bin/label-studio || $(BIN)/uv venv --quiet --python $(BIN)/python .label-studio
	test -x .label-studio/bin/label-studio || $(BIN)/uv pip install --quiet --python .label-studio/bin/python label-studio==$(LABEL_STUDIO_VERSION)

constraints: setup  ## pin what is installed in .venv
	{ sed -n 1p constraints.txt; $(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable | grep -v '^uv=='; } > constraints.new
	mv constraints.new constraints.txt

clean:  ## remove the environment and caches, never the runs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist *.egg-info
