# Each target makes its own environment in .venv when there is none. Another interpreter: make PYTHON=python3.12 test
PYTHON ?= python3
VENV ?= .venv
# Options of pytest for the test suite, such as --runslow
OPTIONS ?=
# Processes of the test suite, a thread and about 4 GB each
WORKERS ?= 2
LABEL_VENV ?= .venv-label
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo label-demo pacs-demo test matrix tutorial boilerplate format lint bench clean

demo: $(STAMP)
	$(RUN) demo/run.py

# A MONAI Label server with every bundle, in an environment of its own (docs/monai_label.md)
label-demo: $(LABEL_VENV)/.installed
	$(LABEL_VENV)/bin/python demo/label.py

# The same in front of a picture archive, with a browser: needs Debian's orthanc, orthanc-dicomweb and chromium
pacs-demo: $(LABEL_VENV)/.installed
	$(LABEL_VENV)/bin/python -m pip install --quiet dcmqi==1.5.7 websocket-client==1.9.2
	$(LABEL_VENV)/bin/python demo/pacs.py

# A worker that dies ends the run, and its test is named: with another in its place, xdist waits for ever.
# Bytecode is written, whatever the environment says, since children import the same modules again and again.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test: $(STAMP)
	$(PYTEST) $(OPTIONS)

# docs/matrix.md: which bundle works in which way
matrix: $(STAMP)
	mkdir -p build
	status=0; $(PYTEST) -m way --runslow --junitxml build/matrix.xml || status=$$?; \
	$(RUN) tests/matrix.py build/matrix.xml docs/matrix.md && exit $$status

# docs/tutorial.ipynb, run in an empty folder, with what came out
tutorial: $(STAMP)
	$(RUN) -m tools.notebook

# The files that are alike in every bundle, made anew from their base files
boilerplate: $(STAMP)
	$(RUN) -m tools.boilerplate

# Python and the bundles' JSON files in the form that lint asks for
format: $(STAMP)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(RUN) -m tools.format_json

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m tools.format_json --check
	$(RUN) -m mypy common

bench: $(STAMP)
	$(RUN) benchmarks/run.py

clean:
	rm -rf $(VENV) $(LABEL_VENV) build dist packed runs *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements.txt setup.cfg tests/monai_label.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -r requirements.txt
	$(RUN) -m pip install --quiet --no-deps -e .
	$(RUN) -m pip install --quiet --no-deps -r tests/monai_label.txt
	touch $@

# The constraints reach the packages that pip builds for sam2, too, by the variable only.
$(LABEL_VENV)/.installed: demo/label_constraints.txt setup.cfg
	test -x $(LABEL_VENV)/bin/python || $(PYTHON) -m venv $(LABEL_VENV)
	PIP_CONSTRAINT=demo/label_constraints.txt $(LABEL_VENV)/bin/python -m pip install --quiet monailabel .
	touch $@
