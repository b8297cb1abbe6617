# Everything a developer runs. `make demo` and `make test` need Python 3.10 or newer and make; they set up .venv first.

VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
# The demo needs the base install only; everything else needs the tools and the libraries that the tests use.
BASE := $(VENV)/.base-installed
FULL := $(VENV)/.full-installed

# Tests run in one process per core, each with one thread of torch.
WORKERS ?= 2
PYTEST ?= OMP_NUM_THREADS=1 $(PY) -m pytest -q
LINTED := modeling_ofa convert

.DELETE_ON_ERROR:
.PHONY: help setup demo app test slow conformance lint style docs matrix clean

help:
	@echo "make demo         set up, then show an example of every task that the embedded model can do"
	@echo "make app          set up, then serve a page to try it on"
	@echo "make test         set up, then run the tests"
	@echo "make slow         the tests that take minutes or gigabytes"
	@echo "make conformance  transformers' own common tests, run against this package"
	@echo "make lint         ruff and mypy"
	@echo "make docs         the pages of docs/ and the reference of the API, in build/docs"
	@echo "make matrix       the tests with every Python from 3.10 on that is here, oldest and newest transformers"
	@echo "make style        let ruff mend what it can"
	@echo "make setup        only set up $(VENV); PYTHON=... chooses the interpreter"
	@echo "make clean        remove the environment, caches and build outputs"

setup: $(FULL)

demo: $(BASE)
	@$(PY) -m modeling_ofa.cli demo

app: $(FULL)
	@$(PY) -m modeling_ofa.cli app $(ARGS)

test: $(FULL)
	@$(PYTEST) -n $(WORKERS) -m "not slow" $(ARGS)

slow: $(FULL)
	@$(PYTEST) -m slow $(ARGS)

conformance: $(FULL)
	@$(PYTEST) -n $(WORKERS) tests/conformance $(ARGS)

lint: $(FULL)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy $(LINTED)

style: $(FULL)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(FULL)
	@$(PY) -m sphinx -q -W --keep-going docs build/docs
	@echo "build/docs/index.html"

# Makes an environment of its own for each cell: minutes to install, and then the whole suite.
matrix: | $(PY)
	@$(PY) scripts/run_matrix.py --workers $(WORKERS) $(ARGS)

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. A stamp is written when an install has finished, so that an interrupted one is done again, and a
# finished one is only repeated when the requirements change.
$(BASE): setup.py constraints.txt | $(PY)
	@echo "installing the package into $(VENV) (minutes, the first time)"
	@$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(FULL): setup.py constraints.txt | $(PY)
	@echo "installing the package and its tools into $(VENV) (minutes, the first time)"
	@$(PIP) install -q -c constraints.txt -e ".[all]"
	@touch $@ $(BASE)

# The first of these that is Python 3.10 or newer and can make virtual environments; PYTHON=... overrides.
PYTHON ?= $(shell for python in python3 python python3.14 python3.13 python3.12 python3.11 python3.10; do \
	if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; \
	then echo $$python; break; fi; done)

$(PY):
	@if ! "$(PYTHON)" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then \
		echo "Python 3.10 or newer with the venv module was not found (on Debian: apt install python3-venv)." >&2; \
		echo "Name one: make PYTHON=/path/to/python3 ..." >&2; exit 1; fi
	$(PYTHON) -m venv $(VENV)
