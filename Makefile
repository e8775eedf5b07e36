# make compare   train the NER model with each loss and print which one wins
# make study     the whole study: CLUENER in FASTLOSS_CLUENER_DIR until flat, then noise and imbalance (some hours)
# make test      every test
# make test-emulator   the tests of the emulator that runs the CUDA kernels (tools/ptxsim; needs nvcc)
# make bench     every benchmark (bench-quick: under three minutes)
# make wheel     the wheel in dist/, for every Linux that torch supports, with CUDA kernels where nvcc is found
# make build     compiles what has changed since the last time
# make debug     the libraries with symbols and assertions, until the next make build
# make docs      the pages in build/docs, their examples run
# make coverage  what the tests run of Python and C++, in build/coverage
# make fuzz      20,000 random calls against an independent oracle
# make sanitize  the CPU kernels under ASan, UBSan and TSan, and between guard pages
# make mutants   how many planted mistakes the tests notice
# make accuracy  the table of errors, docs/error-table.md
# make test-size more than 2^31 logits, peak memory, leaks (minutes, 10 GB)
# make lint      ruff, clang-format, mypy, and every header alone
# make test-torch TORCH=2.10.0   the tests of the wheel in dist/ on that torch, in an environment of its own
# make gpu-check every check and figure that takes a GPU, in gpu-check/ (no network, under 25 minutes)
#
# Everything installs into .venv and builds first. `make TORCH=2.14.1 VENV=.venv-2.14 test` takes another torch.

PYTHON ?= python3
VENV ?= .venv
# The version that pyproject.toml builds against.
TORCH ?= $(shell sed -n 's/.*"torch==\([0-9.]*\)".*/\1/p' pyproject.toml)
# CUDA kernels take minutes to compile: a development build has them only where a GPU can run them.
FASTLOSS_CUDA ?= $(if $(shell command -v nvidia-smi 2>/dev/null),auto,0)
export FASTLOSS_CUDA

