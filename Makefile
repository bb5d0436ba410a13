# make run: set up and open the dashboard.  make test: set up and run the tests.
PYTHON ?= python3
BIN := .venv/bin
PORT ?= 8501
JOBS ?= 2
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := test
.PHONY: setup run test test-slow lint bench docs

setup: .venv/.ready

.venv/.ready: requirements.txt pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || ($(PYTHON) -m pip install virtualenv && $(PYTHON) -m virtualenv .venv)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(head -n 1 requirements.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv/.ready-dev: .venv/.ready requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

run: .venv/.ready
	$(BIN)/streamlit run app/main.py --server.port $(PORT)

test: .venv/.ready-dev
	$(BIN)/python -m tests.chromium
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile tests

test-slow: .venv/.ready-dev
	$(BIN)/python -m pytest -m slow tests

lint: .venv/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/.ready-dev .venv-peers/.ready
	$(BIN)/python -m tests.bench
	OMP_NUM_THREADS=2 .venv-peers/bin/python -m tests.bench.peers

.venv-peers/.ready: requirements.txt tests/bench/peers.txt
	$(BIN)/python -m venv .venv-peers || ($(PYTHON) -m pip install virtualenv && $(PYTHON) -m virtualenv .venv-peers)
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check $$(head -n 1 requirements.txt)
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check numpy scipy click tqdm einops opt-einsum
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/bench/peers.txt
	touch $@

docs: .venv/.ready
	$(BIN)/python -m modalscape.documentation
