# Everything a contributor types. `make test` and `make demo` alone install what they need on a fresh Debian with
# Python 3.11 and make. On another machine set PYTHON to a Python 3.11.

PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell grep -o '^torch==[0-9.]*' constraints.txt)
UV := $(shell grep -o '^uv==[0-9.]*' constraints.txt)
FAULTS := $(BIN)/pytest -m faults --timeout 1200 tests/faults
# Two files at a time: much of a fault test is waiting, for a process to be gone or a machine to be missed. Not those
# with the fewest tests last, as xdist would: they are the longest.
TWO_AT_ONCE := -n 2 --dist loadfile --no-loadscope-reorder

# g++ and Python's headers build DeepSpeed's CPU ops, iproute2 has the `ss` that tests list sockets with.
SYSTEM_PACKAGES = g++ iproute2 python3.11-dev python3.11-venv
HAVE_g++ = command -v g++
HAVE_iproute2 = command -v ss
HAVE_python3.11-dev = test -f "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"
HAVE_libaio-dev = test -f /usr/include/libaio.h
HAVE_python3.11-venv = $(PYTHON) -c 'import ensurepip'

# ninja is found on the PATH, and another ninja than the one that built the ops would build them again.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# A folder of our own: in the shared default one, another build of an op makes ninja build ours again.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where it is set, every process would compile torch, Ray and transformers anew: minutes for each.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install system-packages ops nvme warm-imports empty-database demo test test-faults test-faults-full test-gpu lint types check format lock clean

help:  ## Lists the targets
	@awk -F ':.*## ' '/^[a-zA-Z%-]+:.*## / {sub("%", "NAME", $$1); printf "  make %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)  ## Makes .venv: the tested versions, the penstock command, DeepSpeed's CPU ops

$(STAMP): pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory system-packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and f"Penstock needs Python 3.11, this is {sys.version.split()[0]}; run make with PYTHON=/path/to/python3.11.")'
	$(PYTHON) -m venv $(VENV)
	# torch comes through pip, which knows this machine's indexes and takes the CUDA libraries if the build needs them.
	$(BIN)/pip install --quiet --no-compile -c constraints.txt $(TORCH) $(UV)
	# The rest is pinned to the last package, so nothing is resolved: a quarter of the time that pip takes.
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r constraints.txt \
		|| $(BIN)/pip install --quiet --no-compile --no-deps -r constraints.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
	@$(MAKE) --no-print-directory -j 2 ops warm-imports empty-database
	@touch $@

system-packages:  ## Installs the Debian packages that are missing (only as root)
	@missing="$(foreach package,$(SYSTEM_PACKAGES),$$($(HAVE_$(package)) >/dev/null 2>&1 || echo $(package)))"; \
	missing=$$(echo $$missing); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing </dev/null && exit 0; fi; \
	echo "Missing here: $$missing. As root: apt-get install $$missing. Going on without."

# A killed build leaves a lock on which every later process would wait for ever.
BUILD_OP = import sys; from deepspeed.ops.op_builder import cpu; getattr(cpu, sys.argv[1])().load(verbose=False)
OP = CPUAdamBuilder
ops:  ## Builds DeepSpeed's CPU op cpu_adam, unless it is there
	@if ! $(HAVE_g++) >/dev/null || ! $(HAVE_python3.11-dev); then \
		echo "No g++ or no Python headers: DeepSpeed's CPU ops are not built; offload of the optimizer needs them."; exit 0; fi; \
	rm -f $(TORCH_EXTENSIONS_DIR)/*/lock; \
	DS_ACCELERATOR=cpu MAX_JOBS=2 timeout 900 $(BIN)/python -c '$(BUILD_OP)' $(OP) >$(VENV)/ops.log 2>&1 \
		|| { cat $(VENV)/ops.log; exit 1; }

nvme: $(STAMP)  ## Builds what offload to NVMe needs: libaio-dev and DeepSpeed's op async_io (minutes: install leaves it out)
	@$(MAKE) --no-print-directory system-packages ops SYSTEM_PACKAGES=libaio-dev OP=AsyncIOBuilder

# Compiles what a run imports, and no more: all of site-packages would take three times as long.
warm-imports:  ## Compiles the Python that a run imports
	@$(BIN)/python -W ignore -c 'import ray.train.torch, ray.tune, ray.serve, ray.data, kfp.local, mlflow, optuna, onnxruntime, onnxscript, kornia, sklearn.linear_model, transformers.models.vit.modeling_vit' >$(VENV)/imports.log 2>&1 \
		|| { cat $(VENV)/imports.log; exit 1; }

empty-database:  ## Builds the empty MLflow database that each PENSTOCK_HOME begins with (its migrations take seconds)
	@$(BIN)/python -W ignore -m components.tracking.client >$(VENV)/database.log 2>&1 || { cat $(VENV)/database.log; exit 1; }

demo: $(STAMP)  ## Runs the digits recipe: data, search, training, compression, gate, registry, endpoint
	$(BIN)/penstock run digits

test: $(STAMP)  ## Runs the tests that need neither a GPU nor patience (15 minutes at most on two cores)
	$(BIN)/pytest

test-faults: $(STAMP)  ## Runs the fault matrix with its short counts (25 minutes at most)
	$(FAULTS) $(TWO_AT_ONCE)

test-faults-full: $(STAMP)  ## Runs the fault matrix with its full counts, in parts, and writes docs/faults.md
	PENSTOCK_FAULTS=full $(FAULTS)

test-gpu: $(STAMP)  ## Runs the tests that need a GPU
	$(BIN)/pytest -m gpu

lint: $(STAMP)  ## Checks style and the direction of the imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)  ## Checks the types
	$(BIN)/mypy

check: lint types test  ## All that a change must pass

format: $(STAMP)  ## Formats the code and mends what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-%: $(STAMP)  ## Runs benchmarks/NAME.py
	$(BIN)/python benchmarks/$(subst -,_,$*).py

lock: $(STAMP)  ## Writes constraints.txt from the environment as it is
	{ sed -n '/^#/p' constraints.txt; $(BIN)/pip freeze --all --exclude-editable --exclude pip --exclude penstock \
		| sed 's/+[a-z0-9.]*$$//'; } > constraints.new && mv constraints.new constraints.txt

clean:  ## Removes caches and build leftovers; keeps .venv and .penstock
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
