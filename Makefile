# make demo: find winning tickets of a small real model and fine-tune them.   make test: lint, types, tests.
# make docs: the site of docs/.   make wheel: what is shipped.
# All of them set up what they need, in .venv.

PYTHON ?= python3
TORCH ?= torch>=2.7,<2.16
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
# The extension is built with this torch, so torch comes first and the build is not isolated from it.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
SOURCES := pyproject.toml setup.py _build_backend.py $(shell find csrc -type f)

# Python keeps compiled bytecode: a process imports torch and transformers in a third of the time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test soak sanitize lint types docs wheel gpu-suite gpu-study clean

setup: $(STAMP)

$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) '$(TORCH)' 'setuptools>=77' ninja
	$(PIP) --no-build-isolation --editable '.[test]'
	touch $@

demo: setup
	$(BIN)/tamt demo

# Two workers of one thread each. Who is done takes tests of the other: the longest would else come last.
test: setup lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# The faults and the broken files of the tests at many more moments and mutations, half an hour of training (or
# TAMT_SOAK_SECONDS) with its memory watched, and the C++ under sanitizers.
soak: sanitize
	TAMT_SOAK=1 $(BIN)/python -m pytest tests/tamt/test_memory.py tests/tamt/test_resume.py tests/tamt/test_fuzz.py \
	    tests/tamt/test_processes.py tests/kernels/test_triton.py tests/kernels/test_triton_compiles.py tests/test_wheel.py tests/test_examples.py

# The C++ extension built with AddressSanitizer and UBSan, in a folder of its own, under the tests of the operations.
sanitize: setup
	TAMT_SOAK=1 $(BIN)/python -m pytest tests/kernels/test_sanitizers.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# The pages of docs/ and what the docstrings say, as a site in build/docs; open build/docs/index.html.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# An sdist, and the wheel that it builds with the torch of .venv, in a new dist/; and whether an index would take them.
wheel: setup
	rm -rf dist
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

# With the machine's own Python and torch, in no virtual environment: what a GPU is needed for, in nine minutes.
gpu-suite:
	@$(PYTHON) -m benchmarks.gpu_suite '$(OUT)'

# There too, in eight minutes: does the start of mask training matter at the paper's length? Needs the folder that
# python -m benchmarks.gpu_study prepare .gpu-study --data DATA has written.
gpu-study:
	@$(PYTHON) -m benchmarks.gpu_study run .gpu-study '$(OUT)'

clean:
	rm -rf build dist *.egg-info tamt_kernels/*.so $(STAMP)
