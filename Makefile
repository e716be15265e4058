# Every target sets up what it needs: a virtual environment in .venv and, for the tests, a redis-server.
# README.md lists the plain equivalent of those that a reader needs.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help setup redis-server test chaos check format demo bench clean

help:
	@echo 'make demo    a Flask shop, a worker and a real Valkey: 1,000 orders, every one accounted for'
	@echo 'make test    all tests'
	@echo 'make chaos   the attack of the tests, in its long form: each on Redis and Valkey, again and again'
	@echo 'make check   ruff, mypy --strict, import contracts'
	@echo 'make bench   speed, side by side with plain redis-py; ARGS="--only drain" and the like'
	@echo 'make setup   only what these need; they do it themselves'

setup: $(READY) redis-server

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, and $(PYTHON) is older. Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	  apt-get install -y -qq python3-venv && $(PYTHON) -m venv $(VENV); } || { \
	  echo "Python cannot make a virtual environment here. On Debian and Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(READY)

# A service that the package may start does not matter: tests and benchmarks start servers of their own.
redis-server:
	@command -v redis-server >/dev/null || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq redis-server; } || { \
	  echo "The tests need a redis-server on PATH. On Debian and Ubuntu: sudo apt-get install redis-server" >&2; exit 1; }

test: $(READY) redis-server
	@$(BIN)/python -m pytest -n 3

# ROUNDS=10 makes each fault ten times within one attack, and the whole ten times over.
ROUNDS ?= 3
chaos: $(READY) redis-server
	@for round in $$(seq $(ROUNDS)); do \
	  CHAOS_LONG=1 CHAOS_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest -n 3 --timeout 600 tests/chaos || exit 1; done

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

demo: $(READY)
	@$(BIN)/python docs/examples/demo/run.py

bench: $(READY) redis-server
	@$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
