# make compare   train the NER model with each loss and print which one wins
# make study     the whole study: CLUENER in FASTLOSS_CLUENER_DIR until flat, then noise and imbalance (some hours)
# make test      every test
# make test-emulator   the tests of the emulator that runs the CUDA kernels (tools/ptxsim; needs nvcc)
# make bench     every benchmark (bench-quick: under three minutes)
# make wheel     the wheel in dist/, with CUDA kernels where nvcc is found
# make build     compiles what has changed since the last time
# make lint      ruff and clang-format
#
# Everything installs into .venv and builds first. `make TORCH=2.14.1 VENV=.venv-2.14 test` takes another torch.

PYTHON ?= python3
VENV ?= .venv
# The version that pyproject.toml builds against: the oldest supported.
TORCH ?= $(shell sed -n 's/.*"torch==\([0-9.]*\)".*/\1/p' pyproject.toml)
# CUDA kernels take minutes to compile: a development build has them only where a GPU can run them.
FASTLOSS_CUDA ?= $(if $(shell command -v nvidia-smi 2>/dev/null),auto,0)
export FASTLOSS_CUDA

BIN = $(VENV)/bin
SOURCES = $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tools/ptxsim/*.h' 'tools/ptxsim/*.inc' 'tools/ptxsim/*.cpp' 'tools/ptxsim/*.cu')
INSTALLED = $(VENV)/.installed-$(TORCH)

.PHONY: build compare study test test-emulator bench bench-quick wheel lint format install
.DEFAULT_GOAL := compare

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH) numpy ninja 'setuptools>=77' wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[ner,dev]'
	touch $@

install: $(INSTALLED)

# What is compiled and when, setup.py says (ninja): objects are kept in build/.
build: install
	$(BIN)/python setup.py --quiet build_ext --inplace

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
		runs/bench-avx2.json --output benchmarks

bench-quick: build
	mkdir -p runs
	$(RECYCLED) $(BENCH) -m quick --benchmark-max-time=2 --benchmark-json=runs/bench-quick.json
	$(BIN)/python benchmarks/report.py runs/bench-quick.json

wheel: install
	FASTLOSS_CUDA=auto $(BIN)/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)
	PYTHON=$(BIN)/python tools/check_headers.sh

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)
