# What one does with a checkout. `make` alone lists it.
#
# Each target sets up what it needs, on a machine that has git, make and Python 3.10 or newer. All of it lands
# in .venv, which is made again when it does not work, when the checkout was moved, or when PYTHON names
# another version than it has. An activated environment and the current locale change nothing.

PYTHON ?= python3
# Two processes, a test file to each: a file's tests share costly fixtures, and the files that look for
# leaked processes and descriptors see only their own. In the order of conftest.py, which has the long ones first.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder
BENCH_ARGS ?= --save

VENV := .venv
BIN := $(VENV)/bin
# What PYTHON was set to by hand, if it was.
CHOSEN_PYTHON := $(if $(filter file,$(origin PYTHON)),,$(PYTHON))
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

export LC_ALL := C.UTF-8
export PATH := $(subst $(CURDIR)/$(BIN):,,$(PATH))
export PIP_USER := 0
unexport PIP_PREFIX PIP_TARGET PYTHONHOME PYTHONPATH VIRTUAL_ENV

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test check lint arch types tests bench format clean FORCE

help: ## Show this list
	@echo 'make <target>, with [PYTHON=python3.12] to choose the interpreter, where target is'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1	\2/p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed ## Two versions of one repository side by side, in a minute, without network
	@$(BIN)/isohub demo

test: check tests ## All checks, then all tests

check: lint arch types ## All checks: lint, arch, types

lint: $(VENV)/.installed-dev ## Style, formatting, spelling, and whether generated docs are current
	@echo '-- ruff'
	@$(BIN)/ruff check --quiet --output-format=concise
	@$(BIN)/ruff format --check --quiet || { $(BIN)/ruff format --check; echo 'make format mends this'; exit 1; }
	@echo '-- codespell'
	@$(BIN)/codespell
	@echo '-- cog'
	@set -e; for file in $(COG_FILES); do \
		$(BIN)/python -m cogapp --check --diff --verbosity=1 --check-fail-msg='make format mends this' $$file; done
	@echo '-- plots'
	@$(BIN)/python benchmarks/report.py --check

arch: $(VENV)/.installed-dev ## Who may import whom
	@echo '-- import-linter'
	@$(BIN)/lint-imports --no-logo

types: $(VENV)/.installed-dev ## mypy, on the package and on the public API as a user's code sees it
	@echo '-- mypy'
	@$(BIN)/mypy isohub $(wildcard tests/typing)

tests: $(VENV)/.installed-dev ## All tests, the slow ones too [PYTEST_ARGS="-n 2 --dist loadfile --no-loadscope-reorder"]
	@tools/get_test_programs.sh $(VENV)/programs
	@tools/get_browser.sh $(VENV)/browser
	@echo '-- pytest'
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(VENV)/.installed-dev ## All benchmarks, idle and then busy [BENCH_ARGS=--save]
	@$(BIN)/python benchmarks/rivals.py
	@set -e; for state in '' --busy; do for script in $(wildcard benchmarks/bench_*.py); do \
		echo "-- $$script $$state"; $(BIN)/python $$script $$state $(BENCH_ARGS); done; done
	@$(BIN)/python benchmarks/report.py

format: $(VENV)/.installed-dev ## Mend what can be mended: imports, formatting, generated docs
	@$(BIN)/ruff check --fix-only --quiet
	@$(BIN)/ruff format
	@set -e; for file in $(COG_FILES); do $(BIN)/python -m cogapp -r --verbosity=1 $$file; done
	@$(BIN)/python benchmarks/report.py --plots

clean: ## Remove caches and built packages; .venv stays
	@rm -rf build dist htmlcov .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name $(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The pages of which cog writes a part.
COG_FILES = $(shell grep -rlF --include='*.md' '[[''[cog' README.md docs 2>/dev/null)

# --- .venv. Three stamps: which Python it has, the package is installed, the tools are too.

$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	@echo 'Installing isohub and what it needs into $(VENV) (torch is large: the first time may take minutes)'
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.python pyproject.toml constraints.txt
	@echo 'Installing isohub and its tools into $(VENV) (torch is large: the first time may take minutes)'
	@$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.installed $@

# Looked at each time, written only when .venv is new: only then is the rest installed again.
$(VENV)/.python: FORCE
	@if ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
		trouble='does not work'; \
	elif [ -e $@ ] && [ "$$(cat $@)" != "$(CURDIR)" ]; then \
		trouble='was made in another folder'; \
	elif [ -n '$(CHOSEN_PYTHON)' ] && [ "$$($(PYTHON) -V 2>&1)" != "$$($(BIN)/python -V)" ]; then \
		trouble="has $$($(BIN)/python -V)"; \
	elif [ ! -e $@ ]; then \
		echo '$(CURDIR)' > $@; exit 0; \
	else \
		exit 0; \
	fi; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo 'isohub needs Python 3.10 or newer, and $(PYTHON) is none. Name one: make PYTHON=python3.12 ...' >&2; exit 1; }; \
	if [ -e $(VENV) ]; then echo "$(VENV) $$trouble: making it again"; fi; \
	rm -rf $(VENV); \
	$(PYTHON) -m venv $(VENV) && echo '$(CURDIR)' > $@

FORCE:
