# The commands a person types. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PORT ?= 3000
export PYTHONPATH := $(CURDIR)/layers/backplane:$(CURDIR)
empty :=
export MYPYPATH := layers/backplane:$(subst $(empty) $(empty),:,$(wildcard functions/*))
export SAM_CLI_TELEMETRY := 0
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help dev demo test fuzz bench lint format openapi send token invoke audit migrate backup backups restore db-report psql logs clean-local lock

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---- the environment ----

# The stamp's name holds what the environment is made of, interpreter and locks: change one, and it is
# built anew. One make builds, others wait.
VENV_KEY := $(shell { $(PYTHON) -VV; cat requirements/bootstrap.txt requirements/dev.txt; } 2>&1 | sha256sum | cut -c 1-16)
STAMP := $(VENV)/.stamp-$(VENV_KEY)
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(f"Backplane needs CPython 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}. Name one: make PYTHON=python3.13 …" if sys.version_info < (3, 11) else 0)'
	@flock .venv.lock $(MAKE) --no-print-directory build-venv

.PHONY: build-venv
build-venv:
	@test ! -e $(STAMP) || exit 0; \
	echo "Building $(VENV) (once; about half a minute) …" >&2; \
	rm -rf $(VENV); \
	$(PYTHON) -m venv $(VENV); \
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt; \
	VIRTUAL_ENV=$(VENV) $(VENV)/bin/uv pip install --quiet --compile-bytecode --require-hashes -r requirements/dev.txt; \
	touch $(STAMP)

# ---- the local cloud ----

dev: $(STAMP) ## Run all of it here (PORT=3000; 0 picks a free one); Ctrl-C stops it
	@exec $(PY) -m local.stack --port $(PORT)

demo: $(STAMP) ## See the product work in a minute, on a scratch stack, checked row by row
	@exec $(PY) -m local.demo

# SET goes by the environment, where make has put it: its quotes are JSON's and not the shell's.
send: $(STAMP) ## Send a signed sample event: make send E=events/stripe_webhook.json [SET=path=value,…] [N=10] [FORGE=1] [ID=abc]
	@$(PY) -m local.send "$(E)" --id "$(ID)" --set "$${SET:-}" --times "$(or $(N),1)" $(if $(FORGE),--forge)

# The shell has a USER too, and its person is not Clerk's: only one given here counts.
token: $(STAMP) ## Print a session token: make -s token USER=user_abc [ORG=org_abc] [ROLE=admin] [PLATFORM=admin]
	@$(PY) -m local.token "$(if $(filter command line,$(origin USER)),$(USER))" --org "$(ORG)" --role "$(ROLE)" --platform "$(PLATFORM)"

invoke: $(STAMP) ## Invoke a function by name: make invoke F=health [E=event.json]
	@$(PY) -m local.invoke "$(F)" "$(E)"

audit: $(STAMP) ## Prove every balance of the running stack from its entries
	@$(PY) -m local.invoke ledger_audit

migrate: $(STAMP) ## Apply pending migrations (to the running stack, or DATABASE_URL)
	@$(PY) -m local.database migrate

backup: $(STAMP) ## Back up the running stack's database, with a manifest
	@$(PY) -m local.backups take

backups: $(STAMP) ## List the backups, and which are proven: make backups [FROM=s3://bucket]
	@$(PY) -m local.backups list "$(FROM)"

restore: $(STAMP) ## Restore a backup and compare: make restore FROM=latest TO=copy [REPLACE=1]
	@$(PY) -m local.restore "$(or $(FROM),latest)" "$(TO)" $(if $(REPLACE),--replace)

db-report: $(STAMP) ## Show how the database is, and what to do about it (the running stack's, or DATABASE_URL)
	@$(PY) -m local.db_report

psql: $(STAMP) ## Open psql on the running stack, seeing every row
	@exec $(PY) -m local.database psql

logs: $(STAMP) ## Follow the functions' logs: make logs [F=credits]
	@exec $(PY) -m local.logs "$(F)"

clean-local: $(STAMP) ## Forget the local cloud's data
	@$(PY) -m local.stack --forget

# ---- proof ----

test: $(STAMP) ## Run every test
	@$(PY) -m pytest -n auto --dist loadgroup tests

fuzz: $(STAMP) ## Ask every route at random: make fuzz [N=200] [SEED=…]
	@FUZZ=$(or $(N),200) FUZZ_SEED=$(or $(SEED),$$RANDOM) $(PY) -m pytest -n 2 tests/integration/test_contract.py

bench: $(STAMP) ## Measure, against limits and peers: make bench [B=debit]; writes benchmarks/RESULTS.md
	@$(PY) -m benchmarks $(B)

LINTERS := lint-types lint-template lint-style lint-migrations
lint: $(STAMP) ## Check style, types, the template and the migrations
	@$(MAKE) --no-print-directory --jobs=$$(nproc) --keep-going --output-sync=target $(LINTERS)

.PHONY: $(LINTERS)
lint-style:
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

lint-types: # the longest: it is begun first
	@$(VENV)/bin/mypy layers/backplane layers/pgtools functions/*/*.py local benchmarks tests

lint-template:
	@AWS_DEFAULT_REGION=us-east-1 $(VENV)/bin/sam validate --lint --config-env dev >/dev/null
	@$(VENV)/bin/cfn-lint infra/*.yaml

lint-migrations:
	@for file in functions/migrate/migrations/*.sql; do \
	    alone=$$(grep -q '^-- migrate:up transaction:false' $$file && echo --no-assume-in-transaction || true); \
	    sed '/^-- migrate:down/,$$d' $$file | $(VENV)/bin/squawk $$alone --stdin-filepath $$file --reporter gcc; done

format: $(STAMP) ## Put the code in order
	@$(VENV)/bin/ruff check --fix . ; $(VENV)/bin/ruff format .

openapi: $(STAMP) ## Write docs/openapi.json anew from the routes
	@$(PY) -m local.openapi

LOCK := $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --no-strip-extras --generate-hashes --no-header --no-emit-index-url --no-annotate
lock: $(STAMP) ## Lock the requirements anew: make lock [UPGRADE=--upgrade]
	@$(LOCK) $(UPGRADE) requirements/bootstrap.in -o requirements/bootstrap.txt
	@$(LOCK) $(UPGRADE) requirements/dev.in -o requirements/dev.txt
	@$(LOCK) $(UPGRADE) layers/backplane/requirements.in -c requirements/dev.txt -o layers/backplane/requirements.txt
	@$(LOCK) $(UPGRADE) --no-deps layers/pgtools/requirements.in -c requirements/dev.txt -o layers/pgtools/requirements.txt
