# Every target works on a fresh Debian machine with python3 (3.11 or newer) and make; `make help` lists them.
PYTHON ?= python3
OLDEST := python3.11
VENV   := .venv
BIN    := $(VENV)/bin
PACKAGES := provisioning broker device_sim
# How much the C compiler takes pains, 0 to 3: what is compiled for the tests alone need not be quick.
OPTIMISED ?= 3
COMPILED := .build/compiled/.installed-$(OPTIMISED)
# The tests wait for sockets, disks and processes as much as they work: three workers more than there are cores.
WORKERS ?= $(shell expr $$(nproc) + 3)
FUZZ_SECONDS ?= 20
SOAK_SECONDS ?= 1500
PYTEST  := pytest -n $(WORKERS) --dist worksteal
# Python keeps what it has compiled to byte code, whatever a container says: the tests start hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup setup-tests test-servers sslyze check test test-thorough test-compiled compiled fuzz demo demo-oldest bench bench-peers bench-idle bench-revocation bench-provisioning bench-fleet soak clean

help:           ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 26

$(VENV)/.installed: pyproject.toml
	@deploy/setup-venv $(PYTHON) $(VENV)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml
	@deploy/setup-venv $(PYTHON) $(VENV) dev
	@touch $(VENV)/.installed $@

setup: $(VENV)/.installed                                   ## virtual environment with the three programs
ifneq ($(origin PYTHON),file)                               # Who names one is not to get another's in silence.
	@deploy/same-python $(PYTHON) $(VENV)
endif
	@$(BIN)/python -m compileall -q $(PACKAGES)             # Services may not write here: else each start compiles all.

.build/gmqtt/gmqtt: | $(VENV)/.installed-dev                # Apart: it brings a package "tests" that would hide ours.
	@deploy/by-pip $(VENV) install --quiet --no-deps --upgrade --target .build/gmqtt gmqtt==0.8.0
	@touch $@

test-servers:
	@deploy/install-test-servers

sslyze: | test-servers                                      # An environment of its own, made beside the other one.
	@deploy/install-sslyze $(PYTHON)

setup-tests: $(VENV)/.installed-dev .build/gmqtt/gmqtt test-servers sslyze  ## what the tests need besides Python: Debian's servers and clients

check: $(VENV)/.installed-dev                               ## ruff, mypy strict on all of it, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(MYPY_ARGS)
	$(BIN)/lint-imports

test: setup-tests                                           ## everything the tests need, then all tests
	$(BIN)/$(PYTEST) $(PYTEST_ARGS)

test-thorough: setup-tests                                  ## property tests, twenty times as many examples; orders; long walks: 40 minutes of CPU
	$(BIN)/$(PYTEST) -m hypothesis --hypothesis-profile=thorough --timeout=3000 $(PYTEST_ARGS)

fuzz: setup-tests                                           ## parsers by coverage-guided fuzzing: FUZZ_SECONDS each, FUZZ_TARGETS
	@deploy/install-atheris $(VENV)
	PYTHONPATH=. .build/atheris/bin/python -m tests.fuzz.driver --seconds $(FUZZ_SECONDS) $(FUZZ_TARGETS)

demo: setup                                                 ## the whole product in a run of 20 seconds, on loopback
	@$(BIN)/fleet-sim demo $(DEMO_ARGS)

demo-oldest:                                                ## a short one with the oldest supported Python, if installed
	@if $(OLDEST) -c 'import ensurepip, venv'; then $(MAKE) PYTHON=$(OLDEST) VENV=.build/oldest DEMO_ARGS='--devices 20 --seconds 2' demo; fi

compiled: $(COMPILED)                                       ## the hot path compiled: .build/compiled, and a wheel in .build/dist

$(COMPILED): $(VENV)/.installed-dev deploy/build-compiled $(wildcard deploy/compiled/*) $(shell find $(PACKAGES) -name '*.py' -o -name '*.pyx')
	@deploy/build-compiled $(BIN) $(OPTIMISED)
	@touch $@

test-compiled: setup-tests compiled                         ## what reaches the hot path, against the compiled one
	rm -rf .build/compiled/tests .build/compiled/docs
	cp -r tests docs pyproject.toml .build/compiled
	cd .build/compiled && again=$$($(CURDIR)/$(BIN)/python -m tests.support.compiled_again) && \
		PYTHONPATH=. $(CURDIR)/$(BIN)/$(PYTEST) $$again $(PYTEST_ARGS)

bench: setup-tests compiled                                 ## broker, compiled, and mosquitto side by side, ratios printed
	$(BIN)/python benchmarks/side_by_side.py --subject fleetgate-compiled $(BENCH_ARGS)

bench-peers: setup-tests compiled                           ## every broker in one run: mosquitto, nats-server, rabbitmq, aedes, amqtt
	@deploy/install-bench-peers
	$(BIN)/python benchmarks/all_peers.py $(BENCH_ARGS)

bench-idle: setup-tests compiled                            ## 10,000 devices that say nothing for a minute
	$(BIN)/python benchmarks/idle.py $(BENCH_ARGS)

bench-provisioning: setup-tests                             ## the CA beside cfssl on both stores, about ten minutes
	$(BIN)/python benchmarks/provisioning_service.py $(BENCH_ARGS)

bench-revocation: setup-tests                               ## from the revoke call to the closed session
	$(BIN)/python benchmarks/revocation.py $(BENCH_ARGS)

bench-fleet: setup-tests                                    ## ten thousand devices, 5 % revoked: ours, mosquitto, compared
	rm -rf .build/fleet
	-$(BIN)/fleet-sim run ten-thousand --self-hosted --driver light --output .build/fleet/fleetgate $(BENCH_ARGS)
	-$(BIN)/fleet-sim run ten-thousand --self-hosted --driver light --against mosquitto --output .build/fleet/mosquitto $(BENCH_ARGS)
	$(BIN)/fleet-sim report .build/fleet/fleetgate/report.json .build/fleet/mosquitto/report.json \
		--html .build/fleet/comparison.html

soak: setup-tests                                           ## everything for SOAK_SECONDS, with lives of minutes and faults: what grows?
	$(BIN)/python benchmarks/soak.py --seconds $(SOAK_SECONDS) $(SOAK_ARGS)

clean:          ## remove what the targets made
	rm -rf $(VENV) .build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find $(PACKAGES) benchmarks deploy tests -name __pycache__ -prune -exec rm -rf {} +
