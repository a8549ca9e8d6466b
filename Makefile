# Everything needs only Python 3.11+, make and a package index; `.venv` is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Where it is set, every kernel compiles torch's Python code anew: 8 s of processor time in place of 3.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup report test test-fast test-lab lab docs bench lint lock sync clean

setup: $(READY)  ## the virtual environment alone, which every other target makes too

report: $(READY)  ## run every notebook on the simulated cohorts; prints the path of the page
	@$(BIN)/medkd report $(ARGS)

# A file of tests a process, each with one thread: fixtures of a file are shared, and threads do not wait for each other.
TESTS := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test: $(READY)  ## all tests
	@$(TESTS) $(ARGS)

test-fast: $(READY)  ## tests without the slow ones
	@$(TESTS) -m "not slow" $(ARGS)

test-lab: $(READY)  ## every notebook in JupyterLab and a real browser, on the whole quick preset
	@MEDKD_LAB_WHOLE=1 $(BIN)/python -m pytest tests/lab $(ARGS)

lab: $(READY)  ## JupyterLab on notebooks/, on this machine only
	@$(BIN)/medkd lab

docs: $(READY)  ## the documentation site, readable without a network; with outputs after a `make report`
	@$(BIN)/python -m sphinx -b html -j auto -W --keep-going -q -d docs/_build/trees docs docs/_build/html
	@echo docs/_build/html/index.html

bench: $(READY)  ## ratios against other libraries, which get an environment of their own; writes benchmarks/results/
	@test -x .venv-bench/bin/python || $(BIN)/uv venv -q --python $(BIN)/python .venv-bench
	@$(BIN)/uv pip install -q --python .venv-bench/bin/python -r requirements.lock -r benchmarks/requirements.txt
	@$(BIN)/uv pip install -q --python .venv-bench/bin/python --no-deps -e .
	@.venv-bench/bin/python -m benchmarks $(ARGS)

lint: $(READY)  ## ruff on package, tests and notebooks
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

sync: $(READY)  ## render the notebooks' parameter cells from the stages' classes, strip outputs
	@$(BIN)/python -m medkd.report.sync

lock: $(READY)  ## pin the versions that are installed next time
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		--extra dev --extra pretrained --extra cluster --extra docs --extra export --upgrade pyproject.toml -o requirements.lock

# uv comes into the virtual environment itself, so that nothing is changed outside this folder.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "medkd needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about a minute the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv
	@$(BIN)/uv pip install -q --python $(BIN)/python -r requirements.lock
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .
	@touch $@

clean:  ## remove reports, runs and caches, not the environment
	rm -rf reports/quick reports/runs reports/interactive data/cache
