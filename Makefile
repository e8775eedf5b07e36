# make compare   train the NER model with each loss and print which one wins
# make test      every test
# make bench     every benchmark (bench-quick: under three minutes)
# make wheel     the wheel in dist/, with CUDA kernels where nvcc is found
# make lint      ruff and clang-format
#
# Everything installs into .venv first. `make TORCH=2.14.1 VENV=.venv-2.14 test` takes another torch.

PYTHON ?= python3
VENV ?= .venv
# The version that pyproject.toml builds against: the oldest supported.
TORCH ?= $(shell sed -n 's/.*"torch==\([0-9.]*\)".*/\1/p' pyproject.toml)
# CUDA kernels take minutes to compile: a development build has them only where a GPU can run them.
FASTLOSS_CUDA ?= $(if $(shell command -v nvidia-smi 2>/dev/null),auto,0)
export FASTLOSS_CUDA

BIN = $(VENV)/bin
SOURCES = $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')
INSTALLED = $(VENV)/.installed-$(TORCH)

.PHONY: compare test bench bench-quick wheel lint format install
.DEFAULT_GOAL := compare

$(INSTALLED): setup.py pyproject.toml $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH) numpy ninja 'setuptools>=77' wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[ner,dev]'
	touch $@

install: $(INSTALLED)

compare: install
	$(BIN)/fastloss compare $(ARGS)

test: install
	$(BIN)/python -m pytest tests $(ARGS)

bench: install
	$(BIN)/python -m pytest benchmarks $(ARGS)

wheel: install
	FASTLOSS_CUDA=auto $(BIN)/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)
