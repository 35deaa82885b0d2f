# Two commands matter: `make demo` and `make test`. Both set up everything by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := actors cache native runtime supervision
CODE := $(PACKAGES) tests examples bench
# The editable install must be renewed when one of these changes, or a module comes, goes or moves;
# Python sources are used in place.
BUILD_INPUTS := pyproject.toml native/CMakeLists.txt native/build_ffi.py native/llama.lock \
	native/vendor.py $(wildcard native/shim/*)

MODULES := $(shell find $(PACKAGES) -name '*.py' | LC_ALL=C sort | cksum | cut -d ' ' -f 1)
INSTALLED := $(VENV)/.installed-$(MODULES)

.PHONY: help install demo test lint format types imports pure system fault model bench soak killpoints clean

help:
	@echo "make demo     set up everything and show cold, warm, killed, healed on the embedded model"
	@echo "make test     set up everything and run all tests"
	@echo "make install  set up $(VENV) and build llama.cpp (about two minutes the first time)"
	@echo "make lint | types | imports | pure | system | fault | model | bench | soak | killpoints | format | clean"

install: $(INSTALLED)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.build-tools: pyproject.toml | $(BIN)/python
	@echo "installing build tools into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install -q --disable-pip-version-check \
		"scikit-build-core>=1.0" "cffi>=2.0" "cmake>=3.25" "ninja>=1.11"
	@touch $@

$(INSTALLED): $(BUILD_INPUTS) $(VENV)/.build-tools
	@$(BIN)/python native/vendor.py > /dev/null
	@$(BIN)/python native/build_progress.py -- $(BIN)/python -m pip install -v \
		--disable-pip-version-check --no-build-isolation -e '.[dev]'
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: install
	@$(BIN)/python -m runtime demo

WORKERS ?= $(shell expr $$(nproc) + 1)
test: install
	$(BIN)/python -m pytest -q -n $(WORKERS)

pure system fault model: install
	$(BIN)/python -m pytest -q -m $@

lint: install
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

format: install
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m bench.run

SEED ?= 1
KILLS ?= 500
# Random SIGKILLs over a whole node under load, about a quarter of an hour; a seed repeats its plan.
soak: install
	$(BIN)/python -m tests.support.soak --seed $(SEED) --kills $(KILLS)

POINTS ?= 1400
# kill -9 at every step of the cache's protocol, about five minutes; a seed repeats its points.
killpoints: install
	$(BIN)/python -m tests.support.killpoints --seed $(SEED) --points $(POINTS)

clean:
	rm -rf $(VENV) build
