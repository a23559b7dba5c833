# Everything is installed into .venv; nothing else on the machine is touched.
#   make demo   train a small vision transformer with Inductor and with hadamard, and compare
#   make test   the CPU test suite          make lint   ruff and mypy          make clean   remove .venv
.PHONY: demo test lint venv clean
.DEFAULT_GOAL := test

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := examples/digits_vit.py

# The first Python that is new enough, can make a virtual environment and has its C headers (Inductor compiles C++).
USABLE := import sys, ensurepip, venv, os, sysconfig; sys.exit(sys.version_info < (3, 11) \
  or not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))
PYTHON ?= $(shell for p in python3 python3.12 python3.13 python3.11 python3.14 python; do \
  $$p -c '$(USABLE)' >/dev/null 2>&1 && { echo $$p; break; }; done)

# Without an NVIDIA GPU a CPU build of torch spares gigabytes of CUDA libraries: it is taken where pip finds one. To make
# sure, name PyTorch's index of CPU wheels (pytorch.org, "Get started"): make test TORCH_INDEX=...
CPU_TORCH := torch==2.13.0+cpu
TORCH_INDEX ?=

demo: $(STAMP)
	$(BIN)/python $(DEMO)

test: $(STAMP)
	$(BIN)/pytest $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

venv: $(STAMP)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 with venv and C headers was found. Install one" \
	  "(Debian and Ubuntu: python3-venv and python3-dev), or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
	  || { echo "No C++ compiler was found, which torch.compile needs on a CPU (Debian and Ubuntu: g++)."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --upgrade 'pip>=25.1'
	@if command -v nvidia-smi >/dev/null 2>&1; then echo "NVIDIA GPU: torch comes with CUDA"; else \
	  echo "No NVIDIA GPU: installing a CPU build of torch"; \
	  { test -n "$(TORCH_INDEX)" && $(BIN)/python -m pip install -qq --index-url '$(TORCH_INDEX)' 'torch>=2.11'; } \
	  || $(BIN)/python -m pip install -qq '$(CPU_TORCH)' 2>/dev/null \
	  || $(BIN)/python -m pip install -qq 'torch>=2.11'; fi
	@echo "Installing hadamard-fx and what its tests need"
	@$(BIN)/python -m pip install -qq --editable . --group dev
	@touch $@

clean:
	rm -rf $(VENV)
