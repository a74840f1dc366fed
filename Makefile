# make demo    the main job on simulated universes, from nothing to figures
# make test    lint and all tests
# make bench   speed and memory beside the machine's own limits
# make lint    ruff alone
# The environment is made in .venv on first use.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
JOBS ?= 2

.PHONY: demo test bench lint clean-demo help
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# //p' Makefile

# ------------------------------------------------------------------------------------------------- environment

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or later is needed, $(PYTHON) is older; give another with make PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip' || \
	    { echo "$(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made requirements.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed requirements-test.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@

# -------------------------------------------------------------------------------------------------------- demo

DEMO_UNIVERSES := data/universes
DEMO_SLICING := --axes 012 --stride 4 --val-fraction 0.13 --test-fraction 0.25

# Slices of the user's own are left alone.
RAW := $(if $(wildcard data/raw_train.h5 data/raw_train.npy),,data/raw_train.h5)

demo: $(VENV)/.installed data/demo_train.h5 $(RAW)
	@echo "== train (expts/demo/run0)"
	@$(RUN) train.py demo 0 --resume
	@echo "== analyse"
	@$(RUN) analyze_output.py demo 0
	@echo "== done"
	@echo "figures      expts/demo/run0/analysis/*.png"
	@echo "scores       expts/demo/run0/analysis/scorecard.json"
	@echo "TensorBoard  $(VENV)/bin/tensorboard --logdir expts"

$(DEMO_UNIVERSES)/.simulated: | $(VENV)/.installed
	@echo "== simulate 16 universes"
	@$(RUN) data/simulate_universes.py --num 16 --jobs $(JOBS)
	@touch $@

data/demo_train.h5: $(DEMO_UNIVERSES)/.simulated | $(VENV)/.installed
	@echo "== slice them, 64 x 64 pixels"
	@$(RUN) data/slice_universes.py $(DEMO_UNIVERSES) --img-dim 64 $(DEMO_SLICING) --out data/demo

data/raw_train.h5: | $(DEMO_UNIVERSES)/.simulated $(VENV)/.installed
	@echo "== slice them, 128 x 128 pixels, for the tags base and modern"
	@$(RUN) data/slice_universes.py $(DEMO_UNIVERSES) $(DEMO_SLICING)

clean-demo:
	rm -rf expts/demo/run0 data/demo_*.h5 data/demo_shards

# ------------------------------------------------------------------------------------------------------- checks

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

test: lint
	$(RUN) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

bench: $(VENV)/.installed-test
	$(RUN) -m benchmarks
