# Two commands: `make demo` and `make test`. Each sets up what it needs the first time.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO := demo

.DEFAULT_GOAL := help
.PHONY: help install demo test coverage check-all check-chaos lint types bench clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED) ## make .venv with the exact versions of constraints.txt (about 6 GB)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with PYTHON=python3.12" >&2; exit 2; }
	@echo "installing into .venv; this takes a few minutes the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install ## draw two corpora, train both networks, write reports, recognize a folder (5 minutes on two cores)
	$(BIN)/python jobs/synthesize.py --scheme digits --num-images 4000 --out $(DEMO)/corpus/digits
	$(BIN)/python jobs/preprocess.py --corpus $(DEMO)/corpus/digits --labels folder --out $(DEMO)/shards/digits
	$(BIN)/python jobs/train.py --recipe demo-digits --shards $(DEMO)/shards/digits --run $(DEMO)/runs/digits --resume
	$(BIN)/python jobs/synthesize.py --scheme text5 --num-images 5000 --out $(DEMO)/corpus/text5
	$(BIN)/python jobs/preprocess.py --corpus $(DEMO)/corpus/text5 --labels filename --label-pattern '^([^-]+)' --height 50 --width 200 --out $(DEMO)/shards/text5
	$(BIN)/python jobs/train.py --recipe demo-text5 --shards $(DEMO)/shards/text5 --run $(DEMO)/runs/text5 --resume
	$(BIN)/python jobs/infer.py --images $(DEMO)/corpus/text5 --run $(DEMO)/runs/text5 --out $(DEMO)/predictions
	@echo
	@echo "one character:   $(CURDIR)/$(DEMO)/runs/digits/report.html"
	@echo "five characters: $(CURDIR)/$(DEMO)/runs/text5/report.html"
	@echo "networks: $(DEMO)/runs/*/checkpoint   corpora: $(DEMO)/corpus   shards: $(DEMO)/shards"
	@echo "predictions: $(DEMO)/predictions; the same command again recognizes only what is new"

lint: install ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## strict type check
	$(BIN)/mypy

test: lint types ## style, types and all tests that take seconds
	$(BIN)/pytest -m 'not slow' --numprocesses 2 --dist loadfile

coverage: install ## the same tests, and which lines of the package they run (20 minutes)
	$(BIN)/pytest -m 'not slow' --numprocesses 2 --dist loadfile --cov --cov-report=term:skip-covered

check-all: lint types ## everything, with the long checks and those on real images (CAPTCHA_RAY_DATA names their folder)
	$(BIN)/pytest --timeout 3600

check-chaos: lint types ## twenty disasters on clusters of several nodes (40 minutes); CAPTCHA_RAY_KILL_SEED names others
	$(BIN)/pytest -m chaos --timeout 600 -s

bench: install ## throughput against plain loops
	$(BIN)/python benchmarks/train_throughput.py
	$(BIN)/python benchmarks/preprocess_throughput.py
	$(BIN)/python -m benchmarks.infer_throughput
	$(BIN)/python -m benchmarks.infer_throughput --source s3 --num-images 20000
	$(BIN)/python -m benchmarks.night_scale
	$(BIN)/python benchmarks/gpu.py

clean: ## remove what the demo and the tools made; .venv stays
	rm -rf $(DEMO) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage*
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
