# `make` alone prints the targets. Everything runs in .venv, which `setup` makes from requirements.lock.
PYTHON ?= python3.11
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv
# pip's folder of local wheels and its index, where set, serve uv too: torch then comes from there, elsewhere as the CUDA build.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
# Compiled modules are kept: without them importing torch, transformers and mlflow takes three times as long.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo repro compile images images-test test test-fast check lock clean
.DEFAULT_GOAL := help

help: ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: .venv/.synced ## make .venv from requirements.lock; does nothing when it is up to date

$(BIN)/uv:
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements.lock)"

.venv/.synced: requirements.lock pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip install --exact --constraints requirements.lock --group dev -e .[train,release,serve,server,runners]
	test ! -e .git || test -e .dvc/config.local || printf '[core]\n    no_scm = false\n' > .dvc/config.local
	touch $@

demo: setup ## raw data to registered models: make demo [SEED=1] [RAW=path/to/data]
	unimed demo $(if $(SEED),--seed $(SEED)) $(if $(RAW),--raw "$(RAW)")

repro: setup ## run the stages that are out of date
	dvc repro

compile: setup ## the Kubeflow pipeline as one file: make compile [PARAMS=file] [RAW=uri]
	unimed compile $(if $(PARAMS),--params "$(PARAMS)") $(if $(RAW),--raw "$(RAW)")

images: ## the two container images, see docs/images.md: make images [REGISTRY=host/team]
	sh docker/images.sh

images-test: setup ## build the images and run the pipeline in them; needs root, dockerd and debootstrap
	OMP_NUM_THREADS=1 pytest -m images tests/images

test: setup ## all tests but those of the images
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile -m "not images"

test-fast: setup ## the tests that need no training
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile -m "not slow and not images"

check: setup ## lint, format, types, house rules
	ruff check .
	ruff format --check .
	pyrefly check
	pytest -q tests/test_house.py tests/test_stages.py

lock: $(BIN)/uv ## resolve pyproject.toml anew; needs torch's CPU wheel in PIP_FIND_LINKS
	uv pip compile pyproject.toml --all-extras --group dev --python-version 3.11 --upgrade-package torch \
		--custom-compile-command "make lock" --no-emit-find-links --no-emit-index-url --quiet -o requirements.lock
	sed -i -E 's/^(torch==[0-9.]+)\+cpu/\1/' requirements.lock

clean: ## remove what tools left behind; data, models, runs and reports stay
	rm -rf .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
