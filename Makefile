# make repro: the experiment of params.yaml, from data to page.
# make quick: the checks that are done in a few minutes. make test: all of them.
# make table NAME=table_1: a table of the paper in miniature.
# make bench: the speed, against plain implementations.
# Each makes .venv on first use; a second run installs nothing.

# Programs are called as modules of this Python, by a path that holds nothing of where the checkout lies: it may have blanks in
# it, and may be moved. DVC starts stages by the name python, which is found in PATH. exec: a SIGTERM to make reaches the program.
VENV := .venv
PYTHON_HERE := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" exec $(VENV)/bin/python
# the first Python of a supported version; PYTHON=/path/to/python chooses another
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3 python; do \
	command -v $$name >/dev/null && $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && { command -v $$name; break; }; done)

.PHONY: repro quick test bench experiments page lint environment repository
.DEFAULT_GOAL := repro

repro: repository
	$(PYTHON_HERE) -m pag_core.params
	$(PYTHON_HERE) -m dvc repro
	@$(PYTHON_HERE) -m experiments.runs.kept
	@echo "The page: $(CURDIR)/report.html"

# The test files are dealt to two workers in order, the long ones first (tests/conftest.py). Each computes with one
# thread: OpenMP's threads wait for each other by spinning, so more of them than cores is many times slower. Failures are
# shown as they come.
PYTEST := OMP_NUM_THREADS=1 $(PYTHON_HERE) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --instafail

quick: lint
	$(PYTEST) -m "not slow" tests/unit tests/golden tests/architecture

test: lint
	$(PYTEST)

# ratios against plain implementations, on the CPU: benchmarks/README.md
bench: environment
	$(PYTHON_HERE) -m benchmarks --device cpu

# all experiments as a page to sort, filter, chart and compare, with figures
page: environment
	$(PYTHON_HERE) experiments/page.py

# its table as text
experiments: environment
	@$(PYTHON_HERE) experiments/page.py --text

# a table of the paper beside its published numbers: make table NAME=table_1 SCALE=mini; runs what is missing. IMAGES names a
# folder of images for those that take one, JOBS how many runs at once; SHOW=1 runs nothing (docs/tables.md)
SCALE ?= mini
JOBS ?= 1
.PHONY: table
table: environment
	@test -f "experiments/tables/$(NAME).yaml" || { echo "NAME is one of: $(notdir $(basename $(wildcard experiments/tables/*.yaml)))"; exit 1; }
	$(PYTHON_HERE) experiments/run.py "experiments/tables/$(NAME).yaml" --size "$(SCALE)" --jobs "$(JOBS)" \
		$(if $(SHOW),--show,--output results) $(if $(IMAGES),--images "$(IMAGES)")

# the picture of README.md: figures/targeted_pgd.png of a run at the defaults of params.yaml
.PHONY: picture
picture: repro
	cp figures/targeted_pgd.png docs/images/targeted_digits.png

lint: environment
	$(PYTHON_HERE) -m ruff check .
	$(PYTHON_HERE) -m ruff format --check .
	$(PYTHON_HERE) -m mypy
	$(PYTHON_HERE) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()' --no-cache

environment: $(VENV)/.installed
	@$(VENV)/bin/python environment.py

# what DVC needs of git; without it a sentence that says what to do
repository: environment
	@$(PYTHON_HERE) -m experiments.runs.repository

$(VENV)/.installed: requirements.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed and none was found; install one, or name it: make PYTHON=/path/to/python"; exit 1; }
	"$(PYTHON)" -m venv $(VENV) || { echo "$(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv"; exit 1; }
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --require-hashes --requirement requirements.lock
	@touch $@

# after a change of the dependencies in pyproject.toml; needs uv
.PHONY: lock
lock:
	uv pip compile pyproject.toml --extra pipeline --extra s3 --extra dev --universal --generate-hashes --no-header --no-annotate \
		--python-version 3.11 --output-file requirements.lock
