# Each target makes its own environment in .venv when there is none. Another interpreter: make PYTHON=python3.12 test
PYTHON ?= python3
VENV ?= .venv
# Processes of the test suite, a thread and about 4 GB each
WORKERS ?= 2
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench clean

demo: $(STAMP)
	$(RUN) demo/run.py

test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy common

bench: $(STAMP)
	$(RUN) benchmarks/run.py

clean:
	rm -rf $(VENV) build dist packed runs *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements.txt setup.cfg
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -r requirements.txt
	$(RUN) -m pip install --quiet --no-deps -e .
	touch $@
