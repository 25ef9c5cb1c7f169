# The two commands: `make demo` and `make test`. Each installs what it needs into .venv first, from
# setup.py at the tested versions; a second call starts at once.

PYTHON ?= python3
PYTEST_ARGS ?= -n 2
VENV := .venv
RUN := JAX_PLATFORMS=cpu $(VENV)/bin/python
INSTALL := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	--constraint requirements/constraints.txt --editable

.PHONY: demo demo-from-scratch test lint pod-rehearsal clean

demo: $(VENV)/installed
	$(RUN) -m tools.demo

demo-from-scratch: $(VENV)/installed
	$(RUN) -m tools.demo --from-scratch --out out/from-scratch

test: $(VENV)/installed-for-tests
	$(RUN) -m pytest $(PYTEST_ARGS)

lint: $(VENV)/installed-for-tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/installed: setup.py requirements/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and sys.version.split()[0] + " is too old: \
	make demo PYTHON=python3.11, or a later one")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	touch $@

$(VENV)/installed-for-tests: $(VENV)/installed
	$(INSTALL) ".[test]"
	touch $@

pod-rehearsal: $(VENV)/installed
	$(RUN) -m tools.rehearse

clean:
	rm -rf out
