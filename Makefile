# Two commands matter: `make demo` and `make test`. Both set up everything by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CODE := actors cache native runtime supervision tests examples bench tools docs

.PHONY: help install demo test docs lint format types imports pure system fault model bench soak killpoints \
	retest real clients sanitize wheel matrix lock outdated clean

help:
	@echo "make demo      set up everything and show cold, warm, killed, healed on the embedded model"
	@echo "make test      set up everything and run all tests"
	@echo "make install   set up $(VENV) and build llama.cpp (about two minutes the first time)"
	@echo "make lock      renew the locked versions of all dependencies; make outdated shows what would change"
	@echo "make wheel     sdist and portable wheel into dist/; make matrix installs them in every clean way"
	@echo "make docs      the documentation as a site, in build/site"
	@echo "make real      a published model: fetched, whole-node cases, demo; make sanitize: ASan and UBSan"
	@echo "make clients   unmodified SDK tests, examples, libraries, agents and load tools against the gateway"
	@echo "make lint | types | imports | pure | system | fault | model | bench | soak | killpoints | format | clean"

install:
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('$(PYTHON) is Python %d.%d; 3.11 or newer is needed, as in: make PYTHON=python3.12 demo' % sys.version_info[:2])"
	@$(PYTHON) tools/install.py $(VENV)

# An sdist, and a wheel for any x86-64 of its glibc or newer: about eight minutes on two cores.
wheel: install
	@$(BIN)/python tools/wheel.py

# Clean installations of every kind (tools/matrix.py --list), about an hour on two cores.
matrix: wheel
	@$(PYTHON) tools/matrix.py $(CASES)

lock outdated: install
	@$(BIN)/python tools/lock.py $(subst lock,renew,$@)

demo: install
	@$(BIN)/python -m runtime demo

WORKERS ?= $(shell expr $$(nproc) + 1)
test: install
	$(BIN)/python -m pytest -q -n $(WORKERS)

pure system fault model: install
	$(BIN)/python -m pytest -q -n $(WORKERS) -m $@

# What failed in the last run, one test at a time.
retest: install
	$(BIN)/python -m pytest -q --last-failed --last-failed-no-failures none

# A published model of 241 MB (its licence is its own), the whole-node cases and the demo on it.
real: install
	$(BIN)/python -m tests.support.real_model

# Programs that other people wrote, against the gateway, offline; SUITES="openai ollama" runs these. Takes 3 GB of disk.
clients: install
	$(BIN)/python -m tests.clients $(SUITES)

# The shim's own tests with AddressSanitizer and UndefinedBehaviorSanitizer; SLICE=--slice runs few.
sanitize: install
	$(BIN)/python -m tests.support.sanitize $(SLICE)

lint: install
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/python tools/prose.py

format: install
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports

# The site, in build/site: open build/site/index.html. A warning is an error.
docs: install
	@$(PYTHON) tools/install.py $(VENV) docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d build/docs docs build/site
	$(BIN)/python docs/_generate/check_site.py build/site
	@echo "built build/site/index.html"

bench: install
	$(BIN)/python -m bench.run

SEED ?= 1
KILLS ?= 500
# Random SIGKILLs over a whole node under load, about a quarter of an hour; a seed repeats its plan. Every reply is compared
# as bytes with that of an idle node. SOAK="--model FILE.gguf" takes a model of your own, SOAK="--model stub" stubs.
SOAK ?=
soak: install
	$(BIN)/python -m tests.support.soak --seed $(SEED) --kills $(KILLS) $(SOAK)

POINTS ?= 1400
# kill -9 at every step of the cache's protocol, about five minutes; a seed repeats its points.
killpoints: install
	$(BIN)/python -m tests.support.killpoints --seed $(SEED) --points $(POINTS)

clean:
	rm -rf $(VENV) build
