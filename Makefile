# One command per wish. `make` alone lists them. What is set up lies in .venv; a stamp there keeps it from being done twice.
#
#   PYTHON=…       the Python to use (3.11 or later, with venv)       PYTEST_ARGS=…  which tests, and how
#   TORCH_INDEX=…  address of an index to take PyTorch from            PIP_ARGS=…     anything else for pip install
#
# pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, pip.conf) hold as well.

PYTHON ?= python3
PIP_ARGS ?=
TORCH_INDEX ?=
PYTEST_ARGS ?=

BIN := .venv/bin
INSTALL = tools/pip-install "$(PYTHON)" $(if $(CI),--quiet) -c constraints.txt \
          $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(PIP_ARGS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo serve test lint bench docs screenshot clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

demo: .venv/ready  ## set up once, then open the dashboard with sample analyses on http://127.0.0.1:8000
	@exec $(BIN)/cipm demo

serve: .venv/ready  ## the same without the samples
	@exec $(BIN)/cipm serve

test: .venv/ready-to-test  ## set up once, then run every test, browser tests included
	@tools/system-packages
	@tools/run-tests $(PYTEST_ARGS)

lint: .venv/ready-to-test  ## check the style of the code
	@$(BIN)/ruff check .

bench: .venv/ready-to-bench  ## measure against the peers; prints tables and writes docs/benchmarks.md
	@$(BIN)/python tools/write_benchmarks.py

docs: .venv/ready  ## write the generated pages of docs/ anew
	@$(BIN)/python -m backend.reference
	@$(BIN)/python tools/write_options.py
	@$(BIN)/python tools/write_rules.py

screenshot: .venv/ready-to-test  ## take the README's picture anew, in the browser test
	@SCREENSHOT=$(CURDIR)/docs/screenshot.png $(BIN)/python -m pytest tests/browser/test_story.py -k whole

clean:  ## remove the environment and caches; analyses and uploads stay
	rm -rf .venv .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find cipm backend workers frontend tests tools bench -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/made:
	@tools/make-venv "$(PYTHON)"
	@touch $@

.venv/ready: .venv/made pyproject.toml constraints.txt
	@echo "Setting up once; what is downloaded depends on the PyTorch that pip finds (README.md, Set-up)."
	@$(INSTALL) -e .
	@touch $@

.venv/ready-to-test: .venv/ready
	@$(INSTALL) -e '.[test]'
	@touch $@

.venv/ready-to-bench: .venv/ready-to-test
	@$(INSTALL) -e '.[bench]'
	@touch $@
