# make demo   the whole way on synthetic CT: phantom, prepare, summarize, train, tune, evaluate
# make test   lint, types, floors and tests
# make test-cluster   what is too long for each change: load on the tracking server
# Both set up .venv first, with every dependency pinned by constraints.txt; a second call starts at once.

PYTHON ?= python3
VENV ?= .venv
READY := $(VENV)/.ready

.PHONY: demo test test-cluster lint setup browser clean

demo: $(READY)
	$(VENV)/bin/brgsa demo $(ARGS)

test: lint browser
	PYTHONUTF8=1 $(VENV)/bin/python -m pytest $(ARGS)

test-cluster: $(READY) browser
	PYTHONUTF8=1 $(VENV)/bin/python -m pytest tests/cluster $(ARGS)

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

setup: $(READY)

# Chromium for the tests that look at MLflow's pages, PostgreSQL for its server's; where they cannot be installed they
# skip and say so.
browser:
	@if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		export DEBIAN_FRONTEND=noninteractive; \
		{ apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver postgresql; } >/dev/null 2>&1 || true; fi

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
