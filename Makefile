# Each target does all the set-up it needs. The environment is created once, and again when its inputs change.
VENV := .venv
PYTHON ?= python3
PY := $(VENV)/bin/python

.PHONY: help demo test check chaos bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# uv installs in half a minute what takes pip minutes. It compiles as pip does, since otherwise each of the processes that
# a run starts would. pip follows where uv fails: uv does not read pip's configuration.
define install
	$(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(PY) -c constraints.txt -e '$(1)' || \
	    $(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '$(1)'
endef

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt uv || true
	$(call install,.)
	touch $@

$(VENV)/dev: $(VENV)/ready
	$(call install,.[dev])
	touch $@

demo: $(VENV)/ready ## cluster scikit-learn's digits, and print where the results are
	$(VENV)/bin/digpro train --preset digits

test: check ## lint, types and all tests
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/dev ## lint and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Clusters of several nodes use no token here, and a process that has once sent one to Ray keeps sending it.
chaos: $(VENV)/dev ## inject faults: 20 kills, lost nodes, full disks; about an hour
	$(PY) -m pytest -m chaos --ignore tests/chaos/test_nodes.py --ignore tests/chaos/test_unequal_nodes.py
	$(PY) -m pytest -m chaos tests/chaos/test_nodes.py tests/chaos/test_unequal_nodes.py
	$(PY) -m tests.chaos.kills --count 20 --table docs/reliability.md

bench: $(VENV)/dev ## measure all speed claims, and write docs/performance.md; an hour
	$(PY) -m benchmarks.performance

clean: ## remove the environment; keep data and runs
	rm -rf $(VENV)
