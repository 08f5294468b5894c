# Each target makes .venv itself, once, and again when setup.py changes. Needs python3 (>= 3.11), python3-venv, make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test quick bench-compare fuzz lint docs study sz clean

help:  ## say what there is
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "make %-13s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): setup.py
	@echo "make: installing knltrain and what it needs into $(VENV)"
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"make: found Python {v[0]}.{v[1]}, expected at least 3.11; try make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: no virtual environment could be made; on Debian: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[jpeg,mpi,plots,dev]"
	@touch $@

demo: $(STAMP)  ## render, pack, train on two ranks, evaluate, draw: all in demo/
	@$(BIN)/knltrain demo

test: $(STAMP)  ## run all tests
	@echo "make: running the tests"
	@$(BIN)/python -m pytest -q -n 5 --dist loadfile --no-loadscope-reorder

QUICK := architecture knltrain_arena layers_program layers_gradients models_counts kernels_conv kernels_batchnorm \
         comm_buckets comm_reducer data_sampler data_shards recipe_config knltrain_api run_lock optim_lars optim_schedule
quick: $(STAMP)  ## run the tests that one runs before each commit
	@$(BIN)/python -m pytest -q -x $(QUICK:%=tests/test_%.py)

BENCH ?= step --model resnet50
bench-compare: $(STAMP)  ## BASE=REV: old code and new in turn, BENCH="step --model alexnet_bn"
	@$(BIN)/knltrain bench compare --base "$(BASE)" $(BENCH)

fuzz: $(STAMP)  ## damaged and hostile input by the thousand, seeded
	@$(BIN)/python tests/fuzz.py

lint: $(STAMP)  ## check the style of the code
	@echo "make: checking the style"
	@$(BIN)/ruff check .

docs: $(STAMP)  ## the documentation as a site: docs/_build/docs/index.html
	@$(BIN)/python -c 'import sphinx, myst_nb, furo' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	@$(BIN)/python docs/figures.py
	@$(BIN)/sphinx-build -W --keep-going -q -c docs . docs/_build
	@echo "make: docs/_build/docs/index.html"

STUDY := shards/cifar10-16/train shards/cifar10-16/val
study: $(STAMP)  ## train what docs/results/study.jsonl lacks, tables and figures of large batches from it
	@KNLTRAIN_THREADS=1 $(BIN)/python docs/study.py $(STUDY)
	@KNLTRAIN_THREADS=1 $(BIN)/python docs/study_fp16.py $(STUDY)

sz:  ## count lines per file and in sum
	@find kernels knltrain tests -name '*.py' | sort | xargs wc -l

clean:  ## remove .venv, the demo's output and caches
	rm -rf $(VENV) demo build dist docs/_build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
