# make compare   train the NER model with each loss and print which one wins
# make study     the whole study: CLUENER in FASTLOSS_CLUENER_DIR until flat, then noise and imbalance (some hours)
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

.PHONY: compare study test bench bench-quick wheel lint format install
.DEFAULT_GOAL := compare

$(INSTALLED): setup.py pyproject.toml $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH) numpy ninja 'setuptools>=77' wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[ner,dev]'
	touch $@

install: $(INSTALLED)

# Two seeds, since three take longer than ten minutes on two cores.
compare: install
	$(BIN)/fastloss compare --seeds 42 1 $(ARGS)

# Each finished run is kept: `make study` again goes on where it was interrupted.
study: install
	@test -n "$(FASTLOSS_CLUENER_DIR)" || { echo "FASTLOSS_CLUENER_DIR should name the directory of CLUENER's files"; exit 2; }
	$(BIN)/fastloss compare --data "$(FASTLOSS_CLUENER_DIR)" --until-flat --resume --out runs/study/cluener $(ARGS)
	$(BIN)/fastloss study --resume --out runs/study/builtin $(ARGS)

# A process a core, one thread each; the tests of threads set their own number.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --numprocesses auto --dist worksteal $(ARGS)

# Large buffers go back to the system and fault in again, which then is most of what is timed; so both are measured.
RECYCLED = MALLOC_MMAP_THRESHOLD_=8000000000 MALLOC_TRIM_THRESHOLD_=64000000000
BENCH = $(BIN)/python -m pytest benchmarks -W ignore --benchmark-min-rounds=7 --benchmark-columns=median,iqr,rounds
# The cases that have a bar to meet are measured once more, for longer.
BARS = -m bar --benchmark-max-time=4

bench: install
	mkdir -p runs
	$(RECYCLED) $(BENCH) --benchmark-max-time=2 --benchmark-json=runs/bench-recycled.json
	$(RECYCLED) $(BENCH) $(BARS) --benchmark-json=runs/bench-bars.json
	$(BENCH) -k 2threads --benchmark-max-time=2 --benchmark-json=runs/bench-default.json
	FASTLOSS_CPU_CAPABILITY=avx2 $(RECYCLED) $(BENCH) $(BARS) --benchmark-json=runs/bench-avx2.json
	$(BIN)/python benchmarks/report.py runs/bench-recycled.json runs/bench-bars.json runs/bench-default.json \
		runs/bench-avx2.json --output benchmarks

bench-quick: install
	mkdir -p runs
	$(RECYCLED) $(BENCH) -m quick --benchmark-max-time=2 --benchmark-json=runs/bench-quick.json
	$(BIN)/python benchmarks/report.py runs/bench-quick.json

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
