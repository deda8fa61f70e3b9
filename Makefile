# make demo | test | test-slow | test-cluster | test-all | chaos | soak | check | audit | licences | test-pythons | lock. Each makes its environment; a second call installs nothing.

PYTHON ?= python3
VENV ?= .venv
PYTEST ?= -n 2 --dist worksteal
PYTEST_FILES ?= -n 2 --dist loadfile --no-loadscope-reorder
PYTHON_ALONE := -m 'not browser and not cluster and not chaos'
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export MLFLOW_DISABLE_TELEMETRY ?= true

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-cluster test-all chaos soak check style types pytest test-pythons lock audit licences debian

help:
	@sed -n '1s/^# //p' Makefile

demo: $(VENV)/.installed
	$(VENV)/bin/premed demo

# pyright keeps one core busy for most of a minute: it runs beside the tests
test: style
	@$(MAKE) --no-print-directory -j 2 types pytest

check: style types

style: $(VENV)/.installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/lint-imports

types: $(VENV)/.installed
	$(VENV)/bin/pyright

pytest: $(VENV)/.installed
	$(VENV)/bin/pytest $(PYTEST)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || \
		{ echo "premed needs Python 3.11, 3.12 or 3.13: make $(or $(MAKECMDGOALS),test) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "installing into $(VENV): 7 GB, once; 3 to 10 minutes, by the network; most is unpacked at the end"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@(while sleep 20 >/dev/null 2>&1 && kill -0 $$$$ 2>/dev/null; do \
		seconds=$$((seconds + 20)); echo "  $$seconds s: $$(du -sm $(VENV) | cut -f1) of 7000 MB are there"; \
	done) & ticker=$$!; \
	if command -v uv >/dev/null; then \
		uv pip install --quiet --compile-bytecode --python $(VENV)/bin/python $(or $(INSTALL),-c constraints.txt) -e '.[dev]'; \
	else \
		$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(or $(INSTALL),-c constraints.txt) -e '.[dev]'; \
	fi; code=$$?; kill $$ticker; exit $$code
	@touch $@

# what make test leaves out: what is slow, and as many of Hypothesis' examples as it would take by itself
test-slow: export HYPOTHESIS_PROFILE := long
test-slow: $(VENV)/.installed
	$(VENV)/bin/pytest $(PYTEST) -m '(slow or hypothesis) and not browser and not cluster'

# what needs more than Python; each of these tests says by name what it misses, and is skipped
test-cluster: $(VENV)/.installed debian
	$(VENV)/bin/pytest $(PYTEST_FILES) -m 'browser or cluster'

# faults injected for real, one after the other, and the page of what came of them
chaos: $(VENV)/.installed debian
	@test -x .venv-moto/bin/moto_server || { $(PYTHON) -m venv .venv-moto && .venv-moto/bin/pip install --quiet 'moto[s3,server]==5.2.*'; } || true
	$(VENV)/bin/pytest -m chaos --faults docs/faults.md tests/chaos

# many stages in one command: what it holds stays as it was
soak: $(VENV)/.installed
	SOAK_STAGES=$(or $(STAGES),2000) $(VENV)/bin/pytest -m slow -s tests/execution/test_soak.py

test-all: test test-slow test-cluster

# Debian's browser, database, networks, Slurm and shellcheck, where they are absent and may be installed
debian: export DEBIAN_FRONTEND := noninteractive
debian:
	@absent() { ! PATH="$$PATH:$$(echo /usr/lib/postgresql/*/bin | tr ' ' :)" command -v "$$1" >/dev/null && echo "$$2"; }; \
	packages="$$(absent chromium chromium; absent chromedriver chromium-driver; absent ip iproute2; absent initdb postgresql; \
		absent slurmctld slurmctld; absent slurmd slurmd; absent sbatch slurm-client; absent munged munge; absent shellcheck shellcheck)"; \
	if [ -n "$$packages" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo installing $$packages; \
		{ apt-get -qq update && apt-get -qq install --no-install-recommends $$packages; } >/dev/null || true; \
	fi

# the locked versions on the other Pythons, and the oldest torch that is supported on the oldest Python
test-pythons:
	@for version in 3.12 3.13; do \
		if python$$version -c '' 2>/dev/null; then \
			$(MAKE) --no-print-directory pytest PYTEST="$(PYTEST) $(PYTHON_ALONE)" PYTHON=python$$version \
				VENV=.venv-$$version || exit 1; \
		else echo "python$$version is not on PATH: skipped"; fi; \
	done
	@if python3.11 -c '' 2>/dev/null; then \
		mkdir -p .venv-oldest; \
		grep -vE '^(torch|triton|nvidia|cuda|setuptools)' constraints.txt > .venv-oldest/constraints.txt; \
		$(MAKE) --no-print-directory pytest PYTEST="$(PYTEST) $(PYTHON_ALONE)" PYTHON=python3.11 VENV=.venv-oldest \
			INSTALL='-c .venv-oldest/constraints.txt torch==2.11.*' || exit 1; \
	else echo "python3.11 is not on PATH: skipped"; fi

lock:
	@test -x .venv-lock/bin/uv || { $(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv; }
	.venv-lock/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade --quiet \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file constraints.txt

# known vulnerabilities of the locked versions; the tool lives in an environment of its own
audit:
	@index="$(or $(PYPI),$$($(PYTHON) -c 'from pip._internal.models.index import PyPI; print(PyPI.url.rstrip("/"))'))"; \
	$(PYTHON) -c "import json, sys, urllib.request; \
		json.load(urllib.request.urlopen(sys.argv[1] + '/pypi/pip/24.0/json', timeout=20))['vulnerabilities']" "$$index" 2>/dev/null || \
		{ echo "make audit needs the network: $$index tells nothing of vulnerabilities" >&2; exit 1; }
	@test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install --quiet pip-audit; }
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt

licences: $(VENV)/.installed
	$(VENV)/bin/python tests/support/licences.py
