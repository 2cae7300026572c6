# Two commands: `make demo` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# One more than there are cores, since tests wait for the programs they start; four are enough.
TESTERS := $(shell n=$$(( $$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1) + 1 )); echo $$(( n > 4 ? 4 : n )))

.PHONY: demo demo-train demo-rag test test-slow test-gpu check bench clean

demo: $(VENV)/.run
	$(BIN)/parallelmind demo

demo-train: $(VENV)/.run
	$(BIN)/parallelmind demo-train

demo-rag: $(VENV)/.run
	$(BIN)/parallelmind demo-rag

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

# On a machine with a GPU: the engine's tests there, and how fast it decodes.
test-gpu: $(VENV)/.dev
	PARALLELMIND_TEST_DEVICE=cuda $(BIN)/python -m pytest tests/engine tests/columnar -n 8 --dist worksteal
	$(BIN)/python benchmarks/gpu.py

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/decoding.py --save
	$(BIN)/python benchmarks/training.py --save
	$(BIN)/python benchmarks/jobs.py --save
	$(BIN)/python benchmarks/answering.py --save
	$(BIN)/python benchmarks/serving.py --save
	$(BIN)/python benchmarks/joining.py --save
	$(BIN)/python benchmarks/deterministic.py --save

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt requirements.txt | $(VENV)/bin/python
	$(PIP) install --quiet --requirement requirements.txt
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
