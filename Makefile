# make demo   set up what running needs, then run both chains of the demo with the real commands
# make test   set up what testing needs, then run the tests (all but those marked `network` or `slow`, see CONTRIBUTING.md),
#             on every core; WORKERS=0 runs them in one process
# make lint   ruff, mypy, and whether docs/cli.md and docs/errors.md are up to date
# make docs   write docs/cli.md and docs/errors.md
VENV ?= .venv
PYTHON ?= python3
# onnxruntime-gpu runs on a CPU too; where it has no wheels the CPU build stands in.
RUNTIME ?= $(if $(filter Darwin,$(shell uname -s)),cpu,gpu)
PYTEST_ARGS ?=
# Processes that share the tests. A process that has no test left takes half of those of another one.
WORKERS ?= auto
MOST_WORKERS ?= 8

BIN := $(VENV)/bin
HASH := $(shell cat pyproject.toml setup.py | $(PYTHON) -c "import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:12])")
READY := $(VENV)/.ready-$(RUNTIME)-$(HASH)
READY_DEV := $(VENV)/.ready-dev-$(RUNTIME)-$(HASH)

# pip would compile the 15,000 modules on one core, compileall uses all cores. Its exit code is ignored, because some
# packages have files that this Python cannot compile.
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -e
COMPILE := $(BIN)/python -m compileall -q -j 0 -x /tests/ $(VENV)/lib >/dev/null || true

.PHONY: demo test lint docs
.DEFAULT_GOAL := test

demo: $(READY)
	@PATH="$(abspath $(BIN)):$$PATH" bash demo/run.sh

test: $(READY_DEV)
	@$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses $(MOST_WORKERS) --dist worksteal $(PYTEST_ARGS)

# mypy does not see the import hook of an editable install: MYPYPATH is a folder with links to the three packages.
lint: $(READY_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p $(VENV)/typed && ln -sfn "$(CURDIR)/zoo" $(VENV)/typed/zoo && ln -sfn "$(CURDIR)/cli" $(VENV)/typed/zoo_cli && ln -sfn "$(CURDIR)/plugins" $(VENV)/typed/zoo_plugins
	MYPYPATH=$(VENV)/typed $(BIN)/mypy -p zoo -p zoo_cli -p zoo_plugins
	$(BIN)/python docs/make_cli.py --check
	$(BIN)/python docs/make_errors.py --check

docs: $(READY_DEV)
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_errors.py

$(READY):
	$(PYTHON) -m venv --clear $(VENV)
	$(INSTALL) '.[$(RUNTIME),train,demo]'
	@$(COMPILE)
	@touch $@

$(READY_DEV):
	test -e $(READY) || $(PYTHON) -m venv --clear $(VENV)
	$(INSTALL) '.[$(RUNTIME),train,demo,dev]'
	@$(COMPILE)
	@touch $(READY)
	@touch $@
