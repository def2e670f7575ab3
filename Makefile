# make demo   the whole job on embedded data; report in reports/demo/report.html
# make test   the test suite without the long simulations
# make check  format, lint, types, import contract
# Each target makes its own environment (.venv) where there is none.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2
export MPLBACKEND = Agg

.PHONY: demo test slow check bench sample schema clean

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.ready
	$(BIN)/tl-audit demo --out reports/demo

test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

slow: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

check: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy tl_audit
	$(BIN)/lint-imports

bench: $(VENV)/.ready
	$(BIN)/python -m benchmarks

sample: $(VENV)/.ready
	$(BIN)/tl-audit demo --out reports/demo
	mkdir -p reports/sample
	cp reports/demo/report.html reports/demo/report.json reports/sample/

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache reports/demo
