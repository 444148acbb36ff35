# make serve   set everything up and serve the demo checkpoint on the CPU
# make test    set everything up and run all checks and tests
# make test-nemo-interop   beside NVIDIA's NeMo, in an environment of its own (1.5 GB), what tests/interop tests

CHECKPOINT ?= examples/demo_model/checkpoint
MODEL_NAME ?= demo
HOST ?= 127.0.0.1
PORT ?= 8080
FLAGS ?= --device cpu --params_dtype float32

# The first Python that is new enough and not too new for PyTriton's numpy.
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$python && break; \
	done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# NeMo asks for older versions of much that is used here.
NEMO_VENV ?= .interop/nemo-2.7.3
NEMO_PYTHON := $(abspath $(NEMO_VENV))/bin/python
NEMO_PIP_INSTALL := $(NEMO_PYTHON) -m pip install --quiet --disable-pip-version-check

.PHONY: serve test test-nemo-interop check clean

serve: $(VENV)/.serving
	@exec $(BIN)/deploy_inframework_triton --nemo_checkpoint $(CHECKPOINT) --triton_model_name $(MODEL_NAME) \
		--server_address $(HOST) --server_port $(PORT) --triton_http_address $(HOST) $(FLAGS)

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-nemo-interop: $(VENV)/.testing $(NEMO_VENV)/.complete
	NEMO_PYTHON=$(NEMO_PYTHON) $(BIN)/python -m pytest tests/interop

check: $(VENV)/.testing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.10, 3.11 or 3.12 is needed, and none was found; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serving: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing the worker and the gateway into $(VENV) ..."
	$(PIP_INSTALL) --editable '.[gateway,worker]'
	@touch $@

$(VENV)/.testing: $(VENV)/.serving
	@echo "Installing what the tests need into $(VENV) ..."
	$(PIP_INSTALL) --editable '.[gateway,worker,test]'
	@touch $@

$(NEMO_VENV)/.complete: tests/interop/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || \
		{ echo "error: NeMo's environment needs Python 3.11 or 3.12; name one with make test-nemo-interop PYTHON=..."; exit 1; }
	@echo "Installing NeMo into $(NEMO_VENV) ..."
	$(PYTHON) -m venv $(NEMO_VENV)
	$(NEMO_PIP_INSTALL) --constraint $< torch
	$(NEMO_PIP_INSTALL) --no-deps --requirement $<
	@touch $@