# A wheel has CUDA kernels where nvcc is found (1: or fails, 0: none), and serves these Pythons too, if any are given.
WHEEL_CUDA ?= auto
PYTHONS ?=
WHEEL ?= $(lastword $(sort $(wildcard dist/*.whl)))

BIN = $(VENV)/bin
SOURCES = $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tools/ptxsim/*.h' 'tools/ptxsim/*.inc' 'tools/ptxsim/*.cpp' 'tools/ptxsim/*.cu')
INSTALLED = $(VENV)/.installed-$(TORCH)

.PHONY: build compare study test test-emulator bench bench-quick wheel test-torch gpu-wheels gpu-check debug docs coverage
.PHONY: fuzz sanitize mutants accuracy test-size lint format install
.DEFAULT_GOAL := compare

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH) numpy ninja 'setuptools>=77' wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[ner,dev,docs,examples]'
	touch $@

install: $(INSTALLED)

# What is compiled and when, setup.py says (ninja): objects are kept in build/.
build: install
	$(BIN)/python setup.py --quiet build_ext --inplace

# setup.py keeps the objects of each set of flags: back and forth compiles nothing twice.
debug: export CXXFLAGS ?= -Og -g -UNDEBUG
debug: build

# For clangd and other tools: how each file is compiled.
compile_commands.json: build
	$(BIN)/ninja -f $$(ls -t build/*/build.ninja | head -1) -t compdb compile > $@

docs: build
	$(BIN)/python -m sphinx -W -b html docs build/docs
	$(BIN)/python -m sphinx -W -b doctest docs build/doctest

# Random ones, different each time; a failure prints the case.
fuzz: build
	FASTLOSS_FUZZ_CASES=20000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_fuzz.py --numprocesses auto --maxfail 1 $(ARGS)

# ARGS: random calls a run.
sanitize: build
	PATH="$(BIN):$$PATH" tools/sanitize/run $(ARGS)

mutants: build
	OMP_NUM_THREADS=1 $(BIN)/python tools/mutants.py $(ARGS)

accuracy: build
	$(BIN)/python tools/accuracy.py --output docs/error-table.md

test-size: build
	$(BIN)/python -m pytest tests/test_size.py -m size $(ARGS)

# Instrumented, so that make build is needed afterwards for speed. gcov adds up what the processes write when they end.
coverage: export CXXFLAGS = -O1 -fprofile-update=atomic --coverage
coverage: export LDFLAGS = --coverage
coverage: build
	find build -name '*.gcda' -delete
	mkdir -p build/coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --numprocesses auto --dist worksteal $(ARGS) \
		--cov fastloss --cov-report term --cov-report html:build/coverage/python
	$(BIN)/gcovr --root . --filter csrc/ --merge-mode-functions merge-use-line-0 --print-summary \
		--html-details build/coverage/cpp.html build

# Two seeds, since three take longer than ten minutes on two cores.
compare: build
	$(BIN)/fastloss compare --seeds 42 1 $(ARGS)

# Each finished run is kept: `make study` again goes on where it was interrupted.
study: build
	@test -n "$(FASTLOSS_CLUENER_DIR)" || { echo "FASTLOSS_CLUENER_DIR should name the directory of CLUENER's files"; exit 2; }
	$(BIN)/fastloss compare --data "$(FASTLOSS_CLUENER_DIR)" --until-flat --resume --out runs/study/cluener $(ARGS)
	$(BIN)/fastloss study --resume --out runs/study/builtin $(ARGS)

# A process a core, one thread each; the tests of threads set their own number.
test: build
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --numprocesses auto --dist worksteal $(ARGS)

test-emulator: install
	$(BIN)/python -m pytest tools/ptxsim --numprocesses auto $(ARGS)

# Large buffers go back to the system and fault in again, which then is most of what is timed; so both are measured.
RECYCLED = MALLOC_MMAP_THRESHOLD_=8000000000 MALLOC_TRIM_THRESHOLD_=64000000000
BENCH = $(BIN)/python -m pytest benchmarks -W ignore --benchmark-min-rounds=7 --benchmark-columns=median,iqr,rounds
# The cases that have a bar to meet are measured once more, for longer.
BARS = -m bar --benchmark-max-time=4

bench: build
	mkdir -p runs
	$(RECYCLED) $(BENCH) --benchmark-max-time=2 --benchmark-json=runs/bench-recycled.json
	$(RECYCLED) $(BENCH) $(BARS) --benchmark-json=runs/bench-bars.json
	$(BENCH) -k 2threads --benchmark-max-time=2 --benchmark-json=runs/bench-default.json
	FASTLOSS_CPU_CAPABILITY=avx2 $(RECYCLED) $(BENCH) $(BARS) --benchmark-json=runs/bench-avx2.json
	$(BIN)/python benchmarks/report.py runs/bench-recycled.json runs/bench-bars.json runs/bench-default.json \
		runs/bench-avx2.json --keep

bench-quick: build
	mkdir -p runs
	$(RECYCLED) $(BENCH) -m quick --benchmark-max-time=2 --benchmark-json=runs/bench-quick.json
	$(BIN)/python benchmarks/report.py runs/bench-quick.json

# For driver 525 and later: tools/cuda12_toolkit.sh build/cuda-12.4 && CUDA_HOME=build/cuda-12.4 make wheel
wheel: export FASTLOSS_CUDA = $(WHEEL_CUDA)
wheel: install
	tools/build_wheel.sh $(BIN)/python $(PYTHONS)

test-torch:
	tools/test_torch.sh $(TORCH) $(WHEEL) $(ARGS)

# What a GPU machine without a network needs beside the sources, for its Python.
gpu-wheels: install
	mkdir -p build/gpu-wheels
	$(BIN)/python -m pip download --quiet --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
		--platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest build/gpu-wheels \
		hypothesis ninja pytest 'setuptools>=77'
	$(if $(WHEEL),cp $(WHEEL) build/gpu-wheels/)

# Nothing is installed: it takes the Python that has torch, and the fastloss that it has or a build for this GPU alone.
gpu-check:
	$(PYTHON) tools/gpu_check.py $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)
	$(BIN)/mypy
	PYTHON=$(BIN)/python tools/check_headers.sh

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)
